import keras
import pytest
import tensorflow as tf

from dynkhydra_tf.flop_count import count_flops

L = keras.layers


@pytest.mark.parametrize(
    ("layer", "flops"),
    [
        (L.Conv2D(5, 3, strides=2, padding="same"), 2 * 9 * 3 * 4 * 4 * 5),
        (L.Conv2D(6, 3, padding="same", groups=3), 2 * 9 * 1 * 8 * 8 * 6),
        (L.DepthwiseConv2D(3, padding="same"), 2 * 9 * 8 * 8 * 3),
        (L.SeparableConv2D(5, 3, padding="same"), 2 * 9 * 64 * 3 + 2 * 3 * 64 * 5),
        # Each of the 8x8x3 inputs goes to 9 pixels of 5 channels.
        (L.Conv2DTranspose(5, 3, strides=2, padding="same"), 2 * 8 * 8 * 3 * 9 * 5),
        (L.Dense(7), 2 * 8 * 8 * 3 * 7),
        (keras.Sequential([L.Flatten(), L.Dense(7)]), 2 * 8 * 8 * 3 * 7),
        (L.EinsumDense("...c,cd->...d", output_shape=7), 2 * 8 * 8 * 3 * 7),
        (L.EinsumDense("bhwc,hwcd->bd", output_shape=7), 2 * 8 * 8 * 3 * 7),
        (keras.Sequential([L.Reshape((64, 3)), L.Conv1D(5, 3, padding="same")]), 2 * 3 * 3 * 64 * 5),
        (keras.Sequential([L.Reshape((8, 8, 3, 1)), L.Conv3D(5, 3, padding="same")]), 2 * 27 * 8 * 8 * 3 * 5),
        (L.BatchNormalization(), 0),
        (L.AveragePooling2D(2), 0),
    ],
)
def test_flops_by_hand(layer, flops):
    layer.build((None, 8, 8, 3))
    assert count_flops(layer, (8, 8, 3)) == flops


class Attention(keras.Layer):
    """Self-attention of 2 heads of 5 numbers over 64 pixels of 3."""

    def build(self, input_shape):
        self.attention = L.MultiHeadAttention(num_heads=2, key_dim=5)
        self.attention.build((None, 64, 3), (None, 64, 3))

    def call(self, x):
        x = tf.reshape(x, (-1, 64, 3))
        return self.attention(x, x)


def test_attention():
    # Three projections in and one out, each 3 x 10; scores and their sum, 64 x 64 x 5 each in two heads.
    layer = Attention()
    layer.build((None, 8, 8, 3))
    assert count_flops(layer, (8, 8, 3)) == 2 * (4 * 64 * 3 * 10 + 2 * 2 * 64 * 64 * 5)


class Call(keras.Layer):
    """A layer that is a function of its input."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.built = True

    def call(self, x):
        return self.function(x)


def product(x):
    return tf.reshape(x, (8, 24)) @ tf.ones((24, 2))


PRODUCT = 2 * 8 * 24 * 2


@pytest.mark.parametrize(
    "function",
    [
        tf.function(product),
        lambda x: tf.cond(tf.reduce_sum(x) > 0, lambda: product(x), lambda: tf.zeros((8, 2))),
        lambda x: tf.switch_case(
            tf.cast(x[0, 0, 0, 0], tf.int32), [lambda: tf.zeros((8, 2)), lambda: product(x)]
        ),
        lambda x: tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, y + 1), (0, product(x)))[1],
    ],
)
def test_functions_are_looked_into(function):
    assert count_flops(Call(function), (8, 8, 3)) == PRODUCT


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda x: tf.while_loop(lambda i, y: i < 3, lambda i, y: (i + 1, product(x)), (0, product(x)))[1],
            "how often a loop with products runs is not known. Received: .*While",
        ),
        (lambda x: tf.signal.fft(tf.cast(x, tf.complex64)), "operation are not known here. Received: FFT"),
        (lambda x: tf.numpy_function(lambda y: y, [x], tf.float32), "not known here. Received: .*PyFunc"),
        (lambda x: tf.boolean_mask(x, x > 0)[None] @ tf.ones((5, 2)), "the shapes must be known.*MatMul"),
    ],
)
def test_what_cannot_be_counted_is_refused(function, message):
    with pytest.raises(ValueError, match=message):
        count_flops(Call(function), (8, 8, 3))
