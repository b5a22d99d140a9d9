"""The files of a request to the network's input, each for itself: one bad file does not spoil the others.

A kilobyte can be a picture of sixteen megapixels, and a request has room for hundreds of them. So their
pixels together have a limit, too: that of one picture or, of larger files, a number for each byte.

The served graph has no way to catch an error but a `tf.data` pipeline that leaves out the elements that raise
one, so the files go through such a pipeline. B files, S side of an image.
"""

from collections.abc import Callable

import numpy as np
import tensorflow as tf

from dynkhydra_tf.data.decoding import DAMAGED, decode_picture
from dynkhydra_tf.data.headers import MAX_SIDE, read_header
from dynkhydra_tf.data.preprocessing import preprocess
from dynkhydra_tf.serving.connection import SEND_ALONE

# A sound file of one black pixel.
BLACK = (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU"
    b"\0\0\0\nIDATx\x9cc`\0\0\0\x02\0\x01H\xaf\xa4q\0\0\0\0IEND\xaeB`\x82"
)
PIXELS_OF_A_BYTE = 32  # a photo of the coarsest quality has as many
LEAST_SIDE = 256  # a picture counts as if it had this at least
AT_ONCE = 4  # files that are decoded at the same time: each may hold as many pixels as the limit allows


@tf.autograph.experimental.do_not_convert
def prepare_pictures(
    image_bytes: tf.Tensor, size: int, fit: str, max_pixels: int
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes files and prepares them as in training.

    Args:
        image_bytes: (B) strings, the bytes of files, see `decode_picture`; B > 0.
        size: int, S.
        fit: see `preprocess`.
        max_pixels: of the largest picture that is decoded, and of all together, unless their files are large.

    Returns:
        images (B, S, S, 3) uint8, black where a file is bad; error (B) string, why it is, else empty.
    """
    fits = _fit(image_bytes, max_pixels)
    image_bytes = tf.where(fits, image_bytes, BLACK)
    images, good = _each(lambda file: preprocess(decode_picture(file, max_pixels), size, fit), image_bytes)
    bad = tf.where(~good)
    reasons = tf.cond(
        tf.reduce_all(good),
        lambda: tf.zeros((0,), tf.string),
        lambda: _each(lambda file: _reason(file, max_pixels), tf.gather_nd(image_bytes, bad))[0],
    )
    errors = tf.scatter_nd(bad, reasons, tf.shape(good, tf.int64))
    return images, tf.where(fits, errors, f"the request's pictures have too many pixels: {SEND_ALONE}")


def _fit(files, max_pixels):
    """(B) bool, which of the files may be decoded together: the smaller pictures first."""
    length = tf.reduce_sum(tf.cast(tf.strings.length(files), tf.int64))
    most = tf.maximum(np.int64(max_pixels), PIXELS_OF_A_BYTE * length)

    def fitting():
        # Of what cannot be read, the one pixel of `BLACK`.
        pixels, _ = _each(lambda file: _work(read_header(file).sides, max_pixels), files)
        order = tf.argsort(pixels, stable=True)
        within = tf.cumsum(tf.gather(pixels, order)) <= most
        return tf.scatter_nd(order[:, tf.newaxis], within, tf.shape(within))

    return tf.cond(tf.size(files) > 1, fitting, lambda: tf.fill(tf.shape(files), True))


def _each(function: Callable, files: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """A function of each file, or of `BLACK` where it raises, and (B) bool, where it does not."""
    count = tf.size(files, tf.int64)
    files = tf.concat([files, [BLACK]], axis=0)  # the last one, so that there always is one
    done = tf.data.Dataset.range(count + 1).map(
        lambda place: (place, function(files[place])), num_parallel_calls=AT_ONCE
    )
    places, values = done.ignore_errors().batch(count + 1).get_single_element()
    last = tf.size(places) - 1
    found = tf.tensor_scatter_nd_update(tf.fill([count], last), places[:-1, tf.newaxis], tf.range(last))
    return tf.gather(values, found), found < last


def _work(sides, max_pixels):
    """The pixels of a picture, none of one that is not decoded for its size; of a long strip more.

    A row takes its time however short it is.
    """
    work = tf.reduce_max(sides) * tf.maximum(tf.reduce_min(sides), LEAST_SIDE)
    return tf.where(tf.reduce_prod(sides) > max_pixels, np.int64(0), work)


@tf.function(autograph=False)  # traced once, as the decoder is
def _reason(file, max_pixels):
    """Why `decode_picture` refuses a file, by its header; where that is in order, it is damaged."""
    header = read_header(file)
    reason = tf.where(tf.reduce_max(header.sides) > MAX_SIDE, f"more than {MAX_SIDE} pixels a side", DAMAGED)
    reason = tf.where(tf.reduce_prod(header.sides) > max_pixels, f"more than {max_pixels} pixels", reason)
    return tf.where(header.supported, reason, header.name)
