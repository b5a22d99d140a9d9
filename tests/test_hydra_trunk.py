"""A Hydra whose gater shares its trunk: the map in the sum, the gate from classes, and the exit."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import losses
from dynkhydra_tf.accuracy import evaluate, exit_text
from dynkhydra_tf.backbones import DenseNet, ResNet
from dynkhydra_tf.backbones.base import Backbone
from dynkhydra_tf.costs import hydra_costs, inference_flops, plain_costs
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.upcycling import Source
from tests.conftest import TinyBackbone
from tests.test_hydra import reached

LABELS = [0, 1, 2, 3, 4, 5, 0, 3]
# Classes 0 1 | 2 3 | 4 5: the branches have 0.6, 0.1 and 0.3.
PROBABILITIES = [0.5, 0.1, 0.06, 0.04, 0.1, 0.2]


@pytest.fixture
def make(make_hydra):
    return lambda **settings: make_hydra(**{"trunk": True, "combine": "gate_weighted", **settings})


def test_the_map_joins_the_sum_and_the_gate_is_of_classes(make, fix_gate, batch):
    images, _ = batch(LABELS)
    model = make()
    fix_gate(model, PROBABILITIES)
    forward = model.forward(images, 0.0)
    np.testing.assert_allclose(forward.gate, [[0.6, 0.1, 0.3]] * 8, rtol=1e-5)
    assert forward.selected.numpy().tolist() == [[True, False, True]] * 8
    features = model.stem(model.normalize(images))
    # 0.6 / 0.9 and 0.3 / 0.9.
    by_hand = (
        model.gater.layers[0](features)
        + model.branches.branch(0)(features) * (2 / 3)
        + model.branches.branch(2)(features) / 3
    )
    np.testing.assert_allclose(forward.logits, model.combiner(by_hand), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(forward.class_logits, np.log([PROBABILITIES] * 8), rtol=1e-5)


@pytest.mark.parametrize("routing", ["routed", "dense"])
def test_an_exit_selects_nothing_and_answers_by_the_trunk(make, batch, routing):
    images, _ = batch(LABELS)
    model = make(routing=routing)
    whole = model.forward(images, 0.0)
    sure = np.sort(tf.nn.softmax(whole.class_logits).numpy().max(axis=1))
    model.exit_confidence = float(sure[3:5].mean())  # half of the images
    found = model(images, tau=0.0)
    alone = tf.nn.softmax(whole.class_logits).numpy().max(axis=1) >= model.exit_confidence
    assert alone.sum() == 4
    np.testing.assert_array_equal(found["selected"], whole.selected & ~alone[:, np.newaxis])
    expected = np.where(alone[:, np.newaxis], whole.class_logits, whole.logits)
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-5, atol=1e-6)
    # For each image its own, and nowhere at 1.
    each = model(images, exit_confidence=tf.constant([1e-3, 1.0] * 4))["selected"]
    assert tf.reduce_sum(tf.cast(each, tf.int32), axis=1).numpy().astype(bool).tolist() == [False, True] * 4
    model.exit_confidence = 1e-3  # all: no branch is run
    assert not model(images)["selected"].numpy().any()
    np.testing.assert_allclose(model(images)["logits"], whole.class_logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("routing", ["routed", "dense"])
class TestGradientFlow:
    """As without a trunk: its map in the sum must not let L_E through to the gater."""

    def test_ensemble_loss_does_not_reach_the_trunk(self, make, fix_gate, batch, routing):
        model = make(routing=routing)
        fix_gate(model, PROBABILITIES)
        expected = {"stem": "all", "gater": "none", "branches": {0, 2}, "combiner": "all", "heads": set()}
        assert reached(model, "ensemble", *batch(LABELS)) == expected

    def test_gater_loss_reaches_trunk_and_stem(self, make, batch, routing):
        expected = {"stem": "all", "gater": "all", "branches": set(), "combiner": "none", "heads": set()}
        assert reached(make(routing=routing), "gater", *batch(LABELS)) == expected


def test_numbers_by_hand(make, fix_gate, batch):
    images, labels = batch([0, 0, 2, 5])
    model = make(exit_confidence=0.4)
    model.compile()
    fix_gate(model, PROBABILITIES)
    found = model.evaluate(images, labels, verbose=0, return_dict=True)
    # The classes', not the clusters': -ln 0.5 twice, -ln 0.06, -ln 0.2.
    assert found["gater_loss"] == pytest.approx(-np.log(0.5 * 0.5 * 0.06 * 0.2) / 4, rel=1e-5)
    assert found["ensemble_loss"] == pytest.approx(found["gater_loss"], rel=1e-5)
    assert (found["trunk_top1"], found["top1"], found["gater_accuracy"]) == (0.5, 0.5, 0.5)
    assert found["active_branches"] == 0
    # In training all images go on, to branches 0 and 2.
    sums, forward, targets = model.losses_of(images, {"labels": labels}, training=True)
    assert model.numbers(forward, targets)["active_branches"].numpy().tolist() == [2] * 4
    assert losses.total(model.loss_terms, {name: value.mean for name, value in sums.items()}) > 0


@pytest.mark.slow
def test_it_learns_is_saved_and_goes_on(make, batch, tmp_path):
    images, labels = batch(np.arange(48) % 6)
    images = images // 8 + (labels * 40).astype(np.uint8)[:, None, None, None]  # brightness tells the class
    model = make(exit_confidence=0.9)
    model.compile(keras.optimizers.AdamW(3e-2))
    history = model.fit(images, labels, epochs=25, batch_size=48, verbose=0).history
    assert history["trunk_top1"][-1] > 0.8 and history["top1"][-1] > 0.8
    model.exit_confidence = 0.7
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    assert (loaded.trunk, loaded.exit_confidence) == (True, 0.7)
    for one in (loaded, model.for_inference()):
        for name, value in model(images).items():
            np.testing.assert_allclose(one(images)[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    ones = [m.fit(images, labels, verbose=0).history["loss"] for m in (model, loaded)]
    assert ones[0] == pytest.approx(ones[1], rel=1e-4)


def test_mixed_precision(make, batch):
    images, labels = batch(LABELS)
    model = make(part_dtype="mixed_bfloat16")
    model.compile("adamw")
    model.fit(images, labels, verbose=0)
    forward = model.forward(images, 0.0)
    assert forward.trunk.dtype == tf.bfloat16
    assert {t.dtype for t in (forward.gate, forward.class_logits, forward.logits)} == {tf.float32}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"exit_confidence": 0.0}, r"exit_confidence must be in \(0, 1\]. Received: exit_confidence=0.0"),
        ({"exit_confidence": 1.1}, r"exit_confidence must be in \(0, 1\]"),
        (
            {"exit_confidence": 0.5, "trunk": False},
            "needs exit_weight or a trunk. Received: exit_confidence=0.5",
        ),
    ],
)
def test_bad_settings(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)
    if settings.get("trunk", True):
        model = make()
        with pytest.raises(ValueError, match=message):
            model.exit_confidence = settings["exit_confidence"]
        assert model.exit_confidence == 1


def test_a_trunk_of_another_shape(monkeypatch):
    monkeypatch.setattr(TinyBackbone, "trunk", Backbone.trunk)  # the gater's: 5 channels
    with pytest.raises(ValueError, match=r"have their shape, \(2, 2, 6\): .* Received: \(2, 2, 5\)"):
        Hydra(TinyBackbone(), (0, 0, 1), trunk=True, top_k=1)


# === Evaluated, counted, started from a plain network ===


def test_one_pass_knows_every_exit(make, batch):
    images, labels = batch(np.arange(40) % 6)
    model = make(top_k=3, tau=0.3)
    batches = tf.data.Dataset.from_tensor_slices((images, labels)).batch(16)
    sure = tf.nn.softmax(model.forward(images, 0.0).class_logits).numpy().max(axis=1)
    low, high = (float(np.quantile(sure, share)) for share in (0.31, 0.72))
    model.exit_confidence = low
    evaluation = evaluate(model, batches, [0.0, 0.34])
    assert evaluation.exit_confidence == low
    flops = hydra_costs(model)["flops"]
    for t, tau in enumerate(evaluation.taus):
        out = model(images, tau=tau)
        np.testing.assert_array_equal(evaluation.predicted[t], np.argmax(out["logits"], axis=1))
        np.testing.assert_array_equal(evaluation.active[t], np.sum(out["selected"], axis=1))
        np.testing.assert_array_equal(evaluation.used[t], np.sum(out["selected"], axis=0))
        probabilities = tf.nn.softmax(out["logits"]).numpy()
        np.testing.assert_allclose(evaluation.confidence[t], probabilities.max(axis=1), rtol=1e-4)
        own = probabilities[np.arange(40), labels]
        np.testing.assert_allclose(evaluation.loss[t], -np.log(own), rtol=1e-3, atol=1e-5)
        rows = evaluation.exit_table(flops, tau, [high, 1.0])
        assert [row["exit_confidence"] for row in rows] == [low, high, 1]
        for row in rows:
            out = model(images, tau=tau, exit_confidence=row["exit_confidence"])
            active = np.sum(out["selected"], axis=1)
            assert row["top1"] == np.mean(np.argmax(out["logits"], axis=1) == labels)
            assert row["exits"] == np.mean(active == 0)
            assert row["active_branches"] == np.mean(active)
            assert row["flops"] == pytest.approx(
                flops["stem"]
                + flops["gater"]
                + np.mean(active) * flops["branch"]
                + np.mean(active > 0) * flops["combiner"]
            )
    shares = [row["exits"] for row in rows]
    assert shares[0] > shares[1] > shares[2] == 0
    at = evaluation.at(0.3)
    assert (at["exits"], at["images_that_exit"]) == (shares[0], 40 * shares[0])
    assert sum(at["images_by_active_branches"]) == 40 - at["images_that_exit"]
    assert evaluation.tau_table(flops)[1]["flops"] == evaluation.exit_table(flops, 0.3, [])[0]["flops"]
    assert exit_text(rows).splitlines()[0].split() == [
        *("exit", "confidence", "exits", "lambda", "top-1", "top-5", "MFLOPs")
    ]


@pytest.mark.parametrize("backbone", [ResNet(1), pytest.param(DenseNet(1), marks=pytest.mark.slow)])
def test_the_trunks_answer_costs_what_the_plain_network_costs(backbone):
    costs = hydra_costs(Hydra(backbone, (0, 1, 1, 0, 1), top_k=1, trunk=True))
    plain = plain_costs(backbone, 5)
    assert inference_flops(costs["flops"], 0, exits=1) == plain["flops"]
    assert costs["parameters"]["stem"] + costs["parameters"]["gater"] == plain["parameters"]


def test_it_starts_as_the_plain_network():
    backbone = ResNet(1, image_size=8)
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    plain = Plain(backbone, 4)
    model = Hydra(backbone, (0, 1, 1, 2), top_k=2, tau=0.0, combine="gate_weighted", trunk=True)
    Source("plain", plain).start(model)
    forward, expected = model.forward(images, 0.0), plain(images)["logits"]
    np.testing.assert_allclose(forward.class_logits, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(forward.logits, expected, rtol=2e-3, atol=2e-3)
