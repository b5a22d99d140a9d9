"""Which channels belong together, and which can be fewer."""

import keras
import pytest
from keras import layers

from dynkhydra_tf.backbones.channels import Channels


def channels_of(build, fixed=()):
    """The `Channels` of a stretch that reads (4, 4, 6), and the sizes of the hidden ones."""
    inputs = keras.Input((4, 4, 6))
    model = keras.Model(inputs, build(inputs))
    found = Channels(model.get_config()["layers"][1:], 6, fixed)
    return found, sorted(found.hidden().values())


def conv(filters, name, **options):
    return layers.Conv2D(filters, 1, name=name, **options)


def test_an_inverted_residual_with_squeeze_and_excite():
    def build(x):
        y = layers.ReLU()(layers.BatchNormalization(name="bn")(conv(24, "expand")(x)))
        y = layers.DepthwiseConv2D(3, padding="same", name="dw")(y)
        s = layers.Reshape((1, 1, 24), name="reshape")(layers.GlobalAveragePooling2D()(y))
        s = conv(24, "excite", activation="sigmoid")(conv(3, "squeeze", activation="relu")(s))
        y = layers.Multiply(name="multiply")([y, s])
        return layers.Add(name="add")([x, conv(6, "project")(y)])

    found, sizes = channels_of(build)
    assert sizes == [3, 24]
    group = found.group
    expanded = group(found.made["expand"])
    assert {group(found.made[name]) for name in ("bn", "dw", "reshape", "excite", "multiply")} == {expanded}
    assert {-2: expanded, -1: group(found.made["squeeze"])} == {
        axis: group(one) for axis, one in found.axes["squeeze"][0].items()
    }
    assert group(found.made["project"]) == group(found.made["add"])  # 6, those that came in: they stay


def test_a_grouped_convolution_of_each_channel_dense_layers_and_layer_scale():
    def build(x):
        y = layers.LayerNormalization(name="norm")(conv(6, "dw", groups=6)(x))
        y = layers.Dense(6, name="down")(layers.Dense(24, name="up", activation="gelu")(y))
        return layers.Add()([x, y])

    found, sizes = channels_of(build)
    assert sizes == [24]
    assert found.axes["dw"] == [{-1: 0}] and found.axes["norm"] == [{-1: 0}]


@pytest.mark.parametrize(
    "unknown",
    [
        lambda x: layers.Concatenate()([x, conv(4, "other")(x)]),
        lambda x: conv(8, "grouped", groups=2)(x),
        lambda x: layers.Reshape((2, 8, 8))(x),
        lambda x: layers.BatchNormalization(axis=1)(x),
        lambda x: layers.DepthwiseConv2D(3, depth_multiplier=2)(x),
    ],
)
def test_what_is_not_known_keeps_its_channels(unknown):
    _, sizes = channels_of(lambda x: conv(5, "last")(conv(9, "hidden")(unknown(conv(8, "first")(x)))))
    assert sizes == [9]


def test_separable_convolutions_and_layers_that_are_to_stay():
    def build(x):
        y = layers.SeparableConv2D(10, 1, name="one")(x)
        return layers.SeparableConv2D(12, 1, name="three")(layers.SeparableConv2D(11, 1, name="two")(y))

    assert channels_of(build)[1] == [10, 11]
    assert channels_of(build, fixed=("two",))[1] == [10]


def test_a_factor_of_one_channel_goes_with_any():
    def build(x):
        y = conv(8, "hidden")(x)
        return conv(6, "last")(layers.Multiply()([y, conv(1, "map")(x)]))

    assert channels_of(build)[1] == [8]
