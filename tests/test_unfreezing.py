import keras
import numpy as np
import pytest

from dynkhydra_tf.backbones.pretrained import open_network
from dynkhydra_tf.optimisation import LowerFrom, make_optimizer
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.settings import OptimisationSettings
from dynkhydra_tf.unfreezing import unfreeze


def test_what_was_frozen_is_trained_from_here_on_but_for_its_normalisation(tmp_path):
    x = inputs = keras.Input((None, None, 3))
    for name in ("block1", "block2"):
        x = keras.layers.Conv2D(4, 3, strides=2, padding="same", name=f"{name}_conv")(x)
        x = keras.layers.BatchNormalization(name=f"{name}_bn")(x)
    keras.Model(inputs, x).save(tmp_path / "network.keras")
    model = Plain(open_network(str(tmp_path / "network.keras"), 8).cut(frozen="stem"), 2)
    model.compile(keras.optimizers.AdamW(1e-2), run_eagerly=True)
    images, labels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8), np.arange(4) % 2
    model.fit(images, labels, batch_size=2, verbose=0)
    stem = model.frozen_part()[0]
    before = [weight.numpy() for weight in stem.weights]

    unfreeze(model, keras.optimizers.AdamW(1e-2))
    assert model.frozen_part() == () and int(model.optimizer.iterations) == 2
    model.fit(images, labels, batch_size=2, verbose=0)
    moved = {w.path.split("/")[-2]: np.any(w.numpy() != b) for w, b in zip(stem.weights, before, strict=True)}
    assert moved == {"block1_conv": True, "block1_bn": False} and int(model.optimizer.iterations) == 4

    # What is frozen, and the optimizer's state of all that is not, are in the file.
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert [v.path for v in again.trainable_variables] == [v.path for v in model.trainable_variables]
    for one, other in zip(again.optimizer.variables, model.optimizer.variables, strict=True):
        np.testing.assert_array_equal(one, other)


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
