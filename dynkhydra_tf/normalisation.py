"""Batch normalisation in training, for maps whose channels do not fill oneDNN's vectors.

Maps of a multiple of 16 channels in bfloat16, of 4 in float32, oneDNN normalises by vectors; all others it
goes through number by number, which takes 2 to 20 times as long (docs/performance.md). Here pixels are laid
side by side until their channels fill vectors, and sums over pixels are products with a row of ones.

Axis letters: B batch, H, W pixels, C channels.
"""

import math

import tensorflow as tf

from dynkhydra_tf.machine import gpus

# The multiples of channels that oneDNN normalises by vectors, for each type of maps.
VECTORS = {"bfloat16": 16, "float32": 4}
WIDTH = 16  # float32 numbers of a vector: what pixels side by side are to fill


def is_slow(x: tf.Tensor) -> bool:
    """Whether TensorFlow's fused op would go through a map (B, H, W, C) number by number, in training."""
    vector = VECTORS.get(x.dtype.name)
    return vector is not None and x.shape[-1] % vector != 0 and not gpus()


def normalise(
    x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Normalises a map by its own mean and variance, computed in float32, as the fused op does.

    Its gradient is TensorFlow's own: within a tf.cond of a traced function, as branches run, one that is
    written by hand cannot be used (tf.custom_gradient, 2.21), and it would save a tenth.

    Args:
        x: (B, H, W, C) bfloat16 or float32, B > 0.
        gamma, beta: (C,) float32, scale and centre.
        epsilon: float > 0, added to the variance.

    Returns:
        The map, as x; mean and variance, (C,) float32, for moving averages: the variance is the unbiased
        estimate.
    """
    _, height, width, channels = x.shape
    # As many pixels as divide those of an image: how many images there are is open.
    side_by_side = math.gcd(WIDTH // math.gcd(WIDTH, channels), (height or 1) * (width or 1))
    rows = tf.cast(tf.reshape(x, [-1, side_by_side * channels]), tf.float32)
    ones = tf.ones([1, tf.shape(rows)[0]])
    pixels = tf.cast(tf.size(x) // channels, tf.float32)

    def mean_of(of):
        """(C,): the mean of rows over all pixels."""
        return tf.reduce_sum(tf.reshape(tf.matmul(ones, of), [side_by_side, channels]), axis=0) / pixels

    def each(of):
        """(C,), repeated for each pixel of a row."""
        return tf.tile(of, [side_by_side])

    mean = mean_of(rows)
    centred = rows - each(mean)
    variance = mean_of(tf.square(centred))
    y = centred * each(tf.math.rsqrt(variance + epsilon) * gamma) + each(beta)
    unbiased = variance * (pixels / tf.maximum(pixels - 1, 1))
    return tf.reshape(tf.cast(y, x.dtype), tf.shape(x)), mean, unbiased
