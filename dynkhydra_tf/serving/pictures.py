"""The files of a request to the network's input, each for itself: one bad file does not spoil the others.

A kilobyte can be a picture of sixteen megapixels, and a request has room for a hundred of them. So their
pixels together have a limit, too: half of that of one picture or, of larger files, a number for each byte.

The served graph has no way to catch an error but a `tf.data` pipeline that leaves out the elements that raise
one, so the files go through such a pipeline. B files, S side of an image.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow as tf

from dynkhydra_tf.data.decoding import DAMAGED, decode_still
from dynkhydra_tf.data.headers import MAX_SIDE, read_header
from dynkhydra_tf.data.preprocessing import preprocess
from dynkhydra_tf.serving.connection import SEND_ALONE
from dynkhydra_tf.tuning import untuned

# A sound file of one black pixel.
BLACK = (
    b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\0\0\0\0:~\x9bU"
    b"\0\0\0\nIDATx\x9cc`\0\0\0\x02\0\x01H\xaf\xa4q\0\0\0\0IEND\xaeB`\x82"
)
PIXELS_OF_A_BYTE = 16  # a photo has 3 to 12
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
        max_pixels: of the largest picture that is decoded; half of it of all together, unless their files
            are large.

    Returns:
        images (B, S, S, 3) uint8, black where a file is bad; error (B) string, why it is, else empty.
    """
    files = tf.concat([image_bytes, [BLACK]], axis=0)  # the last one, so that there always is a sound one
    last = tf.size(image_bytes, tf.int64)
    headers, readable = _each(lambda place: _read(files[place]), tf.range(last + 1), last)
    reasons = tf.where(readable, _why_refused(headers, max_pixels), DAMAGED)
    wanted = _fitting(reasons == "", headers, files, max_pixels)

    def decoded(place):
        header = tf.nest.map_structure(lambda values: values[place], headers)
        return preprocess(_decode(files[place], header), size, fit)

    images, good = _each(decoded, tf.concat([tf.where(wanted)[:, 0], [last]], axis=0), last)
    too_many = f"the request's pictures have too many pixels: {SEND_ALONE}"
    refused = tf.where(reasons == "", too_many, reasons)
    errors = tf.where(good, "", tf.where(wanted, DAMAGED, refused))
    return images[:-1], errors[:-1]


# Traced once for all signatures.
_read = tf.function(read_header, autograph=False)
_decode = tf.function(decode_still, autograph=False)


def _each(function: Callable, places: tf.Tensor, last: tf.Tensor) -> tuple[Any, tf.Tensor]:
    """A function of some files; of the sound one in place of those where it raises or is not asked.

    Args:
        function: of a file's place, () int64; returns tensors.
        places: (n,) int64, those that are asked for, the last one `last`.
        last: () int64, B, the place of the sound file.

    Returns:
        What it returns for each file, the sound one too, (B + 1, ...); (B + 1) bool, where it was asked for
        and did not raise, False for the sound one.
    """
    done = tf.data.Dataset.from_tensor_slices(places).apply(untuned)
    done = done.map(lambda place: (place, function(place)), num_parallel_calls=AT_ONCE)
    came, values = done.ignore_errors().batch(last + 1).get_single_element()
    sound = tf.size(came) - 1
    found = tf.tensor_scatter_nd_update(tf.fill([last + 1], sound), came[:, tf.newaxis], tf.range(sound + 1))
    return tf.nest.map_structure(lambda each: tf.gather(each, found), values), found < sound


def _why_refused(headers, max_pixels):
    """(n,) string, why pictures are not decoded, by their headers alone; empty where they are."""
    pixels = tf.reduce_prod(headers.sides, axis=1)
    reason = tf.where(pixels == 0, DAMAGED, "")
    too_long = tf.reduce_max(headers.sides, axis=1) > MAX_SIDE
    reason = tf.where(too_long, f"more than {MAX_SIDE} pixels a side", reason)
    reason = tf.where(pixels > max_pixels, f"more than {max_pixels} pixels", reason)
    return tf.where(headers.supported, reason, headers.name)


def _fitting(sound, headers, files, max_pixels):
    """(n,) bool, which of the sound pictures may be decoded together: the smaller ones first.

    A long strip counts more than its pixels: a row takes its time however short it is. So does what is slow
    to decode. One alone always may.
    """
    sides = headers.sides
    length = tf.reduce_sum(tf.cast(tf.strings.length(files), tf.int64))
    most = tf.maximum(np.int64(max_pixels // 2), PIXELS_OF_A_BYTE * length)
    work = tf.reduce_max(sides, axis=1) * tf.maximum(tf.reduce_min(sides, axis=1), LEAST_SIDE)
    work = tf.where(sound, work * headers.effort, 0)
    order = tf.argsort(work, stable=True)
    within = (tf.cumsum(tf.gather(work, order)) <= most) | (tf.reduce_sum(tf.cast(sound, tf.int32)) == 1)
    return sound & tf.scatter_nd(order[:, tf.newaxis], within, tf.shape(within))
