import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.data.mixup import mix
from dynkhydra_tf.data.pipeline import training_batches
from dynkhydra_tf.plain import Plain
from tests.conftest import TinyBackbone
from tests.test_data_pipeline import numbered_data, plain

SEED = tf.constant([1, 2])


@pytest.mark.parametrize("dtype", [tf.uint8, tf.float32])
def test_each_image_is_blended_as_its_targets_say(dtype):
    labels = tf.range(200, dtype=tf.int32)  # of an image the colour
    images = tf.cast(tf.broadcast_to(labels[:, None, None, None], (200, 2, 2, 3)), dtype)
    mixed, targets = mix(images, labels, SEED, 0.5)
    assert mixed.dtype == dtype and sorted(targets) == ["labels", "second_labels", "second_share"]
    share, second = targets["second_share"].numpy(), targets["second_labels"].numpy()
    expected = (1 - share) * labels.numpy() + share * second
    atol = 0.501 if dtype == tf.uint8 else 1e-3
    np.testing.assert_allclose(mixed[:, 1, 0, 2], expected, atol=atol)
    assert sorted(second) == list(range(200)) and (second != labels.numpy()).mean() > 0.9
    assert share.min() >= 0 and 0.3 < share.max() <= 0.5
    for one, other in zip(
        tf.nest.flatten(mix(images, labels, SEED, 0.5)), tf.nest.flatten((mixed, targets)), strict=True
    ):
        np.testing.assert_array_equal(one, other)


def test_shares_are_of_a_beta_distribution():
    # Of Beta(1, 1), the smaller of u and 1 - u: even on [0, 0.5]. Of Beta(2, 2), density 6 u (1 - u): 0.3125.
    images, labels = tf.zeros((20000, 1, 1, 3)), tf.zeros(20000, tf.int32)
    for alpha, mean in ((1.0, 0.25), (2.0, 0.3125)):
        assert np.mean(mix(images, labels, SEED, alpha)[1]["second_share"]) == pytest.approx(mean, abs=0.005)


def test_a_resumed_run_sees_the_same_blends():
    def batches(first):
        data = numbered_data(12)
        return list(training_batches(data, 4, 2, 0, plain, first, mixup=0.4))

    whole, rest = batches(0), batches(4)
    assert len(whole) == 6 and len(rest) == 2
    for one, other in zip(tf.nest.flatten(whole[4:]), tf.nest.flatten(rest), strict=True):
        np.testing.assert_array_equal(one, other)
    assert (whole[0][1]["second_share"].numpy() != whole[3][1]["second_share"].numpy()).any()


def test_networks_train_on_what_is_blended(make_hydra, batch):
    images, targets = mix(*map(tf.constant, batch([0, 2, 4, 5])), SEED, 1.0)
    for model in (make_hydra(), Plain(TinyBackbone(), 6)):
        model.compile(keras.optimizers.SGD(0.1), run_eagerly=True)
        told = model.fit(images, targets, batch_size=4, verbose=0).history
        assert np.isfinite(told["loss"][0])
        with pytest.raises(ValueError, match=r"second_labels, second_share.*Received: labels, second_labels"):
            model.fit(images, {name: targets[name] for name in ("labels", "second_labels")}, verbose=0)
