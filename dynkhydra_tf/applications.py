"""The networks of keras.applications: their names, their weights and the input they want.

Axis letters: B batch, H W C image.
"""

import contextlib
import difflib
import hashlib
import inspect
import os
import socket
import warnings
from collections.abc import Iterator

import keras
import numpy as np

from dynkhydra_tf.errors import UserError

IMAGENET = "imagenet"

# Where Keras's own input size is not 224. Keras has no function that tells it, and building a network
# with its top just to read it off takes seconds; a test holds this table against Keras.
INPUT_SIZES = {
    "EfficientNetB1": 240,
    "EfficientNetB2": 260,
    "EfficientNetB3": 300,
    "EfficientNetB4": 380,
    "EfficientNetB5": 456,
    "EfficientNetB6": 528,
    "EfficientNetB7": 600,
    "EfficientNetV2B1": 240,
    "EfficientNetV2B2": 260,
    "EfficientNetV2B3": 300,
    "EfficientNetV2S": 384,
    "EfficientNetV2M": 480,
    "EfficientNetV2L": 480,
    "InceptionResNetV2": 299,
    "InceptionV3": 299,
    "NASNetLarge": 331,
    "Xception": 299,
}
DEFAULT_INPUT_SIZE = 224

# A network that drops packets instead of refusing them would hold Keras's download up for minutes.
NETWORK_TIMEOUT_S = 15


def application_names() -> list[str]:
    """The model functions of `keras.applications`, sorted."""
    return [name for name, _ in inspect.getmembers(keras.applications, inspect.isfunction)]


def build_application(
    name: str,
    weights: str | os.PathLike | None,
    size: int,
    what: str,
    ways_out: str,
    pooling: str | None = None,
) -> keras.Model:
    """Builds a network of keras.applications without its top.

    Args:
        name: one of `application_names`.
        weights: "imagenet" (Keras downloads them once), the path of a weights file for the network without
            its top, or None: as Keras draws them.
        size: height and width of its input in pixels.
        what: what the weights are called in messages, such as "Feature weights".
        ways_out: a sentence that says what to do where ImageNet's weights are not to be had.
        pooling: None or "avg".

    Returns:
        (B, size, size, 3) -> (B, h, w, c), or (B, c) with pooling.

    Raises:
        UserError: a size that the network cannot take, weights that cannot be had or do not fit.
    """
    build, shape = getattr(keras.applications, name), (size, size, 3)
    common = {"include_top": False, "pooling": pooling, "input_shape": shape}
    if weights != IMAGENET:
        try:
            model = build(weights=None, **common)
        except ValueError as error:
            raise UserError(f"{name} cannot take images of {size} px ({first_line(error)})") from error
        if weights is not None:
            _load_weights(model, name, weights, what)
        return model
    try:
        with _network_timeout(NETWORK_TIMEOUT_S), warnings.catch_warnings(action="ignore"):
            return build(weights=IMAGENET, **common)
    except Exception as error:  # Keras raises a bare Exception where the download fails
        if isinstance(error, ValueError):
            raise UserError(f"{name} cannot take images of {size} px ({first_line(error)})") from error
        raise UserError(
            f"The ImageNet weights of {name} are neither in Keras's cache nor to be downloaded "
            f"({first_line(error)}). {ways_out}"
        ) from error


def _load_weights(model, name, weights, what):
    try:
        with warnings.catch_warnings(action="ignore"):  # one for each layer that does not fit
            model.load_weights(weights)
    except Exception as error:  # Keras, h5py and zipfile each raise their own
        raise UserError(
            f"{what} {weights} do not fit {name} without its top ({first_line(error)}): give a "
            "weights file of this network."
        ) from error
    mend_normalisation(model)


# What the ImageNet weights files of EfficientNet have as the *variance* of their Normalization layer.
IMAGENET_STDDEV_RGB = (0.229, 0.224, 0.225)


def mend_normalisation(model: keras.Model) -> None:
    """Gives EfficientNet with ImageNet weights from a file the input scale they were trained with.

    The files hold standard deviations where the layer wants variances. Keras makes up for it by a layer
    of its own, but only for weights="imagenet"; from a path the same file gives other features
    (tensorflow/tensorflow#62193). Squaring the value here does what that layer does.
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization) and layer.input_variance is None:
            variance = keras.ops.convert_to_numpy(layer.adapt_variance)
            if np.allclose(variance, IMAGENET_STDDEV_RGB):
                layer.adapt_variance.assign(variance**2)
                layer.finalize_state()


@contextlib.contextmanager
def _network_timeout(seconds: float) -> Iterator[None]:
    """Limits how long a download may stand still; Keras itself sets no limit."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def digest(path: str | os.PathLike, what: str) -> str:
    """SHA-256 of a file's content, in hex."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(
            f"No {what} file at {path} ({error.strerror}): give the path of a file that exists."
        ) from error


def suggestion(name: str, names: list[str]) -> str:
    """A sentence with the nearest allowed name, whatever its case; empty where none is near."""
    by_lower = {allowed.lower(): allowed for allowed in names}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1)
    return f" Did you mean {by_lower[close[0]]}?" if close else ""


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its kind."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
