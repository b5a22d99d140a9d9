"""What an image file says of itself before it is decoded: its kind, its size, how the camera was held.

Everything is TensorFlow operations, because it is part of the served graph. A file is untrusted: its claims
are known before a decoder believes them, and of an animation one picture is handed on, as a decoder would
unpack them all; a GIF is cut only where it is decoded (`first_picture`). Places in a file and numbers are
() int64.
"""

import typing

import numpy as np
import tensorflow as tf

FORMATS = "JPEG, PNG, GIF, BMP or WebP"
# Larger pictures are refused before they are decoded: a file of a kilobyte can claim gigabytes.
MAX_PIXELS = 64 * 1024 * 1024
MAX_SIDE = 65535  # pixels; what a JPEG can have
MAX_STEPS = 32  # from segment to segment of a file; each takes as long as 10,000 pixels
# A decoder goes through all of a JPEG for each of its scans, of which a dozen is much.
MAX_SCANS, SMALL_JPEG, MAX_SCANNED = 12, 2**16, 12 * 16 * 2**20  # pixels, and pixels times scans
FEW_SCANS = 3  # of a JPEG that is not progressive
QUICK, SLOW = np.int64(1), np.int64(2)  # effort: of a progressive JPEG and a GIF twice that of others
# An animated PNG has more bytes than its first picture, which itself may come in many chunks.
MAX_PNG_STEPS, PNG_SLACK = 256, 2**16
GIF_WINDOW = 2**14  # bytes that are looked at together

# What files begin with, `.` for any byte: the kinds that are read, in the order of `_READERS`, then others.
KINDS = {
    "JPEG": (b"\xff\xd8\xff",),
    "PNG": (b"\x89PNG\r\n\x1a\n",),
    "GIF": (b"GIF8",),
    "BMP": (b"BM",),
    "WebP": (b"RIFF....WEBP",),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "HEIC": (b"....ftyphei", b"....ftyphev", b"....ftypmif1", b"....ftypmsf1"),
    "AVIF": (b"....ftypavi",),
    "JPEG 2000": (b"\0\0\0\x0cjP  ", b"\xff\x4f\xff\x51"),
    "JPEG XL": (b"\0\0\0\x0cJXL ", b"\xff\x0a"),
    "Photoshop": (b"8BPS",),
    "ICO": (b"\0\0\1\0",),
    "SVG": (b"<svg",),
    "PNM": (b"P1\n", b"P2\n", b"P3\n", b"P4\n", b"P5\n", b"P6\n", b"P7\n"),
}
BEGINNING = 66  # bytes that tell the kind, and of most kinds all that is asked here
NOT_SUPPORTED = ", which is not supported: save it as PNG or JPEG"
NOWHERE = np.int64(0)


class Header(typing.NamedTuple):
    """What is known before decoding.

    Attributes:
        supported: () bool, whether files of its kind and variant are read.
        name: () string, its kind; where it is not supported, a text that says so.
        sides: (2,) int64, width and height in pixels; zeros where they are not known.
        exif: where the EXIF begins, 0 where there is none.
        still: () string, what to decode, but for a GIF, see `first_picture`; of a WebP its first picture.
        frame: where the first picture of a GIF begins, 0 where there is none.
        effort: () int64, how many times as long as another picture of its size it may take to decode.
    """

    supported: tf.Tensor
    name: tf.Tensor
    sides: tf.Tensor
    exif: tf.Tensor
    still: tf.Tensor
    frame: tf.Tensor
    effort: tf.Tensor


class Bytes:
    """Bytes as numbers; past their end they are zero.

    Args:
        file: () string.
        length: so many of its first bytes; None: all.
    """

    def __init__(self, file: tf.Tensor, length: int | None = None) -> None:
        """Unpacks them."""
        text = tf.strings.join([file, b"\0"]) if length is None else file
        self._bytes = tf.io.decode_raw(text, tf.uint8, fixed_length=length and length + 1)
        self._end = tf.size(self._bytes, tf.int64) - 1

    def part(self, at: tf.Tensor | int, length: tf.Tensor | int) -> tf.Tensor:
        """`length` bytes from a place on, (length,) int64."""
        places = tf.range(tf.cast(length, tf.int64)) + at
        return tf.cast(tf.gather(self._bytes, tf.minimum(places, self._end)), tf.int64)

    def number(self, at: tf.Tensor | int, length: int, big_endian: bool = False) -> tf.Tensor:
        """The unsigned number in `length` bytes from a place on."""
        weights = [256**place for place in range(length)]
        return tf.reduce_sum(self.part(at, length) * (weights[::-1] if big_endian else weights))

    def has(self, at: tf.Tensor | int, text: bytes) -> tf.Tensor:
        """Whether these bytes stand at a place."""
        return tf.reduce_all(self.part(at, len(text)) == list(text))


def read_header(file: tf.Tensor) -> Header:
    """Reads what an image file says of itself; for eager and graph mode.

    Args:
        file: () string, the bytes of the file.

    Raises:
        InvalidArgumentError: when it runs, for a JPEG without a frame.
    """
    file = tf.convert_to_tensor(file, tf.string)
    beginning = Bytes(file, BEGINNING)
    kind = _kind(beginning)
    names = [name + NOT_SUPPORTED for name in KINDS] + [f"not {FORMATS}"]

    def tensors(*found):
        kinds = (tf.bool, tf.string, tf.int64, tf.int64, tf.string, tf.int64, tf.int64)
        return tuple(tf.convert_to_tensor(value, kind) for value, kind in zip(found, kinds, strict=True))

    found = tf.switch_case(
        kind,
        [
            lambda name=name, read=read: tensors(*read(name, file, beginning))
            for name, read in zip(KINDS, _READERS, strict=False)
        ],
        default=lambda: tensors(False, tf.gather(names, kind), (0, 0), NOWHERE, file, NOWHERE, QUICK),
    )
    return Header(*found)


def looks_like_a_picture(beginning: bytes) -> bool:
    """Whether the first bytes of a file are those of a picture, of a kind that is read or not."""
    return any(
        len(beginning) >= len(magic)
        and all(
            given == wanted or wanted == ord(".") for given, wanted in zip(beginning, magic, strict=False)
        )
        for magics in KINDS.values()
        for magic in magics
    )


def _kind(beginning):
    """The number in `KINDS` of a file's kind, () int32; their count for none of them."""
    magics = [(kind, magic) for kind, magics in enumerate(KINDS.values()) for magic in magics]
    longest = max(len(magic) for _, magic in magics)
    wanted = np.array([list(magic.ljust(longest, b".")) for _, magic in magics])
    matches = tf.reduce_all((beginning.part(0, longest) == wanted) | (wanted == ord(".")), axis=1)
    kinds = np.array([*(kind for kind, _ in magics), len(KINDS)], np.int32)
    return tf.gather(kinds, tf.argmax(tf.concat([matches, [True]], axis=0)))


# === A function for each kind that is read: (its name, the file, its beginning) -> what `Header` has ===


def _read_jpeg(name, file, beginning):
    advance, has_length = np.full(256, 2), np.ones(256, np.int64)
    advance[0xFF] = 1  # a byte that fills up
    advance[[0xD9, 0xDA]] = 2**40  # the end, and a scan, before which EXIF stands
    has_length[[0xFF, 0x01, *range(0xD0, 0xDB)]] = 0

    def step(content, at):
        segment = content.part(at, 10)
        marker, length = segment[1], segment[2] * 256 + segment[3]
        is_exif = (marker == 0xE1) & tf.reduce_all(segment[4:] == list(b"Exif\0\0"))
        after = at + tf.gather(advance, marker) + tf.gather(has_length, marker) * length
        return (segment[0] == 0xFF) & ~is_exif, after, tf.where(is_exif, at + 10, NOWHERE)

    height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(file, output_type=tf.int64), num=3)
    scans = tf.size(tf.raw_ops.StringSplitV2(input=[file], sep=b"\xff\xda").values, tf.int64) - 1
    scanned = scans * tf.maximum(height * width, SMALL_JPEG)
    supported = (scans <= MAX_SCANS) | (scanned <= MAX_SCANNED)
    name = tf.where(supported, name, f"{name} of too many scans{NOT_SUPPORTED}")
    effort = tf.where(scans > FEW_SCANS, SLOW, QUICK)
    return supported, name, (width, height), _find_exif(file, step), file, NOWHERE, effort


def _read_png(name, file, beginning):
    width, height = beginning.number(16, 4, True), beginning.number(20, 4, True)
    # A decoder unpacks all that is packed, a thousand times its bytes, also what the picture has no use for.
    channels = tf.gather(np.int64([1, 1, 3, 1, 2, 1, 4, 1]), tf.minimum(beginning.number(25, 1), 7))
    rows, columns = tf.minimum(height, MAX_SIDE), tf.minimum(width, MAX_SIDE)
    unpacked = rows * (1 + -(-columns * channels * beginning.number(24, 1) // 8))
    most = unpacked * 9 // 8 + PNG_SLACK
    packed = tf.cond(_length(file) > most, lambda: _packed_bytes(file), lambda: NOWHERE)
    supported = packed <= most
    name = tf.where(supported, name, f"{name} of more data than its picture has{NOT_SUPPORTED}")
    # The chunk may stand behind those of the picture, which are many.
    exif = _find_note(file, rb"eXIf", 4)
    return supported, name, (width, height), exif, _without_texts(file), NOWHERE, QUICK


def _without_texts(file):
    """A PNG whose compressed texts have another name: a decoder would unpack megabytes for each.

    It passes over chunks that it does not know, also where their checksum is wrong.
    """
    return tf.cond(
        tf.strings.regex_full_match(file, rb"\C*[iz]TXt\C*"),
        lambda: tf.strings.regex_replace(file, rb"(\x00[\x00-\x7f]\C\C)[iz]TXt", rb"\1zzZz"),
        lambda: file,
    )


def _packed_bytes(file):
    """The bytes in the chunks of a PNG's picture, () int64; all of the file where these are too many."""
    content = Bytes(file)

    def step(at, packed, count):
        chunk = content.part(at, 8)
        is_data = tf.reduce_all(chunk[4:] == list(b"IDAT"))
        length = tf.reduce_sum(chunk[:4] * [2**24, 2**16, 2**8, 1])
        packed += tf.where(is_data, length, 0)
        return is_data | (packed == 0), at + 12 + length, packed, count + 1

    packed, count = _follow(file, 8, step, NOWHERE, NOWHERE, steps=MAX_PNG_STEPS)
    return tf.where(count == MAX_PNG_STEPS, _length(file), packed)


def _read_gif(name, file, beginning):
    # Blocks: "!" an extension, "," a picture; both end with pieces, a length and so many bytes, the last 0.
    content = Bytes(file)
    size = _length(file)

    def block(places, values):  # an extension's pieces lie behind its kind; all else stops here
        is_extension = values == ord("!")
        return tf.where(is_extension, 2 * (places + 2) + 1, 2 * places)

    def piece(places, values):
        return tf.where(values == 0, 2 * (places + 1), 2 * (places + 1 + values) + 1)

    first = 13 + _colours(content.number(10, 1))
    frame = tf.cond(
        content.number(first, 1) == ord("!"),
        lambda: _jump(content, size, first, block, piece),
        lambda: tf.convert_to_tensor(first, tf.int64),
    )
    frame = tf.where((frame < size) & (content.number(frame, 1) == ord(",")), frame, 0)
    sides = _largest(
        [content.number(6, 2), content.number(8, 2)],
        [content.number(frame + 5, 2), content.number(frame + 7, 2)],
    )
    return True, name, sides, NOWHERE, file, frame, SLOW


def first_picture(file: tf.Tensor, header: Header) -> tf.Tensor:
    """What to decode of a file, () string: of an animation its first picture.

    Args:
        file: () string.
        header: of `read_header`, where the file's kind is supported.
    """
    return tf.cond(header.name == "GIF", lambda: _first_of_gif(file, header.frame), lambda: header.still)


def _first_of_gif(file, frame):
    """A GIF up to the end of its first picture; nothing sensible where the file ends before."""
    content = Bytes(file)
    size = _length(file)

    def piece(places, values):
        return tf.where(values == 0, places, places + 1 + values)

    pieces = frame + 11 + _colours(content.number(frame + 9, 1))
    end = _jump(content, size, pieces, piece)
    return tf.strings.join([_text(file, NOWHERE, tf.where((frame > 0) & (end < size), end + 1, 0)), b";"])


def _colours(flags):
    """The bytes of a GIF's colour table."""
    return (flags // 128) * 3 * 2 ** (flags % 8 + 1)


def _jump(content, size, start, *following):
    """Follows a chain of places through a file to where it stops: a window at a time, all its places at once.

    A file may be a chain of a million pieces of one byte, and one step takes as long as a thousand here.
    A node is `states` times a place, and the state there, 0 at first.

    Args:
        content: `Bytes` of the file, of `size` bytes.
        start: () int64, the first place.
        following: for each state a function (places, values), both (n,) int64, of the bytes of a window and
            where they lie in it -> the nodes that follow; the same node again: the chain stops. It jumps at
            least 1 byte and at most 256.

    Returns:
        () int64, where it stops; `size` or more where the file ends before.
    """
    states = len(following)
    start = tf.convert_to_tensor(start, tf.int64)
    window = tf.clip_by_value(size - start, 0, GIF_WINDOW)
    nodes = tf.range(states * (window + 258))  # of the window; behind it all stop
    rounds = GIF_WINDOW.bit_length() - 1  # after these as many are jumped at once as the window has bytes

    def body(at, state, _):
        places = tf.range(window)
        values = content.part(at, window)
        steps = tf.reshape(tf.stack([of(places, values) for of in following], axis=1), [-1])
        steps = tf.cast(tf.concat([steps, nodes[states * window :]], axis=0), tf.int32)
        for _ in range(rounds):
            steps = tf.gather(steps, steps)
        last = tf.cast(tf.gather(steps, state), tf.int64)
        return at + last // states, last % states, last // states < window

    going = (start, NOWHERE, tf.constant(False))
    return tf.while_loop(lambda at, _, stopped: (at < size) & ~stopped, body, going)[0]


def _read_bmp(name, file, beginning):
    header, bits, packing = (beginning.number(at, n) for at, n in ((14, 4), (28, 2), (30, 4)))
    # Red, green and blue of 32 bits as they are without masks.
    masks = beginning.has(54, b"\0\0\xff\0\0\xff\0\0\xff\0\0\0")
    plain = (packing == 0) | ((packing == 3) & (bits == 32) & masks)
    variant = tf.where(plain, "", "compressed BMP, or one with colour masks of its own")
    of_bits = tf.strings.join(["BMP of ", tf.strings.as_string(bits), " bits a pixel"])
    variant = tf.where(tf.reduce_any(bits == [8, 24, 32]), variant, of_bits)
    variant = tf.where(header < 40, "BMP of OS/2", variant)
    variant = tf.where(_length(file) < 34, "", variant)  # cut off
    supported = variant == ""
    name = tf.where(supported, name, tf.strings.join([variant, NOT_SUPPORTED]))
    # Below zero the height is of a picture stored from top to bottom.
    width, height = (tf.cast(beginning.number(at, 4), tf.int32) for at in (18, 22))
    sides = tf.cast(width, tf.int64), tf.cast(tf.abs(height), tf.int64)
    return supported, name, sides, NOWHERE, file, NOWHERE, QUICK


def _read_webp(name, file, beginning):
    # Chunks: a name, a length, so many bytes. An animation's pictures lie inside of its frames (ANMF).
    content = Bytes(file)

    def step(at, picture, end):
        chunk, length = content.part(at, 4), content.number(at + 4, 4)
        is_frame = tf.reduce_all(chunk == list(b"ANMF"))
        is_picture = tf.reduce_all(chunk[:3] == list(b"VP8")) & (chunk[3] != ord("X"))
        after = at + 8 + length + length % 2
        picture, end = tf.where(is_picture, at, picture), tf.where(is_picture, after, end)
        return ~is_picture, tf.where(is_frame, at + 24, after), picture, end

    picture, end = _follow(file, 12, step, NOWHERE, NOWHERE)
    exif = _find_note(file, rb"EXIF\C{4}", 8)
    lossless = content.has(picture, b"VP8L")
    packed = content.number(picture + 9, 4)  # 14 bits for each side less one
    sides = [
        tf.where(lossless, packed // 2**shift % 2**14 + 1, content.number(picture + at, 2) % 2**14)
        for shift, at in ((0, 14), (14, 16))
    ]
    canvas = tf.stack([content.number(24, 3), content.number(27, 3)]) + 1
    sides = _largest(sides, canvas * tf.cast(content.has(12, b"VP8X"), tf.int64))
    whole = (picture > 0) & (content.number(4, 4) + 8 <= _length(file))
    # The picture alone, as a file of its own, without transparency, of which TensorFlow wants to be told
    # before: it is a chunk beside the picture, or announced by a bit in a lossless one.
    flags = content.number(picture + 12, 1)
    flags = tf.where(lossless & (flags // 16 % 2 == 1), flags - 16, flags)
    end = tf.minimum(end, _length(file))
    length = 4 + end - picture
    still = [
        b"RIFF",
        _characters(length // [1, 2**8, 2**16, 2**24] % 256),
        b"WEBP",
        _text(file, picture, picture + 12),
        _characters(flags[tf.newaxis]),
        _text(file, picture + 13, end),
    ]
    return True, name, sides, exif, tf.where(whole, tf.strings.join(still), ""), NOWHERE, QUICK


_READERS = (_read_jpeg, _read_png, _read_gif, _read_bmp, _read_webp)


def _find_exif(file, step):
    """Where a JPEG's EXIF begins; its segments are followed only where the name occurs in the file at all."""

    def find():
        content = Bytes(file)
        return _follow(file, 2, lambda at, exif: step(content, at), NOWHERE)[0]

    return tf.cond(tf.strings.regex_full_match(file, rb"\C*Exif\C*"), find, lambda: NOWHERE)


def _find_note(file, chunk, skip):
    """Where EXIF begins: `skip` bytes behind a chunk's name, a pattern, that is followed by its opening."""
    opened = chunk + rb"(Exif\x00\x00)?(MM\x00\*|II\*\x00)\C*"
    before = _length(tf.strings.regex_replace(file, opened, b""))
    return tf.where(before < _length(file), before + skip, NOWHERE)


def _follow(file, first, step, *found, steps=MAX_STEPS):
    """Goes from segment to segment of a file.

    Args:
        file: () string.
        first: the first segment's place.
        step: function (place, *found) -> (whether to go on, the next place, *found).
        found: what is found, as before the first step.
        steps: most steps.

    Returns:
        found, after the last step.
    """
    size = _length(file)

    def body(at, *found):
        goes_on, after, *found = step(at, *found)
        return tf.where(goes_on, after, size), *found

    start = (tf.convert_to_tensor(first, tf.int64), *map(tf.convert_to_tensor, found))
    return tf.while_loop(lambda at, *_: at < size, body, start, maximum_iterations=steps)[1:]


def _length(file):
    return tf.cast(tf.strings.length(file), tf.int64)


def _text(file, start, end):
    """The bytes between two places, () string; less where the file ends before."""
    size = _length(file)
    start, end = tf.minimum(start, size), tf.minimum(end, size)
    return tf.strings.substr(file, start, tf.maximum(end - start, 0))


def _characters(numbers):
    """Numbers 0..255 as the bytes of a () string."""
    return tf.strings.reduce_join(tf.gather([bytes([byte]) for byte in range(256)], numbers))


def _largest(some_sides, other_sides):
    return tf.maximum(tf.stack(some_sides), tf.stack(other_sides))
