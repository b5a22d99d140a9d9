import keras
import numpy as np
import pytest

from dynkhydra_tf.averaging import averaged
from dynkhydra_tf.backbones.pretrained import open_network
from dynkhydra_tf.optimisation import LowerFrom, make_optimizer
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.settings import OptimisationSettings
from dynkhydra_tf.unfreezing import unfreeze

IMAGES, LABELS = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8), np.arange(4) % 2


@pytest.fixture
def model(tmp_path):
    """Of two blocks, the first of which is frozen."""
    x = inputs = keras.Input((None, None, 3))
    for name in ("block1", "block2"):
        x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name=f"{name}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"{name}_bn")(x)
    keras.Model(inputs, x).save(tmp_path / "network.keras")
    return Plain(open_network(str(tmp_path / "network.keras"), 8).cut(frozen="stem"), 2)


def test_what_was_frozen_is_trained_from_here_on_but_for_its_normalisation(model, tmp_path):
    model.compile(keras.optimizers.AdamW(1e-2), run_eagerly=True)
    model.fit(IMAGES, LABELS, batch_size=2, verbose=0)
    stem = model.frozen_part()[0]
    before = [weight.numpy() for weight in stem.weights]

    unfreeze(model, keras.optimizers.AdamW(1e-2))
    assert model.frozen_part() == () and int(model.optimizer.iterations) == 2
    model.fit(IMAGES, LABELS, batch_size=2, verbose=0)
    moved = {w.path.split("/")[-2]: np.any(w.numpy() != b) for w, b in zip(stem.weights, before, strict=True)}
    assert moved == {"block1_conv": True, "block1_bn": False} and int(model.optimizer.iterations) == 4

    # What is frozen, and the optimizer's state of all that is not, are in the file.
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert [v.path for v in again.trainable_variables] == [v.path for v in model.trainable_variables]
    for one, other in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)


def test_averages_go_on_from_those_of_before_and_take_in_what_is_let_go(model):
    settings = OptimisationSettings(ema_decay=0.9, lr_drops=(), learning_rate=1e-2)
    model.compile(make_optimizer(settings, 2), run_eagerly=True)
    model.fit(IMAGES, LABELS, batch_size=1, verbose=0)
    with averaged(model):
        before = [variable.numpy() for variable in model.variables]
    weights = [variable.numpy() for variable in model.variables]
    assert max(np.abs(a - b).max() for a, b in zip(before, weights, strict=True)) > 1e-4

    unfreeze(model, make_optimizer(settings, 2, unfrozen_from=2))
    with averaged(model):
        for variable, value in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(variable, value, err_msg=variable.path)
    model.fit(IMAGES, LABELS, batch_size=4, verbose=0)
    # The fifth step: 6/15 of an average stays.
    after = [variable.numpy() for variable in model.variables]
    assert any("block1" in variable.path for variable in model.trainable_variables)
    with averaged(model):
        for variable, value, now in zip(model.variables, before, after, strict=True):
            expected = 0.4 * value + 0.6 * now
            np.testing.assert_allclose(variable, expected, rtol=1e-4, atol=1e-6, err_msg=variable.path)


def test_the_lower_rate_begins_at_its_epoch():
    settings = OptimisationSettings(
        schedule="linear", warmup_epochs=0, epochs=4, learning_rate=0.8, unfrozen_rate=0.5
    )
    rate = make_optimizer(settings, 10, unfrozen_from=2)._learning_rate
    # From 0.8 to 0 in 40 steps; at step 20, 0.4, and from there on half.
    assert [float(rate(step)) for step in (0, 19, 20, 30)] == pytest.approx([0.8, 0.42, 0.2, 0.1])
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(rate))
    assert isinstance(again, LowerFrom) and float(again(20)) == pytest.approx(0.2)
    constant = OptimisationSettings(lr_drops=(), learning_rate=0.8, unfrozen_rate=0.25)
    rate = make_optimizer(constant, 10, unfrozen_from=1)._learning_rate
    assert [float(rate(step)) for step in (9, 10)] == pytest.approx([0.8, 0.2])
