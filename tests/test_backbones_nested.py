"""Networks within networks: cut as if they were one."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dynkhydra_tf.backbones.pretrained import open_network
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.plain import Plain
from tests.test_backbones_cut_network import IMAGES, saved, small

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def transfer(inner):
    """What Keras's guide to transfer learning makes: augmentation, preprocessing, a network, a classifier."""
    x = inputs = keras.Input((16, 16, 3), name="images")
    x = keras.Sequential([layers.RandomFlip(), layers.RandomRotation(0.1)], name="augment")(x)
    x = keras.applications.mobilenet_v2.preprocess_input(x)
    x = inner(x, training=False)
    x = layers.Dropout(0.2)(layers.GlobalAveragePooling2D()(x))
    return keras.Model(inputs, layers.Dense(4, name="classes")(x))


def test_a_network_made_by_transfer_learning(tmp_path):
    keras.utils.set_random_seed(0)
    inner = small(head=False)
    model = transfer(inner)
    opened = open_network(saved(model, tmp_path), 16)
    assert opened.left_out.splitlines() == [
        "bad.keras: what augments images is left out (random_flip, random_rotation)",
        "bad.keras: what follows block4_add is taken off, its pooling and its head (classes)",
    ]
    assert opened.points[0].name == "first_relu"
    assert opened.cut().cut == "block1_add"
    plain = Plain(opened.cut(tail_width=1.0), 3)
    plain.set_first_weights(opened.give())
    expected = inner(tf.cast(IMAGES, tf.float32) / 127.5 - 1)
    np.testing.assert_allclose(
        plain.network.layers[0](plain.normalize(IMAGES)), expected, rtol=1e-4, atol=1e-4
    )


def test_a_sequential_network_of_networks_in_networks_with_names_twice(tmp_path):
    keras.utils.set_random_seed(0)
    first = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(4, 3, 2, name="conv")], name="first")
    deep = keras.Input((7, 7, 4))
    second = keras.Model(
        deep, keras.Sequential([layers.Conv2D(5, 3, 2, name="conv")], name="in")(deep), name="out"
    )
    model = keras.Sequential([keras.Input((16, 16, 3)), first, layers.ReLU(name="relu"), second])
    opened = open_network(saved(model, tmp_path), 16)
    assert [layer["name"] for layer in opened.layers][1:] == ["conv", "relu", "in_conv"]
    images = tf.cast(IMAGES, tf.float32)
    np.testing.assert_allclose(opened.network(images), model(images), atol=1e-5)


def test_an_inner_network_that_is_called_twice(tmp_path):
    x = inputs = keras.Input((16, 16, 3))
    inner = keras.Sequential([keras.Input((16, 16, 3)), layers.Conv2D(3, 3, padding="same")], name="inner")
    with pytest.raises(UserError, match="it calls the layer inner more than once") as error:
        open_network(saved(keras.Model(inputs, inner(inner(x))), tmp_path), 16)
    assert "\n" not in str(error.value)


def test_an_inner_network_of_two_inputs(tmp_path):
    a, b = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    inner = keras.Model([a, b], layers.Add()([a, b]), name="inner")
    x = inputs = keras.Input((16, 16, 3))
    with pytest.raises(UserError, match=r"bad\.keras \(inner\) cannot be cut: .* Received: 2 and 1"):
        open_network(saved(keras.Model(inputs, inner([x, layers.ReLU()(x)])), tmp_path), 16)
