"""Weights from elsewhere: a trained plain network's, and those of a network of Keras that is cut in two."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dynkhydra_tf.backbones import Backbone, ResNet
from dynkhydra_tf.backbones.first_weights import copy_weights
from dynkhydra_tf.costs import branched_costs
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving.graph import InferenceGraph

IMAGES = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)


def give_from(network):
    """A function for `set_first_weights` that copies from a network, and the names it was called with."""
    called = []

    def give(part, layer):
        called.append(part)
        copy_weights(network, layer)

    return give, called


@pytest.fixture(scope="module")
def plain():
    model = Plain(ResNet(1, image_size=8), 3)
    for variable in model.weights:
        variable.assign(np.random.default_rng(0).uniform(0.1, 0.2, variable.shape))
    return model


def test_every_path_through_a_hydra_starts_as_the_plain_network(plain):
    model = Hydra(ResNet(1, image_size=8), (0, 1, 2), top_k=2)
    give, called = give_from(plain.network.layers[0])
    model.set_first_weights(give)
    assert called == ["stem", "gater_trunk", *["branch"] * 3]
    images = model.normalize(IMAGES)
    expected = plain.network.layers[0](images)
    features = model.stem(images)
    for layer in (model.gater.layers[0], *(model.branches.branch(index) for index in range(3))):
        np.testing.assert_allclose(layer(features), expected, rtol=1e-5)


def test_a_plain_network_starts_as_another_one(plain):
    model = Plain(ResNet(1, image_size=8), 7)
    give, called = give_from(plain.network.layers[0])
    model.set_first_weights(give)
    assert called == ["plain"]
    np.testing.assert_array_equal(
        model.network.layers[0](IMAGES / 255), plain.network.layers[0](IMAGES / 255)
    )


def test_what_is_left_alone_keeps_what_keras_drew(make_hydra):
    model = make_hydra()
    before = [weight.numpy() for weight in model.weights]
    numbers = iter(range(3))

    def give(part, layer):
        if part == "branch":
            layer.layers[0].norm.beta.assign([next(numbers)] * 6)

    model.set_first_weights(give)
    changed = [w for w, then in zip(model.weights, before, strict=True) if not np.array_equal(w, then)]
    assert len(changed) == 1 and changed[0].numpy()[:, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("backbone", "part", "message"),
    [
        (ResNet(2, image_size=8), "stem", "stem with stage1_block2, stage2_block2, of which that is not so"),
        (ResNet(1, branch_width=0.5, image_size=8), "branch", "branch with stage3_block1, of which"),
    ],
)
def test_layers_that_the_source_has_not(plain, backbone, part, message):
    layer = getattr(backbone, part)()
    layer.build((None, 8, 8, 3) if part == "stem" else (None, 4, 4, 32))
    before = layer.get_weights()
    with pytest.raises(ValueError, match=f"plain must have every layer of {part}, .* Received: {message}"):
        copy_weights(plain.network.layers[0], layer)
    for now, then in zip(layer.get_weights(), before, strict=True):
        np.testing.assert_array_equal(now, then)


# === A network of Keras, cut in two ===


def whole():
    """A functional network with inverted residual blocks; every call makes one with other weights."""
    x = inputs = keras.Input((8, 8, 3))
    x = layers.Conv2D(4, 3, strides=2, padding="same", use_bias=False, name="conv")(x)
    x = layers.BatchNormalization(name="conv_bn")(x)
    for block in ("block1", "block2"):
        y = layers.Conv2D(8, 1, use_bias=False, name=f"{block}_expand")(x)
        y = layers.ReLU(6, name=f"{block}_relu")(layers.BatchNormalization(name=f"{block}_expand_bn")(y))
        y = layers.DepthwiseConv2D(3, padding="same", name=f"{block}_depthwise")(y)
        y = layers.BatchNormalization(name=f"{block}_depthwise_bn")(y)
        squeezed = layers.GlobalAveragePooling2D(keepdims=True, name=f"{block}_pool")(y)
        gate = layers.Conv2D(8, 1, activation="sigmoid", name=f"{block}_gate")(squeezed)
        y = layers.Multiply(name=f"{block}_scaled")([y, gate])
        y = layers.BatchNormalization(name=f"{block}_bn")(layers.Conv2D(4, 1, name=f"{block}_project")(y))
        y = layers.Dropout(0.2, name=f"{block}_drop")(y)
        x = layers.Add(name=f"{block}_add")([x, y])
    return keras.Model(inputs, x)


@dataclasses.dataclass(frozen=True)
@keras.saving.register_keras_serializable("tests")
class CutNetwork(Backbone):
    """The whole network before and after a layer; it brings its own normalisation."""

    @property
    def input_shape(self):
        return (8, 8, 3)

    def normalizer(self):
        return keras.layers.Rescaling(1 / 127.5, -1, dtype="float32")

    def stem(self, dtype=None):
        network = whole()
        return keras.Model(network.input, network.get_layer("block1_add").output, name="stem")

    def branch(self, dtype=None):
        network = whole()
        return keras.Model(network.get_layer("block1_add").output, network.output, name="branch")

    def gater_trunk(self, dtype=None):
        return self.branch(dtype)

    def plain(self, dtype=None):
        network = whole()
        return keras.Model(network.input, network.output, name="plain")


@pytest.fixture(scope="module")
def cut():
    """A Hydra and a plain network that start from one network, and that network."""
    network = whole()
    rng = np.random.default_rng(0)
    for variable in network.weights:
        if variable.name in ("gamma", "beta", "moving_mean", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    models = Hydra(CutNetwork(), (0, 1, 2), top_k=2, tau=0.0), Plain(CutNetwork(), 3)
    for model in models:
        model.set_first_weights(give_from(network)[0])
    return *models, network


def test_a_network_cut_in_two_is_the_network(cut):
    model, plain, network = cut
    expected = network(IMAGES / np.float32(127.5) - 1)
    atol = 1e-5 * np.abs(expected).max()
    features = model.stem(model.normalize(IMAGES))
    np.testing.assert_allclose(plain.network.layers[0](plain.normalize(IMAGES)), expected, rtol=0, atol=atol)
    np.testing.assert_allclose(model.branches.branch(2)(features), expected, rtol=0, atol=atol)


def test_it_is_served_as_in_keras(cut):
    model, _, _ = cut
    graph = InferenceGraph(model)
    served = tf.function(lambda images: graph.classify(graph.gating(images, 0.0)), autograph=False)
    np.testing.assert_allclose(served(tf.constant(IMAGES)), tf.nn.softmax(model(IMAGES)["logits"]), atol=1e-5)
    traced = served.get_concrete_function(tf.constant(IMAGES)).graph.as_graph_def()
    assert "Conv2D" in str(traced) and "Rsqrt" not in str(traced)  # all is folded, in the branches too


def test_it_is_saved_counted_and_trained(cut, tmp_path):
    model, plain, _ = cut
    for one in (plain, model):
        one.save(tmp_path / "model.keras")
        again = keras.models.load_model(tmp_path / "model.keras")
        np.testing.assert_allclose(again(IMAGES)["logits"], one(IMAGES)["logits"], rtol=1e-5, atol=1e-5)
    again.compile("sgd", run_eagerly=True)
    assert np.isfinite(again.train_on_batch(IMAGES, np.arange(4) % 3, return_dict=True)["loss"])
    assert all(count > 0 for count in branched_costs(CutNetwork(), 3, 3)["flops"].values())


def test_a_normaliser_with_weights_is_refused():
    class Weighted(CutNetwork):
        def normalizer(self):
            return keras.layers.BatchNormalization(name="bn")

    with pytest.raises(ValueError, match=r"normaliser has no weights; .* Received: bn with .*gamma"):
        Plain(Weighted(), 3)
