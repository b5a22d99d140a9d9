"""Augmentation of whole batches on the CPU: shift, flip, RandAugment and cutout, each image on its own.

The paper names cutout but no sizes; 4 px of shift, flip and a cutout of 16 px are the usual choice for
CIFAR-100 and ours. Everything here is a function of the images and a seed: a run that is interrupted and
resumed sees the same augmented images. B is the batch, S the side of the square images.
"""

import functools
from typing import Any

import tensorflow as tf
from numpy.typing import ArrayLike

from dynkhydra_tf.data.image_data import ImageData
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.settings import AugmentationSettings


class Augmentation:
    """Shifts, flips, changes and cuts each image of a batch at random.

    An object and not a function, because keras-cv's layers make variables, which a traced function must not.

    Args:
        image_size: S.
        fill: 3 numbers in 0..255, the colour of what is shifted in and cut out (the data set's mean colour,
            so that after normalisation it is zero); rounded for uint8 images.
        shift: most pixels an image moves in each direction; 0 for none.
        flip: whether to mirror half of the images left to right.
        cutout: side in pixels of the square that is cut out of each image; 0 for none. The centre is
            anywhere in the image, so the square can hang over the border.
        rand_augment: magnitude in [0, 1] of `RandAugment`, between the two; 0 for none.

    Call arguments:
        images: (B,S,S,3), uint8 or floating, values 0..255; B need not be known statically.
        seed: (2,) integer; the same seed gives the same result for the same images.
        mirrored: (B,) bool, which images to mirror, in place of a draw; None to draw.
        place: (first, whole), ints: the images are those from number `first` on of a batch of `whole` images,
            and are augmented as they would be within it, but for RandAugment. None: they are all of it.

    Returns:
        (B,S,S,3), the dtype of `images`.

    Raises:
        UserError: `shift` or `cutout` outside [0, S].
    """

    def __init__(
        self,
        image_size: int,
        fill: ArrayLike,
        shift: int = 4,
        flip: bool = True,
        cutout: int = 16,
        rand_augment: float = 0.0,
    ) -> None:
        """Checks the amounts; loads keras-cv where it is needed."""
        _check_amounts(image_size, shift, cutout)
        self.image_size = image_size
        self.fill = fill
        self.shift = shift
        self.flip = flip
        self.cut_squares = self.rand_augment = None
        if cutout or rand_augment:
            from dynkhydra_tf.data.keras_cv_layers import RandAugment, SquareCutter  # loads keras-cv

            self.cut_squares = SquareCutter(cutout) if cutout else None
            self.rand_augment = RandAugment(rand_augment) if rand_augment else None

    def __call__(
        self,
        images: tf.Tensor,
        seed: tf.Tensor,
        mirrored: tf.Tensor | None = None,
        place: tuple[int, int] | None = None,
    ) -> tf.Tensor:
        """Augments a batch; see the class."""
        draw = functools.partial(draw_uniform, tf.shape(images)[0], place)
        shift_seed, flip_seed, cutout_seed = tf.unstack(tf.random.split(seed, 3))
        if self.shift or self.flip or mirrored is not None:
            offsets = draw((2,), shift_seed, -self.shift, self.shift + 1, tf.int32)
            if mirrored is None:
                mirrored = draw((), flip_seed) < (0.5 if self.flip else 0.0)
            images = move(images, offsets, mirrored, self.fill)
        if self.rand_augment:
            # Another number than of the draws above; its own draws are not divided, but others in each part.
            images = self.rand_augment(images, tf.random.fold_in(seed, 3 + (place[0] if place else 0)))
        if self.cut_squares:
            centers = draw((2,), cutout_seed, 0, self.image_size, tf.int32)
            images = self.cut_squares(images, centers, _color(self.fill, images.dtype))
        return images


def draw_uniform(
    count: tf.Tensor, place: tuple[int, int] | None, shape: tuple[int, ...], seed: tf.Tensor, *args: Any
) -> tf.Tensor:
    """Draws a tensor of `shape` for each of B images, the same for an image wherever its batch is divided.

    Args:
        count: () int, B.
        place: as of `Augmentation`.
        shape: of one image's.
        seed, args: of `tf.random.stateless_uniform`.

    Returns:
        (B, *shape).
    """
    if place is None:
        return tf.random.stateless_uniform((count, *shape), seed, *args)
    first, whole = place
    return tf.random.stateless_uniform((whole, *shape), seed, *args)[first : first + count]


def make_augmentation(settings: AugmentationSettings, data: ImageData) -> Augmentation:
    """Returns the augmentation that a run's settings describe; it asks for the images' mean colour.

    Raises:
        UserError: what `check_augmentation` raises.
    """
    check_augmentation(settings, data)
    flip = has_mirror_images(settings, data)
    amounts = settings.shift, flip, settings.cutout, settings.rand_augment
    return Augmentation(data.image_size, data.mean, *amounts)


def has_mirror_images(settings: AugmentationSettings, data: ImageData) -> bool:
    """Whether a mirrored image is taken to be of its class."""
    return data.flip if settings.flip is None else settings.flip


def check_augmentation(settings: AugmentationSettings, data: ImageData) -> None:
    """Checks the settings against the images, none of which is read.

    Raises:
        UserError: an amount that does not fit the image size, or an alternating flip of images whose mirrored
            one is of no class.
    """
    _check_amounts(data.image_size, settings.shift, settings.cutout)
    if settings.alternating_flip and not has_mirror_images(settings, data):
        raise UserError(
            f"--alternating_flip mirrors images, and those of {data.name} are not mirrored by default: add "
            "--flip if a mirrored one is still of its class, or leave it out"
        )


def _check_amounts(image_size, shift, cutout):
    for name, pixels in (("shift", shift), ("cutout", cutout)):
        if not 0 <= pixels <= image_size:
            raise UserError(
                f"{name} must be from 0 to {image_size}, the image size. Received: {name}={pixels}"
            )


def move(images: tf.Tensor, offsets: tf.Tensor, mirrored: tf.Tensor, fill: tf.Tensor) -> tf.Tensor:
    """Mirrors the marked images left to right, then shifts each by its own offset.

    Both are one gather of pixels: Keras's RandomCrop draws one offset for a whole batch, and a map over
    the images would cost a kernel call for each of them.

    Args:
        images: (B,S,S,3), any numeric dtype; S known statically.
        offsets: (B,2) int32, pixels down and to the right (negative: up, left).
        mirrored: (B,) bool.
        fill: 3 numbers, the colour of the pixels that no image pixel moves to.

    Returns:
        (B,S,S,3), the dtype of `images`.
    """
    count, size = tf.shape(images)[0], images.shape[1]
    rows = tf.range(size) - offsets[:, :1]  # (B,S): the row, and the column, that each one comes from
    columns = tf.range(size) - offsets[:, 1:]
    inside = _inside(rows, size)[:, :, None] & _inside(columns, size)[:, None, :]
    columns = tf.where(mirrored[:, None], size - 1 - columns, columns)
    first_row = size * tf.range(count)[:, None]
    source = size * (first_row + rows)[:, :, None] + columns[:, None, :]
    # One more pixel after the last image, of the fill colour, is where everything outside comes from.
    pixels = tf.reshape(images, (-1, images.shape[-1]))
    pixels = tf.concat([pixels, _color(fill, images.dtype)[None]], axis=0)
    return tf.gather(pixels, tf.where(inside, source, count * size * size))


def _inside(index, size):
    """Where an index lies in [0, size)."""
    return (index >= 0) & (index < size)


def _color(fill, dtype):
    """`fill` as a (3,) tensor of an image's dtype."""
    fill = tf.constant(fill, tf.float32)
    return tf.cast(tf.round(fill) if dtype.is_integer else fill, dtype)
