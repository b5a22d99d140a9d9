"""Feature extractors: images in, one feature vector each out, for the class means of Algorithm 2.

Axis letters: B batch, H W C image, S input size of the network, F features.
"""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from dynkhydra_tf.applications import (
    DEFAULT_INPUT_SIZE,
    IMAGENET,
    INPUT_SIZES,
    application_names,
    build_application,
    digest,
    first_line,
    suggestion,
)
from dynkhydra_tf.errors import UserError

PIXELS = "pixels"


class Network(NamedTuple):
    """What an extractor runs once its weights are in memory.

    Attributes:
        input_size: images are resized to (S, S, 3) first; None: they are left as they are.
        features: (B, S, S, 3) float32 in 0..255 -> (B, F).
    """

    input_size: int | None
    features: Callable[[tf.Tensor], tf.Tensor]


class Extractor:
    """Maps images to features; made by `build_extractor`.

    The network is loaded at the first use, or by `load`: where the class means come from the cache,
    neither its weights nor a network connection are needed.

    Attributes:
        name: what the partition file calls it.
        identity: tells apart any two extractors that may give different features: for files, a hash of
            the content.
    """

    def __init__(self, name: str, identity: str, load_network: Callable[[], Network]) -> None:
        """Keeps the loader; `build_extractor` knows the arguments."""
        self.name = name
        self.identity = identity
        self._load_network = load_network

    @functools.cached_property
    def _network(self) -> Network:
        return self._load_network()

    @property
    def input_size(self) -> int | None:
        """Images are resized to this height and width, in pixels; None: not at all. Loads the network."""
        return self._network.input_size

    def load(self) -> None:
        """Loads the network.

        Raises:
            UserError: weights that cannot be downloaded, or a file that is no fitting network.
        """
        _ = self._network

    def __call__(self, images: np.ndarray | tf.Tensor) -> tf.Tensor:
        """The features of a batch of images.

        Args:
            images: (B, H, W, 3) uint8; resized bilinearly to the input size of the network.

        Returns:
            (B, F) float32.
        """
        self.load()  # not while the function below is traced
        return self._compiled(images)

    @functools.cached_property
    def _compiled(self):
        input_size, features = self._network

        # One trace for every batch size: the last batch of a pass is smaller.
        @tf.function(input_signature=[tf.TensorSpec((None, None, None, 3), tf.uint8)])
        def compiled(images):
            images = tf.cast(images, tf.float32)
            if input_size is not None:
                images = tf.image.resize(images, (input_size, input_size))
            return tf.cast(features(images), tf.float32)

        return compiled


def build_extractor(name: str, weights: str | os.PathLike = IMAGENET) -> Extractor:
    """Makes an extractor and checks what can be checked without loading or downloading it.

    Args:
        name: a model function of `keras.applications`, as Keras spells it: without its top, averaged
            over the positions, with its own preprocessing and input size; a path ending in ".keras": a
            saved model (B, H, W, 3) in 0..255 -> (B, F), used at its input size, or at 224 where it
            takes any; "pixels": the flattened pixels in 0..1, no network at all.
        weights: for `keras.applications` only: "imagenet" (Keras downloads them once) or the path of a
            weights file for the network without its top.

    Returns:
        The extractor, its network not loaded yet.

    Raises:
        UserError: a name that is none of these, or a file that does not exist.
    """
    if name == PIXELS:
        return Extractor(PIXELS, PIXELS, _pixels)
    if str(name).endswith(".keras"):
        content = digest(name, "feature extractor")
        return Extractor(os.path.basename(name), f"keras-file:{content}", lambda: _load_file(name))
    names = application_names()
    if name not in names:
        raise UserError(
            f"Unknown feature extractor {name!r}.{suggestion(name, [*names, PIXELS])} Choose {PIXELS}, a "
            f"path ending in .keras, or one of keras.applications: {', '.join(names)}."
        )
    if weights == IMAGENET:
        return Extractor(name, f"{name}:{IMAGENET}", lambda: _load_application(name, IMAGENET))
    content = digest(weights, "feature weights")
    artefact_name = f"{name} ({os.path.basename(weights)})"
    return Extractor(artefact_name, f"{name}:{content}", lambda: _load_application(name, weights))


def _pixels() -> Network:
    def features(images):
        return tf.reshape(images / 255.0, (tf.shape(images)[0], -1))

    return Network(None, features)


def _load_file(path: str | os.PathLike) -> Network:
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:  # Keras raises whatever its parts raise on a damaged file
        raise UserError(
            f"Feature extractor {path} cannot be loaded as a Keras model ({first_line(error)}): give a file "
            "saved by Keras 3, or another extractor."
        ) from error
    shape, output_shape = getattr(model, "input_shape", None), getattr(model, "output_shape", None)
    takes_images = _is_shape(shape, 4) and shape[1] == shape[2] and shape[3] == 3
    if not takes_images or not _is_shape(output_shape, 2):
        raise UserError(
            f"Feature extractor {path} maps {shape} to {output_shape}: it must map square images "
            "(None, S, S, 3) to features (None, F)."
        )
    return Network(shape[1] or DEFAULT_INPUT_SIZE, functools.partial(model, training=False))


def _load_application(name: str, weights: str | os.PathLike) -> Network:
    size = INPUT_SIZES.get(name, DEFAULT_INPUT_SIZE)
    another = "another --feature_extractor: a .keras file or pixels"
    ways_out = f"Pass --feature_weights=PATH, a file of them, or {another}."
    model = build_application(name, weights, size, "Feature weights", ways_out, pooling="avg")
    preprocess = inspect.getmodule(getattr(keras.applications, name)).preprocess_input
    return Network(size, lambda images: model(preprocess(images), training=False))


def _is_shape(shape: Any, rank: int) -> bool:
    """Whether this is one shape of this rank, and not several, for several inputs or outputs."""
    return isinstance(shape, tuple) and len(shape) == rank and not isinstance(shape[0], tuple)
