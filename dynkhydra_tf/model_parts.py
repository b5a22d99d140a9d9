"""What `Hydra`, the plain network and the counting of costs share: the parts around a backbone, and checks.

Axis letters: B batch, N branches (nb), M classes, h w c a projection.
"""

import math
import numbers
from collections.abc import Callable, Sequence
from typing import Any

import keras

from dynkhydra_tf.backbones.base import Backbone
from dynkhydra_tf.backbones.blocks import ConvBN, classifier

# Not mixed_float16: it would need a scaled loss, and bfloat16 does without.
PART_DTYPES = ("float32", "mixed_bfloat16")
EXIT_SIDE = 4


def checked_number(value: Any, name: str, test: Callable[[float], bool], allowed: str) -> float:
    """Returns a number as a float.

    Args:
        value: what was given. name: the argument's.
        test: whether a number is allowed. allowed: the same in words, such as "at least 1".

    Raises:
        ValueError: not a number, or one that is not allowed.
    """
    try:
        number = math.nan if isinstance(value, (str, bytes)) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not test(number):
        raise ValueError(f"{name} must be {allowed}. Received: {name}={value!r}")
    return number


def checked_whole_number(value: object, name: str, test: Callable[[int], bool], allowed: str) -> int:
    """Returns a whole number as an int; arguments and errors as of `checked_number`."""
    number = checked_number(value, name, lambda number: number % 1 == 0 and test(int(number)), allowed)
    return int(number)


def check_settings(mean: Sequence[float], std: Sequence[float], part_dtype: str) -> None:
    """Checks what all models are told of their images and of their precision.

    Raises:
        ValueError: an argument out of its range.
    """
    right = all(
        len(values) == 3 and all(isinstance(value, numbers.Real) for value in values)
        for values in (mean, std)
    )
    if not (
        right and all(math.isfinite(value) for value in mean) and all(0 < value < math.inf for value in std)
    ):
        raise ValueError(
            f"mean and std must be three numbers each, std above 0. Received: mean={mean}, std={std}"
        )
    if part_dtype not in PART_DTYPES:
        raise ValueError(f"part_dtype must be one of {PART_DTYPES}. Received: part_dtype={part_dtype!r}")


def make_normalizer(backbone: Backbone, mean: Sequence[float], std: Sequence[float]) -> keras.Layer:
    """Returns the built layer from images in 0..255 to normalised ones, float32.

    Args:
        backbone: `Backbone`; its own normaliser, if it brings one.
        mean, std: three numbers each, of the channels; else by these.

    Raises:
        ValueError: the backbone's has weights, which nothing would train or copy.
    """
    layer = backbone.normalizer()
    if layer is None:
        offset = [-m / s for m, s in zip(mean, std, strict=True)]
        layer = keras.layers.Rescaling([1 / s for s in std], offset, dtype="float32", name="normalize")
    layer.build((None, *backbone.input_shape))
    if layer.weights:
        raise ValueError(
            "A backbone's normaliser has no weights; a layer with some belongs to its stem. "
            f"Received: {layer.name} with {', '.join(weight.path for weight in layer.weights)}"
        )
    return layer


def make_gater(backbone: Backbone, num_branches: int, dtype: str | None = None) -> keras.Sequential:
    """Returns the gater: the stem's output -> gate logits (B, N) float32."""
    return keras.Sequential([backbone.gater_trunk(dtype), *classifier(num_branches)], name="gater")


def make_trunk_gater(backbone: Backbone, num_classes: int, dtype: str | None = None) -> keras.Sequential:
    """Returns the gater that shares its trunk: the stem's output -> class logits (B, M) float32.

    Its first layer gives the map that joins the sum of the branches' projections.
    """
    return keras.Sequential([backbone.trunk(dtype), *classifier(num_classes)], name="gater")


def make_exit(map_shape: Sequence[int], num_classes: int) -> keras.Sequential:
    """Returns the classifier that can answer before all else: the stem's output -> logits (B, M) float32.

    Args:
        map_shape: (H, W, C) of the stem's output.

    Its means of EXIT_SIDE x EXIT_SIDE fields, and a dense layer: next to nothing beside the stem. Held-out
    CIFAR-100 images of DynK-Hydra, d=2: 52 % right by 4 x 4 fields, 47 by 2 x 2, 36 by one; convolutions in
    between gained nothing.
    """
    fields = tuple(max(1, round(size / EXIT_SIDE)) for size in map_shape[:2])
    pool = keras.layers.AveragePooling2D(fields, padding="same", dtype="float32", name="pool")
    flatten = keras.layers.Flatten(dtype="float32", name="flatten")
    return keras.Sequential(
        [pool, flatten, keras.layers.Dense(num_classes, dtype="float32", name="dense")], name="exit"
    )


def make_combiner(
    channels: int, num_classes: int, dtype: str | None = None, conv: bool = True
) -> keras.Sequential:
    """Returns the combiner: combined projections (B, h, w, channels) -> logits (B, M) float32.

    Args:
        channels: of the projections. num_classes: M. dtype: of the convolution.
        conv: whether there is the paper's convolution before the classifier. Its kernel is 1x1: the paper's
            FLOPs (Table 3) fit that.
    """
    before = [ConvBN(channels, 1, dtype=dtype, name="conv")] if conv else []
    return keras.Sequential([*before, *classifier(num_classes)], name="combiner")


def make_plain(backbone: Backbone, num_classes: int, dtype: str | None = None) -> keras.Sequential:
    """Returns the plain network with its classifier: normalised images -> logits (B, M) float32."""
    return keras.Sequential([backbone.plain(dtype), *classifier(num_classes)], name="network")
