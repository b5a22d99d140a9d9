import keras
import numpy as np
import pytest

from dynkhydra_tf.plain import Plain
from tests.conftest import TinyBackbone

LABELS = [0, 1, 2, 3, 4, 5, 0, 3]


@pytest.fixture
def make():
    def make(**settings):
        keras.utils.set_random_seed(0)
        return Plain(TinyBackbone(), 6, **settings)

    return make


def blind(model):
    """Makes all logits 0."""
    dense = model.network.layers[-1]
    dense.set_weights([np.zeros_like(weight) for weight in dense.get_weights()])


def test_call_normalises_and_returns_float32_logits(make, batch):
    images, _ = batch(LABELS)
    model = make(mean=(10, 20, 30), std=(2, 4, 8))
    expected = model.network((images.astype(np.float32) - [10, 20, 30]) / [2, 4, 8])
    out = model(images)
    assert list(out) == ["logits"] and out["logits"].shape == (8, 6) and out["logits"].dtype == "float32"
    np.testing.assert_allclose(out["logits"], expected, rtol=1e-5, atol=1e-6)


def test_metrics_by_hand(make, batch):
    images, _ = batch(LABELS)
    model = make()
    dense = model.network.layers[-1]
    dense.set_weights([np.zeros_like(dense.kernel), np.log([4, 3, 2, 1, 0.5, 0.25])])
    model.compile("adamw")
    # Batches of 3, 3 and 2. Class 0 comes first, class 5 last; the odds sum to 10.75.
    results = model.evaluate(images, np.array(LABELS), batch_size=3, verbose=0, return_dict=True)
    odds = np.array([4, 3, 2, 1, 0.5, 0.25])[LABELS] / 10.75
    assert results == pytest.approx({"loss": -np.log(odds).mean(), "top1": 2 / 8, "top5": 7 / 8})


def test_fit_learns_the_batch(make, batch):
    images, labels = batch(LABELS)
    model = make()
    model.compile(keras.optimizers.AdamW(1e-2))
    history = model.fit(images, labels, epochs=40, verbose=0, validation_data=(images, labels)).history
    assert history["loss"][0] > 1.5 and history["loss"][-1] < 0.5 and history["top1"][-1] == 1
    # What training's callbacks and figures read, and Hydra reports too.
    assert {"loss", "top1", "top5", "val_loss", "val_top1"} <= set(history)


def test_one_step_is_the_gradient_of_the_cross_entropy(make, batch):
    images, labels = batch([2, 2, 2, 2])
    model = make()
    blind(model)
    model.compile(keras.optimizers.SGD(1.0))
    model.train_on_batch(images, labels)
    # All classes at 1/6: the bias moves by 1 - 1/6 for class 2 and by -1/6 for the others.
    np.testing.assert_allclose(
        model.network.layers[-1].bias, [-1 / 6, -1 / 6, 5 / 6, -1 / 6, -1 / 6, -1 / 6], rtol=1e-5
    )


def test_saved_and_loaded_it_trains_on(make, batch, tmp_path):
    images, labels = batch(LABELS)
    model = make(mean=(1, 2, 3), part_dtype="float32")
    model.compile(keras.optimizers.AdamW(1e-2))
    model.fit(images, labels, batch_size=4, verbose=0)
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert (again.backbone, again.num_classes, again.mean) == (model.backbone, 6, (1, 2, 3))
    np.testing.assert_array_equal(again(images)["logits"], model(images)["logits"])
    assert again.optimizer.iterations == 2
    assert again.train_on_batch(images, labels) == pytest.approx(
        model.train_on_batch(images, labels), rel=1e-5
    )


def test_mixed_precision_keeps_the_classifier_in_float32(make, batch):
    images, labels = batch(LABELS)
    model, mixed = make(), make(part_dtype="mixed_bfloat16")
    assert mixed.network.layers[0](mixed.normalize(images)).dtype == "bfloat16"
    logits = mixed(images)["logits"]
    assert logits.dtype == "float32"
    np.testing.assert_allclose(logits, model(images)["logits"], atol=0.05)
    mixed.compile("adamw")
    assert np.isfinite(mixed.train_on_batch(images, labels, return_dict=True)["loss"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_classes": 1}, "num_classes must be at least 2. Received: num_classes=1"),
        ({"std": (1, 0, 1)}, "std above 0"),
        ({"part_dtype": "float16"}, "part_dtype must be one of.*Received: part_dtype='float16'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Plain(**{"backbone": TinyBackbone(), "num_classes": 6, **settings})


def test_for_inference_is_a_copy_in_float32(make, batch):
    images, labels = batch(LABELS)
    model = make(part_dtype="mixed_bfloat16")
    copy = model.for_inference()
    assert (copy.part_dtype, model.part_dtype) == ("float32", "mixed_bfloat16")
    np.testing.assert_allclose(copy(images)["logits"], make()(images)["logits"], atol=1e-6)
    before = copy(images)["logits"]
    model.compile(keras.optimizers.SGD(1.0))
    model.train_on_batch(images, labels)
    np.testing.assert_array_equal(copy(images)["logits"], before)
