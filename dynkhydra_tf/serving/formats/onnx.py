"""ONNX: model.onnx, for ONNX Runtime. Inputs and outputs: see `single_file`."""

import os
from collections.abc import Callable

import keras
import tensorflow as tf

from dynkhydra_tf.gating import combination_weights
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving.formats import onnx_int8, single_file
from dynkhydra_tf.serving.graph import InferenceGraph
from dynkhydra_tf.serving.served_model import ServedModel

FILE = "model.onnx"
OPTIONS = ("quantize",)

_OPSET = 16  # the first in which ScatterND can add, and so runs in the oldest runtimes


def check_installed() -> None:
    """Raises UserError where a package for the conversion is missing."""
    for package in ("onnx", "tf2onnx"):
        single_file.installed(package, "onnx")


def convert(served: ServedModel, directory: str | os.PathLike) -> str:
    """Writes model.onnx, see `formats`; int8 must be as right as float32, see `single_file`."""
    served.check_options("onnx", OPTIONS)
    content = to_onnx(served.model, served.tau)
    verdict = single_file.verify(served, "ONNX Runtime", lambda: run(content))
    if served.quantize:
        exact, content = content, onnx_int8.quantized(content, served.samples.calibration)
        verdict = single_file.verify_accuracy(served.samples, run(exact), run(content))
    return single_file.write(served, directory, FILE, content, "ONNX Runtime", verdict)


def load(directory: str | os.PathLike, threads: int | None = None) -> Callable:
    """Loads what `convert` wrote, see `formats`."""
    return run(single_file.read(directory, FILE), threads)


def to_onnx(model: Hydra | Plain, tau: float | None) -> bytes:
    """Converts a model to ONNX, in float32.

    Args:
        model: `Hydra` or `Plain`.
        tau: float in [0, 1), the threshold, a constant in the file; None for a plain network.

    Raises:
        UserError: a package is not installed.
    """
    check_installed()
    if isinstance(model, Hydra):
        return _content(_hydra(model, tau))
    return function_to_onnx(single_file.without_variables(model, None))


def function_to_onnx(function: tf.types.experimental.PolymorphicFunction) -> bytes:
    """Converts a `tf.function` without variables whose inputs and outputs have B first."""
    return _content(_converted(function))


def _content(converted):
    """The bytes of a model, checked."""
    import onnx

    for value in (*converted.graph.input, *converted.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"
    # tf2onnx logs what it cannot convert and leaves it in.
    onnx.checker.check_model(converted, full_check=True)
    return converted.SerializeToString()


def _hydra(model, tau):
    """The model of a Hydra: its parts are converted, and then joined."""
    from dynkhydra_tf.serving.formats import onnx_graph

    graph = InferenceGraph(model, unrolled=True)
    model = graph.model
    body, variables, values = graph.branches.template
    shape = model.backbone.input_shape

    def head(images):
        gating = graph.gating(images, tau)
        probability, branch, kept = gating.ranking
        outputs = {"features": gating.features, "gate": gating.gate, "branch": branch}
        outputs |= {"active_branches": gating.active_branches}
        outputs["weight"] = combination_weights(probability, kept, model.combine)
        of_exit = {"trunk": gating.trunk, "class_probabilities": gating.class_probabilities}
        return outputs | {name: value for name, value in of_exit.items() if value is not None}

    def branch(features, *weights):
        with keras.StatelessScope(state_mapping=list(zip(variables, weights, strict=True))):
            return {onnx_graph.PROJECTION: body(features)}

    def tail(combined):
        return {"probabilities": graph.combine(combined)}

    def spec(shape, name, dtype=tf.float32):
        return tf.TensorSpec(shape, dtype, name=name)

    projection_shape = model.branches.projection_shape
    features = spec(model.branches.features_shape, onnx_graph.FEATURES)
    weights = [spec(v.shape, onnx_graph.weight_name(i)) for i, v in enumerate(variables)]
    maps = ["features", *(["trunk"] if model.trunk else [])]
    return onnx_graph.join(
        _converted(_function(head, spec((None, *shape), "images", tf.uint8)), outputs_as_nchw=maps),
        _converted(
            _function(branch, features, *weights),
            inputs_as_nchw=[onnx_graph.FEATURES],
            outputs_as_nchw=[onnx_graph.PROJECTION],
        ),
        _converted(
            _function(tail, spec((None, *projection_shape), onnx_graph.COMBINED)),
            inputs_as_nchw=[onnx_graph.COMBINED],
        ),
        values,
        projection_shape,
        weighted=model.combine != "sum",
    )


def _function(call, *inputs):
    return tf.function(call, input_signature=inputs, autograph=False)


def _converted(function, **layout):
    import tf2onnx

    from dynkhydra_tf.serving.formats import onnx_shortcuts

    signature = function.input_signature
    converted, _ = tf2onnx.convert.from_function(function, signature, opset=_OPSET, **layout)
    return onnx_shortcuts.as_convolutions(converted)


def run(content: bytes, threads: int | None = None) -> Callable:
    """Loads a model into ONNX Runtime; returns a function as `load` does.

    Raises:
        UserError: ONNX Runtime is not installed.
    """
    runtime = single_file.installed("onnxruntime", "onnx")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    session = runtime.InferenceSession(content, options)
    names = [output.name for output in session.get_outputs()]
    return lambda images: dict(zip(names, session.run(names, {"images": images}), strict=True))
