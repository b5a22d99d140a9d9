"""Fewer hidden channels: the layers, and which of the trained ones stay."""

import keras
import numpy as np
import pytest
from keras import layers

from dynkhydra_tf.backbones.chain import build
from dynkhydra_tf.backbones.narrowing import copy_largest, narrowed
from tests.test_backbones_cut_network import small

MAPS = np.random.default_rng(0).normal(size=(2, 4, 4, 3)).astype(np.float32)


def network(hidden, norm=True):
    """1x1 to `hidden` channels, and back to 3."""
    x = inputs = keras.Input((4, 4, 3))
    x = layers.Conv2D(hidden, 1, use_bias=False, name="in")(x)
    if norm:
        x = layers.BatchNormalization(name="bn")(x)
    x = layers.Conv2D(3, 1, name="out")(layers.ReLU(name="relu")(x))
    return keras.Model(inputs, x)


def test_the_layers():
    wide = network(8).get_config()["layers"][1:]
    thin = narrowed(wide, 3, (), 0.25)
    assert [thin[0]["config"]["filters"], thin[-1]["config"]["filters"]] == [2, 3]
    assert wide[0]["config"]["filters"] == 8 and narrowed(wide, 3, (), 1.0) is wide
    with pytest.raises(ValueError, match=r"needs hidden channels, .* Received: width=0\.5"):
        narrowed(wide, 3, ("in",), 0.5)


def test_channels_that_bring_most_stay_and_the_others_bring_nothing():
    wide, thin = network(4), network(2)
    rng = np.random.default_rng(1)
    wide.get_layer("in").set_weights([rng.normal(size=(1, 1, 3, 4))])
    # (scale, offset): 1 and 3 bring nothing; how large the kernels before a normalisation are says nothing.
    scale, offset = np.array([1.0, 0.0, 0.5, 0.0]), np.array([0.2, 0.0, 0.4, 0.0])
    wide.get_layer("bn").set_weights([scale, offset, rng.normal(size=4), rng.uniform(1, 2, 4)])
    copy_largest(wide, thin)
    np.testing.assert_allclose(thin(MAPS), wide(MAPS), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(thin.get_layer("bn").gamma, [1.0, 0.5])


def test_without_a_normalisation_the_lengths_of_what_makes_and_reads_a_channel_count():
    wide, thin = network(3, norm=False), network(1, norm=False)
    making, reading = np.ones((1, 1, 3, 3)), np.ones((1, 1, 3, 3))
    making[..., 0], reading[:, :, 2] = 3, 2  # channel 0: 3 * 1, channel 1: 1 * 1, channel 2: 1 * 2
    wide.get_layer("in").set_weights([making])
    wide.get_layer("out").set_weights([reading, np.arange(3)])
    copy_largest(wide, thin)
    np.testing.assert_array_equal(thin.get_layer("in").kernel, making[..., :1])
    np.testing.assert_array_equal(thin.get_layer("out").kernel, reading[:, :, :1])
    np.testing.assert_array_equal(thin.get_layer("out").bias, np.arange(3))


def test_the_same_channels_stay_in_all_layers_of_a_block():
    wide = small(head=False, size=16)
    thin_layers = narrowed(
        wide.get_config()["layers"][1:], 3, ("block1_add", "block3_add", "first_relu"), 0.5
    )
    assert {
        layer["name"]: layer["config"]["filters"]
        for layer in thin_layers
        if layer["name"].startswith("block3") and "filters" in layer["config"]
    } == {"block3_expand_conv": 4, "block3_gate": 4, "block3_project_conv": 6}
    thin = build(thin_layers, (16, 16, 3), "thin")
    brings = np.arange(8)[::-1]  # the first four
    wide.get_layer("block3_expand_bn").gamma.assign(brings)
    wide.get_layer("block3_expand_bn").beta.assign(np.zeros(8))
    wide.get_layer("block3_project_conv").kernel.assign(np.ones((3, 3, 8, 6)))
    wide.get_layer("block3_gate").kernel.assign(np.ones((1, 1, 8, 8)))
    copy_largest(wide, thin)
    for name, cut in {
        "block3_expand_conv": np.s_[..., :4],
        "block3_dw": np.s_[:, :, :4],
        "block3_gate": np.s_[:, :, :4, :4],
        "block3_project_conv": np.s_[:, :, :4],
    }.items():
        whole, part = wide.get_layer(name).kernel.numpy(), thin.get_layer(name).kernel.numpy()
        np.testing.assert_array_equal(part, whole[cut])


def test_other_networks():
    with pytest.raises(ValueError, match=r"Received: .* with in, bn, out, of which that is not so"):
        copy_largest(network(2), network(4))  # it has more
