"""Any network of Keras as a backbone: where it is cut, what its parts are, and what is refused."""

import json
import pathlib
import socket

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from dynkhydra_tf.backbones import make_backbone, open_backbone
from dynkhydra_tf.backbones.chain import narrow_places
from dynkhydra_tf.backbones.cut_network import CutNetwork
from dynkhydra_tf.backbones.pretrained import open_network
from dynkhydra_tf.costs import branched_costs
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.hydra import Hydra
from dynkhydra_tf.plain import Plain
from dynkhydra_tf.serving.graph import InferenceGraph
from dynkhydra_tf.settings import NetworkSettings
from tests.conftest import ROOT

LITE = ROOT.parent / "shared" / "models" / "efficientnet_lite0_features.keras"
SIZE = 64  # the families' last maps are 2x2 then
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def unit(x, name, channels, strides=1, activation=True):
    x = layers.Conv2D(channels, 3, strides, padding="same", use_bias=False, name=f"{name}_conv")(x)
    x = layers.BatchNormalization(name=f"{name}_bn")(x)
    return layers.ReLU(6, name=f"{name}_relu")(x) if activation else x


def block(x, name):
    """An inverted residual block with squeeze-excite and dropout."""
    y = unit(x, f"{name}_expand", 8)
    y = layers.DepthwiseConv2D(3, padding="same", name=f"{name}_dw")(y)
    squeezed = layers.GlobalAveragePooling2D(keepdims=True, name=f"{name}_pool")(y)
    gate = layers.Conv2D(8, 1, activation="sigmoid", name=f"{name}_gate")(squeezed)
    y = unit(layers.Multiply(name=f"{name}_excite")([y, gate]), f"{name}_project", 6, activation=False)
    y = layers.Dropout(0.2, name=f"{name}_drop")(y)
    return layers.Add(name=f"{name}_add")([x, y])


def small(head=True, channels=3, size=None):
    """A network of 16x16 -> 8x8 -> 4x4 with three residual blocks, and a classifier."""
    x = inputs = keras.Input((size, size, channels), name="images")
    x = layers.Rescaling(1 / 127.5, -1, name="rescale")(x)
    x = block(unit(x, "first", 6, 2), "block1")
    x = block(block(unit(x, "block2_down", 6, 2), "block3"), "block4")
    if head:
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        x = layers.Dense(5, name="classes")(x)
    return keras.Model(inputs, x, name="small")


@pytest.fixture(scope="module")
def network():
    keras.utils.set_random_seed(0)
    model = small()
    rng = np.random.default_rng(0)
    for variable in model.weights:
        if variable.name in ("gamma", "beta", "moving_mean", "moving_variance"):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
    return model


@pytest.fixture(scope="module")
def path(network, tmp_path_factory):
    path = tmp_path_factory.mktemp("networks") / "small.keras"
    network.save(path)
    return str(path)


@pytest.fixture(scope="module")
def opened(path):
    return open_network(path, 16)


def last_map(network, images=IMAGES):
    maps = keras.Model(network.inputs, network.get_layer("block4_add").output)
    return maps(tf.cast(images, tf.float32)).numpy()


# === Where ===


def test_places_are_the_ends_of_blocks_and_the_default_is_before_the_map_gets_its_last_size(opened):
    assert [point.name for point in opened.points] == [
        "first_relu",
        "block1_add",
        "block2_down_relu",
        "block3_add",
    ]
    assert opened.cut().cut == "block1_add"
    assert opened.shapes["block1_add"] == (8, 8, 6)


def test_parallel_paths_are_no_place(opened):
    narrow = narrow_places(opened.layers)
    assert "block1_add" in narrow and "first_bn" in narrow
    assert not {"block1_expand_conv", "block1_gate", "block1_excite", "block1_drop"} & set(narrow)


def test_the_head_is_taken_off_and_it_is_said(opened):
    assert opened.layers[-1]["name"] == "block4_add"
    assert opened.left_out == (
        "small.keras: what follows block4_add is taken off, its pooling and its head (classes)"
    )


@pytest.mark.parametrize(
    ("cut", "message"),
    [
        ("block1_ad", r"cannot be cut at 'block1_ad'\. Did you mean block1_add\? --cut=list shows"),
        ("block1_gate", "cannot be cut at 'block1_gate'"),
        ("block4_add", r"cut must leave a stem and a tail of small\.keras\. Received: block4_add"),
        ("images", "cut must leave a stem and a tail"),
    ],
)
def test_no_place_for_a_cut(opened, cut, message):
    with pytest.raises(UserError, match=message):
        opened.cut(cut)


# === What comes of it ===


@pytest.fixture(scope="module")
def models(opened):
    backbone = opened.cut()
    models = Hydra(backbone, (0, 1, 1), top_k=1, tau=0.0), Plain(backbone, 3)
    for model in models:
        model.set_first_weights(opened.give())
    return models


def test_each_way_through_it_is_the_network(network, models):
    hydra, plain = models
    expected = last_map(network)
    features = hydra.stem(hydra.normalize(IMAGES))
    np.testing.assert_allclose(hydra.branches.branch(1)(features), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        plain.network.layers[0](plain.normalize(IMAGES)), expected, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("lean", [False, True], ids=["usual", "gater of blocks, combiner that pools"])
def test_it_is_saved_without_the_file_and_served_with_all_folded(opened, models, lean, tmp_path):
    model = models[0]
    if lean:
        model = Hydra(opened.cut(gater_width=0.5), (0, 1, 1), top_k=2, tau=0.0, combiner_conv=False)
        model.set_first_weights(opened.give())
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.backbone == model.backbone and again.combiner_conv == model.combiner_conv
    graph = InferenceGraph(again)
    served = tf.function(lambda images: graph.classify(graph.gating(images, 0.0)), autograph=False)
    expected = tf.nn.softmax(model(IMAGES)["logits"])
    np.testing.assert_allclose(served(tf.constant(IMAGES)), expected, atol=1e-5)
    assert "Rsqrt" not in str(served.get_concrete_function(tf.constant(IMAGES)).graph.as_graph_def())


def test_a_frozen_stem_and_kept_statistics_stay_while_the_rest_is_trained(opened):
    model = Plain(opened.cut(frozen="stem"), 3)
    model.set_first_weights(opened.give())
    before = {weight.path: weight.numpy() for weight in model.weights}
    model.compile("sgd", run_eagerly=True)
    model.train_on_batch(IMAGES, np.arange(3))
    changed = {w.path.split("/")[-2] for w in model.weights if not np.array_equal(w, before[w.path])}
    assert {"block2_down_conv", "block4_project_conv", "logits"} <= changed
    assert not any(name.startswith(("first", "block1")) or name.endswith("bn") for name in changed)
    # Dropout drops nothing in a frozen stem: its maps are the same in training.
    stem, images = model.network.layers[0].layers[0], model.normalize(IMAGES)
    assert not stem.trainable_variables
    np.testing.assert_array_equal(stem(images, training=True), stem(images))


def test_kept_statistics_are_not_trained_in_the_branches_either(models):
    names = [stack.path for stack in models[0].branches.trainable_variables]
    assert any("project_conv" in name for name in names) and not any("_bn_" in name for name in names)
    features, needed = (
        np.random.default_rng(0).normal(5, 9, (3, 8, 8, 6)).astype(np.float32),
        np.eye(3, 2) > 0,
    )
    before = [stack.numpy() for stack in models[0].branches.stacks if "moving" in stack.path]
    models[0].branches(features, needed, training=True)
    after = [stack.numpy() for stack in models[0].branches.stacks if "moving" in stack.path]
    assert before
    np.testing.assert_equal(after, before)


def test_a_branch_of_some_blocks(opened, network):
    whole, part = opened.cut(), opened.cut(blocks=("block2_down_relu", "block4_add"))
    assert part.description == "small.keras for 16 px, cut at block1_add, without block3_add"
    names = {layer.name for layer in part.branch().layers}
    assert "block4_add" in names and not any(name.startswith("block3") for name in names)
    assert branched_costs(part, 3, 2)["flops"]["branch"] < branched_costs(whole, 3, 2)["flops"]["branch"]
    branch, feature = part.branch(), np.random.default_rng(1).normal(size=(2, 8, 8, 6)).astype(np.float32)
    opened.give()("branch", branch)
    x = feature
    for name in ("block2_down_conv", "block2_down_bn", "block2_down_relu"):
        x = network.get_layer(name)(x)
    rest = keras.Model(network.get_layer("block3_add").output, network.get_layer("block4_add").output)
    np.testing.assert_allclose(branch(feature), rest(x), rtol=1e-4, atol=1e-4)
    short = opened.cut(blocks=("block2_down_relu",)).branch()
    assert short.layers[-1].name == "block2_down_relu"


def test_narrow_branches_and_a_narrow_tail(opened, models, tmp_path):
    narrow = opened.cut(branch_width=0.25, tail_width=0.5)
    assert narrow.description.endswith("cut at block1_add, branches of width 0.25, plain tail of width 0.5")
    whole = branched_costs(opened.cut(), 3, 2)["flops"]
    assert branched_costs(narrow, 3, 2)["flops"]["stem"] == whole["stem"]
    hydra, plain = Hydra(narrow, (0, 1, 1), top_k=1, tau=0.0), Plain(narrow, 3)
    for model in (hydra, plain):
        model.set_first_weights(opened.give())
    # block3 expands 6 channels to 8, reads them depthwise, and has 6 in the end.
    kernels = {layer.name: layer.weights[0].shape for layer in narrow.branch().layers if layer.weights}
    assert kernels["block3_expand_conv"] == (3, 3, 6, 2) and kernels["block3_project_conv"] == (3, 3, 2, 6)
    tail = plain.network.layers[0].layers[1]
    whole_kernel = opened.network.get_layer("block4_project_conv").kernel.numpy()
    kernel = tail.get_layer("block4_project_conv").kernel.numpy()
    assert kernel.shape == (3, 3, 4, 6)
    rows = [np.flatnonzero((whole_kernel == kernel[:, :, [i]]).all(axis=(0, 1, 3))) for i in range(4)]
    assert len({int(row[0]) for row in rows}) == 4  # four different ones of the eight
    hydra.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.backbone == narrow
    np.testing.assert_allclose(again(IMAGES)["logits"], hydra(IMAGES)["logits"], rtol=1e-4, atol=1e-5)


def test_nothing_to_narrow_is_told(tmp_path):
    x = inputs = keras.Input((16, 16, 3))
    for name, strides in (("first", 2), ("second", 2)):
        x = layers.Conv2D(4, 3, strides, padding="same", name=name)(x)
    opened = open_network(saved(keras.Model(inputs, x), tmp_path), 16)
    assert opened.cut().branch_width == 1
    for flag in ("branch_width", "tail_width"):
        with pytest.raises(UserError, match=f"behind first: leave --{flag} out"):
            opened.cut(**{flag: 0.5})


def test_blocks_that_do_not_fit(opened):
    with pytest.raises(UserError, match=r"must be of block2_down_relu, block3_add, block4_add\. Received: x"):
        opened.cut(blocks=("x",))
    with pytest.raises(UserError, match="needs the block block2_down_relu"):
        opened.cut(blocks=("block4_add",))


def test_fresh_branches_keep_what_keras_drew(opened):
    model = Hydra(opened.cut(), (0, 1), top_k=1)
    before = [stack.numpy() for stack in model.branches.stacks]
    model.set_first_weights(opened.give(fresh_branches=True))
    for stack, then in zip(model.branches.stacks, before, strict=True):
        np.testing.assert_array_equal(stack, then)


def test_mixed_precision_leaves_the_images_preprocessing_alone(opened):
    stem = opened.cut().stem("mixed_bfloat16")
    assert stem.get_layer("rescale").compute_dtype == "float32"
    assert stem.get_layer("first_conv").compute_dtype == "bfloat16"


def test_the_settings_make_it(path, capsys):
    settings = NetworkSettings(backbone=path, cut="block3_add", freeze="stem")
    backbone, give = open_backbone(settings, 16)
    assert (backbone.cut, backbone.frozen_stem, backbone.keep_statistics) == ("block3_add", True, True)
    assert give is not None
    assert capsys.readouterr().out == (
        "small.keras: what follows block4_add is taken off, its pooling and its head (classes)\n"
        "small.keras for 16 px, cut at block3_add\n"
    )
    drawn = NetworkSettings(backbone=path, weights="none")
    assert open_backbone(drawn, 16)[1] is None and not open_backbone(drawn, 16)[0].keep_statistics
    assert make_backbone(settings, 16).cut == "block3_add"


def test_weights_from_a_file(network, path, tmp_path):
    other = keras.models.clone_model(network)
    other.save_weights(tmp_path / "other.weights.h5")
    backbone = open_network(path, 16, tmp_path / "other.weights.h5")
    np.testing.assert_allclose(
        backbone.network(tf.cast(IMAGES, tf.float32)), last_map(other), rtol=1e-4, atol=1e-4
    )
    (tmp_path / "bad.weights.h5").write_text("no")
    with pytest.raises(UserError, match="do not fit"):
        open_network(path, 16, tmp_path / "bad.weights.h5")


def test_adapted_normalisation_is_part_of_the_architecture(tmp_path):
    normalisation = layers.Normalization(name="normalise")
    normalisation.adapt(IMAGES.astype(np.float32))
    inner = small(head=False)
    x = inputs = keras.Input((16, 16, 3))
    x = normalisation(x)
    for name in ("first_conv", "first_bn", "first_relu"):
        x = inner.get_layer(name)(x)
    x = layers.Conv2D(4, 3, 2, name="last")(x)
    model = keras.Model(inputs, x)
    model.save(tmp_path / "normalised.keras")
    opened = open_network(str(tmp_path / "normalised.keras"), 16)
    plain = Plain(opened.cut(), 3)
    plain.set_first_weights(opened.give())
    np.testing.assert_allclose(
        plain.network.layers[0](plain.normalize(IMAGES)), model(IMAGES.astype(np.float32)), atol=1e-5
    )
    assert not plain.network.layers[0].layers[0].get_layer("normalise").weights


# === Bad input ===


def saved(model, tmp_path):
    path = tmp_path / "bad.keras"
    model.save(path)
    return str(path)


def two_inputs():
    first, second = keras.Input((16, 16, 3)), keras.Input((16, 16, 3))
    return keras.Model([first, second], layers.Add()([first, second]))


def shared_layer():
    x = inputs = keras.Input((16, 16, 3))
    conv = layers.Conv2D(3, 3, padding="same", name="conv")
    return keras.Model(inputs, conv(conv(x)))


def no_map():
    x = inputs = keras.Input((16, 16, 3))
    return keras.Model(inputs, layers.Reshape((-1, 3))(x))


def one_layer():
    inputs = keras.Input((16, 16, 3))
    return keras.Model(inputs, layers.Conv2D(3, 3, name="only")(inputs))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (two_inputs, r"one input and one output\. Received: 2 and 1"),
        (lambda: small(channels=4), r"must take colour images .* Received: .*None, 4\)"),
        (lambda: small(channels=1), r"must take colour images .* Received: .*None, 1\)"),
        (shared_layer, "it calls the layer conv more than once"),
        (no_map, r"it has no map \(H, W, C\) at its end"),
        (lambda: Plain(make_backbone(NetworkSettings(), 8), 3), "it holds a Plain; it must be a functional"),
        (one_layer, "cannot be cut: nowhere does it go on"),
    ],
)
def test_networks_that_cannot_be_cut_say_why_in_one_line(tmp_path, make, message):
    with pytest.raises(UserError, match=message) as error:
        open_network(saved(make(), tmp_path), 16).cut()
    assert "\n" not in str(error.value)


def test_images_that_are_too_small(path, tmp_path):
    x = inputs = keras.Input((None, None, 3))
    for number in range(3):
        x = layers.Conv2D(4, 5, strides=2, name=f"conv{number}")(x)
    with pytest.raises(UserError, match="cannot take images of 8 px") as error:
        open_network(saved(keras.Model(inputs, x), tmp_path), 8)
    assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="MobileNetV2 cannot take images of 16 px"):
        open_network("MobileNetV2", 16, "none")


def test_names_and_files_that_are_none(path, tmp_path):
    (tmp_path / "text.keras").write_text("no")
    for name, weights, message in (
        ("mobilenetv2", None, r"keras\.applications\. Did you mean MobileNetV2\? Received: mobilenetv2"),
        (str(tmp_path / "none.keras"), None, "No backbone file at"),
        (path, "none.weights.h5", "weights must be none, or a file that exists. Received: none.weights.h5"),
        (str(tmp_path / "text.keras"), None, "cannot be loaded as a Keras model"),
        ("MobileNetV2", "no/such.h5", "weights must be imagenet, none, or a file that exists"),
    ):
        with pytest.raises(UserError, match=message) as error:
            open_network(name, 32, weights)
        assert "\n" not in str(error.value)


def test_no_network_for_the_weights_gives_two_ways_out(tmp_path, monkeypatch):
    def no_address(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))
    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    with pytest.raises(UserError, match=r"--weights=PATH, a file of them, or --backbone=FILE\.keras"):
        open_network("MobileNetV3Small", 32)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"backbone": "resnet", "cut": "conv"}, "--cut is for networks of Keras"),
        ({"backbone": "MobileNetV2", "depth": 3}, "--depth is for densenet, resnet, ressep"),
        ({"backbone": "MobileNetV2", "weights": "none", "freeze": "stem"}, "would keep drawn weights"),
        ({"backbone": "MobileNetV2", "branch_width": 2.0}, "must be at most 1 for networks of Keras"),
        ({"backbone": "resnet", "tail_width": 0.5}, "--tail_width is for networks of Keras"),
    ],
)
def test_settings_of_the_other_kind_of_backbone(given, message):
    with pytest.raises(UserError, match=message):
        NetworkSettings(**given)


# === The networks of keras.applications, and a real file ===


@pytest.mark.parametrize(
    ("name", "cut", "normalised"),
    [
        pytest.param("MobileNetV2", "block_12_add", [-1, -1, 1], marks=pytest.mark.slow),
        pytest.param("MobileNetV3Small", "expanded_conv_7_add", [0, 0, 255], marks=pytest.mark.slow),
        pytest.param("EfficientNetB0", "block5c_add", [0, 0, 255], marks=pytest.mark.slow),
        pytest.param("EfficientNetV2B0", "block5e_add", [0, 0, 255], marks=pytest.mark.slow),
        pytest.param(
            "ResNet50", "conv4_block6_out", [255 - 103.939, -116.779, -123.68], marks=pytest.mark.slow
        ),
        pytest.param("ConvNeXtTiny", "convnext_tiny_stage_2_block_8", [0, 0, 255], marks=pytest.mark.slow),
    ],
)
def test_the_known_families(name, cut, normalised, tmp_path):
    keras.utils.set_random_seed(0)
    opened = open_network(name, SIZE, "none")
    assert opened.point(None).name == cut
    assert opened.cut(cut) == opened.cut()
    backbone = opened.cut()
    blue = np.zeros((1, SIZE, SIZE, 3), np.uint8) + np.array([0, 0, 255], np.uint8)
    np.testing.assert_allclose(backbone.normalizer()(blue)[0, 5, 5], normalised, atol=1e-3)
    model = Hydra(backbone, (0, 1), top_k=1, tau=0.0)
    model.set_first_weights(opened.give())
    images = np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3), np.uint8)
    features = model.stem(model.normalize(images))
    expected = opened.network(model.normalize(images)).numpy()
    assert np.std(expected) > 0
    np.testing.assert_allclose(
        model.branches.branch(1)(features), expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max()
    )
    model.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(again(images)["logits"], model(images)["logits"], rtol=1e-3, atol=1e-4)
    graph = InferenceGraph(model)
    served = tf.function(lambda images: graph.classify(graph.gating(images, 0.0)), autograph=False)
    expected = tf.nn.softmax(model(images)["logits"])
    np.testing.assert_allclose(served(tf.constant(images)), expected, atol=1e-4)
    costs = branched_costs(backbone, 3, 2)["flops"]
    assert costs["stem"] > costs["branch"] > costs["gater"] > 0

    # === Narrower ===
    narrow = opened.cut(branch_width=0.25, tail_width=0.5)
    fewer = branched_costs(narrow, 3, 2)["flops"]
    assert fewer["stem"] == costs["stem"] and fewer["branch"] < 0.6 * costs["branch"]
    hydra, plain = Hydra(narrow, (0, 1), top_k=1, tau=0.0), Plain(narrow, 3)
    for model in (hydra, plain):
        model.set_first_weights(opened.give())
    hydra.save(tmp_path / "model.keras")
    again = keras.models.load_model(tmp_path / "model.keras")
    assert again.backbone == narrow
    np.testing.assert_allclose(again(images)["logits"], hydra(images)["logits"], rtol=1e-3, atol=1e-4)
    graph = InferenceGraph(hydra)
    served = tf.function(lambda images: graph.classify(graph.gating(images, 0.0)), autograph=False)
    np.testing.assert_allclose(served(tf.constant(images)), tf.nn.softmax(hydra(images)["logits"]), atol=1e-4)
    tail = plain.network.layers[0].layers[1]
    twins = {layer.name: layer for layer in opened.network.layers}
    pruned = {
        layer.name: [np.isin(layer.get_weights()[0], twins[layer.name].get_weights()[0]).all()]
        for layer in tail.layers
        if layer.weights and layer.weights[0].shape != twins[layer.name].weights[0].shape
    }
    assert pruned and all(all(each) for each in pruned.values())


@pytest.mark.slow
@pytest.mark.skipif(not LITE.exists(), reason=f"{LITE} is not there: a file of pretrained weights")
def test_a_pretrained_file():
    opened = open_network(str(LITE), 64)
    assert opened.point(None).name == "block10_add" and opened.pretrained
    assert "what follows top_bn_relu6 is taken off, its pooling" in opened.left_out
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    plain = Plain(opened.cut(), 3)
    plain.set_first_weights(opened.give())
    pooled = np.mean(plain.network.layers[0](plain.normalize(images)), axis=(1, 2))
    whole = keras.saving.load_model(pathlib.Path(LITE), compile=False)
    np.testing.assert_allclose(pooled, whole(images.astype(np.float32)), rtol=1e-3, atol=1e-4)
    assert len(json.loads(opened.cut().architecture)) == len(opened.layers)
    narrow = opened.cut(branch_width=0.25)
    model = Hydra(narrow, (0, 1), top_k=1, tau=0.0)
    model.set_first_weights(opened.give())
    kernels = {layer.name: layer.weights[0].shape for layer in narrow.branch().layers if layer.weights}
    # block12: 192 -> 6 * 192 = 1152, of which 288 are left -> 192
    assert kernels["block12_expand_conv"] == (1, 1, 192, 288)
    assert kernels["block12_project_conv"] == (1, 1, 288, 192)
    assert np.isfinite(model(images)["logits"]).all()


def test_a_gaters_trunk_of_the_tails_blocks(network, path):
    opened = open_network(str(path), 16)
    cut = opened.cut("first_relu", gater_width=0.5)
    # Of a tail block1, block3, block4 all but the last, with half of the hidden channels.
    trunk = cut.gater_trunk()
    names = {layer.name for layer in trunk.layers}
    assert any(name.startswith("block3") for name in names)
    assert not any(name.startswith("block4") for name in names)
    assert trunk.count_params() < cut.branch().count_params()
    model = Hydra(cut, [0, 0, 1, 1], top_k=1)
    before = model.gater.layers[0].get_weights()
    model.set_first_weights(opened.give())
    after = model.gater.layers[0].get_weights()
    assert not all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    again = CutNetwork.from_config(json.loads(json.dumps(cut.get_config())))
    assert again == cut and "gater of width 0.5" in cut.description
    # Models of before did not say how wide it is.
    config = {key: value for key, value in cut.get_config().items() if not key.startswith("gater_")}
    assert CutNetwork.from_config(config).gater_trunk().layers[-1].name == "hidden"
    # Of a branch of one block that block is the trunk.
    alone = opened.cut("first_relu", blocks=("block2_down_relu",), gater_width=1.0)
    assert [layer.name for layer in alone.gater_trunk().layers][1:] == [
        layer.name for layer in alone.branch().layers
    ][1:]
