"""The shortcut of a residual block that halves its maps, as one op of ONNX.

Such a block subsamples its input by a 1x1 average pool and pads it with channels of zeros. ONNX Runtime keeps
maps in blocks of channels, and adds within its convolutions, but has no Pad for such maps: behind one, every
addition, ReLU and change of layout is an op of its own, to the end of the network. A 1x1 convolution with a
kernel of zeros and ones computes the same numbers, and the maps stay as they are.
"""

import numpy as np
import onnx
from onnx import helper, numpy_helper


def as_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Makes a convolution of each subsampling that is followed by channels of zeros; returns the model."""
    graph, inferred = model.graph, onnx.shape_inference.infer_shapes(model).graph
    shapes = {value.name: value.type.tensor_type.shape.dim for value in (*inferred.value_info, *graph.input)}
    constants = {value.name: value for value in graph.initializer}
    makers = {node.output[0]: node for node in graph.node}
    for pad in [node for node in graph.node if node.op_type == "Pad" and node.input[1] in constants]:
        pool, pads = makers.get(pad.input[0]), numpy_helper.to_array(constants[pad.input[1]])
        if pool is None or not (_subsamples(pool) and _adds_zero_channels(pad, pads)):
            continue
        maps = shapes.get(pool.input[0])
        if not maps or sum(pool.output[0] in node.input for node in graph.node) > 1:
            continue
        before, channels, after = int(pads[1]), maps[1].dim_value, int(pads[5])
        kernel = np.eye(before + channels + after, channels, -before, np.float32)[:, :, None, None]
        graph.initializer.append(numpy_helper.from_array(kernel, f"{pad.output[0]}/kernel"))
        made = helper.make_node(
            "Conv",
            [pool.input[0], graph.initializer[-1].name],
            pad.output,
            pad.name,
            kernel_shape=[1, 1],
            strides=_attribute(pool, "strides", [1, 1]),
        )
        graph.node.insert([*graph.node].index(pad), made)
        graph.node.remove(pad)
        graph.node.remove(pool)
        if not any(pad.input[1] in node.input for node in graph.node):
            graph.initializer.remove(constants[pad.input[1]])
    return model


def _subsamples(node):
    return (
        node.op_type == "AveragePool"
        and _attribute(node, "kernel_shape", None) == [1, 1]
        and not any(_attribute(node, "pads", []))
    )


def _adds_zero_channels(node, pads):
    """Whether a Pad of (B, C, H, W) adds channels of zeros and nothing else."""
    others = np.delete(pads, (1, 5))
    zeros = _attribute(node, "mode", b"constant") == b"constant" and not any(node.input[2:])
    return zeros and pads.size == 8 and pads.min() >= 0 and not others.any()


def _attribute(node, name, default):
    found = [helper.get_attribute_value(each) for each in node.attribute if each.name == name]
    return found[0] if found else default
