"""From the bytes of an image file to pixels: one function for every source and for requests to a server.

TensorFlow's decoders turn grey, palette, 16-bit and CMYK pictures into 8-bit colour by themselves; what they
leave undone is done here: what they would misread is refused by name (`headers.py`), a BMP gets the colours
of its palette, and a photo that was taken on its side is turned.
"""

import numpy as np
import tensorflow as tf

from dynkhydra_tf.data.headers import (
    FORMATS,
    MAX_PIXELS,
    MAX_SIDE,
    NOT_SUPPORTED,
    Bytes,
    Header,
    first_picture,
    read_header,
)

DAMAGED = "damaged or cut off"


def decode_picture(file: tf.Tensor, max_pixels: int = MAX_PIXELS) -> tf.Tensor:
    """Decodes one image file; for eager and graph mode, a `tf.data` map and a SavedModel.

    The first bytes tell the kind of file, not its name. Of an animation it is the first picture; transparency
    is dropped; 16 bits a channel are scaled to 8. A JPEG, PNG or WebP is turned upright where the camera
    noted how it was held (EXIF orientation). README has the table of what is read.

    Args:
        file: () string, the bytes of the file.
        max_pixels: of the largest picture that is decoded.

    Returns:
        (H,W,3) uint8.

    Raises:
        InvalidArgumentError: when it runs, for what is none of `FORMATS`, or not one that is supported,
            damaged, cut off, or of more than `max_pixels` pixels.
    """
    # To trace it takes a second, which a file that is decoded by itself need not wait for.
    decode = _decode.python_function if tf.executing_eagerly() else _decode
    return decode(tf.convert_to_tensor(file, tf.string), max_pixels)


@tf.function(autograph=False)  # traced once, however many pipelines and served models it becomes part of
def _decode(file, max_pixels):
    header = read_header(file)
    pixels = tf.reduce_prod(header.sides)
    fits = (pixels > 0) & (pixels <= max_pixels) & tf.reduce_all(header.sides <= MAX_SIDE)
    wanted = f"a picture must be {FORMATS}, of 1 to {max_pixels} pixels. Received:"
    message = [wanted, header.name, "of width and height", header.sides]
    with tf.control_dependencies([tf.debugging.Assert(header.supported & fits, message)]):
        return decode_still(file, header._replace(still=tf.identity(header.still)))


def decode_still(file: tf.Tensor, header: Header) -> tf.Tensor:
    """Decodes an image file whose header was read, and found to be in order: see `decode_picture`."""
    still = first_picture(file, header)
    image = tf.cond(
        header.name == "BMP",
        lambda: _decode_bmp(still),
        lambda: tf.io.decode_image(still, channels=3, expand_animations=False),
    )
    return _upright(tf.ensure_shape(image, (None, None, 3)), file, header.exif)


def why_unreadable(file: bytes, max_pixels: int = MAX_PIXELS) -> str:
    """Says in a few words why `decode_picture` refuses a file; "" where it does not."""
    try:
        header = read_header(file)
        width, height = map(int, header.sides)
        if not header.supported:
            return header.name.numpy().decode()
        if width * height > max_pixels:
            return f"more than {max_pixels} pixels"
        if max(width, height) > MAX_SIDE:
            return f"more than {MAX_SIDE} pixels a side"
        decode_picture(file, max_pixels)
    except tf.errors.InvalidArgumentError:
        return f"JPEG of 12 bits or lossless{NOT_SUPPORTED}" if _is_unusual_jpeg(file) else DAMAGED
    return ""


def _is_unusual_jpeg(file):
    """Whether a JPEG's frame is of another kind than baseline or progressive with 8 bits."""
    at = 2 if file.startswith(b"\xff\xd8") else len(file)
    while at + 4 < len(file) and file[at] == 0xFF:
        marker = file[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return marker not in (0xC0, 0xC1, 0xC2, 0xC9, 0xCA) or file[at + 4] != 8
        at += 1 if marker == 0xFF else 2 + int.from_bytes(file[at + 2 : at + 4], "big")
    return False


def _decode_bmp(file):
    """(H,W,3) uint8 of a BMP; one of 8 bits goes through its palette, which TensorFlow ignores."""
    pixels = tf.io.decode_bmp(file)
    content = Bytes(file)

    def in_colour():
        # The palette lies between header and pixels.
        start, end = 14 + content.number(14, 4), content.number(10, 4)
        colours = tf.reshape(content.part(start, (end - start) // 4 * 4), (-1, 4))[
            :, 2::-1
        ]  # blue, green, red, 0
        return tf.gather(tf.cast(colours, tf.uint8), tf.cast(pixels[..., 0], tf.int32))

    return tf.cond(content.number(28, 2) == 8, in_colour, lambda: pixels[..., :3])


def _upright(image, file, exif):
    """The picture of a file, turned as its EXIF says; where that is missing or damaged, as it is."""

    def turned():
        orientation = _orientation(Bytes(file), exif)
        # In 5 to 8 rows are columns, and then either may run backwards.
        across = tf.cond(orientation >= 5, lambda: tf.transpose(image, (1, 0, 2)), lambda: image)
        backwards = [tf.reduce_any(orientation == those) for those in ((3, 4, 7, 8), (2, 3, 6, 7))]
        return tf.reverse(across, tf.boolean_mask([0, 1], backwards))

    return tf.cond(exif > 0, turned, lambda: image)


def _orientation(content, start):
    """How a camera was held, () int64 from 1 to 8, as the EXIF at place `start` says; else 1, upright."""
    start += 6 * tf.cast(content.has(start, b"Exif\0\0"), tf.int64)  # what a JPEG needs, others may have, too
    big_endian = content.has(start, b"MM")
    order = tf.where(big_endian, np.int64([256, 1]), np.int64([1, 256]))
    offset = tf.where(big_endian, content.number(start + 4, 4, True), content.number(start + 4, 4))
    directory = start + offset  # a count, then so many entries of 12 bytes: tag, type, count, value
    count = tf.reduce_sum(content.part(directory, 2) * order)
    entries = tf.reshape(content.part(directory + 2, 12 * tf.maximum(count, 1)), (-1, 12))
    tags, values = (tf.reduce_sum(entries[:, place : place + 2] * order, axis=1) for place in (0, 8))
    value = tf.reduce_max(tf.where(tags == 0x0112, values, 1))
    return tf.where(value <= 8, value, 1)
