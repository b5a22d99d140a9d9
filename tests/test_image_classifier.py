"""What Hydra and Plain share: on both where their parts in it differ, else on Plain, which traces faster."""

import re

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import losses
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from tests.conftest import ROOT, TinyBackbone

LABELS = [0, 1, 2, 3, 4, 5, 0, 3]


@pytest.fixture
def make_plain():
    """Returns a factory of compiled plain networks, always with the same weights."""

    def make(optimizer="adamw", **settings):
        keras.utils.set_random_seed(0)
        model = Plain(TinyBackbone(), 6, **settings)
        model.compile(optimizer)
        return model

    return make


@pytest.fixture(params=["hydra", "plain"])
def make(request, make_hydra, make_plain):
    """Returns a factory of compiled models of one class or the other, always with the same weights."""

    def make(optimizer="adamw", **settings):
        if request.param == "plain":
            return make_plain(optimizer, **settings)
        model = make_hydra(**settings)
        model.compile(optimizer)
        return model

    return make


def values(model):
    return [weight.numpy() for weight in model.weights]


# === What fit takes ===


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_labels_of_other_types_train_alike(make_plain, batch, dtype):
    images, labels = batch(LABELS)
    one, other = make_plain(), make_plain()
    one.train_on_batch(images, labels)
    other.train_on_batch(images, labels.astype(dtype)[:, None])
    for mine, theirs in zip(values(one), values(other), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_wrong_input_is_refused_in_one_line(make_plain, batch):
    images, labels = batch(LABELS)
    model = make_plain()
    for call in (model.fit, model.evaluate):
        with pytest.raises(ValueError) as error:
            call(images, labels + 1, verbose=0)
        assert str(error.value) == "labels must be whole numbers in 0..5. Received: 6"
    larger = np.zeros((8, 16, 16, 3), np.uint8)
    for call in (
        lambda: model.train_on_batch(larger, labels),
        lambda: model.evaluate(larger, labels, verbose=0),  # the shape is not known when it is traced again
        lambda: model.predict(larger, verbose=0),
        lambda: model(larger),
    ):
        with pytest.raises(ValueError) as error:
            call()
        assert re.fullmatch(r"images must be \(B, 8, 8, 3\). Received: .*16,? 16,? 3\)?", str(error.value))


def test_sample_weights_scale_the_losses(make, batch):
    images, labels = batch([0, 1, 2, 3])
    model = make()
    weights = np.array([2.0, 0.0, 0.5, 1.0])
    single = [
        model.evaluate(images[i : i + 1], labels[i : i + 1], verbose=0, return_dict=True) for i in range(4)
    ]
    weighted = model.evaluate(
        images, labels, sample_weight=weights, batch_size=3, verbose=0, return_dict=True
    )
    name = "ensemble_loss" if "ensemble_loss" in weighted else "loss"
    expected = sum(weight * one[name] for weight, one in zip(weights, single, strict=True)) / 4
    assert weighted[name] == pytest.approx(expected, rel=1e-5)
    # As Keras's `metrics`, top1 is not weighted.
    assert weighted["top1"] == pytest.approx(np.mean([one["top1"] for one in single]))


def test_class_weight_and_a_dict_of_targets_train_as_sample_weight_does(make_plain, batch):
    images, labels = batch(LABELS)
    of_class = {0: 2.0, 1: 0.0, 2: 1.0, 3: 0.5, 4: 3.0, 5: 1.0}
    weights = np.array([of_class[label] for label in LABELS], np.float32)
    unweighted, by_class, by_image, by_dict = (make_plain(keras.optimizers.SGD(0.1)) for _ in range(4))
    unweighted.fit(images, labels, verbose=0)
    by_class.fit(images, labels, class_weight=of_class, verbose=0)
    by_image.fit(images, labels, sample_weight=weights, verbose=0)
    by_dict.fit(images, {"labels": labels, "sample_weight": weights}, verbose=0)
    for model in (by_class, by_dict):
        for mine, theirs in zip(values(model), values(by_image), strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5)
    assert not np.allclose(values(unweighted)[2], values(by_image)[2])


def test_an_empty_batch_changes_nothing(make, batch):
    images, labels = batch(LABELS)
    model = make()
    assert model(images[:0])["logits"].shape == (0, 6)
    assert model.predict_on_batch(images[:0])["logits"].shape == (0, 6)
    batches = tf.data.Dataset.from_generator(
        lambda: iter([(images[:0], labels[:0]), (images, labels), (images[:0], labels[:0])]),
        output_signature=(tf.TensorSpec((None, 8, 8, 3), tf.uint8), tf.TensorSpec((None,), tf.int32)),
    )
    expected = model.evaluate(images, labels, verbose=0, return_dict=True)
    assert model.evaluate(batches, verbose=0, return_dict=True) == pytest.approx(expected, rel=1e-5)
    before = values(model)
    model.train_on_batch(images[:0], labels[:0])
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value)
    model.fit(batches, verbose=0)
    assert model.optimizer.iterations == 1


# === compile ===


def test_what_compile_refuses(make_plain):
    model = make_plain()
    for arguments, message in [
        ({"loss": "mse"}, r"losses are built in.*_weight of .*Received: loss='mse', loss_weights=None"),
        ({"loss_weights": [1]}, r"Received: loss=None, loss_weights=\[1\]"),
        ({"jit_compile": True}, r"leave jit_compile out. Received: jit_compile=True"),
        ({"metrics": {"logits": "accuracy"}}, r"must be lists of metrics.*Received: metrics=\{'logits'"),
    ]:
        with pytest.raises(ValueError, match=message) as error:
            model.compile("adamw", **arguments)
        assert "\n" not in str(error.value)


def test_metrics_given_to_compile_are_reported(make_plain, batch, tmp_path):
    images, labels = batch(LABELS)
    model = make_plain()
    top2 = keras.metrics.SparseTopKCategoricalAccuracy(2, name="top2")
    entropy = keras.metrics.SparseCategoricalCrossentropy(from_logits=True, name="entropy")
    model.compile("adamw", metrics=["accuracy", top2, entropy], weighted_metrics=["acc"])
    history = model.fit(
        images,
        labels,
        sample_weight=np.float32([1] + [0] * 7),
        validation_data=(images, labels),
        epochs=2,
        verbose=0,
    ).history
    for name in ("accuracy", "val_accuracy", "acc", "val_acc", "top2", "val_top2"):
        assert len(history[name]) == 2
    assert history["accuracy"] == history["top1"] and history["val_accuracy"] == history["val_top1"]
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    first = model.evaluate(images, labels, verbose=0, return_dict=True)
    assert again.evaluate(images, labels, verbose=0, return_dict=True) == pytest.approx(first, rel=1e-5)
    assert first["entropy"] == pytest.approx(first["loss"], rel=1e-5)
    alone = model.evaluate(images[:1], labels[:1], verbose=0, return_dict=True)
    assert alone["acc"] == alone["top1"]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            keras.metrics.SparseCategoricalAccuracy(name="top1"),
            r"metrics must have other names than the model's own. Received: top1",
        ),
        (
            "sparse_categorical_crossentropy",
            r"a metric needs from_logits=True. Received: sparse_cat.* without",
        ),
        (keras.metrics.SparseCategoricalCrossentropy(name="ce"), "Received: ce without"),
    ],
)
def test_metrics_that_would_tell_something_else_are_refused(make_plain, batch, metric, message):
    model = make_plain()
    model.compile("adamw", metrics=[metric])
    with pytest.raises(ValueError, match=message):
        model.test_on_batch(*batch(LABELS))


def test_callbacks_know_which_way_is_better(make_plain, batch, tmp_path):
    images, labels = batch(LABELS)
    model = make_plain()
    callbacks = [
        keras.callbacks.EarlyStopping(monitor="val_top1"),
        keras.callbacks.ModelCheckpoint(tmp_path / "best.keras", monitor="val_top1", save_best_only=True),
        keras.callbacks.ReduceLROnPlateau(monitor="top5"),
        keras.callbacks.EarlyStopping(monitor="val_loss"),
    ]
    model.fit(images, labels, validation_data=(images, labels), callbacks=callbacks, verbose=0)
    ops = [callback.monitor_op for callback in callbacks]
    assert ops == [keras.ops.greater] * 3 + [keras.ops.less]


# === Losses by name ===


def confidence(forward, targets):
    """A toy loss that takes a target of its own."""
    return tf.reduce_sum(targets["wanted"] * forward.logits, axis=-1)


def test_a_toy_loss_is_one_entry(make_hydra, batch, monkeypatch, tmp_path):
    images, labels = batch(LABELS)
    monkeypatch.setitem(losses.HYDRA, "toy", losses.Loss(0.0, confidence, needs=("wanted",)))
    off, model = make_hydra(), make_hydra(toy_weight=2.0)
    for each in (off, model):
        each.compile("adamw")
    wanted = np.random.default_rng(0).normal(size=(8, 6)).astype(np.float32)
    targets = {"labels": labels, "wanted": wanted}
    by_hand = np.mean(np.sum(wanted * model(images)["logits"], axis=-1))
    without = off.evaluate(images, labels, verbose=0, return_dict=True)
    result = model.evaluate(images, targets, batch_size=3, verbose=0, return_dict=True)
    assert "toy_loss" not in without and result["toy_loss"] == pytest.approx(by_hand, rel=1e-4)
    assert result["loss"] == pytest.approx(without["loss"] + 2 * by_hand, rel=1e-4)
    values = [model.train_on_batch(images, targets, return_dict=True)["toy_loss"] for _ in range(4)]
    assert values[-1] < values[0]
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert again.get_config()["toy_weight"] == again.loss_terms["toy"].weight == 2
    with pytest.raises(ValueError, match=r"The targets must be labels, wanted, .*Received: labels"):
        model.train_on_batch(images, labels)


def test_label_smoothing_comes_back(make, batch):
    images, labels = map(tf.constant, batch(LABELS))
    model = make(label_smoothing=0.3)
    again = type(model).from_config(model.get_config())
    hard = type(model).from_config({**model.get_config(), "label_smoothing": 0.0})
    values = []
    for each in (model, again, hard):
        each.set_weights(model.get_weights())
        sums, _, _ = each.losses_of(images, {"labels": labels}, training=False)
        values.append(float(next(iter(sums.values())).mean))
    assert values[0] == values[1] != values[2]


def test_losses_are_means_over_the_whole_set(make_hydra, batch):
    images, labels = batch([0, 1, 2, 3, 4, 5, 0, 3, 2, 2, 2])
    model = make_hydra()
    model.compile()
    whole = model.evaluate(images, labels, batch_size=11, verbose=0, return_dict=True)
    parts = model.evaluate(images, labels, batch_size=4, verbose=0, return_dict=True)
    assert parts == pytest.approx(whole, rel=1e-4)


# === Settings that are constants of the traced steps ===


def test_settings_are_read_only(make):
    model = make()
    names = ["mean", "part_dtype", "backbone", "loss_terms", "num_classes"]
    if isinstance(model, Hydra):
        names += ["top_k", "train_tau", "combine", "routing", "cluster_of_class", "num_branches"]
    for name in names:
        before = getattr(model, name)
        with pytest.raises(
            AttributeError, match=f"{name} is fixed when the model is made.*Received: {name}="
        ):
            setattr(model, name, before)
        assert getattr(model, name) is before
    with pytest.raises(TypeError):
        model.loss_terms["ensemble"] = None


# === Freezing, saving ===


def test_a_frozen_model_stays_as_it_is(make_plain, batch):
    model = make_plain()
    model.trainable = False
    model.compile("adamw")
    before = values(model)
    model.fit(*batch(LABELS), verbose=0)
    for weight, value in zip(model.weights, before, strict=True):
        np.testing.assert_array_equal(weight, value, err_msg=weight.path)


def test_freezing_and_the_optimizer_come_back(make, batch, tmp_path):
    images, labels = batch(LABELS)
    model = make()
    part = model.branches if isinstance(model, Hydra) else model.network.layers[0]
    part.trainable = False
    model.compile(keras.optimizers.AdamW(1e-2))
    model.fit(images, labels, epochs=2, verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    assert [v.path for v in again.trainable_variables] == [v.path for v in model.trainable_variables]
    assert again.optimizer.iterations == 2
    model.fit(images, labels, verbose=0)
    again.fit(images, labels, verbose=0)
    for mine, theirs in zip(model.weights, again.weights, strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-4, atol=1e-5, err_msg=mine.path)


def test_an_optimizer_of_before_the_freezing_comes_back_too(make_plain, batch, tmp_path):
    images, labels = batch(LABELS)
    model = make_plain()
    model.fit(images, labels, verbose=0)
    model.network.layers[0].trainable = False
    model.compile(model.optimizer)
    model.fit(images, labels, verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.models.load_model(tmp_path / "m.keras")
    for mine, theirs in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(mine, theirs, err_msg=mine.path)
    assert again.optimizer.iterations == 2


def test_a_model_of_version_0_1_says_nothing_of_freezing(make_plain, monkeypatch):
    config = make_plain().get_config()
    del config["frozen"]
    made = TinyBackbone.plain

    def frozen(self, dtype=None):
        layer = made(self, dtype)
        layer.trainable = False
        return layer

    monkeypatch.setattr(TinyBackbone, "plain", frozen)
    assert not Plain.from_config(config).network.layers[0].trainable  # as the backbone makes it


def test_the_optimizer_of_a_checkpoint_of_version_0_1_goes_on():
    model = keras.models.load_model(ROOT / "tests/made_by_0_1/hydra/checkpoints/step-00000252.keras")
    assert model.optimizer.iterations == 252
    # Iterations (the rate is a schedule), then two moments of each trained variable.
    moments = model.optimizer.variables[1:]
    assert len(moments) == 2 * len(model.trainable_variables) > 0
    assert all(np.abs(moment).max() > 0 for moment in moments)


def test_tensorflows_own_checkpoint_holds_all_weights(make, batch, tmp_path):
    images, _ = batch(LABELS)
    model = make()
    path = tf.train.Checkpoint(model=model).save(tmp_path / "checkpoint")
    expected = model(images)["logits"]
    other = make()
    for weight in other.weights:
        weight.assign(weight * 0.5)
    tf.train.Checkpoint(model=other).restore(path).assert_existing_objects_matched()
    np.testing.assert_array_equal(other(images)["logits"], expected)


def test_keras_export_gives_a_saved_model(make, batch, tmp_path):
    images, _ = batch(LABELS)
    model = make()
    with pytest.raises(ValueError, match=r"export.py knows more. Received: format='onnx'"):
        model.export(tmp_path / "m.onnx", format="onnx")
    model.export(tmp_path / "saved", verbose=False)
    saved = tf.saved_model.load(tmp_path / "saved")
    answer = saved.serve(images.astype(np.float32))
    for name, value in model(images).items():
        np.testing.assert_allclose(np.float32(answer[name]), np.float32(value), rtol=1e-5, atol=1e-6)


def test_every_layer_is_built_and_dense_ones_can_be_quantized(make, batch):
    images, _ = batch(LABELS)
    model = make()
    assert all(layer.built for layer in model._flatten_layers())
    expected = model(images)["logits"]
    model.quantize("int8", filters=lambda layer: isinstance(layer, keras.layers.Dense))
    np.testing.assert_allclose(model(images)["logits"], expected, atol=0.1)
