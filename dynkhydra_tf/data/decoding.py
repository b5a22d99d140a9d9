"""From the bytes of an image file to pixels: one function for image folders and for requests to a server.

TensorFlow's decoders turn grey, palette, 16-bit and CMYK pictures into 8-bit colour by themselves; what they
leave undone is done here: a limit on the size, and the palette of a BMP.
"""

import tensorflow as tf

FORMATS = "JPEG, PNG, GIF, BMP or WebP"
# Larger pictures are refused before they are decoded: a file of a kilobyte can claim gigabytes.
MAX_PIXELS = 64 * 1024 * 1024


def decode_picture(file):
    """Decodes one image file; for eager and graph mode, a `tf.data` map and a SavedModel.

    The first bytes tell the kind of file, not its name. Of an animated GIF it is the first frame. A camera's
    note on how to turn the picture (EXIF) is not followed.

    Args:
        file: () string, the bytes of the file.

    Returns:
        (H,W,C) uint8; C is 3, or for a BMP 1, 3 or 4, which TensorFlow cannot decode to other channels.

    Raises:
        InvalidArgumentError: when it runs, for what is none of `FORMATS`, damaged, cut off, or of more than
            `MAX_PIXELS` pixels.
    """
    pixels = tf.reduce_prod(claimed_size(file))
    problem = f"a picture must be {FORMATS}, of 1 to {MAX_PIXELS} pixels. Pixels received:"
    fits = tf.debugging.Assert((pixels > 0) & (pixels <= MAX_PIXELS), [problem, pixels])
    with tf.control_dependencies([fits]):
        image = tf.cond(
            _starts(file, b"BM"),
            lambda: _decode_bmp(file),
            lambda: tf.io.decode_image(file, channels=3, expand_animations=False),
        )
    return tf.ensure_shape(image, (None, None, None))


def claimed_size(file):
    """The two sides of a picture, (2,) int64, as the file's header has them; zeros for none of `FORMATS`."""

    def number(at, length, big_endian=False):
        return _number(file, at, length, big_endian)

    def lossless():
        bits = number(21, 4)  # 14 bits for each side less one
        return bits % 2**14 + 1, bits // 2**14 % 2**14 + 1

    def signed(value):
        return tf.cast(tf.abs(tf.cast(value, tf.int32)), tf.int64)  # a BMP from top to bottom: below zero

    webp = tf.strings.substr(_padded(file), 8, 8)
    sides = tf.case(
        [
            (_starts(file, b"\xff\xd8\xff"), lambda: _jpeg_sides(file)),
            (_starts(file, b"\x89PNG"), lambda: (number(16, 4, True), number(20, 4, True))),
            (_starts(file, b"GIF8"), lambda: (number(6, 2), number(8, 2))),
            (_starts(file, b"BM"), lambda: (signed(number(18, 4)), signed(number(22, 4)))),
            (webp == b"WEBPVP8 ", lambda: (number(26, 2) % 2**14, number(28, 2) % 2**14)),
            (webp == b"WEBPVP8L", lossless),
            (webp == b"WEBPVP8X", lambda: (number(24, 3) + 1, number(27, 3) + 1)),
        ],
        default=lambda: (tf.constant(0, tf.int64), tf.constant(0, tf.int64)),
    )
    return tf.stack(sides)


def _jpeg_sides(file):
    height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(file, output_type=tf.int64), num=3)
    return width, height


def _decode_bmp(file):
    """(H,W,C) uint8 of a BMP; one of 8 bits a pixel goes through its palette, which TensorFlow ignores."""
    pixels = tf.io.decode_bmp(file)

    def in_colour():
        start, end = (
            14 + _number(file, 14, 4),
            _number(file, 10, 4),
        )  # the palette lies between header and pixels
        palette = tf.io.decode_raw(tf.strings.substr(file, start, end - start), tf.uint8)
        colours = tf.reshape(palette, (-1, 4))[:, 2::-1]  # stored as blue, green, red, 0
        return tf.gather(colours, tf.cast(pixels[..., 0], tf.int32))

    return tf.cond(_number(file, 28, 2) == 8, in_colour, lambda: pixels)


def _starts(file, magic):
    return tf.strings.substr(file, 0, len(magic)) == magic


def _padded(file):
    """The file and 32 zeros, so that a short one has a header to look at."""
    return tf.strings.join([tf.strings.substr(file, 0, 32), tf.constant(b"\0" * 32)])


def _number(file, at, length, big_endian=False):
    """The unsigned number in `length` of the first 32 bytes, () int64."""
    digits = tf.io.decode_raw(tf.strings.substr(_padded(file), at, length), tf.uint8)
    weights = [256**place for place in range(length)]
    return tf.reduce_sum(tf.cast(digits, tf.int64) * (weights[::-1] if big_endian else weights))
