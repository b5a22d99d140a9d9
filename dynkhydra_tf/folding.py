"""Folding: batch normalisation merged into the convolution or dense layer before it, for inference only.

With its moving statistics a normalisation is a factor and an offset for each channel. The factor goes into
the kernel of the layer before it, and the offset becomes a bias. Which normalisations can go is read off one
trace of the network, so that it does not matter how it is put together: sequential, functional or in layers
of one's own.
"""

import contextlib
import functools
from collections.abc import Callable, Iterable
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dynkhydra_tf.backbones.blocks import BatchNorm

# What can take a factor, and the kernel that it goes into. Exactly these classes: a subclass may compute
# something else.
_KERNELS = {
    keras.layers.Conv2D: "kernel",
    keras.layers.DepthwiseConv2D: "kernel",
    keras.layers.SeparableConv2D: "pointwise_kernel",
    keras.layers.Dense: "kernel",
}
_NORMS = (keras.layers.BatchNormalization, BatchNorm)


class _Call(NamedTuple):
    """One call of a layer within the trace.

    Attributes:
        inputs, outputs: tensors of the trace.
        readers: (int, int), how many operations read the input before the call, and right after it.
    """

    inputs: tf.Tensor
    outputs: tf.Tensor
    readers: tuple[int, int]


class Folding:
    """What can be folded in a network; found once, and applied again whenever other weights were loaded.

    A normalisation over the last axis is folded where it is called once, on the output of a convolution
    (full, depthwise or separable) or dense layer that has no activation and is called once too, and where
    nothing else reads that output. All others stay: those ahead of a convolution, for example.

    Args:
        layer: a built Keras layer or model of one input, channels last. It is traced, not changed.

    Attributes:
        variables: list of `keras.Variable`, those that the folded network reads at inference, sorted by path.
            The random state of a dropout layer, for one, is not among them.

    Raises:
        ValueError: the layer has not been built, or on several inputs.
    """

    def __init__(self, layer: keras.Layer) -> None:
        calls, read = _trace(layer)
        called_once = {part: own[0] for part, own in calls.items() if len(own) == 1}
        made_by = {call.outputs.ref(): part for part, call in called_once.items() if type(part) in _KERNELS}
        self._pairs = []
        for norm, call in called_once.items():
            linear = made_by.get(call.inputs.ref())
            if type(norm) in _NORMS and linear and _can_be_one(linear, norm, call):
                self._pairs.append((linear, norm))
        merged = {id(variable) for pair in self._pairs for variable in _needless(*pair)}
        used = [v for v in layer.variables if id(v.value) in read and id(v) not in merged]
        self.variables = sorted(used, key=lambda variable: variable.path)

    def apply(self) -> None:
        """Folds the weights that the network has now, in place.

        A folded normalisation keeps its variables and becomes one that adds an offset and no more. It is
        computed as just that or, where the layer before it has a bias of its own, not at all.
        """
        for linear, norm in self._pairs:
            _merge(linear, norm)


def fold(layer: keras.Layer) -> list[keras.Variable]:
    """Folds a built layer or model of one input, in place; see `Folding`.

    Returns:
        The variables that it still reads at inference, sorted by path.

    Raises:
        ValueError: the layer has not been built, or on several inputs.
    """
    folding = Folding(layer)
    folding.apply()
    return folding.variables


# === Weights as constants ===


def constants_of(variables: Iterable[keras.Variable]) -> Callable[[], keras.StatelessScope]:
    """Returns what opens a scope in which variables, as they are now, are constants.

    It is asked for before a function is traced: a variable that is read meanwhile is saved with it. It is
    entered in the function that uses the weights: a variable, or a constant of the function outside, would
    come into a tf.cond's function as an input. LiteRT does not find its value there and tf2onnx not even its
    shape.
    """
    values = [(variable, variable.numpy()) for variable in variables]
    return lambda: constants(values)


def constants(values: Iterable[tuple[keras.Variable, np.ndarray]]) -> keras.StatelessScope:
    """Returns a scope in which variables have other values, constants: pairs of a variable and an array."""
    return keras.StatelessScope(state_mapping=[(variable, tf.constant(value)) for variable, value in values])


# === What follows what ===


def _trace(layer):
    """Returns {layer: its calls} of all that may be folded, and the ids of the variables read."""
    shape = getattr(layer, "input_shape", None) or (layer.get_build_config() or {}).get("input_shape")
    if not layer.built or not isinstance(shape, tuple) or isinstance(shape[0], tuple):
        raise ValueError(
            f"A layer must be built, and on one input, to be folded. Received: {layer.name} built on {shape}"
        )
    calls = {}
    with contextlib.ExitStack() as recording:
        for part in layer._flatten_layers():
            if type(part) in _KERNELS or type(part) in _NORMS:
                recording.enter_context(_recorded(part, calls))
        function = tf.function(lambda x: layer(x, training=False), autograph=False)
        graph = function.get_concrete_function(tf.TensorSpec(shape, tf.float32)).graph
    return calls, {id(variable) for variable in graph.variables}


@contextlib.contextmanager
def _recorded(part, calls):
    """A scope in which the calls of a layer are written down."""
    call, is_own = part.call, "call" in vars(part)  # its own, if it has been folded

    def recorded(inputs, *args, **kwargs):
        before = _readers(inputs)
        outputs = call(inputs, *args, **kwargs)
        calls.setdefault(part, []).append(_Call(inputs, outputs, (before, _readers(inputs))))
        return outputs

    part.call = recorded
    try:
        yield
    finally:
        del part.call
        if is_own:
            part.call = call


def _readers(tensor):
    """How many operations of the trace read a tensor of it; 0 of a constant from outside."""
    return len(tensor.consumers()) if tf.is_symbolic_tensor(tensor) else 0


def _can_be_one(linear, norm, call):
    """Whether a normalisation, called on the output of `linear`, can be merged into it."""
    return (
        call.readers == (0, _readers(call.inputs))
        and linear.activation in (None, keras.activations.linear)
        and getattr(linear, "data_format", "channels_last") == "channels_last"
        and norm.axis in (-1, call.inputs.shape.rank - 1)
        and (norm.center or linear.use_bias)  # the offset must lie somewhere
        and isinstance(getattr(linear, _KERNELS[type(linear)]), keras.Variable)  # with LoRA it is a sum
    )


# === Arithmetic ===


def _needless(linear, norm):
    """The variables that are not read any more."""
    return [
        norm.moving_mean,
        norm.moving_variance,
        *([norm.gamma] if norm.scale else []),
        *([norm.beta] if norm.center and linear.use_bias else []),
    ]


def _merge(linear, norm):
    scale = 1 / keras.ops.sqrt(norm.moving_variance + norm.epsilon)
    if norm.scale:
        scale *= norm.gamma
    offset = -norm.moving_mean * scale
    if norm.center:
        offset += norm.beta
    kernel = getattr(linear, _KERNELS[type(linear)])
    # Of a depthwise kernel (h, w, channels, multiplier) the last two axes are the output's channels.
    depthwise = isinstance(linear, keras.layers.DepthwiseConv2D)
    kernel.assign(kernel * keras.ops.reshape(scale, kernel.shape[-2:] if depthwise else [-1]))
    if linear.use_bias:
        linear.bias.assign(linear.bias * scale + offset)
        offset = keras.ops.zeros_like(offset)
    # From here on the normalisation's own variables say what is left of it.
    norm.moving_mean.assign(keras.ops.zeros_like(offset))
    norm.moving_variance.assign(keras.ops.ones_like(offset) - norm.epsilon)
    if norm.scale:
        norm.gamma.assign(keras.ops.ones_like(offset))
    if norm.center:
        norm.beta.assign(offset)
    norm.call = _unchanged if linear.use_bias else functools.partial(_add_beta, norm)


def _unchanged(inputs, training=None, mask=None):
    return inputs


def _add_beta(norm, inputs, training=None, mask=None):
    # No Keras addition: TensorFlow merges bias_add with the layer before and with a ReLU after it.
    return tf.nn.bias_add(inputs, tf.cast(norm.beta.value, inputs.dtype))
