"""Damaged pictures, deep inside: does an export answer them all, and the next request as if nothing had been?

    python -m dynkhydra_tf.benchmark.fuzz --model_dir=served/digits/1 --requests=10000

Changes the entropy-coded data of JPEG, PNG, GIF and WebP, where a decoder is deepest in its own tables, and
mends the checksums before it, so that the damage gets there. Of PNG also what is in the deflate stream: rows,
and the filters of rows. Every damaged file must be answered, by an error of its own or by an answer; after
every tenth request a sound one must be answered bit by bit as at first, and in the end the process must hold
what it held after the first tenth, within --most_growth. A crash ends this process; the same --seed leads
there again.
"""

import dataclasses
import struct
import sys
import zlib
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image

from dynkhydra_tf import cli
from dynkhydra_tf.benchmark.hostile import AskedExport
from dynkhydra_tf.benchmark.hostile_files import chunk, saved
from dynkhydra_tf.benchmark.runner import rss_mb
from dynkhydra_tf.errors import UserError
from dynkhydra_tf.fields import setting
from dynkhydra_tf.serving import native

EACH = 10  # requests, to a sound one
SIDES = (1, 7, 33, 64, 120)


@dataclasses.dataclass(frozen=True)
class Options(AskedExport):
    """The flags of this command."""

    requests: int = setting(10_000, "Damaged requests.", least=1)
    files: int = setting(2, "Files in a request, at most.", least=1)
    most_growth: float = setting(5.0, "Percent of the resident memory.", above=0)
    seed: int = setting(0, "Of the draws.", least=0)


class Found(NamedTuple):
    """What came out: files without and with an error of their own, megabytes after a tenth and in the end."""

    answered: int
    refused: int
    before: float
    after: float


# === Files ===


def sound_files(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """(kind, file) of small pictures in every way that a decoder knows."""
    files = []
    for side in SIDES:
        rough = rng.integers(0, 256, (max(1, side // 4), side // 3 + 1, 3), np.uint8)
        picture = Image.fromarray(rough).resize((side, side + 3), Image.Resampling.BICUBIC)
        ways: list[tuple[str, str, dict]] = [
            ("JPEG", "RGB", {"quality": 90}),
            ("JPEG", "RGB", {"quality": 60, "subsampling": 0, "restart_marker_blocks": 1}),
            ("JPEG", "RGB", {"progressive": True}),
            ("JPEG", "L", {"progressive": True, "optimize": True}),
            ("JPEG", "CMYK", {}),
            *(("PNG", mode, {}) for mode in ("RGB", "RGBA", "L", "LA", "P", "1", "I;16")),
            ("GIF", "P", {}),
            ("GIF", "P", {"save_all": True, "append_images": [picture.convert("P")] * 2}),
            ("WEBP", "RGB", {}),
            ("WEBP", "RGBA", {}),
            ("WEBP", "RGB", {"lossless": True}),
            ("WEBP", "RGB", {"save_all": True, "append_images": [picture.rotate(90)]}),
            ("BMP", "RGB", {}),
            ("BMP", "P", {}),
        ]
        for kind, mode, settings in ways:
            image = picture.convert("L").convert("I;16") if mode == "I;16" else picture.convert(mode)
            files.append((kind, saved(image, kind, **settings)))
    return files


# === Damage ===


def _damaged(rng: np.random.Generator, content: bytes, start: int = 0) -> bytes:
    """A few changes behind a place: bits, bytes, runs taken out, doubled or filled."""
    content = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        if len(content) <= start:
            break
        at = int(rng.integers(start, len(content)))
        length = min(int(rng.integers(1, 40)), len(content) - at)
        match rng.integers(6):
            case 0:
                content[at] ^= 1 << int(rng.integers(8))
            case 1:
                content[at] = int(rng.integers(256))
            case 2:
                del content[at : at + length]
            case 3:
                content[at:at] = content[at : at + length]
            case 4:
                content[at : at + length] = bytes([int(rng.choice([0, 255]))]) * length
            case 5:
                content[at : at + length] = rng.bytes(length)
    return bytes(content)


def _behind(mark: bytes, skip: int) -> Callable:
    """Damages what lies `skip` bytes behind the first `mark` of a file."""

    def damage(rng, file):
        return _damaged(rng, file, file.index(mark) + skip)

    return damage


def _png(rng, file):
    """Damages a PNG's deflate stream, or what is in it; the checksums are right again."""
    chunks, at = [], 8
    while at < len(file):
        (length,) = struct.unpack(">I", file[at : at + 4])
        chunks.append((file[at + 4 : at + 8], file[at + 8 : at + 8 + length]))
        at += 12 + length
    stream = b"".join(data for kind, data in chunks if kind == b"IDAT")
    if rng.random() < 0.5:
        stream = _damaged(rng, stream, 2)
    else:
        stream = zlib.compress(_damaged(rng, zlib.decompress(stream)))
    others = [(kind, data) for kind, data in chunks if kind not in (b"IDAT", b"IEND")]
    cut = int(rng.integers(1, len(stream) + 1))  # in two chunks
    parts = [*others, (b"IDAT", stream[:cut]), (b"IDAT", stream[cut:]), (b"IEND", b"")]
    return file[:8] + b"".join(chunk(kind, data) for kind, data in parts)


DAMAGE: dict[str, Callable] = {
    "JPEG": _behind(b"\xff\xda", 2),  # the scan's header too
    "PNG": _png,
    "GIF": _behind(b"\x2c", 9),
    "WEBP": _behind(b"VP8", 8),
    "BMP": lambda rng, file: _damaged(rng, file, int(rng.choice([14, 54]))),
}


# === Requests ===


def fuzz(model: native.SavedModel, options: Options) -> Found:
    """Asks a model.

    Raises:
        UserError: a damaged file failed its request, or a sound request was answered otherwise than before.
    """
    rng = np.random.default_rng(options.seed)
    files = sound_files(rng)
    sound = {"image_bytes": np.array([file for _, file in files[:: 3 * len(SIDES) - 1]], object)}
    right = model.run(sound, "image_bytes")
    answered = refused = 0
    before = rss_mb()
    for number in range(options.requests):
        drawn = [files[rng.integers(len(files))] for _ in range(rng.integers(1, options.files + 1))]
        damaged = np.array([DAMAGE[kind](rng, file) for kind, file in drawn], object)
        try:
            answer = model.run({"image_bytes": damaged}, "image_bytes")
        except native.ModelError as error:
            raise UserError(f"request {number} failed as a whole: {error}") from error
        bad = int(np.sum(answer["error"] != b""))
        refused, answered = refused + bad, answered + len(drawn) - bad
        if number % EACH == EACH - 1:
            again = model.run(sound, "image_bytes")
            for name, values in right.items():
                if not np.array_equal(values, again[name]):
                    raise UserError(f"after request {number} the sound one is answered otherwise: {name}")
        if number == options.requests // 10:
            before = rss_mb()
        if number % 1000 == 999:
            print(f"{number + 1} requests, {rss_mb():.0f} MB", file=sys.stderr, flush=True)
    return Found(answered, refused, before, rss_mb())


def main(options: Options) -> None:
    """Asks, and prints what came out."""
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    with native.SavedModel(options.model_dir) as model:
        found = fuzz(model, options)
    growth = 100 * (found.after / found.before - 1)
    print(
        f"{options.requests} requests: {found.answered} damaged files were answered, {found.refused} told "
        f"as damaged; every sound request in between bit by bit as the first. Resident memory "
        f"{found.before:.0f} -> {found.after:.0f} MB ({growth:+.1f} %)."
    )
    if growth > options.most_growth:
        raise UserError(f"The resident memory grew by {growth:.1f} %, more than {options.most_growth:g} %")


if __name__ == "__main__":
    cli.run(main, Options)
