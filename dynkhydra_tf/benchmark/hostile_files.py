"""Image files made to be dear to whoever decodes them, and how many of them a request may hold.

Each is a function of the bytes that it may have.
"""

import functools
import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

MEGABYTE = 1024 * 1024
SIXTH = b"MM\0\x2a\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"  # an EXIF of one entry, the orientation


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG, its checksum right."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, pixels: bytes | None = None, before: bytes = b"", depth: int = 8) -> bytes:
    """A grey PNG: black, or with `pixels`, a deflate stream, in place of what the size needs."""
    if pixels is None:
        row = -(-width * depth // 8) + 1
        pack = zlib.compressobj(9)
        rows = max(1, MEGABYTE // row)
        pieces = [pack.compress(bytes(row * min(rows, height - at))) for at in range(0, height, rows)]
        pixels = b"".join(pieces) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, 0, 0, 0, 0)
    body = before + chunk(b"IDAT", pixels)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


@functools.cache
def zeros(most: int) -> bytes:
    """A deflate stream of at most so many bytes, of a thousand times as many zeros."""
    pack = zlib.compressobj(9)
    megabyte, pieces, size = bytes(MEGABYTE), [], 0
    while size < most - 2200:
        pieces.append(pack.compress(megabyte) + pack.flush(zlib.Z_SYNC_FLUSH))
        size += len(pieces[-1])
    return b"".join(pieces) + pack.flush()


def saved(picture: Image.Image, kind: str, **settings: object) -> bytes:
    """A picture as a file."""
    file = io.BytesIO()
    picture.save(file, kind, **settings)
    return file.getvalue()


def black(side: int, mode: str = "RGB") -> Image.Image:
    """A black square."""
    return Image.new(mode, (side, side))


def many_scans(most: int, side: int) -> bytes:
    """A progressive JPEG whose last scan, which tells nothing new, comes again and again."""
    file = saved(black(side, "L"), "JPEG", progressive=True)
    last = file.rindex(b"\xff\xda")
    start, scan = file[:last], file[last:-2]
    return start + scan * ((most - len(start) - 2) // len(scan)) + b"\xff\xd9"


def segments(most: int) -> bytes:
    """A JPEG of empty comments, behind which an orientation stands."""
    file = saved(black(8), "JPEG")
    exif = b"Exif\0\0" + SIXTH
    exif = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    return file[:2] + b"\xff\xfe\0\x02" * ((most - len(file) - len(exif)) // 4) + exif + file[2:]


def chunks(most: int) -> bytes:
    """A PNG of empty chunks, behind which an orientation stands."""
    exif = chunk(b"eXIf", SIXTH)
    return png(8, 8, before=chunk(b"teSt", b"") * ((most - len(png(8, 8)) - len(exif)) // 12) + exif)


def texts(most: int) -> bytes:
    """A PNG of compressed texts, each of as many zeros as a decoder takes."""
    text = chunk(b"zTXt", b"a\0\0" + zeros(8000))
    return png(8, 8, before=text * ((most - 100) // len(text)))


def profile(most: int) -> bytes:
    """A PNG with a compressed colour profile of zeros."""
    return png(8, 8, before=chunk(b"iCCP", b"a\0\0" + zeros(most - 200)))


def gif_of_pieces(most: int) -> bytes:
    """A GIF whose first picture comes in pieces of one byte."""
    file = saved(black(64, "P"), "GIF")
    start = file.index(b",") + 11  # behind the descriptor and the size of the codes
    return file[:start] + b"\x01\x04" * ((most - start - 2) // 2) + b"\0;"


def gif_of_extensions(most: int) -> bytes:
    """A GIF with nothing but the shortest comments before its picture."""
    file = saved(black(64, "P"), "GIF")
    start = file.index(b",")
    return file[:start] + b"!\xfe\x01a\0" * ((most - len(file)) // 5) + file[start:]


def gif_of_frames(most: int) -> bytes:
    """An animation of large black pictures."""
    file = saved(black(4000, "P"), "GIF")
    start = file.index(b",")
    return file[:start] + file[start:-1] * ((most - start) // (len(file) - start)) + b";"


def webp_of_chunks(most: int) -> bytes:
    """A WebP with nothing but empty chunks before its picture."""
    picture = saved(black(8), "WEBP")[12:]
    body = b"WEBP" + b"TEST\0\0\0\0" * ((most - len(picture) - 12) // 8) + picture
    return b"RIFF" + struct.pack("<I", len(body)) + body


def square(kind: str, side: int, **settings: object) -> Callable[[int], bytes]:
    """A black square of a kind, whatever it may hold."""
    return lambda most: saved(black(side), kind, **settings)


def noise(kind: str, **settings: object) -> Callable[[int], bytes]:
    """A picture that fills what it may hold with noise, as no photo does."""

    def made(most):
        side, file = 16, b""
        while True:
            pixels = np.random.default_rng(0).integers(0, 256, (side, side, 3), np.uint8)
            larger = saved(Image.fromarray(pixels), kind, **settings)
            if len(larger) > most:
                return file
            side, file = int(side * 1.3), larger

    return made


# {name: (file, and whether as many as fit are sent; TINY: the rest of the request is tiny files)}
TINY = "tiny"
FILES: dict[str, tuple[Callable[[int], bytes], bool | str]] = {
    "a photo's size, JPEG": (square("JPEG", 4000), False),
    "PNG of 24000 x 1": (lambda most: png(24000, 1), False),
    "PNGs of 24000 x 1": (lambda most: png(24000, 1), True),
    "PNGs of 1 x 65535": (lambda most: png(1, 65535), True),
    "PNG of 8192 x 8192": (lambda most: png(8192, 8192), False),
    "PNG of 4096 x 4096": (lambda most: png(4096, 4096), False),
    "PNGs of 4096 x 4096": (lambda most: png(4096, 4096), True),
    "PNGs of 4096 x 4096 in bits": (lambda most: png(4096, 4096, depth=1), True),
    "PNGs of 1000 x 1000": (lambda most: png(1000, 1000), True),
    "PNG that declares 60000 x 60000": (lambda most: png(60000, 60000, zlib.compress(b"")), False),
    "PNG of 8 x 8 with zeros behind": (lambda most: png(8, 8, zeros(most - 100)), False),
    "PNG of 1100 x 1100 with zeros behind": (lambda most: png(1100, 1100, zeros(most - 100)), False),
    "PNG of texts": (texts, False),
    "PNG with a profile of zeros": (profile, False),
    "PNG of chunks": (chunks, False),
    "PNGs of chunks": (lambda most: chunks(60_000), True),
    "PNG of noise": (noise("PNG"), False),
    "JPEGs of 4000 x 4000": (square("JPEG", 4000), True),
    "JPEG, progressive, of 4000 x 4000": (square("JPEG", 4000, progressive=True, subsampling=0), False),
    "JPEGs, progressive, of 4000 x 4000": (square("JPEG", 4000, progressive=True, subsampling=0), True),
    "JPEG of scans, 64 x 64": (lambda most: many_scans(most, 64), False),
    "JPEG of scans, 1000 x 1000": (lambda most: many_scans(most, 1000), False),
    "JPEG of scans, 4000 x 4000": (lambda most: many_scans(most, 4000), False),
    "JPEGs of scans, 1000 x 1000": (lambda most: many_scans(most // 64, 1000), True),
    "JPEG of segments": (segments, False),
    "JPEGs of segments": (lambda most: segments(20_000), True),
    "JPEG of noise": (noise("JPEG", quality=95), False),
    "JPEG of noise, progressive": (noise("JPEG", quality=95, progressive=True), False),
    "JPEG of low noise, progressive": (noise("JPEG", quality=5, progressive=True), False),
    "GIF of 4000 x 4000": (square("GIF", 4000), True),
    "GIF of frames": (gif_of_frames, False),
    "GIF of pieces": (gif_of_pieces, False),
    "GIFs of pieces": (lambda most: gif_of_pieces(most // 64), True),
    "GIF of extensions": (gif_of_extensions, False),
    "GIFs of extensions": (lambda most: gif_of_extensions(most // 64), True),
    "WebPs of 4000 x 4000": (square("WEBP", 4000), True),
    "WebPs of 4000 x 4000, lossless": (square("WEBP", 4000, lossless=True), True),
    "WebP of chunks": (webp_of_chunks, False),
    "WebPs of chunks": (lambda most: webp_of_chunks(most // 64), True),
    "WebP of noise, lossless": (noise("WEBP", lossless=True), False),
    "BMP of noise": (noise("BMP"), False),
    "PNG of 2800 x 2800 among tiny ones": (lambda most: png(2800, 2800), TINY),
    "JPEGs, progressive, of 1400 x 1400 among tiny ones": (
        square("JPEG", 1400, progressive=True, subsampling=0),
        TINY,
    ),
    "GIFs of 2000 x 2000 among tiny ones": (square("GIF", 2000), TINY),
    "WebPs of 4000 x 4000 among tiny ones": (square("WEBP", 4000), TINY),
    "tiny PNGs": (lambda most: png(1, 1), True),
    "nothing readable": (lambda most: b"GIF8", True),
    "empty files": (lambda most: b"", True),
}


def request(name: str, most: int, largest_batch: int) -> list[bytes]:
    """The files of a request of at most so many bytes."""
    make, fill = FILES[name]
    file = make(most)
    if len(file) > most:
        raise ValueError(f"{name}: {len(file)} bytes")
    many = min(largest_batch, most // max(1, len(file))) if fill else 1
    if fill is not TINY:
        return [file] * many
    tiny = png(1, 1)
    few = max(1, min(many // 2, (most - largest_batch * len(tiny)) // len(file)))
    return [file] * few + [tiny] * (largest_batch - few)
