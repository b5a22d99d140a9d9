"""From a picture of any size to the network's input: the one function for training, evaluation and serving.

The paper (section "Data set") treats each data set in its own way, here the three values of `fit`:
- "stretch": CIFAR-100 and ImageNet32 come at 32x32 and are left as they are; any other size is stretched.
- "pad": Food-101 is "padding with zeros to get a square image", then resized to 32x32.
- "crop": CUB-200 is "cropped centrally to create a square", then scaled to 224x224.
"""

import tensorflow as tf

from dynkhydra_tf.errors import UserError

FITS = ("stretch", "pad", "crop")
SMALL_SQUARE = 2**24  # pixels, 50 MB


def preprocess(image: tf.Tensor, image_size: int, fit: str = "stretch") -> tf.Tensor:
    """Makes a picture square, resizes it and gives it three channels; the same in eager and graph mode.

    A picture that has the right size already comes back bit-exact. Normalisation is not done here: it
    is part of the model, so that what is cached, augmented and sent to a server stays uint8.

    Args:
        image: (H,W,C) or (B,H,W,C), values 0..255 of any numeric dtype, static shape known or not (an
            unknown rank is taken as 3); C is 1 (grey: repeated), 3, or 4 (the alpha channel is dropped).
        image_size: S, side of the result in pixels.
        fit: how a picture becomes square: "stretch" ignores its proportions, "pad" adds zeros evenly on
            both sides of the shorter dimension, "crop" keeps the central square.

    Returns:
        (S,S,3) or (B,S,S,3), uint8. Resizing is bilinear with antialiasing, rounded to the nearest integer.

    Raises:
        UserError: an unknown `fit`, or a number of channels other than 1, 3 and 4.
    """
    if fit not in FITS:
        raise UserError(f"fit must be one of {', '.join(FITS)}. Received: fit={fit!r}")
    image = tf.convert_to_tensor(image)
    if image.shape.rank is None:
        image = tf.ensure_shape(image, (None, None, None))
    if image.shape[-1] not in (None, 1, 3, 4):
        raise UserError(f"a picture must have 1, 3 or 4 channels. Received: {image.shape[-1]} channels")
    if image.shape[-1] != 3:
        image = image[..., :3]
    if image.shape[-3:-1] != (image_size, image_size):  # the kernel does not notice that it has nothing to do
        if fit == "pad":
            image = _pad_and_resize(image, image_size)
        else:
            image = _resize(_crop_to_square(image) if fit == "crop" else image, image_size, image_size)
    if image.dtype != tf.uint8:
        image = tf.saturate_cast(tf.round(tf.cast(image, tf.float32)), tf.uint8)
    # Last, so that a grey picture is resized once and not three times.
    if image.shape[-1] != 3:
        image = tf.broadcast_to(image, tf.concat([tf.shape(image)[:-1], [3]], axis=0))
    return tf.ensure_shape(image, (*[None] * (image.shape.rank - 3), image_size, image_size, 3))


def _resize(image, height, width):
    return tf.image.resize(image, (height, width), method="bilinear", antialias=True)


def _pad_and_resize(image, size):
    """Zeros around the shorter dimension of (..., H, W, C); of an odd number the extra one is at the end.

    The square is made only where it is not much larger than the picture: a file of a kilobyte can be 60,000
    pixels wide and 8 high. Otherwise the longer dimension is resized before the zeros come to the shorter.
    That is the same, to rounding, for the kernel resizes one after the other anyway.
    """
    height, width = tf.shape(image)[-3], tf.shape(image)[-2]
    side = tf.maximum(height, width)
    pixels, square = tf.cast(height * width, tf.int64), tf.cast(side, tf.int64) ** 2
    at_once = square <= tf.maximum(2 * pixels, SMALL_SQUARE)
    return tf.cond(
        at_once, lambda: _resize(_pad(image, side, side), size, size), lambda: _by_dimension(image, size)
    )


def _by_dimension(image, size):
    """The longer dimension resized, then the shorter padded and resized."""
    rank = image.shape.rank
    swapped = [*range(rank - 3), rank - 2, rank - 3, rank - 1]
    # The rows are resized first by the kernel, too, and what is between is floating: they be the longer ones.
    wide = tf.shape(image)[-2] > tf.shape(image)[-3]
    image = tf.cond(wide, lambda: tf.transpose(image, swapped), lambda: image)
    side, width = tf.shape(image)[-3], tf.shape(image)[-2]
    image = _resize(image, size, width)
    # Of the zeros so many as a pixel of the result sees that sees the picture at all: its kernel is 2 k wide.
    k = side // size + 1
    left, right = (side - width) // 2, (side - width + 1) // 2
    seen_left, seen_right = tf.minimum(left, 2 * k), tf.minimum(right, 2 * k)
    image = tf.pad(image, [[0, 0]] * (rank - 2) + [[seen_left, seen_right], [0, 0]])
    scale = tf.cast(size / side, tf.float32)
    image = tf.raw_ops.ScaleAndTranslate(
        images=image if rank == 4 else image[tf.newaxis],
        size=[size, size],
        scale=[1.0, scale],
        translation=[0.0, scale * tf.cast(left - seen_left, tf.float32)],
        kernel_type="triangle",
        antialias=True,
    )
    image = image if rank == 4 else image[0]
    return tf.cond(wide, lambda: tf.transpose(image, swapped), lambda: image)


def _pad(image, height, width):
    """Zeros evenly around (..., H, W, C)."""
    top, left = (height - tf.shape(image)[-3]) // 2, (width - tf.shape(image)[-2]) // 2
    return tf.image.pad_to_bounding_box(image, top, left, height, width)


def _crop_to_square(image):
    """The central square of (..., H, W, C)."""
    height, width = tf.shape(image)[-3], tf.shape(image)[-2]
    side = tf.minimum(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return image[..., top : top + side, left : left + side, :]
