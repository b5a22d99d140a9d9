import keras
import numpy as np
import pytest

from dynkhydra_tf.backbones import BACKBONES, ResNet
from dynkhydra_tf.backbones.blocks import ConvBN, classifier
from dynkhydra_tf.backbones.resnet import BasicBlock


def trainable_count(layer):
    return sum(int(np.prod(weight.shape)) for weight in layer.trainable_weights)


@pytest.mark.parametrize(("depth", "parameters"), [(3, 0.27e6), (9, 0.85e6), (18, 1.7e6)])
def test_plain_network_has_the_parameters_of_he_et_al(depth, parameters):
    # He et al. 2016, Table 6: ResNet-20 0.27M, ResNet-56 0.85M, ResNet-110 1.7M, ten classes.
    network = keras.Sequential([ResNet(depth).plain(), *classifier(10)])
    network.build((None, 32, 32, 3))
    assert trainable_count(network) == pytest.approx(parameters, rel=0.025)


@pytest.mark.parametrize("depth", [1, 2])
def test_stem_and_branch_are_the_plain_network_cut_in_two(depth):
    backbone = ResNet(depth)
    plain, stem, branch = backbone.plain(), backbone.stem(), backbone.branch()
    plain.build((None, 32, 32, 3))
    stem.build((None, 32, 32, 3))
    branch.build((None, 16, 16, 32))
    for source, target in zip(plain.layers, stem.layers + branch.layers, strict=True):
        target.set_weights(source.get_weights())
    images = np.random.default_rng(0).normal(size=(2, 32, 32, 3)).astype(np.float32)
    assert stem(images).shape == (2, 16, 16, 32)
    np.testing.assert_allclose(branch(stem(images)), plain(images), rtol=1e-5, atol=1e-5)


def test_widths_scale_the_channels():
    backbone = ResNet(1, stem_width=0.5, branch_width=0.125, gater_width=0.25)
    assert backbone.stem().compute_output_shape((None, 32, 32, 3)) == (None, 16, 16, 16)
    assert backbone.branch().compute_output_shape((None, 16, 16, 16)) == (None, 8, 8, 8)
    assert backbone.gater_trunk().compute_output_shape((None, 16, 16, 16)) == (None, 8, 8, 16)


@pytest.mark.parametrize(("filters", "kept"), [(3, [1, 2, 0]), (1, [1])])
def test_shortcut_subsamples_and_pads_or_cuts_channels(filters, kept):
    block = BasicBlock(filters, strides=2)
    block.build((None, 4, 4, 2))
    for conv in (block.conv1, block.conv2):
        conv.conv.set_weights([np.zeros(conv.conv.kernel.shape)])  # leaves the shortcut
    image = np.zeros((1, 4, 4, 2), np.float32)
    image[0, 2, 0] = [1, 2]
    np.testing.assert_array_equal(block(image)[0, 1, 0], kept)
    assert np.sum(block(image)) == sum(kept)


def test_conv_bn_by_hand():
    unit = ConvBN(1, 1)
    unit.build((None, 1, 1, 1))
    unit.conv.set_weights([np.full((1, 1, 1, 1), 3.0)])
    # gamma 2, beta 1, mean 4, variance 0.999 (and epsilon 0.001): 2 * (3x - 4) + 1.
    unit.norm.set_weights([np.array([v]) for v in (2.0, 1.0, 4.0, 0.999)])
    np.testing.assert_allclose(unit(np.float32([[[[2]]], [[[1]]]]))[:, 0, 0, 0], [5, 0], rtol=1e-6)


def test_backbones_round_trip_through_keras_serialisation():
    for backbone in (ResNet(2, branch_width=0.5), *(make() for make in BACKBONES.values())):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(backbone))
        assert again == backbone


def test_widths_leave_at_least_one_channel():
    assert ResNet(1, branch_width=0.001).branch().compute_output_shape((None, 16, 16, 32))[-1] == 1


@pytest.mark.parametrize("sizes", [{"depth": 0}, {"stem_width": 0.0}, {"gater_width": float("nan")}])
def test_bad_sizes(sizes):
    with pytest.raises(ValueError, match=r"depth must be at least 1 and widths in \(0, 100\). Received"):
        ResNet(**sizes)


def test_a_frozen_norm_is_as_at_inference():
    unit = ConvBN(2, 1)
    unit.build((None, 2, 2, 2))
    unit.norm.trainable = False
    before = unit.norm.get_weights()
    x = np.random.default_rng(0).normal(size=(3, 2, 2, 2)).astype(np.float32)
    np.testing.assert_array_equal(unit(x, training=True), unit(x, training=False))
    for now, then in zip(unit.norm.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


def test_twins_list_their_variables_in_the_same_order():
    twins = [ResNet(2).branch() for _ in range(2)]
    for twin in twins:
        twin.build((None, 16, 16, 32))
    names, others = ([weight.path.split("/", 1)[1] for weight in twin.weights] for twin in twins)
    assert names == others
