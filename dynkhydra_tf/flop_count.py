"""FLOPs of a Keras layer, counted on the graph that it traces to, whatever the layer is composed of."""

import math

import keras
import tensorflow as tf

# What is none of the counted operations and yet multiplies matrices, or hides what it does.
_UNKNOWN = ("conv", "matmul", "einsum", "rnn", "lstm", "gru", "fft", "pyfunc", "customcall", "xla")
_CALLS = ("PartitionedCall", "StatefulPartitionedCall")
_BRANCHES = ("If", "StatelessIf", "Case", "StatelessCase")
_LOOPS = ("While", "StatelessWhile")


def count_flops(layer: keras.Layer, input_shape: tuple[int, ...]) -> int:
    """Returns the FLOPs of a layer or model for one example: 2 x the multiply-adds of its matrix products.

    These are convolutions, also transposed ones, dense layers, Einsum and products of batches of matrices, as
    in attention; element-wise operations are not counted. Of branches under a condition the dearest counts.

    Args:
        layer: a built Keras layer.
        input_shape: its input's shape without the batch axis.

    Raises:
        ValueError: there is an operation that is not known here, a product of unknown size, or one in a loop.
    """
    traced = tf.function(lambda x: layer(x, training=False)).get_concrete_function(
        tf.TensorSpec((1, *input_shape), tf.float32)
    )
    return _of_graph(traced.graph)


def _of_graph(graph):
    return sum(_of_operation(operation) for operation in graph.get_operations())


def _of_operation(operation):
    kind = operation.type
    if kind in _CALLS:
        return _of_function(operation, operation.get_attr("f"))
    if kind in _BRANCHES:
        names = operation.get_attr("branches") if "Case" in kind else None
        names = names or [operation.get_attr("then_branch"), operation.get_attr("else_branch")]
        return max(_of_function(operation, name) for name in names)
    if kind in _LOOPS:
        if any(_of_function(operation, operation.get_attr(part)) for part in ("cond", "body")):
            raise ValueError(_message(operation, "how often a loop with products runs is not known"))
        return 0
    if kind in _COUNTS:
        count = _COUNTS[kind](operation)
        if count is None:
            raise ValueError(_message(operation, "the shapes must be known but for the batch axis"))
        return 2 * count
    if any(part in kind.lower() for part in _UNKNOWN) or "func" in _attribute_types(operation):
        raise ValueError(_message(operation, "the multiply-adds of this operation are not known here"))
    return 0


def _message(operation, text):
    return f"Cannot count FLOPs: {text}. Received: {operation.type} {operation.name}"


def _attribute_types(operation):
    return {attribute.type for attribute in operation.op_def.attr}


def _of_function(operation, name):
    name = name if isinstance(name, (str, bytes)) else name.name
    name = name.decode() if isinstance(name, bytes) else name
    return _of_graph(operation.graph._get_function(name).graph)


def _product(*shapes):
    """The product of the sizes in some shapes; None where one is not known."""
    sizes = [size for shape in shapes for size in (shape.as_list() if shape.rank is not None else [None])]
    return None if None in sizes else math.prod(sizes)


def _convolution(operation):
    # The kernel's (..., in, out) for each output value; with groups "in" is already a group's.
    return _product(operation.inputs[1].shape[:-1], operation.outputs[0].shape)


def _depthwise(operation):
    return _product(operation.inputs[1].shape[:2], operation.outputs[0].shape)


def _transposed(operation):
    # The kernel is (..., out, in): each input value goes to all its pixels and outputs.
    return _product(operation.inputs[1].shape[:-1], operation.inputs[2].shape)


def _matrix_product(operation):
    transposed = "transpose_a" if operation.type == "MatMul" else "adj_x"
    inner = operation.inputs[0].shape[-2 if operation.get_attr(transposed) else -1 :][:1]
    return _product(inner, operation.outputs[0].shape)


def _einsum(operation):
    """Each combination of the values of all letters is one multiply-add, where two tensors meet."""
    if len(operation.inputs) == 1:
        return 0
    equation = operation.get_attr("equation").decode()
    sizes = {}
    for letters, tensor in zip(equation.split("->")[0].split(","), operation.inputs, strict=True):
        shape = tensor.shape
        if shape.rank is None:
            return None
        before, dots, after = letters.partition("...")
        # Axes under "..." are named by their place from its end, so that those of both inputs meet.
        inner = shape.rank - len(before) - len(after) if dots else 0
        names = [*before, *(f"...{inner - place}" for place in range(inner)), *after]
        for letter, size in zip(names, shape.as_list(), strict=True):
            known = sizes.get(letter, 1)
            sizes[letter] = None if size is None or known is None else max(known, size)
    return None if None in sizes.values() else math.prod(sizes.values())


_COUNTS = {
    "Conv2D": _convolution,
    "Conv3D": _convolution,
    "DepthwiseConv2dNative": _depthwise,
    "Conv2DBackpropInput": _transposed,
    "Conv3DBackpropInputV2": _transposed,
    "MatMul": _matrix_product,
    "BatchMatMul": _matrix_product,
    "BatchMatMulV2": _matrix_product,
    "Einsum": _einsum,
}
