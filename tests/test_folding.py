"""What is folded, what stays, and that the outputs are the same either way."""

import collections

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dynkhydra_tf.backbones import ResNet
from dynkhydra_tf.backbones.blocks import BatchNorm, ConvBN
from dynkhydra_tf.folding import Folding, fold
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.serving.graph import InferenceGraph
from tests.conftest import TinyBackbone

SHAPE = (6, 6, 4)


def spread(layer, seed=0):
    """Gives every normalisation, and every bias, values of its own."""
    rng = np.random.default_rng(seed)
    for variable in layer.variables:
        name = variable.path.split("/")[-1]
        if name in ("gamma", "beta", "moving_mean", "moving_variance", "bias"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))


def operations(layer, shape):
    """How often each kind of operation is in the graph of a layer at inference."""
    function = tf.function(lambda x: layer(x, training=False), autograph=False)
    graph = function.get_concrete_function(tf.TensorSpec((None, *shape), tf.float32)).graph
    return collections.Counter(op.type for op in graph.get_operations())


def normalisations(layer, shape):
    """How many normalisations are computed in a layer at inference, Keras's and ours."""
    counts = operations(layer, shape)
    return counts["Rsqrt"] + counts["FusedBatchNormV3"]


def check_folding(layer, left, shape=SHAPE):
    """Folds a layer and checks its outputs, and that `left` normalisations are still computed."""
    layer.build((None, *shape))
    spread(layer)
    x = np.random.default_rng(1).normal(size=(3, *shape)).astype(np.float32)
    before = np.asarray(layer(x))
    for _ in range(2):  # a folded layer may be folded again
        fold(layer)
        np.testing.assert_allclose(layer(x), before, rtol=0, atol=1e-5 * np.abs(before).max())
        assert normalisations(layer, shape) == left


def functional(make, shape=SHAPE):
    inputs = keras.Input(shape)
    return keras.Model(inputs, make(inputs))


# === What is folded ===


def test_by_hand():
    # Kernel 3, mean 1, variance 4 (epsilon 0), gamma 2, beta 5: 3x -> (3x - 1) / 2 * 2 + 5 = 3x + 4.
    unit = ConvBN(1, 1, relu=False)
    unit.build((None, 1, 1, 1))
    unit.norm.epsilon = 0.0
    unit.conv.set_weights([np.full((1, 1, 1, 1), 3.0)])
    unit.norm.set_weights([np.array([value]) for value in (2.0, 5.0, 1.0, 4.0)])
    kernel, offset = sorted(fold(unit), key=lambda variable: variable.name, reverse=True)
    assert (kernel.numpy().item(), offset.numpy().item()) == (3.0, 4.0)
    assert unit(np.array([[[[10.0]]], [[[-2.0]]]])).numpy().ravel().tolist() == [34.0, -2.0]


@pytest.mark.parametrize("norm", [layers.BatchNormalization, BatchNorm])
@pytest.mark.parametrize("use_bias", [False, True])
@pytest.mark.parametrize(
    "linear",
    [
        lambda **k: layers.Conv2D(6, 3, strides=2, **k),
        lambda **k: layers.Conv2D(6, 1, groups=2, **k),
        lambda **k: layers.DepthwiseConv2D(3, depth_multiplier=2, **k),
        lambda **k: layers.SeparableConv2D(6, 3, **k),
    ],
    ids=["full", "groups", "depthwise", "separable"],
)
def test_a_convolution_before_a_normalisation(linear, use_bias, norm):
    check_folding(keras.Sequential([linear(use_bias=use_bias), norm(), layers.ReLU()]), 0)


@pytest.mark.parametrize("use_bias", [False, True])
def test_a_dense_layer_before_a_normalisation(use_bias):
    network = [layers.Dense(5, use_bias=use_bias), layers.BatchNormalization(), layers.Dense(2)]
    check_folding(keras.Sequential(network), 0, (7,))


@pytest.mark.parametrize("settings", [{"scale": False}, {"center": False}, {"axis": 3}])
def test_normalisations_of_other_settings(settings):
    check_folding(keras.Sequential([layers.Conv2D(5, 3), layers.BatchNormalization(**settings)]), 0)


def test_parallel_paths():
    def two(x):
        one = layers.BatchNormalization()(layers.Conv2D(6, 3, padding="same", use_bias=False)(x))
        other = layers.BatchNormalization()(layers.Conv2D(6, 1)(x))
        return layers.ReLU()(layers.Add()([one, other]))

    check_folding(functional(two), 0)


def test_squeeze_and_excite():
    def block(x):
        x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, padding="same")(x))
        squeezed = layers.GlobalAveragePooling2D(keepdims=True)(layers.Activation("swish")(x))
        gate = layers.Conv2D(4, 1, activation="sigmoid")(layers.Conv2D(2, 1, activation="swish")(squeezed))
        return layers.BatchNormalization()(layers.Conv2D(6, 1, use_bias=False)(x * gate))

    check_folding(functional(block), 0)


@keras.saving.register_keras_serializable("tests")
class Misleading(keras.Layer):
    """Its layers are made in another order than that of their calls."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.norm1, self.conv2 = layers.BatchNormalization(), layers.Conv2D(5, 3)
        self.conv1, self.norm2 = layers.Conv2D(3, 1), layers.BatchNormalization()

    def build(self, shape):
        self.conv1.build(shape)
        self.norm1.build((*shape[:-1], 3))
        self.norm2.build((*shape[:-1], 3))
        self.conv2.build((*shape[:-1], 3))

    def call(self, x, training=False):
        x = self.norm1(self.conv1(x), training=training)
        return self.conv2(self.norm2(keras.ops.relu(x), training=training))


def test_in_layers_of_ones_own_the_order_is_that_of_the_calls():
    check_folding(Misleading(), 1)  # norm2 is ahead of a convolution


def test_a_constant_may_go_through_layers_too():
    class Shifted(keras.Layer):
        def __init__(self):
            super().__init__()
            self.conv, self.norm = layers.Conv2D(4, 1), layers.BatchNormalization()
            self.dense, self.points = layers.Dense(4), tf.ones((1, 3))

        def build(self, shape):
            self.conv.build(shape)
            self.norm.build(shape)
            self.dense.build((1, 3))

        def call(self, x, training=False):
            return self.norm(self.conv(x), training=training) + self.dense(self.points)

    check_folding(Shifted(), 0)


def test_models_within_models():
    inner = keras.Sequential([layers.Conv2D(5, 3), BatchNorm()])
    check_folding(functional(lambda x: layers.ReLU()(keras.Sequential([inner, Misleading()])(x))), 1)


# === What stays ===


def conv(**settings):
    return layers.Conv2D(4, 1, use_bias=False, **settings)


@pytest.mark.parametrize(
    ("make", "left"),
    [
        (lambda x: conv()(layers.BatchNormalization()(x)), 1),
        (lambda x: layers.BatchNormalization()(conv(activation="relu")(x)), 1),
        (lambda x: layers.BatchNormalization()(layers.ReLU()(conv()(x))), 1),
        (lambda x: layers.BatchNormalization(center=False)(conv()(x)), 1),
        (lambda x: layers.BatchNormalization(axis=1)(conv()(x)), 1),
        (lambda x: (lambda y: layers.Add()([y, layers.BatchNormalization()(y)]))(conv()(x)), 1),
        (lambda x: (lambda y: [layers.BatchNormalization()(y) for _ in range(2)])(conv()(x)), 2),
        (lambda x: layers.BatchNormalization()(layers.Conv2DTranspose(3, 2)(x)), 1),
    ],
    ids=["ahead", "activation", "relu", "no offset", "axis", "read twice", "two norms", "transposed"],
)
def test_what_cannot_be_folded_stays(make, left):
    def joined(x):
        made = make(x)
        return layers.Concatenate()(made) if isinstance(made, list) else made

    check_folding(functional(joined), left)


def test_an_output_of_the_network_stays():
    def both(x):
        y = conv()(x)
        return {"map": y, "normalised": layers.BatchNormalization()(y)}

    network = functional(both)
    spread(network)
    x = np.ones((1, *SHAPE), np.float32)
    before = network(x)
    fold(network)
    for name, values in network(x).items():
        np.testing.assert_allclose(values, before[name], rtol=1e-5)


@pytest.mark.parametrize("shared", ["convolution", "normalisation", "both"])
def test_shared_layers_stay(shared):
    def twice(x):
        convs, norms = [conv(), conv()], [layers.BatchNormalization(), layers.BatchNormalization()]
        if shared != "normalisation":
            convs = convs[:1] * 2
        if shared != "convolution":
            norms = norms[:1] * 2
        return layers.Add()([norms[0](convs[0](x)), norms[1](convs[1](2 * x))])

    check_folding(functional(twice), 2)


def test_a_normalisation_with_an_activation_of_its_own_stays():
    class Rectified(BatchNorm):
        def call(self, inputs, training=None, mask=None):
            return keras.ops.relu(super().call(inputs, training=training))

    check_folding(keras.Sequential([conv(), Rectified()]), 1)


@pytest.mark.parametrize("layer", [ConvBN(1, 1), keras.Sequential([layers.Dense(1)])])
def test_what_is_not_built_is_refused(layer):
    with pytest.raises(ValueError, match=r"must be built, and on one input, to be folded\. Received: "):
        fold(layer)


def test_two_inputs_are_refused():
    inputs = [keras.Input((3,)), keras.Input((3,))]
    with pytest.raises(ValueError, match=r"on one input, to be folded\. Received: "):
        fold(keras.Model(inputs, layers.Add()(inputs)))


# === What comes of it ===


def test_a_folding_is_applied_to_other_weights_again():
    network = keras.Sequential([layers.Conv2D(5, 3), BatchNorm(), layers.ReLU()])
    network.build((None, *SHAPE))
    folding, x = Folding(network), np.ones((1, *SHAPE), np.float32)
    for seed in (1, 2):
        other = keras.models.clone_model(network)
        spread(other, seed)
        network.set_weights(other.get_weights())
        folding.apply()
        np.testing.assert_allclose(network(x), other(x), rtol=1e-5, atol=1e-6)


def test_a_folded_network_is_saved_as_it_is(tmp_path):
    network = keras.Sequential([layers.Conv2D(5, 3, use_bias=False), BatchNorm(), Misleading()])
    network.build((None, *SHAPE))
    spread(network)
    fold(network)
    network.save(tmp_path / "folded.keras")
    x = np.random.default_rng(0).normal(size=(2, *SHAPE)).astype(np.float32)
    again = keras.models.load_model(tmp_path / "folded.keras")
    np.testing.assert_allclose(again(x), network(x), rtol=1e-5, atol=1e-5)


def test_only_what_is_read_at_inference_is_returned():
    network = functional(lambda x: BatchNorm(name="n")(layers.Dropout(0.5)(conv(name="c")(x))))
    assert [variable.path for variable in fold(network)] == ["c/kernel", "n/beta"]


def test_a_folded_resnet_is_convolutions_and_biases():
    network = ResNet(2, image_size=16).plain()
    network.build((None, 16, 16, 3))
    before = operations(network, (16, 16, 3))
    fold(network)
    after = operations(network, (16, 16, 3))
    # 6d + 1 convolutions; each had its normalisation, and has a bias now that TensorFlow merges into it.
    assert before["Conv2D"] == before["FusedBatchNormV3"] == 13
    assert after["Conv2D"] == after["BiasAdd"] == 13 and not after["FusedBatchNormV3"]
    unchanged = ("Relu", "AvgPool", "PadV2", "AddV2")
    assert {name: after[name] for name in unchanged} == {name: before[name] for name in unchanged}
    assert set(after) <= set(before) | {"BiasAdd"}


@pytest.mark.parametrize(
    "name",
    ["MobileNetV2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("EfficientNetB0", "ResNet50"))],
)
def test_networks_of_keras_applications(name):
    network = getattr(keras.applications, name)(weights=None, include_top=False, input_shape=(32, 32, 3))
    check_folding(network, 0, (32, 32, 3))


# === In a Hydra ===


class Dicing(keras.Layer):
    """Draws at inference too."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.random = keras.random.SeedGenerator(0, name="dice")

    def call(self, x):
        return x + keras.random.normal(keras.ops.shape(x), seed=self.random)


@pytest.mark.parametrize(
    ("layer", "message"), [(layers.Dropout(0.5), None), (Dicing(), r"all be float32. Received: .*\(int64\)")]
)
def test_branches_with_a_random_state(layer, message):
    class Random(TinyBackbone):
        def branch(self, dtype=None):
            return keras.Sequential(
                [*super().branch(dtype).layers, type(layer).from_config(layer.get_config())], name="branch"
            )

    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8)
    model = Hydra(Random(), (0, 1, 2), top_k=2)
    model.for_inference = lambda: model
    if message:
        with pytest.raises(ValueError, match=message):
            InferenceGraph(model)
    else:
        expected = tf.nn.softmax(model(images)["logits"])
        graph = InferenceGraph(model)
        np.testing.assert_allclose(graph.classify(graph.gating(images, model.tau)), expected, atol=1e-5)
