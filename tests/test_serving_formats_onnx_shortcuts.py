"""The shortcut as a convolution: the same numbers, and what is something else stays."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402
from onnx.reference import ReferenceEvaluator  # noqa: E402

from dynkhydra_tf.serving.formats.onnx_shortcuts import as_convolutions  # noqa: E402

MAPS = np.random.default_rng(0).normal(size=(2, 3, 4, 4)).astype(np.float32)


def shortcut(pads, kernel=1, also_pool=False):
    """Maps (B, 3, 4, 4), subsampled by 2, padded; with `also_pool` the subsampled ones are given too."""
    nodes = [
        helper.make_node("Relu", ["maps"], ["positive"]),
        helper.make_node("AveragePool", ["positive"], ["small"], kernel_shape=[kernel] * 2, strides=[2, 2]),
        helper.make_node("Pad", ["small", "pads"], ["wide"]),
        helper.make_node("Relu", ["wide"], ["result"]),
        *([helper.make_node("Neg", ["small"], ["other"])] if also_pool else []),
    ]
    names = ["result", *(["other"] if also_pool else [])]
    graph = helper.make_graph(
        nodes,
        "shortcut",
        [helper.make_tensor_value_info("maps", TensorProto.FLOAT, ["batch", 3, 4, 4])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None] * 4) for name in names],
        [numpy_helper.from_array(np.array(pads), "pads")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)


def answered(model):
    return ReferenceEvaluator(model).run(None, {"maps": MAPS})[0]


def test_it_is_a_convolution_of_zeros_and_ones():
    model = shortcut([0, 1, 0, 0, 0, 2, 0, 0])
    expected = np.zeros((2, 6, 2, 2), np.float32)  # a channel before, three, two behind
    expected[:, 1:4] = np.maximum(MAPS, 0)[:, :, ::2, ::2]
    np.testing.assert_array_equal(answered(model), expected)
    made = as_convolutions(model)
    onnx.checker.check_model(made, full_check=True)
    assert [node.op_type for node in made.graph.node] == ["Relu", "Conv", "Relu"]
    assert [tuple(value.dims) for value in made.graph.initializer] == [(6, 3, 1, 1)]
    np.testing.assert_array_equal(answered(made), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"pads": [0, 1, 1, 0, 0, 1, 0, 0]},  # rows, too
        {"pads": [0, 1, 0, 0, 0, -1, 0, 0]},
        {"pads": [0, 1, 0, 0, 0, 1, 0, 0], "kernel": 2},  # means
        {"pads": [0, 1, 0, 0, 0, 1, 0, 0], "also_pool": True},
    ],
)
def test_what_is_something_else_stays(settings):
    model = shortcut(**settings)
    before = model.SerializeToString()
    assert as_convolutions(model).SerializeToString() == before
