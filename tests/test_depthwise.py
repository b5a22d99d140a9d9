"""The gradient of depthwise convolutions: equal to TensorFlow's, and not its slow way."""

import keras
import numpy as np
import pytest
import tensorflow as tf

import dynkhydra_tf  # noqa: F401 - it mends the gradient

FILTER, INPUT = "DepthwiseConv2dNativeBackpropFilter", "DepthwiseConv2dNativeBackpropInput"


def gradients(images, kernel, strides, padding, dtype, eager=True):
    """Those of a weighted sum, in float32."""
    images, kernel = tf.cast(images, dtype), tf.cast(kernel, dtype)

    def both(images, kernel):
        with tf.GradientTape() as tape:
            tape.watch([images, kernel])
            outputs = tf.cast(tf.nn.depthwise_conv2d(images, kernel, strides, padding), tf.float32)
            loss = tf.reduce_sum(
                outputs * tf.cos(tf.reshape(tf.range(tf.size(outputs), dtype="float32"), tf.shape(outputs)))
            )
        return tape.gradient(loss, [images, kernel])

    found = both(images, kernel) if eager else tf.function(both)(images, kernel)
    return [tf.cast(each, tf.float32).numpy() for each in found]


def operations(kernel_size, strides=1, dtype="bfloat16", **layer):
    """{name: how often, in which dtypes} of the two gradients in the graph of a layer of Keras."""
    convolution = keras.layers.DepthwiseConv2D(kernel_size, strides=strides, dtype=dtype, **layer)
    convolution.build((None, 9, 9, 4))

    @tf.function
    def step(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            loss = tf.reduce_sum(convolution(images))
        return tape.gradient(loss, [images, convolution.kernel.value])

    graph = step.get_concrete_function(tf.TensorSpec((None, 9, 9, 4), dtype)).graph
    return {
        name: [each.outputs[0].dtype.name for each in graph.get_operations() if each.type == name]
        for name in (FILTER, INPUT)
    }


@pytest.mark.parametrize("eager", [True, False])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [(1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (7, 7), (5, 3), (2, 8)])
def test_the_gradients_are_those_of_float32(kernel, stride, padding, eager):
    rng = np.random.default_rng(0)
    # Of few bits, so that bfloat16 holds them as they are.
    images = rng.integers(-8, 8, (2, 9, 10, 3)).astype("float32")
    weights = rng.integers(-8, 8, (*kernel, 3, 1)).astype("float32") / 8
    strides = [1, stride, stride, 1]
    expected = gradients(images, weights, strides, padding, "float32")
    for found, right in zip(
        gradients(images, weights, strides, padding, "bfloat16", eager), expected, strict=True
    ):
        assert found.shape == right.shape
        np.testing.assert_allclose(found, right, atol=0.01 * np.abs(right).max() + 1e-6)


@pytest.mark.parametrize(("kernel_size", "pieces"), [(3, 1), (4, 4), (5, 4), (7, 9), ((5, 3), 2)])
def test_a_large_kernels_gradient_is_made_of_pieces(kernel_size, pieces):
    assert operations(kernel_size) == {FILTER: ["bfloat16"] * pieces, INPUT: ["bfloat16"]}


def test_the_images_gradient_with_a_stride_is_computed_in_float32():
    assert operations(3, strides=2) == {FILTER: ["bfloat16"], INPUT: ["float32"]}


@pytest.mark.parametrize("layer", [{"dtype": "float32"}, {"depth_multiplier": 2}])
def test_all_else_is_left_to_tensorflow(layer):
    dtype = layer.get("dtype", "bfloat16")
    assert operations(5, **layer) == {FILTER: [dtype], INPUT: [dtype]}


def test_mending_twice_is_mending_once():
    from tensorflow.python.framework import ops

    from dynkhydra_tf import depthwise

    before = ops.gradient_registry.lookup(depthwise.OPERATION)
    depthwise.mend_gradient()
    assert ops.gradient_registry.lookup(depthwise.OPERATION) is before
    assert not hasattr(before.original, "original")
