"""Batches for training and evaluation.

A split that fits is decoded once and held in memory as uint8; of a larger one each image is read and decoded
when its turn comes (`ImageData.in_memory`). Either way the order depends on nothing but the seed and the
epoch, and the augmentation on nothing but the seed and the step: step s of a run sees the same images whether
or not the run was interrupted before it, and however many workers they are divided among.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from dynkhydra_tf.data.image_data import ImageData
from dynkhydra_tf.data.mixup import mix
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.tuning import untuned

LOADED_AT_ONCE = 256  # images


def steps_per_epoch(data: ImageData, batch_size: int, split: str = "train") -> int:
    """Whole batches in an epoch; the remainder is dropped, and another one in each epoch.

    Args:
        data: ImageData.
        batch_size: B, images in a batch.
        split: of `data`.

    Raises:
        UserError: B is under 1 or over the number of images.
    """
    size = data.sizes[split]
    if not 1 <= batch_size <= size:
        raise UserError(
            f"batch_size must be from 1 to {size}, the number of images in the {split} split of {data.name}. "
            f"Received: batch_size={batch_size}"
        )
    return size // batch_size


def training_batches(
    data: ImageData,
    batch_size: int,
    epochs: int,
    seed: int,
    augment: Callable[..., tf.Tensor],
    initial_step: int = 0,
    split: str = "train",
    alternating_flip: bool = False,
    mixup: float = 0.0,
    part: tuple[int, int] = (0, 1),
) -> tf.data.Dataset:
    """The batches of a training run, from step `initial_step` to the end of its last epoch.

    Where they are held in memory, the images are decoded when this is called.

    Args:
        data: ImageData.
        batch_size: B, images in a batch.
        epochs: number of epochs of the whole run, each in an order of its own.
        seed: int, the seed of the run.
        augment: callable (images (B,S,S,3) uint8, seed (2,) int) -> images, such as `Augmentation`, whose
            `place` it takes where a batch is divided.
        initial_step: steps already done; skipping them costs nothing.
        split: of `data`.
        alternating_flip: whether to tell `augment`, as a third argument, which images (B,) bool to mirror: in
            the first epoch about half of them, by a draw of the seed and each one's number in the split, then
            in turn those and the others, so that an image is seen from either side equally often.
        mixup: alpha of `mix`; 0 for none.
        part: (index, count): of each batch only the images of worker `index` of `count`, as they are in the
            whole batch; no others are read. Mixup and RandAugment alone are other draws then.

    Returns:
        `tf.data.Dataset` of (images (B,S,S,3) uint8, labels (B,) int32, or with mixup the targets of `mix`),
        of known cardinality; where a batch is divided, B/count images.

    Raises:
        UserError: B is under 1 or over the number of images, or cannot be divided by `count`.
    """
    steps = steps_per_epoch(data, batch_size, split)
    mine = part_of_batch(batch_size, part)
    size = data.sizes[split]
    first_epoch = initial_step // steps
    order_seed, augment_seed = tf.unstack(tf.random.split(tf.constant([seed, 0], tf.int64), 2))
    flip_seed, mix_seed = (tf.constant([seed, number], tf.int64) for number in (1, 2 + part[0]))

    def epoch_batches(epoch):
        """Batches of one epoch, without those that are done: (indices (B,), which to mirror (B,) bool)."""
        order = tf.random.experimental.stateless_shuffle(tf.range(size), tf.random.fold_in(order_seed, epoch))
        indices = tf.reshape(order[: steps * batch_size], (steps, batch_size))[:, mine]
        indices = indices[tf.maximum(initial_step - epoch * steps, 0) :]
        mirrored = tf.random.stateless_uniform((size,), flip_seed) < 0.5
        mirrored = tf.not_equal(mirrored, epoch % 2 == 1)
        return tf.data.Dataset.from_tensor_slices((indices, tf.gather(mirrored, indices)))

    def augment_batch(step, batch):
        images, labels, mirrored = batch
        told = (mirrored,) if alternating_flip else ()
        place = {} if part == (0, 1) else {"place": (mine.start, batch_size)}
        images = augment(images, tf.random.fold_in(augment_seed, step), *told, **place)
        return mix(images, labels, tf.random.fold_in(mix_seed, step), mixup) if mixup else (images, labels)

    batches = tf.data.Dataset.range(first_epoch, epochs).apply(untuned).flat_map(epoch_batches)
    batches = _read(data, split, batches, mine.stop - mine.start)
    last_step = max(epochs * steps, initial_step)
    batches = tf.data.Dataset.zip(tf.data.Dataset.range(initial_step, last_step), batches)
    batches = batches.apply(tf.data.experimental.assert_cardinality(last_step - initial_step))
    batches = batches.map(augment_batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def part_of_batch(batch_size: int, part: tuple[int, int]) -> slice:
    """Which images of a batch are worker `index`'s of `count`, or a device's, part = (index, count).

    Raises:
        UserError: they do not come out even.
    """
    index, count = part
    if batch_size % count:
        raise UserError(
            f"batch_size must be a multiple of {count}, the number of workers or devices, which take equal "
            f"parts of it. Received: batch_size={batch_size}"
        )
    size = batch_size // count
    return slice(index * size, (index + 1) * size)


def evaluation_batches(data: ImageData, split: str, batch_size: int) -> tf.data.Dataset:
    """All images of a split in their fixed order, as they are.

    Where they are held in memory, the images are decoded when this is called.

    Args:
        data: ImageData.
        split: of `data`.
        batch_size: B, images in a batch; the last one can be smaller.

    Returns:
        `tf.data.Dataset` of (images (B,S,S,3) uint8, labels (B,) int32), of known cardinality.

    Raises:
        UserError: an unknown split, or one without images.
    """
    if not data.in_memory:
        return data.examples(split).batch(batch_size).prefetch(tf.data.AUTOTUNE)
    # Not cache(): Keras looks at the first batch before it iterates, and a cache broken off complains.
    examples = tf.data.Dataset.from_tensor_slices(_in_memory(data, split)).apply(untuned)
    return examples.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def some_images(data: ImageData, split: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """At most `count` images of a split, evenly spread over it: (n,S,S,3) uint8, and their labels (n,) int32.

    No others are decoded.

    Raises:
        UserError: an unknown split, one without images, or a source that has no random access.
    """
    size = data.sizes[split]
    places = np.linspace(0, size - 1, min(count, size)).astype(np.int64)
    fetched = tf.data.Dataset.from_tensor_slices(places).apply(untuned)
    fetched = fetched.map(data.fetch(split), num_parallel_calls=tf.data.AUTOTUNE)
    images, labels = fetched.batch(len(places)).get_single_element()
    return images.numpy(), labels.numpy()


def _read(data, split, batches, batch_size):
    """From a dataset of indices (B,) and something else of each image to (images, labels, that)."""
    together = {"num_parallel_calls": tf.data.AUTOTUNE, "deterministic": True}
    if not data.in_memory:
        fetch = data.fetch(split)
        examples = batches.unbatch().map(lambda index, more: (*fetch(index), more), **together)
        return examples.batch(batch_size, drop_remainder=True)
    images, labels = _in_memory(data, split)
    return batches.map(
        lambda indices, more: (tf.gather(images, indices), tf.gather(labels, indices), more), **together
    )


def _in_memory(data, split):
    """A whole split: images (n,S,S,3) uint8, labels (n,) int32, in the main memory."""
    size, side = data.sizes[split], data.image_size
    images, labels = np.empty((size, side, side, 3), np.uint8), np.empty(size, np.int32)
    # Part by part: one batch of them all would take four times their size.
    parts = data.examples(split).batch(LOADED_AT_ONCE).as_numpy_iterator()
    for number, (some_images, some_labels) in enumerate(parts):
        place = slice(number * LOADED_AT_ONCE, (number + 1) * LOADED_AT_ONCE)
        images[place], labels[place] = some_images, some_labels
    with tf.device("CPU:0"):
        return tf.constant(images), tf.constant(labels)
