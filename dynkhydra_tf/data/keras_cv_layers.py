"""All that keras-cv does here: RandAugment and cutout, with draws that a resumed run repeats.

Called as layers, those of keras-cv draw from generators that a resumed run cannot set back. So each is handed
what was drawn, by `augment_images`, its method for that. Its MixUp has none, see `mixup.py`. To be imported
only where it is needed: it takes seconds. Axis letters: B batch, n images of it, S the side of an image.
"""

import contextlib
import functools
from collections.abc import Iterator
from typing import Any

import keras_cv
import tensorflow as tf

# Of keras-cv's RandAugment, its defaults.
OPERATIONS_AN_IMAGE, RATE, SPREAD = 3, 10 / 11, 0.15


class SquareCutter:
    """Fills a square of each image, through keras-cv's RandomCutout.

    Its fill is one scalar for all channels: what it cuts is a mask, and any colour can then be filled in.

    Args:
        side: pixels; the square covers [centre - side/2, centre + side/2), less what hangs over the border.

    Call arguments:
        images: (B,S,S,3), any numeric dtype; S known statically.
        centers: (B,2) int32, row and column.
        color: (3,), the colour of the square, in the dtype of `images`.

    Returns:
        (B,S,S,3), the dtype of `images`.
    """

    def __init__(self, side: int) -> None:
        """Makes the layer."""
        self.side = side
        # The factors and the seed are not used: every call brings its own rectangles. With seed=None the
        # layer would take TensorFlow's global generator, which op determinism forbids.
        self._layer = keras_cv.layers.RandomCutout(0.5, 0.5, seed=1, dtype="float32")

    def __call__(self, images: tf.Tensor, centers: tf.Tensor, color: tf.Tensor) -> tf.Tensor:
        """Cuts; see the class."""
        count, size = tf.shape(images)[0], images.shape[1]
        sides = tf.fill((count,), self.side)
        rectangles = {
            "centers_y": centers[:, 0],
            "centers_x": centers[:, 1],
            "rectangles_height": sides,
            "rectangles_width": sides,
        }
        kept = self._layer.augment_images(tf.ones((count, size, size, 1)), transformations=rectangles)
        return tf.where(kept > 0, images, color)


class RandAugment:
    """Changes colours, contrast, shape and place of each image at random (Cubuk et al. 2019).

    Three times one of the ten operations of keras-cv's RandAugment is drawn for each image, and skipped once
    in eleven times. An operation runs on the images that drew it, all together.

    Args:
        magnitude: how strong, in [0, 1], the mean of what is drawn, or its largest.

    Call arguments:
        images: (B,S,S,3), uint8 or floating, values 0..255.
        seed: (2,) integer; the same seed gives the same result for the same images.

    Returns:
        (B,S,S,3), the dtype of `images`.
    """

    def __init__(self, magnitude: float) -> None:
        # With no seed the layers would take TensorFlow's global generator; this one is not used either.
        self._layers = keras_cv.layers.RandAugment.get_standard_policy((0, 255), magnitude, SPREAD, seed=1)
        for layer in self._layers:
            layer.dtype_policy = "float32"
        # Traced once, and not at each of the three calls.
        spec = [tf.TensorSpec((None, None, None, 3)), tf.TensorSpec((2,), tf.int64)]
        self._round = tf.function(self._one_each, input_signature=spec)

    def __call__(self, images: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Augments a batch; see the class."""
        augmented = tf.cast(images, tf.float32)
        for round_seed in tf.unstack(tf.random.split(tf.cast(seed, tf.int64), OPERATIONS_AN_IMAGE)):
            augmented = self._round(augmented, round_seed)
        augmented = tf.round(augmented) if images.dtype.is_integer else augmented
        return tf.ensure_shape(tf.cast(augmented, images.dtype), images.shape)

    def _one_each(self, images, seed):
        """One operation on each image, or none."""
        count = len(self._layers)
        which_seed, skip_seed, *seeds = tf.unstack(tf.random.split(seed, 2 + count))
        number = (tf.shape(images)[0],)
        which = tf.random.stateless_uniform(number, which_seed, 0, count, tf.int32)
        which = tf.where(tf.random.stateless_uniform(number, skip_seed) < RATE, which, count)
        parts = tf.dynamic_partition(images, which, count + 1)
        places = tf.dynamic_partition(tf.range(number[0]), which, count + 1)
        for index, (layer, own_seed) in enumerate(zip(self._layers, seeds, strict=True)):
            part = parts[index]
            operate = _operation(layer, part, own_seed)
            parts[index] = tf.cond(tf.shape(part)[0] > 0, operate, functools.partial(tf.identity, part))
        return tf.dynamic_stitch(places, parts)


def _operation(layer, images, seed):
    """A function that runs a layer of keras-cv's policy on images (n,S,S,3), with draws of the seed."""

    def run():
        drawn = transformations(layer, tf.shape(images)[0], seed)
        with _without_warnings():  # that a histogram of each image takes a loop
            return layer.augment_images(images, transformations=drawn)

    return run


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Within the block TensorFlow's Python side does not warn."""
    logger = tf.get_logger()
    level = logger.level
    logger.setLevel("ERROR")
    try:
        yield
    finally:
        logger.setLevel(level)


def transformations(layer: Any, count: tf.Tensor, seed: tf.Tensor) -> Any:
    """Returns what a layer of keras-cv's policy would draw for so many images, but drawn of a seed.

    Its own samplers say from where to where; the structure is that of its `get_random_transformation_batch`.
    """
    layers = keras_cv.layers
    first, second = tf.unstack(tf.random.split(seed, 2))
    if isinstance(layer, layers.Solarization):
        return {
            "additions": _drawn(layer.addition_factor, (count, 1, 1, 1), first),
            "thresholds": _drawn(layer.threshold_factor, (count, 1, 1, 1), second),
        }
    if isinstance(layer, layers.RandomShear):
        sign = tf.sign(tf.random.stateless_uniform((count, 1), second, -1.0, 1.0))
        return {
            "shear_x": _drawn(layer.x_factor, (count, 1), first) * sign,
            "shear_y": _drawn(layer.y_factor, (count, 1), first) * sign,
        }
    if isinstance(layer, layers.RandomTranslation):
        drawn = tf.random.stateless_uniform((count, 1), first)
        return {
            f"{side}_translations": low + drawn * (high - low)
            for side, low, high in (
                ("height", layer.height_lower, layer.height_upper),
                ("width", layer.width_lower, layer.width_upper),
            )
        }
    if hasattr(layer, "factor"):
        drawn = _drawn(layer.factor, (count, 1, 1, 1), first)
        return drawn * 255.0 if isinstance(layer, layers.RandomBrightness) else drawn
    return None


def _drawn(sampler, shape, seed):
    """What a sampler of keras-cv would draw, but drawn of a seed."""
    if isinstance(sampler, keras_cv.core.ConstantFactorSampler):
        return tf.fill(shape, float(sampler.value))
    if isinstance(sampler, keras_cv.core.NormalFactorSampler):
        drawn = tf.random.stateless_normal(shape, seed, sampler.mean, sampler.stddev)
        return tf.clip_by_value(drawn, sampler.min_value, sampler.max_value)
    return tf.random.stateless_uniform(shape, seed, sampler.lower, sampler.upper)
