"""int8 for ONNX: a file made by hand, a Hydra's branches, and the guard."""

import numpy as np
import pytest

from dynkhydra_tf.errors import UserError
from dynkhydra_tf.serving.formats import onnx_int8, single_file
from dynkhydra_tf.serving.formats.onnx import convert, run, to_onnx
from dynkhydra_tf.serving.samples import Samples
from tests.conftest import to_serve

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
helper = onnx.helper


def constant(name, values, dtype=np.float32):
    return onnx.numpy_helper.from_array(np.asarray(values, dtype), name)


def declared(name, shape, kind=onnx.TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def body(node, output, *constants):
    return helper.make_graph([node] if node else [], "body", [], [declared(output, None)], [*constants])


def by_hand():
    """Images (B,2,2,3) -> mean > 127: a 1x1 convolution that adds the channels, else one that never runs."""
    nodes = [
        helper.make_node("Cast", ["images"], ["wide"], "cast", to=onnx.TensorProto.FLOAT),
        helper.make_node("Transpose", ["wide"], ["maps"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Size", ["images"], ["count"], "size"),
        helper.make_node("Greater", ["count", "none"], ["some"], "greater"),
        helper.make_node(
            "If",
            ["some"],
            ["sums"],
            "choice",
            then_branch=body(helper.make_node("Conv", ["maps", "filter"], ["added"], "add"), "added"),
            else_branch=body(
                helper.make_node("Conv", ["maps", "other"], ["never"], "never"),
                "never",
                constant("other", np.full((1, 3, 1, 1), 7)),
            ),
        ),
    ]
    constants = [constant("filter", np.float32([1, 2, 3]).reshape(1, 3, 1, 1)), constant("none", 0, np.int64)]
    images = declared("images", ["batch", 2, 2, 3], onnx.TensorProto.UINT8)
    sums = declared("sums", ["batch", 1, 2, 2])
    graph = helper.make_graph(nodes, "by_hand", [images], [sums], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def doubling(turns):
    """Images (B,2,2,3) -> the sum of their channels, doubled in each turn of a Loop by a 1x1 convolution."""
    turn = helper.make_graph(
        [
            helper.make_node("Conv", ["sums", "two"], ["doubled"], "double"),
            helper.make_node("Identity", ["goes_on"], ["still"], "still"),
        ],
        "turn",
        [
            declared("number", [], onnx.TensorProto.INT64),
            declared("goes_on", [], onnx.TensorProto.BOOL),
            declared("sums", ["batch", 1, 2, 2]),
        ],
        [declared("still", [], onnx.TensorProto.BOOL), declared("doubled", ["batch", 1, 2, 2])],
    )
    nodes = [
        helper.make_node("Cast", ["images"], ["wide"], "cast", to=onnx.TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["wide", "channels"], ["sum"], "sum", keepdims=1),
        helper.make_node("Transpose", ["sum"], ["maps"], "transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Loop", ["turns", "", "maps"], ["result"], "loop", body=turn),
    ]
    constants = [
        constant("two", np.full((1, 1, 1, 1), 2)),
        constant("channels", [3], np.int64),
        constant("turns", turns, np.int64),
    ]
    images = declared("images", ["batch", 2, 2, 3], onnx.TensorProto.UINT8)
    graph = helper.make_graph(
        nodes, "doubling", [images], [declared("result", ["batch", 1, 2, 2])], constants
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 16)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString()


def ops_in(graph):
    return [node.op_type for node in graph.node]


def bodies_of(content):
    """{(node, body): ops}."""
    graph = onnx.load_from_string(content).graph
    return {
        (node.name, attribute.name): ops_in(attribute.g)
        for node in graph.node
        for attribute in node.attribute
        if attribute.HasField("g")
    }


def test_a_convolution_in_an_if_is_quantised_by_the_values_that_reach_it():
    images = np.random.default_rng(0).integers(0, 256, (40, 2, 2, 3)).astype(np.uint8)
    content = onnx_int8.quantized(by_hand(), images)
    bodies = bodies_of(content)
    # Weights, what comes in, what comes out; the body that no image ran is as it was.
    assert bodies["choice", "then_branch"].count("DequantizeLinear") == 3
    assert bodies["choice", "else_branch"] == ["Conv"]
    found = run(content)(images)["sums"]
    expected = images.astype(int) @ [1, 2, 3]
    # Sums reach 6 * 255, in 255 steps of 6; weights are within 1 % of theirs.
    np.testing.assert_allclose(found[:, 0], expected, atol=18)
    assert np.abs(found[:, 0] - expected).max() > 0.5, "in whole numbers it cannot be exact"


def test_a_convolution_in_a_loop_is_quantised_by_what_reaches_it_in_every_turn():
    images = np.random.default_rng(0).integers(0, 256, (40, 2, 2, 3)).astype(np.uint8)
    content = onnx_int8.quantized(doubling(3), images)
    assert bodies_of(content)["loop", "body"].count("DequantizeLinear") == 3
    found, expected = run(content)(images)["result"][:, 0], images.astype(int).sum(axis=3) * 8
    # What comes in reaches 4 * 765, in 255 steps of 12, what goes out 8 * 765, in steps of 24: a turn doubles
    # the error before it and half a step, and adds half a step; the first turn's ranges would end at 1530.
    np.testing.assert_allclose(found, expected, atol=168)
    assert expected.max() > 4000 and np.abs(found - expected).max() > 0.5
    # No turn, no range: it stays as it was.
    assert bodies_of(onnx_int8.quantized(doubling(0), images))["loop", "body"] == ["Conv", "Identity"]


@pytest.mark.parametrize("trunk", [False, True])
def test_every_branch_of_a_hydra_is_quantised(make_hydra, batch, trunk):
    pytest.importorskip("tf2onnx")
    model = make_hydra(trunk=trunk, branch_weight=0.0) if trunk else make_hydra()
    images, _ = batch(np.zeros(64))
    exact = to_onnx(model, 0.0)
    content = onnx_int8.quantized(exact, images)

    def convolutions(graph, quantised_only=False):
        makers = {name: node.op_type for node in graph.node for name in node.output}
        own = [
            node
            for node in graph.node
            if node.op_type == "Conv"
            and not (quantised_only and makers.get(node.input[1]) != "DequantizeLinear")
        ]
        inner = (attribute.g for node in graph.node for attribute in node.attribute)
        return len(own) + sum(convolutions(each, quantised_only) for each in inner)

    graphs = [onnx.load_from_string(each).graph for each in (exact, content)]
    assert (
        convolutions(graphs[0]) == convolutions(graphs[1]) == convolutions(graphs[1], quantised_only=True) > 5
    )
    before, after = run(exact)(images), run(content)(images)
    np.testing.assert_allclose(after["probabilities"], before["probabilities"], atol=0.1)
    assert np.abs(after["probabilities"] - before["probabilities"]).max() > 0


def test_what_is_less_often_right_is_refused_and_nothing_is_left(make_hydra, tmp_path, monkeypatch, batch):
    pytest.importorskip("tf2onnx")
    images, _ = batch(np.zeros(300))
    model = make_hydra()
    answers = run(to_onnx(model, 0.08))(images)
    first, second = np.sort(answers["probabilities"], axis=1)[:, :-3:-1].T
    sure = np.argsort(second - first)[:100]
    images, labels = images[sure], answers["class_id"][sure]
    samples = Samples(images[:32], images, labels, "validation images")
    served = to_serve(model, quantize="int8", samples=samples)
    told = convert(served, tmp_path / "good")
    assert "% of 100 validation images, in float32 100.00 %" in told
    assert sorted(path.name for path in (tmp_path / "good").iterdir()) == [
        "labels.txt",
        "model.onnx",
        "model_card.md",
    ]
    # An export whose convolutions are wrong, as one is that was calibrated on something else.
    monkeypatch.setattr(onnx_int8, "quantized", lambda content, images: to_onnx(make_hydra(seed=1), 0.08))
    with pytest.raises(
        UserError, match=r"loses too much: top-1 [\d.]+ % of 100 .* Export it without --quantize"
    ):
        convert(served, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_a_point_less_may_be_lost_and_no_more():
    labels = np.zeros(200, np.int32)
    samples = Samples(None, np.zeros((200, 1)), labels, "images")

    def right_but(wrong):
        classes = np.arange(200) < wrong
        rows = iter(classes.reshape(4, 50))
        return lambda images: {"class_id": next(rows)}

    assert single_file.verify_accuracy(samples, right_but(0), right_but(2)).startswith("top-1 99.00 % of 200")
    with pytest.raises(UserError, match=r"top-1 98\.50 % of 200 images, in float32 100\.00 %"):
        single_file.verify_accuracy(samples, right_but(0), right_but(3))


def test_each_format_has_quantisations_of_its_own(make_hydra):
    for format, quantize in (("onnx", "float16"), ("litert", "int8")):
        with pytest.raises(
            UserError, match=rf"quantize of {format} must be one of .* Received: quantize='{quantize}'"
        ):
            to_serve(make_hydra(), quantize=quantize).check_options(format, ("quantize",))
