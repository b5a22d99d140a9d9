"""A shared trunk as it is served: what runs where images exit, in every format."""

import collections
import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.serving.formats import litert, onnx, saved_model
from dynkhydra_tf.serving.formats.single_file import check
from dynkhydra_tf.serving.graph import InferenceGraph
from dynkhydra_tf.serving.native import ModelError, SavedModel
from dynkhydra_tf.serving.signatures import signatures
from tests.conftest import coloured_images, executed_ops, to_serve

IMAGES, _ = coloured_images(np.arange(7) % 6, seed=3)


@pytest.fixture
def model(make_hydra):
    """Its trunk is as sure as the images are different; half of them exit."""
    model = make_hydra(trunk=True, combine="gate_weighted", tau=0.05, top_k=2)
    model.gater.layers[-1].kernel.assign(model.gater.layers[-1].kernel * 3)
    sure = tf.nn.softmax(model.forward(IMAGES, 0.0).class_logits).numpy().max(axis=1)
    model.exit_confidence = float(np.sort(sure)[3:5].mean())
    return model


def traced(graph):
    spec = tf.TensorSpec((None, 8, 8, 3), tf.uint8)
    call = tf.function(lambda images: graph.answer(images, graph.gating(images, 0.05)), autograph=False)
    return call.get_concrete_function(spec)


@pytest.mark.parametrize("unrolled", [False, True])
def test_every_batch_is_as_in_keras(model, unrolled):
    served = traced(InferenceGraph(model, unrolled))
    whole, exited = model(IMAGES), []
    for rows in (*([i] for i in range(7)), [0, 1], list(range(7))):
        answer = served(tf.constant(IMAGES[rows]))
        expected = tf.nn.softmax(whole["logits"]).numpy()[rows]
        np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(answer["gate"], whole["gate"].numpy()[rows], rtol=1e-4, atol=1e-6)
        counts = np.sum(whole["selected"], axis=1)[rows]
        np.testing.assert_array_equal(answer["active_branches"], counts)
        exited += (counts == 0).tolist()
    assert {True, False} == set(exited)


@pytest.mark.parametrize("unrolled", [False, True])
@pytest.mark.parametrize("size", [1, 4])
def test_branches_and_combiner_are_not_run_where_all_exit(model, unrolled, size):
    model.exit_confidence = 1e-3
    images = tf.constant(IMAGES[:size])
    before = traced(InferenceGraph(model, unrolled))(images)
    assert not np.any(before["active_branches"])
    for variable in (*model.branches.stacks, *model.combiner.variables):
        variable.assign(np.full(variable.shape, np.nan))
    after = traced(InferenceGraph(model, unrolled))(images)
    np.testing.assert_array_equal(after["probabilities"], before["probabilities"])
    model.exit_confidence = 1.0
    assert np.isnan(traced(InferenceGraph(model, unrolled))(images)["probabilities"]).all()


def test_the_images_that_exit_go_through_no_combiner(model):
    served = InferenceGraph(model)
    gating = served.gating(tf.constant(IMAGES), 0.05)
    alone = ~np.any(gating.selected, axis=1)
    rows, call = [], served.model.combiner.call

    def count(maps, **options):
        rows.append(len(maps))
        return call(maps, **options)

    served.model.combiner.call = count
    served.classify(gating)
    assert rows == [int((~alone).sum())] and 0 < rows[0] < 7


def convolutions(directory, images, tau, confidence):
    """How many convolutions TensorFlow executes for a request."""
    taus = np.full(len(images), tau, np.float32)
    inputs = {"images": images, "tau": taus, "exit_confidence": np.full_like(taus, confidence)}
    ops = executed_ops(directory, "with_exit_confidence", inputs)
    return sum(count for op, count in ops.items() if op.endswith("Conv2D"))


def test_the_saved_model_runs_the_convolutions_of_what_goes_on(model, fix_gate, tmp_path):
    fix_gate(model, [0.3, 0.3, 0.05, 0.05, 0.15, 0.15])
    saved_model.write_version(to_serve(model), tmp_path)
    one = IMAGES[:1]
    assert convolutions(tmp_path, one, 0.0, 0.2) == 2  # stem and trunk
    assert convolutions(tmp_path, one, 0.5, 1.0) == 2 + 1 + 1  # a branch and the combiner
    assert convolutions(tmp_path, one, 0.0, 1.0) == 2 + 2 + 1
    assert convolutions(tmp_path, IMAGES, 0.0, 0.2) == 2


@pytest.mark.slow
def test_the_saved_model_takes_a_confidence_for_each_image(model, tmp_path):
    saved_model.write_version(to_serve(model), tmp_path)
    # write_version compared all reference requests, the exits among them.
    requests = json.loads((tmp_path / "assets.extra" / "reference.json").read_text())["requests"]
    asked = collections.Counter(request["signature"] for request in requests)
    assert asked["with_exit_confidence"] == 2 and asked["image_bytes_with_exit_confidence"] == 1
    inputs = {"images": IMAGES[:3], "tau": np.float32([0.0, 0.0, 0.9])}
    with SavedModel(tmp_path) as served:
        confidences = np.float32([1e-3, 1, 1])
        answer = served.run({**inputs, "exit_confidence": confidences}, "with_exit_confidence")
        assert answer["active_branches"].tolist() == [0, 2, 1]
        expected = model(IMAGES[:3], tau=inputs["tau"], exit_confidence=confidences)
        np.testing.assert_allclose(
            answer["probabilities"], tf.nn.softmax(expected["logits"]), rtol=1e-4, atol=1e-6
        )
        for values, message in [
            ([0, 1, 1], r"exit_confidence must be in \(0, 1\], not NaN"),
            ([1.5, 1, 1], "exit_confidence must be in"),
            ([1, 1], "exit_confidence must have a value for each image"),
        ]:
            with pytest.raises(ModelError, match=message):
                served.run({**inputs, "exit_confidence": np.float32(values)}, "with_exit_confidence")


def test_without_a_trunk_the_signatures_are_as_before(make_hydra):
    served = signatures(InferenceGraph(make_hydra()), tuple("abcdef"), "stretch", 0.1)
    assert not any("exit" in name for name in served)


@pytest.mark.slow
def test_litert_runs_it(model):
    pytest.importorskip("ai_edge_litert")
    for confidence in (model.exit_confidence, 1e-3, 1.0):
        model.exit_confidence = confidence
        found = check(litert.run(litert.to_litert(model, 0.05)), model, 0.05)
        assert found.max_error < 1e-5 and found.images >= 14


def test_onnx_runs_it_and_skips(model, tmp_path):
    pytest.importorskip("tf2onnx")
    runtime = pytest.importorskip("onnxruntime")

    def executed(content, images):
        options = runtime.SessionOptions()
        options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "profile")
        session = runtime.InferenceSession(content, options)
        session.run(None, {"images": images})
        events = json.loads(pathlib.Path(session.end_profiling()).read_text())
        return sum(event.get("args", {}).get("op_name", "").endswith("Conv") for event in events)

    content = onnx.to_onnx(model, 0.05)
    found = check(onnx.run(content), model, 0.05)
    assert found.max_error < 1e-5 and found.images >= 14
    used = np.sum(model(IMAGES)["selected"], axis=1)
    for image, count in zip(IMAGES, used, strict=True):
        assert executed(content, image[None]) == (2 + count + 1 if count else 2)
