"""Photo files as batches for a network: decoded on all cores, one bad file does not stop the rest."""

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence

import tensorflow as tf

from dynkhydra_tf.data.decoding import decode_picture
from dynkhydra_tf.data.preprocessing import preprocess
from dynkhydra_tf.tuning import untuned

FEW = 4  # photos that are sooner decoded one after the other than a pipeline is made


def photo_batches(
    paths: Sequence[str | os.PathLike], image_size: int, fit: str, batch_size: int
) -> Iterable[tuple[tf.Tensor, tf.Tensor]]:
    """The photos as the network takes them, prepared as in training, in the order of the paths.

    Args:
        paths: of files of any size and kind that `decode_picture` takes.
        image_size: S. fit: how a picture becomes square, see `preprocess`.
        batch_size: B, photos in a batch; the last one can be smaller.

    Returns:
        Batches of (indices (B,) int32 into the paths, images (B,S,S,3) uint8), without those that cannot be
        read.
    """
    if len(paths) <= FEW:
        return _few(paths, image_size, fit, batch_size)

    def prepared(index, path):
        return index, preprocess(decode_picture(tf.io.read_file(path)), image_size, fit)

    files = (tf.range(len(paths)), tf.constant([os.fsencode(path) for path in paths], tf.string))
    photos = tf.data.Dataset.from_tensor_slices(files).apply(untuned)
    photos = photos.map(prepared, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True).ignore_errors()
    return photos.batch(batch_size).prefetch(tf.data.AUTOTUNE)


def _few(
    paths: Sequence[str | os.PathLike], image_size: int, fit: str, batch_size: int
) -> Iterator[tuple[tf.Tensor, tf.Tensor]]:
    """The same batches, without a pipeline."""
    found = []
    for index, path in enumerate(paths):
        with contextlib.suppress(tf.errors.OpError):
            picture = decode_picture(tf.io.read_file(os.fsencode(path)))
            found.append((index, preprocess(picture, image_size, fit)))
    for start in range(0, len(found), batch_size):
        indices, images = zip(*found[start : start + batch_size], strict=True)
        yield tf.constant(indices, tf.int32), tf.stack(images)
