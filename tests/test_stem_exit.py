"""A classifier on the stem's map: what it learns, the images that exit at it, what is run for the others."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.accuracy import evaluate
from dynkhydra_tf.costs import hydra_costs
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.model_parts import make_exit
from dynkhydra_tf.serving.formats import litert, onnx, saved_model
from dynkhydra_tf.serving.formats.single_file import check
from dynkhydra_tf.serving.graph import InferenceGraph
from dynkhydra_tf.upcycling import Source
from tests.conftest import TinyBackbone, coloured_images, to_serve
from tests.test_hydra import reached
from tests.test_serving_trunk import convolutions, traced

IMAGES, _ = coloured_images(np.arange(7) % 6, seed=3)
LABELS = np.array([0, 1, 2, 3, 4, 5, 0])


@pytest.fixture(params=[False, True], ids=["gater", "trunk"])
def model(make_hydra, request):
    """Its classifier is as sure as the images are different; three of seven exit."""
    model = make_hydra(exit_weight=1.0, trunk=request.param, tau=0.05)
    model.exit.layers[-1].kernel.assign(model.exit.layers[-1].kernel * 3)
    sure = np.sort(tf.nn.softmax(model.forward(IMAGES, 0.0).exit_logits).numpy().max(axis=1))
    model.exit_confidence = float(sure[3:5].mean())
    return model


@pytest.mark.parametrize(("size", "fields"), [(8, 4), (16, 4), (6, 3), (7, 4), (3, 3), (56, 4)])
def test_it_sees_means_of_fields(size, fields):
    layer = make_exit((size, size, 2), 5)
    layer.build((None, size, size, 2))
    assert layer.layers[-1].kernel.shape == (fields * fields * 2, 5)
    assert layer(tf.ones((1, size, size, 2), tf.bfloat16)).dtype == tf.float32


def test_an_exit_selects_nothing_and_answers_by_the_stem(model):
    whole, found = model.forward(IMAGES, 0.05), model(IMAGES)
    alone = tf.nn.softmax(whole.exit_logits).numpy().max(axis=1, keepdims=True) >= model.exit_confidence
    assert alone.sum() == 3
    np.testing.assert_array_equal(found["selected"], whole.selected & ~alone)
    np.testing.assert_array_equal(found["gate"], np.where(alone, 0, whole.gate))
    np.testing.assert_allclose(found["logits"], np.where(alone, whole.exit_logits, whole.logits), rtol=1e-5)


def test_its_loss_reaches_nothing_else_and_nothing_else_reaches_it(model):
    expected = {"stem": "none", "gater": "none", "branches": set(), "combiner": "none", "heads": set()}
    assert reached(model, "exit", IMAGES, LABELS) == expected
    with tf.GradientTape(persistent=True) as tape:
        sums, *_ = model.losses_of(IMAGES, {"labels": LABELS}, training=True)
        own = sums.pop("exit").mean
        others = tf.add_n([value.mean for value in sums.values()])
    variables = [variable.value for variable in model.exit.trainable_variables]
    assert all(np.any(gradient) for gradient in tape.gradient(own, variables))
    assert not any(np.any(gradient) for gradient in tape.gradient(others, variables))


def test_it_learns_and_is_saved(make_hydra, batch, tmp_path):
    images, labels = batch(np.arange(48) % 6)
    images = images // 8 + (labels * 40).astype(np.uint8)[:, None, None, None]  # brightness tells the class
    model = make_hydra(exit_weight=1.0, exit_confidence=0.6, part_dtype="mixed_bfloat16")
    model.compile(keras.optimizers.AdamW(3e-2))
    history = model.fit(images, labels, epochs=25, batch_size=48, verbose=0).history
    assert history["exit_loss"][-1] < history["exit_loss"][0] / 2 and history["stem_top1"][-1] > 0.6
    found = model.evaluate(images, labels, verbose=0, return_dict=True)
    # Of the images that exit, too: what the gater would have said.
    gate = np.argmax(model(images, exit_confidence=1.0)["gate"], axis=1)
    assert found["gater_accuracy"] == pytest.approx(np.mean(gate == labels // 2), abs=0.05)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    for name, value in model(images).items():
        np.testing.assert_allclose(loaded(images)[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    again = Hydra(TinyBackbone(), (0, 0, 1, 1, 2, 2), top_k=2, exit_weight=1.0)
    Source("run", loaded).start(again)
    expected = loaded.for_inference()(images, exit_confidence=1.0)["logits"]
    np.testing.assert_allclose(again(images)["logits"], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(again.exit.layers[-1].kernel, loaded.exit.layers[-1].kernel)


def test_a_hydra_without_one_starts_one_with_it(make_hydra):
    old, new = make_hydra(), make_hydra(exit_weight=1.0, seed=1)
    Source("run", old).start(new)
    np.testing.assert_allclose(new(IMAGES)["logits"], old(IMAGES)["logits"], rtol=1e-5, atol=1e-6)


def test_one_pass_knows_every_exit(model):
    batches = tf.data.Dataset.from_tensor_slices((IMAGES, LABELS)).batch(4)
    evaluation, flops = evaluate(model, batches, [0.0]), hydra_costs(model)["flops"]
    assert flops["exit"] == 2 * model.exit.layers[-1].kernel.shape[0] * 6
    for row in evaluation.exit_table(flops, 0.0, [1.0]):
        out = model(IMAGES, tau=0.0, exit_confidence=row["exit_confidence"])
        active = np.sum(out["selected"], axis=1)
        assert row["exits"] == np.mean(active == 0) and row["active_branches"] == np.mean(active)
        assert row["top1"] == np.mean(np.argmax(out["logits"], axis=1) == LABELS)
        rest = np.mean(active > 0) * (flops["gater"] + flops["combiner"])
        each = np.mean(active) * flops["branch"]
        assert row["flops"] == pytest.approx(flops["stem"] + flops["exit"] + rest + each)
    stem = np.argmax(model.forward(IMAGES, 0.0).exit_logits, axis=1)
    assert evaluation.at(0.0)["stem_top1"] == pytest.approx(np.mean(stem == LABELS))


# === As it is served ===


@pytest.mark.parametrize("unrolled", [False, True])
def test_every_batch_is_as_in_keras(model, unrolled):
    served, whole = traced(InferenceGraph(model, unrolled)), model(IMAGES)
    counts = np.sum(whole["selected"], axis=1)
    alone = np.flatnonzero(counts == 0).tolist()
    assert len(alone) == 3
    for rows in (*([i] for i in range(7)), alone, list(range(7))):
        answer = served(tf.constant(IMAGES[rows]))
        expected = tf.nn.softmax(whole["logits"]).numpy()[rows]
        np.testing.assert_allclose(answer["probabilities"], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(answer["gate"], whole["gate"].numpy()[rows], rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(answer["active_branches"], counts[rows])


def test_the_images_that_exit_go_through_no_gater(model):
    served = InferenceGraph(model)
    gater, rows = served.model.gater.layers[0] if model.trunk else served.model.gater, []
    call = gater.call

    def count(maps, **options):
        rows.append(len(maps))
        return call(maps, **options)

    gater.call = count
    served.gating(tf.constant(IMAGES), 0.05)
    served.gating(tf.constant(IMAGES), 0.05, exit_confidence=1e-3)
    assert rows == [4]


def test_the_saved_model_runs_the_convolutions_of_what_goes_on(make_hydra, fix_gate, tmp_path):
    model = make_hydra(exit_weight=1.0, tau=0.05, exit_confidence=0.9)
    fix_gate(model, [0.6, 0.1, 0.3])
    saved_model.write_version(to_serve(model), tmp_path)  # compares all reference requests, exits among them
    one = IMAGES[:1]
    assert convolutions(tmp_path, one, 0.0, 1e-3) == 1  # the stem
    assert convolutions(tmp_path, one, 0.5, 1.0) == 1 + 1 + 1 + 1  # gater, branch, combiner
    assert convolutions(tmp_path, one, 0.0, 1.0) == 1 + 1 + 2 + 1
    assert convolutions(tmp_path, IMAGES, 0.0, 1e-3) == 1


@pytest.mark.slow
@pytest.mark.parametrize("format", ["litert", "onnx"])
def test_other_formats_run_it(model, format):
    pytest.importorskip({"litert": "ai_edge_litert", "onnx": "tf2onnx"}[format])
    for confidence in (model.exit_confidence, 1e-3, 1.0):
        model.exit_confidence = confidence
        run = (
            litert.run(litert.to_litert(model, 0.05))
            if format == "litert"
            else onnx.run(onnx.to_onnx(model, 0.05))
        )
        found = check(run, model, 0.05)
        assert found.max_error < 1e-5 and found.images >= 14
