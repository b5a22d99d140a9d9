"""Batch normalisation in training: equal to TensorFlow's fused op, which it takes where that is fast."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import normalisation
from dynkhydra_tf.backbones.blocks import BatchNorm

EPSILON = 1e-3


def fused(x, gamma, beta):
    return tf.compat.v1.nn.fused_batch_norm(x, gamma, beta, epsilon=EPSILON, is_training=True)


def ours(x, gamma, beta):
    return normalisation.normalise(x, gamma, beta, EPSILON)


def results(normalise, x, gamma, beta):
    """What it gives, and the gradients of a weighted sum with respect to all three, in float32."""
    with tf.GradientTape() as tape:
        tape.watch([x, gamma, beta])
        y, mean, variance = normalise(x, gamma, beta)
        weights = tf.cast(tf.reshape(tf.range(tf.size(y)) % 7 - 2, tf.shape(y)), tf.float32)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) * weights)
    gradients = tape.gradient(loss, [x, gamma, beta])
    return [tf.cast(each, tf.float32).numpy() for each in (y, mean, variance, *gradients)]


def arguments(shape, dtype="float32"):
    rng = np.random.default_rng(0)
    # Of few bits, so that bfloat16 holds them as they are; off centre, each channel elsewhere.
    x = rng.integers(-8, 8, shape) + 4 * rng.integers(-3, 3, shape[-1])
    gamma, beta = rng.uniform(0.5, 2, (2, shape[-1])).astype("float32")
    return tf.cast(x, dtype), tf.constant(gamma), tf.constant(beta)


@pytest.mark.parametrize("channels", [1, 2, 3, 6, 12, 15, 16, 20])
@pytest.mark.parametrize("size", [(4, 8, 8), (3, 7, 7), (5, 1, 6), (1, 2, 2)])
def test_it_is_the_fused_op(size, channels):
    given = arguments((*size, channels))
    for found, right in zip(results(ours, *given), results(fused, *given), strict=True):
        assert found.shape == right.shape
        np.testing.assert_allclose(found, right, rtol=2e-5, atol=2e-5 * max(1, np.abs(right).max()))


@pytest.mark.parametrize("channels", [3, 12])
def test_half_precision_rounds_what_is_float32_within(channels):
    exact = results(ours, *arguments((4, 8, 8, channels)))
    for found, right in zip(results(ours, *arguments((4, 8, 8, channels), "bfloat16")), exact, strict=True):
        np.testing.assert_allclose(found, right, atol=0.01 * np.abs(right).max())


def test_a_single_pixel_has_no_spread():
    y, mean, variance = ours(tf.constant([[[[3.0, 5.0, 7.0]]]]), tf.ones(3), tf.constant([0.0, 1.0, 2.0]))
    assert y.numpy().ravel().tolist() == [0, 1, 2]
    assert (mean.numpy().tolist(), variance.numpy().tolist()) == ([3, 5, 7], [0, 0, 0])


def test_a_map_of_open_size():
    at_once = tf.function(
        ours, input_signature=[tf.TensorSpec((None, None, None, 3)), *[tf.TensorSpec(3)] * 2]
    )
    given = arguments((2, 5, 3, 3))
    np.testing.assert_allclose(at_once(*given)[0], fused(*given)[0], atol=1e-5)


def test_its_gradient_is_there_in_a_branch_that_may_be_skipped():
    x, gamma, beta = arguments((2, 3, 3, 6))

    @tf.function
    def branch(x, gamma):
        return tf.cond(tf.shape(x)[0] > 0, lambda: ours(x, gamma, beta)[0], lambda: x)

    @tf.function
    def step(x):
        with tf.GradientTape() as tape:
            tape.watch(gamma)
            loss = tf.reduce_sum(branch(x, gamma) ** 3)
        return tape.gradient(loss, gamma)

    with tf.GradientTape() as tape:
        tape.watch(gamma)
        loss = tf.reduce_sum(fused(x, gamma, beta)[0] ** 3)
    np.testing.assert_allclose(step(x), tape.gradient(loss, gamma), rtol=1e-4, atol=1e-3)
    assert not np.any(step(x[:0]))


@pytest.mark.parametrize(
    ("dtype", "channels", "is_fused"),
    [
        ("mixed_bfloat16", 16, True),
        ("mixed_bfloat16", 48, True),
        ("mixed_bfloat16", 12, False),
        ("mixed_bfloat16", 40, False),
        ("float32", 12, True),
        ("float32", 4, True),
        ("float32", 6, False),
        ("float32", 15, False),
    ],
)
def test_the_fused_op_is_taken_where_it_is_fast(dtype, channels, is_fused):
    layer = BatchNorm(dtype=dtype)
    layer.build((None, 4, 4, channels))

    def operations(training):
        step = tf.function(lambda x: layer(x, training=training))
        graph = step.get_concrete_function(tf.TensorSpec((None, 4, 4, channels), layer.compute_dtype)).graph
        return {each.type for each in graph.get_operations()}

    assert ("FusedBatchNormV3" in operations(training=True)) == is_fused
    assert "FusedBatchNormV3" in operations(training=False)
    layer.trainable = False
    assert "FusedBatchNormV3" in operations(training=True)


def test_on_a_gpu_it_is_always_fused(monkeypatch):
    monkeypatch.setattr(normalisation, "gpus", lambda: ["NVIDIA H200"])
    assert not normalisation.is_slow(tf.zeros((1, 2, 2, 3)))


def test_moving_statistics_are_keras_own_but_for_one_pixel_less_in_the_variance():
    x = arguments((4, 3, 3, 6))[0]
    own, kerass = BatchNorm(momentum=0.9), keras.layers.BatchNormalization(momentum=0.9)
    for layer in (own, kerass):
        layer(x, training=True)
    np.testing.assert_allclose(own.moving_mean, kerass.moving_mean, rtol=1e-5)
    moved, kerass_moved = (layer.moving_variance.numpy() - 0.9 for layer in (own, kerass))
    np.testing.assert_allclose(moved, kerass_moved * 36 / 35, rtol=1e-5)
