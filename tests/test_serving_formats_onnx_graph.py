"""The joined graph of a Hydra: what is in it, once, whatever the number of branches."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.serving.formats import single_file
from dynkhydra_tf.serving.formats.onnx import run, to_onnx
from tests.conftest import TinyBackbone

onnx = pytest.importorskip("onnx")
pytest.importorskip("tf2onnx")


def many(num_branches, **settings):
    keras.utils.set_random_seed(0)
    return Hydra(
        TinyBackbone(),
        range(num_branches),
        top_k=min(4, num_branches),
        tau=0.0,
        branch_weight=0.0,
        **settings,
    )


def nodes_of(graph):
    """All nodes of a graph and of the graphs within it."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from nodes_of(attribute.g)


def counts(model):
    graph = onnx.load_from_string(to_onnx(model, 0.0)).graph
    return collections.Counter(node.op_type for node in nodes_of(graph))


def test_a_branch_more_is_its_own_nodes_and_one_condition():
    few, more = counts(many(5)), counts(many(6))
    assert few["Loop"] == more["Loop"] == 1
    # TinyBackbone's branch is a convolution and a ReLU.
    assert more - few == {"Conv": 1, "Relu": 1, "If": 1, "Less": 1}
    assert few["Conv"] == 3 + 5 and few["If"] == 4


def test_converters_work_does_not_grow_with_the_branches(monkeypatch):
    import tf2onnx

    converted, convert = [], tf2onnx.convert.from_function

    def count(*arguments, **options):
        result = convert(*arguments, **options)
        converted.append(len(result[0].graph.node))
        return result

    monkeypatch.setattr(tf2onnx.convert, "from_function", count)
    to_onnx(many(4), 0.0)
    few = converted.copy()
    converted.clear()
    model = many(100)
    content = to_onnx(model, 0.0)
    assert converted == few and len(few) == 3
    # The names and nodes of a branch beside its weights.
    assert len(content) < 1.1 * 4 * model.count_params() + 100 * 1500


@pytest.mark.parametrize(
    ("num_branches", "combine", "taus"),
    [
        (3, "sum", (0.0, 0.4, 0.9)),
        (5, "gate_weighted", (0.0, 0.3)),
        pytest.param(100, "gate_weighted", (0.0,), marks=pytest.mark.slow),
    ],
)
def test_any_number_of_branches_answers_as_keras(num_branches, combine, taus):
    pytest.importorskip("onnxruntime")
    model = many(num_branches, combine=combine)
    dense = model.gater.layers[-1]
    dense.kernel.assign(dense.kernel * 3)
    for tau in taus:
        answer = run(to_onnx(model, tau))
        for num_images in (1, 3, 64):
            found = single_file.check(answer, model, tau, num_images)
            assert found.max_error < 1e-5 and found.images >= num_images - 2, (tau, num_images)


@pytest.mark.parametrize("trunk", [False, True])
def test_an_exit_at_the_stem_answers_as_in_keras(trunk):
    pytest.importorskip("onnxruntime")
    model = many(5, exit_weight=1.0, trunk=trunk, combine="gate_weighted")
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
    sure = tf.nn.softmax(model.forward(images, 0.0).exit_logits).numpy().max(axis=1)
    model.exit_confidence = float(np.sort(sure)[31:33].mean())
    expected, answer = model(images, tau=0.2), run(to_onnx(model, 0.2))
    alone = ~np.any(expected["selected"], axis=1)
    assert alone.sum() == 32
    some, none = np.flatnonzero(~alone)[:1], np.flatnonzero(alone)[:3]
    for rows in (some, none[:1], none, np.append(none, some), np.arange(64)):
        found = answer(images[rows])
        probabilities = tf.nn.softmax(expected["logits"]).numpy()[rows]
        np.testing.assert_allclose(found["probabilities"], probabilities, atol=1e-5)
        np.testing.assert_array_equal(found["class_id"], probabilities.argmax(axis=1))
        np.testing.assert_allclose(found["gate"], expected["gate"].numpy()[rows], atol=1e-5)
        counts = np.sum(expected["selected"], axis=1)[rows]
        np.testing.assert_array_equal(found["active_branches"], counts)


def test_weights_that_no_image_needs_do_not_show():
    pytest.importorskip("onnxruntime")
    model = many(5)
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 3), np.uint8)
    used = np.any(model(images, tau=0.3)["selected"], axis=0)
    sound = run(to_onnx(model, 0.3))(images)["probabilities"]
    for stack in model.branches.stacks:
        stack.assign(tf.where(tf.reshape(used, [-1] + [1] * (stack.shape.rank - 1)), stack, np.nan))
    assert not used.all()
    np.testing.assert_array_equal(run(to_onnx(model, 0.3))(images)["probabilities"], sound)
