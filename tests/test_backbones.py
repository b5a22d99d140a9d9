"""The layers by hand, then what every backbone must do in a Hydra, on small ones."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf.backbones import BACKBONES, DenseNet, ResNet, ResSep
from dynkhydra_tf.backbones.blocks import ConvBN, classifier
from dynkhydra_tf.backbones.densenet import DenseLayer
from dynkhydra_tf.backbones.resnet import BasicBlock
from dynkhydra_tf.folding import fold
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.serving.graph import InferenceGraph

LABELS = np.arange(8) % 4
SMALL = {
    "resnet": ResNet(1, branch_width=0.5, image_size=8),
    "ressep": ResSep(1, stem_width=0.5, branch_width=0.125, gater_width=0.125, image_size=32),
    "densenet": DenseNet(1, image_size=8),
}


@pytest.fixture(params=SMALL.values(), ids=SMALL.keys())
def small(request):
    return request.param


def trainable_count(layer):
    return sum(int(np.prod(weight.shape)) for weight in layer.trainable_weights)


def spread_statistics(layer, seed=0):
    """Gives every normalisation within a layer statistics and factors of its own."""
    rng = np.random.default_rng(seed)
    for variable in layer.variables:
        if variable.path.split("/")[-1] in ("gamma", "beta", "moving_mean", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))


# === Layers ===


def test_conv_bn_by_hand():
    unit = ConvBN(1, 1)
    unit.build((None, 1, 1, 1))
    unit.conv.set_weights([np.full((1, 1, 1, 1), 3.0)])
    # gamma 2, beta 1, mean 4, variance 0.999 (and epsilon 0.001): 2 * (3x - 4) + 1.
    unit.norm.set_weights([np.array([v]) for v in (2.0, 1.0, 4.0, 0.999)])
    np.testing.assert_allclose(unit(np.float32([[[[2]]], [[[1]]]]))[:, 0, 0, 0], [5, 0], rtol=1e-6)


def test_separable_conv_bn_by_hand():
    unit = ConvBN(1, 3, relu=False, separable=True)
    unit.build((None, 2, 2, 2))
    depthwise, pointwise = np.zeros((3, 3, 2, 1)), np.zeros((1, 1, 2, 1))
    depthwise[1, 1, :, 0] = [2, 3]  # the pixel itself
    depthwise[1, 2, 0, 0] = 10  # its right neighbour, of the first channel only
    pointwise[0, 0, :, 0] = [1, -1]
    unit.depthwise.set_weights([depthwise])
    unit.conv.set_weights([pointwise])
    image = np.float32([[[[1, 5], [4, 0]], [[0, 0], [0, 0]]]])
    # First pixel: (2 * 1 + 10 * 4) - 3 * 5 = 27; second: 2 * 4 - 0 = 8. Then gamma 2, mean 7, beta 1.
    unit.norm.set_weights([np.array([v]) for v in (2.0, 1.0, 7.0, 0.999)])
    expected = [[41, 3], [-13, -13]]
    np.testing.assert_allclose(unit(image)[0, :, :, 0], expected, rtol=1e-5)
    fold(unit)
    np.testing.assert_allclose(unit(image)[0, :, :, 0], expected, rtol=1e-5)


def test_separable_kernels_keep_the_variance():
    keras.utils.set_random_seed(0)
    unit = ConvBN(512, 3, relu=False, separable=True)
    x = np.random.default_rng(0).normal(size=(4, 9, 9, 256)).astype(np.float32)
    # He's initialisation of the 1x1 kernel doubles the variance, for the ReLU that halves it.
    unit.build(x.shape)
    assert np.var(unit.depthwise(x)[:, 1:-1, 1:-1]) == pytest.approx(1, rel=0.1)
    assert np.var(unit.conv(x)) == pytest.approx(2, rel=0.1)


def test_a_frozen_norm_is_as_at_inference():
    unit = ConvBN(2, 1)
    unit.build((None, 2, 2, 2))
    unit.norm.trainable = False
    before = unit.norm.get_weights()
    x = np.random.default_rng(0).normal(size=(3, 2, 2, 2)).astype(np.float32)
    np.testing.assert_array_equal(unit(x, training=True), unit(x, training=False))
    for now, then in zip(unit.norm.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


@pytest.mark.parametrize("separable", [False, True])
@pytest.mark.parametrize(("filters", "kept"), [(3, [1, 2, 0]), (1, [1])])
def test_shortcut_subsamples_and_pads_or_cuts_channels(filters, kept, separable):
    block = BasicBlock(filters, strides=2, separable=separable)
    block.build((None, 4, 4, 2))
    for conv in (block.conv1, block.conv2):  # leaves the shortcut
        conv.conv.set_weights([np.zeros_like(weight) for weight in conv.conv.get_weights()])
    image = np.zeros((1, 4, 4, 2), np.float32)
    image[0, 2, 0] = [1, 2]
    np.testing.assert_array_equal(block(image)[0, 1, 0], kept)
    assert np.sum(block(image)) == sum(kept)


def test_dense_layer_by_hand():
    layer = DenseLayer(1)
    layer.build((None, 1, 1, 1))
    identity = [1.0, 0.0, 0.0, 0.999]  # gamma, beta, mean, variance (and epsilon 0.001)
    layer.norm.set_weights([np.array([value]) for value in identity])
    layer.bottleneck.conv.set_weights([np.array([1, -1, 0.5, 0]).reshape(1, 1, 1, 4)])
    layer.bottleneck.norm.set_weights([np.full(4, value) for value in identity])
    kernel = np.ones((3, 3, 4, 1))
    kernel[1, 1, :, 0] = [1, 1, 3, 1]
    layer.conv.set_weights([kernel])
    # 2 -> bottleneck ReLU(2, -2, 1, 0) -> 2 + 3; -2 -> ReLU 0 -> 0. What came in stays as it is.
    out = layer(np.float32([[[[2]]], [[[-2]]]]))
    np.testing.assert_allclose(out[:, 0, 0], [[2, 5], [-2, 0]], rtol=1e-6)


# === Architectures ===


@pytest.mark.parametrize(("depth", "parameters"), [(3, 0.27e6), (9, 0.85e6), (18, 1.7e6)])
def test_plain_resnet_has_the_parameters_of_he_et_al(depth, parameters):
    # He et al. 2016, Table 6: ResNet-20 0.27M, ResNet-56 0.85M, ResNet-110 1.7M, ten classes.
    network = keras.Sequential([ResNet(depth).plain(), *classifier(10)])
    network.build((None, 32, 32, 3))
    assert trainable_count(network) == pytest.approx(parameters, rel=0.025)


def test_densenet_channels_by_hand():
    stem, branch = DenseNet(2).stem(), DenseNet(2).branch()
    # 6 + 6*3 = 24, halved 12; 12 + 12*3 = 48, halved 24; 24 + 24*3 = 96. 32 px, halved twice.
    assert stem.compute_output_shape((None, 32, 32, 3)) == (None, 8, 8, 24)
    assert branch.compute_output_shape((None, 8, 8, 24)) == (None, 8, 8, 96)
    layers = [layer.name.split("_")[0] for layer in stem.layers + branch.layers]
    assert [layers.count(f"block{number}") for number in (1, 2, 3)] == [6, 12, 24]


def test_densenet_width_is_its_growth():
    backbone = DenseNet(1, stem_width=4, branch_width=2)
    # Growth 12: 24 + 3*12 = 60, 30; 30 + 6*12 = 102, 51. Growth 6 in the branch: 51 + 12*6.
    assert backbone.stem().compute_output_shape((None, 16, 16, 3)) == (None, 4, 4, 51)
    assert backbone.branch().compute_output_shape((None, 4, 4, 51)) == (None, 4, 4, 123)


def test_ressep_shapes_at_224():
    backbone = ResSep(1, stem_width=0.5, branch_width=0.125, gater_width=0.25)
    assert backbone.input_shape == (224, 224, 3)
    assert backbone.stem().compute_output_shape((None, 224, 224, 3)) == (None, 14, 14, 128)
    assert backbone.branch().compute_output_shape((None, 14, 14, 128)) == (None, 7, 7, 64)
    assert backbone.gater_trunk().compute_output_shape((None, 14, 14, 128)) == (None, 7, 7, 128)
    assert backbone.plain().compute_output_shape((None, 224, 224, 3)) == (None, 7, 7, 512)


def test_ressep_branch_parameters_by_hand():
    branch = ResSep(2, branch_width=0.125).branch()
    branch.build((None, 14, 14, 128))
    # Depthwise 9c, pointwise c 64, gamma and beta: c = 128 once, then 64 three times.
    assert trainable_count(branch) == (9 * 128 + 128 * 64 + 128) + 3 * (9 * 64 + 64 * 64 + 128)


def test_resnet_widths_scale_the_channels():
    backbone = ResNet(1, stem_width=0.5, branch_width=0.125, gater_width=0.25)
    assert backbone.stem().compute_output_shape((None, 32, 32, 3)) == (None, 16, 16, 16)
    assert backbone.branch().compute_output_shape((None, 16, 16, 16)) == (None, 8, 8, 8)
    assert backbone.gater_trunk().compute_output_shape((None, 16, 16, 16)) == (None, 8, 8, 16)


def test_widths_leave_at_least_one_channel():
    assert ResNet(1, branch_width=0.001).branch().compute_output_shape((None, 16, 16, 32))[-1] == 1


@pytest.mark.parametrize("sizes", [{"depth": 0}, {"stem_width": 0.0}, {"gater_width": float("nan")}])
@pytest.mark.parametrize("backbone", BACKBONES.values())
def test_bad_sizes(backbone, sizes):
    with pytest.raises(ValueError, match=r"at least 1 and widths in \(0, 100\). Received: depth="):
        backbone(**sizes)


# === What every backbone must do ===


def test_backbones_round_trip_through_keras_serialisation(small):
    for backbone in (small, type(small)()):
        again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(backbone))
        assert again == backbone


def test_stem_and_branch_are_the_plain_network_cut_in_two(small):
    backbone = type(small)(image_size=small.image_size)  # widths 1
    plain, stem, branch = backbone.plain(), backbone.stem(), backbone.branch()
    image_shape = (None, *backbone.input_shape)
    plain.build(image_shape)
    stem.build(image_shape)
    branch.build(stem.compute_output_shape(image_shape))
    spread_statistics(plain)
    for source, target in zip(plain.layers, stem.layers + branch.layers, strict=True):
        target.set_weights(source.get_weights())
    images = np.random.default_rng(0).normal(size=(2, *backbone.input_shape)).astype(np.float32)
    expected = plain(images).numpy()
    np.testing.assert_allclose(branch(stem(images)), expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_twins_list_their_variables_in_the_same_order(small):
    shape = small.stem().compute_output_shape((None, *small.input_shape))
    twins = [small.branch() for _ in range(2)]
    for twin in twins:
        twin.build(shape)
    names, others = ([weight.path.split("/", 1)[1] for weight in twin.weights] for twin in twins)
    assert names == others and len(set(names)) == len(names)


def test_folding_keeps_the_outputs(small):
    stem = small.stem()
    stem.build((None, *small.input_shape))
    spread_statistics(stem)
    images = np.random.default_rng(0).normal(size=(3, *small.input_shape)).astype(np.float32)
    before = stem(images).numpy()
    used = fold(stem)
    np.testing.assert_allclose(stem(images), before, rtol=0, atol=1e-5 * np.abs(before).max())
    # Five weights become two, a separable unit's six three; normalisations ahead of a convolution stay.
    units = [layer for layer in stem._flatten_layers() if isinstance(layer, ConvBN)]
    assert len(used) == len(stem.variables) - 3 * len(units) and units


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(backbone, id=name, marks=pytest.mark.slow if name == "densenet" else ())
        for name, backbone in SMALL.items()  # DenseNet's many small layers take half a minute to trace
    ],
)
def trained(request):
    """A Hydra on a small backbone after a step, the weights it had before, and the images. Don't change."""
    keras.utils.set_random_seed(0)
    backbone = request.param
    model = Hydra(backbone, (0, 0, 1, 1), top_k=2, tau=0.45)
    model.compile(keras.optimizers.SGD(0.01), run_eagerly=True)  # one step: not worth a trace
    images = np.random.default_rng(0).integers(0, 256, (8, *backbone.input_shape), np.uint8)
    before = {part: getattr(model, part).get_weights() for part in ("stem", "gater", "branches", "combiner")}
    assert np.isfinite(model.train_on_batch(images, LABELS, return_dict=True)["loss"])
    return model, before, images


def test_every_weight_of_a_hydra_is_trained(trained):
    model, before, _ = trained
    for part, weights in before.items():
        for variable, then in zip(getattr(model, part).weights, weights, strict=True):
            assert not np.array_equal(variable, then), variable.path


def test_routed_is_dense_in_inference(trained, monkeypatch):
    model, _, images = trained
    routed = model(images)
    assert np.sum(routed["selected"]) < 16  # something was left out
    monkeypatch.setattr(model.branches, "routing", "dense")
    np.testing.assert_allclose(routed["logits"], model(images)["logits"], rtol=1e-4, atol=1e-5)


def test_a_hydra_is_saved_and_loaded(trained, tmp_path):
    model, _, images = trained
    model.save(tmp_path / "m.keras")
    again = keras.saving.load_model(tmp_path / "m.keras")
    assert again.backbone == model.backbone
    np.testing.assert_array_equal(again(images)["logits"], model(images)["logits"])


@pytest.mark.parametrize("unrolled", [False, True])
def test_served_as_in_keras(trained, unrolled):
    model, _, images = trained
    graph = InferenceGraph(model, unrolled)
    served = tf.function(lambda images: graph.classify(graph.gating(images, model.tau)), autograph=False)
    served = served.get_concrete_function(tf.TensorSpec((None, *images.shape[1:]), tf.uint8))
    expected = tf.nn.softmax(model(images)["logits"])
    for count in (1, 8):
        np.testing.assert_allclose(served(tf.constant(images[:count])), expected[:count], atol=1e-5)


def test_mixed_precision(trained):
    model, _, images = trained
    mixed = Hydra.from_config({**model.get_config(), "part_dtype": "mixed_bfloat16"})
    mixed.set_weights(model.get_weights())
    assert mixed.stem(mixed.normalize(images)).dtype == "bfloat16"
    np.testing.assert_allclose(mixed(images)["gate"], model(images)["gate"], atol=0.03)
    mixed.compile("sgd", run_eagerly=True)
    assert np.isfinite(mixed.train_on_batch(images, LABELS, return_dict=True)["loss"])
