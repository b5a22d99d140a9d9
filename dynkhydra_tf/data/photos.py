"""Photo files as batches for a network: decoded on all cores, one bad file does not stop the rest."""

import os
from collections.abc import Sequence

import tensorflow as tf

from dynkhydra_tf.data.decoding import decode_picture
from dynkhydra_tf.data.preprocessing import preprocess


def photo_batches(
    paths: Sequence[str | os.PathLike], image_size: int, fit: str, batch_size: int
) -> tf.data.Dataset:
    """The photos as the network takes them, prepared as in training, in the order of the paths.

    Args:
        paths: of files of any size and kind that `decode_picture` takes.
        image_size: S. fit: how a picture becomes square, see `preprocess`.
        batch_size: B, photos in a batch; the last one can be smaller.

    Returns:
        `tf.data.Dataset` of (indices (B,) int32 into the paths, images (B,S,S,3) uint8), without those that
        cannot be read.
    """

    def prepared(index, path):
        return index, preprocess(decode_picture(tf.io.read_file(path)), image_size, fit)

    files = (tf.range(len(paths)), tf.constant([os.fsencode(path) for path in paths], tf.string))
    photos = tf.data.Dataset.from_tensor_slices(files)
    photos = photos.map(prepared, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).ignore_errors()
    return photos.batch(batch_size).prefetch(tf.data.AUTOTUNE)
