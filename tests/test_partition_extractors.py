"""Tests of the feature extractors."""

import inspect
import re
import socket

import keras
import numpy as np
import pytest
import tensorflow as tf

from dynkhydra_tf import applications
from dynkhydra_tf.applications import INPUT_SIZES, application_names
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.partition.extractors import build_extractor

# Keras 3.15 with numpy 2 warns for every variable it saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def random_images(shape=(2, 8, 8, 3), seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def save_mean_colour(path, size=None, factor=1.0):
    """Saves a model that gives the mean of each channel, times `factor`."""
    inputs = keras.Input((size, size, 3))
    features = keras.layers.Rescaling(factor)(keras.layers.GlobalAveragePooling2D()(inputs))
    keras.Model(inputs, features).save(path)
    return str(path)


def assert_one_line(error, *parts):
    text = str(error.value)
    assert "\n" not in text
    for part in parts:
        assert part in text


# === pixels ===


def test_pixels():
    extractor = build_extractor("pixels")
    features = extractor(np.array([[[[0, 51, 255], [255, 0, 102]]]], np.uint8))
    assert features.dtype == tf.float32
    np.testing.assert_allclose(features, [[0, 0.2, 1, 1, 0, 0.4]], rtol=1e-6)
    assert (extractor.name, extractor.identity, extractor.input_size) == ("pixels", "pixels", None)


# === .keras files ===


def test_keras_file(tmp_path):
    extractor = build_extractor(save_mean_colour(tmp_path / "mean.keras", factor=2.0))
    images = random_images()
    features = extractor(images)
    assert features.dtype == tf.float32
    # Not quite the mean of the 8x8 image: bilinear enlargement gives the border more weight.
    resized = tf.image.resize(images, (224, 224))
    np.testing.assert_allclose(features, 2 * np.mean(resized, axis=(1, 2)), rtol=1e-4)
    assert extractor.name == "mean.keras"
    assert extractor.input_size == 224


def test_keras_file_with_a_size_of_its_own(tmp_path):
    extractor = build_extractor(save_mean_colour(tmp_path / "mean.keras", size=8))
    assert extractor.input_size == 8
    images = random_images()
    np.testing.assert_allclose(extractor(images), images.mean(axis=(1, 2)), rtol=1e-5)


def test_batch_sizes_share_one_trace(tmp_path):
    extractor = build_extractor(save_mean_colour(tmp_path / "mean.keras", size=8))
    for batch in (3, 2, 1):
        assert extractor(random_images((batch, 8, 8, 3))).shape == (batch, 3)
    assert extractor._compiled.experimental_get_tracing_count() == 1


def test_identity_follows_the_content_of_the_file(tmp_path):
    first = build_extractor(save_mean_colour(tmp_path / "a.keras")).identity
    (tmp_path / "b.keras").write_bytes((tmp_path / "a.keras").read_bytes())
    assert build_extractor(str(tmp_path / "b.keras")).identity == first
    save_mean_colour(tmp_path / "b.keras", factor=2.0)
    assert build_extractor(str(tmp_path / "b.keras")).identity != first


def test_keras_file_that_is_not_there():
    with pytest.raises(UserError) as error:
        build_extractor("no/such.keras")
    assert_one_line(error, "No feature extractor file at no/such.keras")


def test_keras_file_that_is_none(tmp_path):
    path = tmp_path / "text.keras"
    path.write_text("not a model")
    with pytest.raises(UserError) as error:
        build_extractor(str(path)).load()
    assert_one_line(error, str(path), "cannot be loaded")


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 4, 3), (3,)])
def test_keras_file_of_another_kind(tmp_path, shape):
    inputs = keras.Input(shape)
    path = str(tmp_path / "other.keras")
    keras.Model(inputs, keras.layers.Flatten()(inputs)).save(path)
    with pytest.raises(UserError) as error:
        build_extractor(path).load()
    assert_one_line(error, "must map square images (None, S, S, 3) to features (None, F)")


def test_keras_file_that_gives_maps(tmp_path):
    inputs = keras.Input((8, 8, 3))
    path = str(tmp_path / "maps.keras")
    keras.Model(inputs, keras.layers.MaxPool2D()(inputs)).save(path)
    with pytest.raises(UserError, match="to features"):
        build_extractor(path).load()


# === keras.applications ===


@pytest.fixture(scope="module")
def mobilenet(tmp_path_factory):
    """MobileNetV2 without its top, weights drawn at random, and the path of these weights."""
    model = keras.applications.MobileNetV2(
        include_top=False, pooling="avg", weights=None, input_shape=(224, 224, 3)
    )
    path = tmp_path_factory.mktemp("mobilenet") / "random.weights.h5"
    model.save_weights(path)
    return model, str(path)


def test_application_with_weights_from_a_file(mobilenet):
    model, path = mobilenet
    extractor = build_extractor("MobileNetV2", path)
    assert extractor.name == "MobileNetV2 (random.weights.h5)"
    assert extractor.identity.startswith("MobileNetV2:")
    assert extractor.input_size == 224
    images = random_images((2, 32, 32, 3))
    # MobileNetV2 takes -1..1.
    expected = model(tf.image.resize(images, (224, 224)) / 127.5 - 1, training=False)
    features = extractor(images)
    assert features.shape == (2, 1280)
    assert np.std(features) > 0
    np.testing.assert_allclose(features, expected, rtol=1e-3, atol=1e-5)


def test_weights_of_another_network(mobilenet):
    with pytest.raises(UserError) as error:
        build_extractor("MobileNetV3Small", mobilenet[1]).load()
    assert_one_line(error, mobilenet[1], "do not fit MobileNetV3Small without its top")


def test_weights_that_are_not_there():
    with pytest.raises(UserError) as error:
        build_extractor("EfficientNetB7", "no/such.h5")
    assert_one_line(error, "No feature weights file at no/such.h5 (No such file or directory)")


@pytest.mark.slow
def test_imagenet_weights_of_efficientnet_from_a_path_give_what_keras_gives(tmp_path, monkeypatch):
    build = keras.applications.EfficientNetB0
    like_the_file = build(include_top=False, pooling="avg", weights=None, input_shape=(224, 224, 3))
    normalisation = next(x for x in like_the_file.layers if isinstance(x, keras.layers.Normalization))
    normalisation.adapt_mean.assign([0.485, 0.456, 0.406])
    normalisation.adapt_variance.assign(
        [0.229, 0.224, 0.225]
    )  # deviations, as in the file that Keras downloads
    path = str(tmp_path / "efficientnetb0_notop.h5")
    like_the_file.save(path)
    monkeypatch.setattr("keras.src.utils.file_utils.get_file", lambda *args, **kwargs: path)
    images = random_images()
    by_keras = build_extractor("EfficientNetB0", "imagenet")(images)
    np.testing.assert_allclose(
        build_extractor("EfficientNetB0", path)(images), by_keras, rtol=1e-3, atol=1e-6
    )
    unmended = like_the_file(tf.image.resize(images, (224, 224)), training=False)
    assert not np.allclose(unmended, by_keras, rtol=1e-1)


def test_other_normalisation_is_left_alone():
    layer = keras.layers.Normalization()
    model = keras.Sequential([keras.Input((8, 8, 3)), layer])
    layer.adapt_variance.assign([0.05, 0.05, 0.05])
    applications.mend_normalisation(model)
    np.testing.assert_allclose(layer.adapt_variance, 0.05)


def test_input_sizes_are_those_of_keras():
    # Keras tells its size in the error for ImageNet weights with the top at any other size.
    names = application_names()
    assert len(names) >= 38
    for name in names:
        if name.startswith("MobileNetV3"):  # takes any size from 32 on; trained at 224
            continue
        with pytest.raises(ValueError, match="imagenet") as error:
            getattr(keras.applications, name)(input_shape=(48, 48, 3))
        size = int(re.search(r"should be \((\d+),", str(error.value))[1])
        assert INPUT_SIZES.get(name, applications.DEFAULT_INPUT_SIZE) == size, name
    assert set(INPUT_SIZES) <= set(names)


def test_every_application_has_its_preprocessing():
    for name in application_names():
        assert inspect.getmodule(getattr(keras.applications, name)).preprocess_input


@pytest.mark.parametrize(
    ("name", "suggestion"),
    [("efficientnetb7", "EfficientNetB7"), ("Resnet-50", "ResNet50"), ("pixel", "pixels")],
)
def test_unknown_names_with_a_suggestion(name, suggestion):
    with pytest.raises(UserError) as error:
        build_extractor(name)
    assert_one_line(
        error, f"{name!r}. Did you mean {suggestion}? Choose pixels", "EfficientNetB7", "Xception"
    )


def test_unknown_name_without_a_suggestion():
    with pytest.raises(UserError, match=r"'ggggg'\. Choose pixels"):
        build_extractor("ggggg")


# === no network ===


@pytest.fixture
def empty_keras_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("keras.src.backend.config._KERAS_DIR", str(tmp_path))


@pytest.mark.usefixtures("empty_keras_cache")
def test_no_network(monkeypatch):
    def no_address(*args, **kwargs):
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    extractor = build_extractor("MobileNetV3Small")  # nothing is loaded yet, so nothing can fail
    assert (extractor.name, extractor.identity) == ("MobileNetV3Small", "MobileNetV3Small:imagenet")
    with pytest.raises(UserError) as error:
        extractor.load()
    assert_one_line(error, "MobileNetV3Small", "Name or service not known", "--feature_weights=PATH")


@pytest.mark.usefixtures("empty_keras_cache")
def test_a_network_that_never_answers(monkeypatch):
    monkeypatch.setattr(applications, "NETWORK_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", server.getsockname())
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: [address])
        extractor = build_extractor("MobileNetV3Small")
        with pytest.raises(UserError) as error:
            extractor.load()
    assert_one_line(error, "timed out", "--feature_weights=PATH")
    assert socket.getdefaulttimeout() is None
