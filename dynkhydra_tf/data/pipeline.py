"""Batches for training and evaluation.

A split is decoded once and held in memory as uint8. A training batch is then a gather of B rows, whose
order depends on nothing but the seed and the epoch, and an augmentation that depends on nothing but the
seed and the step: step s of a run sees the same images whether or not the run was interrupted before it.
"""

import tensorflow as tf

from dynkhydra_tf.errors import UserError


def steps_per_epoch(data, batch_size, split="train"):
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


def training_batches(data, batch_size, epochs, seed, augment, initial_step=0, split="train"):
    """The batches of a training run, from step `initial_step` to the end of its last epoch.

    The images are decoded, and held in memory, when this is called.

    Args:
        data: ImageData.
        batch_size: B, images in a batch.
        epochs: number of epochs of the whole run, each in an order of its own.
        seed: int, the seed of the run.
        augment: callable (images (B,S,S,3) uint8, seed (2,) int) -> images, such as `Augmentation`.
        initial_step: steps already done; skipping them costs nothing.
        split: of `data`.

    Returns:
        `tf.data.Dataset` of (images (B,S,S,3) uint8, labels (B,) int32), of known cardinality.

    Raises:
        UserError: B is under 1 or over the number of images.
    """
    steps = steps_per_epoch(data, batch_size, split)
    size = data.sizes[split]
    first_epoch = initial_step // steps
    order_seed, augment_seed = tf.unstack(tf.random.split(tf.constant([seed, 0], tf.int64), 2))

    def epoch_batches(epoch):
        """Index batches (B,) of one epoch, each with its step in the whole run."""
        order = tf.random.experimental.stateless_shuffle(tf.range(size), tf.random.fold_in(order_seed, epoch))
        indices = tf.reshape(order[: steps * batch_size], (steps, batch_size))
        step = epoch * steps + tf.range(steps, dtype=tf.int64)
        done = tf.maximum(initial_step - step[0], 0)
        return tf.data.Dataset.from_tensor_slices((step[done:], indices[done:]))

    images, labels = _in_memory(data, split)

    def batch(step, indices):
        chosen = augment(tf.gather(images, indices), tf.random.fold_in(augment_seed, step))
        return chosen, tf.gather(labels, indices)

    batches = tf.data.Dataset.range(first_epoch, epochs).flat_map(epoch_batches)
    batches = batches.apply(tf.data.experimental.assert_cardinality(max(epochs * steps - initial_step, 0)))
    batches = batches.map(batch, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def evaluation_batches(data, split, batch_size):
    """All images of a split in their fixed order, as they are.

    The images are decoded, and held in memory, when this is called.

    Args:
        data: ImageData.
        split: of `data`.
        batch_size: B, images in a batch; the last one can be smaller.

    Returns:
        `tf.data.Dataset` of (images (B,S,S,3) uint8, labels (B,) int32), of known cardinality.

    Raises:
        UserError: an unknown split, or one without images.
    """
    # Not cache(): Keras looks at the first batch before it iterates, and a cache broken off complains.
    examples = tf.data.Dataset.from_tensor_slices(_in_memory(data, split))
    return examples.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def _in_memory(data, split):
    """A whole split: images (n,S,S,3) uint8, labels (n,) int32, in the main memory."""
    with tf.device("CPU:0"):
        return data.examples(split).batch(data.sizes[split]).get_single_element()
