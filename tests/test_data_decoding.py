import io
import re
import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, PngImagePlugin

from dynkhydra_tf.benchmark import hostile_files
from dynkhydra_tf.data.decoding import decode_picture, why_unreadable
from dynkhydra_tf.data.headers import (
    BEGINNING,
    MAX_PIXELS,
    MAX_SIDE,
    first_picture,
    looks_like_a_picture,
    read_header,
)
from tests.conftest import ROOT
from tests.pictures import (
    ANIMATED,
    FILES,
    ORIENTATIONS,
    PICTURE,
    READ,
    REFUSED,
    behind_other_segments,
    file_of,
    held,
    upright,
)

TURNED = [("JPEG", "<"), ("JPEG", ">"), ("PNG", "<"), ("PNG", ">"), ("WEBP", "<")]


def test_the_table_in_the_readme_is_what_is_tested_here():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (.*?) \| (yes|no) \| (yes|no|) \|$", readme, re.MULTILINE)
    assert [row for row, read, _ in rows if read == "yes"] == list(READ)
    assert [row for row, read, _ in rows if read == "no"] == list(REFUSED)
    turned = {kind.lower() for kind, _ in TURNED}
    assert {row.split(":")[0].lower() for row, _, turns in rows if turns == "yes"} == turned


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_shows_its_picture(kind):
    file, expected = FILES[kind]
    header = read_header(file)
    assert header.supported and header.sides.numpy().tolist() == [48, 32]
    pixels = decode_picture(file).numpy()
    assert pixels.dtype == np.uint8
    # Away from the edges between the colours, where JPEG and WebP blur.
    inside = (slice(4, None, 8), slice(4, None, 8), slice(0, 3))
    assert np.abs(pixels[inside].astype(int) - expected[inside]).max() <= 12


def test_in_a_graph_it_is_the_same():
    traced = tf.function(decode_picture, input_signature=[tf.TensorSpec((), tf.string)])
    for file, _ in FILES.values():
        assert (traced(file).numpy() == decode_picture(file).numpy()).all()


@pytest.mark.parametrize("orientation", [0, *ORIENTATIONS, 9])
def test_a_photo_is_turned_upright(orientation):
    files = [held(orientation, kind, byte_order) for kind, byte_order in TURNED]
    jpeg = files[0]
    assert jpeg[2:4] == b"\xff\xe0" and jpeg[20:22] == b"\xff\xe1"
    files += [jpeg[:2] + jpeg[20:], behind_other_segments(jpeg)]  # without JFIF, as cameras write it; last
    for file in files:
        shown = upright(file)
        np.testing.assert_array_equal(decode_picture(file), shown)
        assert shown.shape[0] == (48 if 5 <= orientation <= 8 else 32)


def test_a_note_behind_the_picture_is_found():
    file = held(6, "PNG")
    start = file.index(b"eXIf") - 4
    end = start + 12 + struct.unpack(">I", file[start : start + 4])[0]
    late = file[:start] + file[end:-12] + file[start:end] + file[-12:]  # before the last chunk, IEND
    np.testing.assert_array_equal(decode_picture(late), upright(file))


def test_a_damaged_note_leaves_the_picture_as_it_is():
    file = held(6)
    picture = decode_picture(held(1)).numpy()
    start = file.index(b"Exif")
    rng = np.random.default_rng(0)
    damaged = [file[:start] + b"exif" + file[start + 4 :]]  # no EXIF at all
    damaged.append(file[: start + 10] + b"\xff\xff\xff\xff" + file[start + 14 :])  # a directory past the end
    for _ in range(60):
        content = bytearray(file)
        place = start + int(rng.integers(6, 40))
        content[place : place + 4] = rng.bytes(4)
        damaged.append(bytes(content))
    pictures = [decode_picture(content).numpy() for content in damaged]
    for shown in pictures[:2]:
        np.testing.assert_array_equal(shown, picture)
    # Some of the bytes do not matter, and the picture is turned after all; with most it stays.
    assert 0 < sum(np.array_equal(shown, picture) for shown in pictures[2:]) < 60
    assert {shown.shape for shown in pictures} <= {(32, 48, 3), (48, 32, 3)}


@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "animated GIF"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_file_that_is_cut_off_is_refused(kind, share):
    file, _ = FILES[kind]
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_picture(file[: int(share * len(file))])


@pytest.mark.parametrize(
    "file",
    [
        b"",
        b"B",
        b"BM",
        b"RIFF",
        b"just a text",
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"GIF89a",
        b"RIFF\x20\0\0\0WEBPVP8X" + bytes(20),
    ],
)
def test_what_is_no_picture_is_refused(file):
    with pytest.raises(tf.errors.InvalidArgumentError):
        decode_picture(file)


@pytest.mark.parametrize(
    "file",
    [
        b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sII", 13, b"IHDR", 2**16, 2**16),
        b"GIF89a" + struct.pack("<HH", 65535, 65535),
        b"BM" + b"\0" * 16 + struct.pack("<ii", 2**15, -(2**15)),
        b"RIFF\0\0\0\0WEBPVP8X" + b"\0" * 8 + b"\xff\xff\xff" * 2,
        file_of(np.zeros((1, 1, 3), np.uint8), "JPEG").replace(
            b"\x08\0\x01\0\x01\x03", b"\x08\xff\xdc\xff\xdc\x03"
        ),
    ],
)
def test_a_picture_that_claims_to_be_huge_is_refused_before_it_is_decoded(file):
    assert read_header(file).sides.numpy().prod() > MAX_PIXELS
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"of 1 to {MAX_PIXELS} pixels"):
        decode_picture(file)


def test_a_picture_that_is_too_long_is_refused():
    long = tf.io.encode_png(np.zeros((1, MAX_SIDE + 1, 1), np.uint8)).numpy()
    assert why_unreadable(long) == f"more than {MAX_SIDE} pixels a side"
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"of 1 to {MAX_PIXELS} pixels"):
        decode_picture(long)
    assert why_unreadable(FILES["PNG"][0], 48 * 32 - 1) == "more than 1535 pixels"
    assert why_unreadable(FILES["PNG"][0], 48 * 32) == ""


@pytest.mark.parametrize("row", REFUSED)
def test_a_kind_that_is_not_read_is_named(row):
    for file, name in REFUSED[row]:
        reason = why_unreadable(file)
        assert reason.startswith(name) and reason.split(": ")[-1] in (
            "save it as PNG",
            "save it as PNG or JPEG",
        )
        assert looks_like_a_picture(file[:BEGINNING])
        if "JPEG of 12 bits" not in name:  # TensorFlow is the first to see that, and has words of its own
            with pytest.raises(tf.errors.InvalidArgumentError, match=f"{re.escape(name)}.*is not supported"):
                decode_picture(file)


def test_reasons_in_words():
    assert why_unreadable(b"a text") == "not JPEG, PNG, GIF, BMP or WebP"
    assert not looks_like_a_picture(b"a text") and not looks_like_a_picture(b"")
    for file, _ in FILES.values():
        assert why_unreadable(file) == ""
        assert looks_like_a_picture(file[:BEGINNING])
    assert why_unreadable(FILES["JPEG"][0][:200]) == "damaged or cut off"
    assert why_unreadable(FILES["GIF"][0][:200]) == "damaged or cut off"


def still_of(file):
    """What a decoder gets of a file."""
    return first_picture(file, read_header(file)).numpy()


@pytest.mark.parametrize("name", ["GIF of pieces", "GIF of extensions"])
def test_a_gif_of_the_smallest_pieces_is_followed_to_its_end(name):
    # A loop over the pieces took 50 us for each.
    make, _ = hostile_files.FILES[name]
    for most in (3_000, 50_000):  # within a window, and beyond
        file = make(most)
        assert still_of(file) == file
        assert still_of(file[:-2]) == b";", "cut off"
    if name == "GIF of extensions":
        assert decode_picture(file).shape == (64, 64, 3)


def test_a_gif_with_xmp_shows_its_picture():
    # XMP is no pieces but text, and a ramp of bytes behind it leads to the end from wherever one comes.
    file, _ = FILES["GIF"]
    start = file.index(b"\x2c\0\0\0\0")
    packet = b"<?xpacket begin='' id='W5M0MpCehiHzreSzNTczkc9d'?>" + b"<x:xmpmeta/>" * 40
    ramp = b"\x01" + bytes(range(255, -1, -1)) + b"\0"
    xmp = file[:start] + b"!\xff\x0bXMP DataXMP" + packet + ramp + file[start:]
    np.testing.assert_array_equal(decode_picture(xmp), decode_picture(file))


def test_a_png_with_a_flood_behind_its_picture_is_named():
    packed = zlib.compress(bytes(9 * 8))  # 8 rows of 8 grey pixels
    flood = packed[:-4] + bytes(200_000)
    refused = "PNG of more data than its picture has, which is not supported: save it as PNG or JPEG"
    assert why_unreadable(hostile_files.png(8, 8, flood)) == refused
    whole = hostile_files.png(8, 8, packed)
    behind = hostile_files.png(8, 8, flood)[len(whole) - len(packed) - 24 :]
    # What is no data of the picture may be long: the other pictures of an animation, or notes.
    for kind in (b"fdAT", b"tEXt"):
        chunk = hostile_files.chunk(kind, behind)
        assert why_unreadable(whole[:-12] + chunk + whole[-12:]) == ""
    many = b"".join(hostile_files.chunk(b"IDAT", b"") for _ in range(30_000))
    assert why_unreadable(whole[:-12] + many + whole[-12:]) == refused, "too many to count"


def test_texts_of_a_png_are_passed_over():
    texts = PngImagePlugin.PngInfo()
    texts.add_itxt("Comment", "packed " * 999, zip=True)
    texts.add_text("Other", "packed " * 999, zip=True)
    file = file_of(PICTURE, "PNG", pnginfo=texts)
    still = still_of(file)
    assert len(still) == len(file) and b"TXt" in file and b"TXt" not in still
    np.testing.assert_array_equal(decode_picture(file), PICTURE)
    assert b"TXt" not in still_of(hostile_files.texts(100_000))


def test_a_jpeg_of_too_many_scans_is_named():
    few, many = (hostile_files.many_scans(most, 64) for most in (2_000, 100_000))
    assert why_unreadable(few) == ""
    assert why_unreadable(many) == "JPEG of too many scans, which is not supported: save it as PNG or JPEG"
    # Of a larger picture there may be fewer.
    assert why_unreadable(hostile_files.many_scans(9_000, 1_000)).startswith("JPEG of too many scans")


@pytest.mark.parametrize("name", ["JPEG of segments", "PNG of chunks", "WebP of chunks"])
def test_a_file_of_nothing_but_small_parts_takes_few_steps(name):
    make, _ = hostile_files.FILES[name]
    file = make(20_000)
    if name == "WebP of chunks":  # the picture lies behind more chunks than are looked at
        assert why_unreadable(file) == "damaged or cut off"
    else:
        assert decode_picture(file).shape == (8, 8, 3)


@pytest.mark.parametrize("kind", ["animated GIF", "animated WebP", "animated lossless WebP with alpha"])
def test_of_an_animation_one_picture_is_handed_to_the_decoder(kind):
    # Decoders unpack them all: 400 kB can be a hundred pictures of 2,000 x 2,000 pixels.
    file, _ = FILES[kind]
    with (
        Image.open(io.BytesIO(file)) as whole,
        Image.open(io.BytesIO(still_of(file))) as still,
    ):
        assert (whole.n_frames, getattr(still, "n_frames", 1)) == (2, 1)


def test_a_picture_larger_than_its_canvas_is_refused():
    file = bytearray(file_of(PICTURE[..., 0], "GIF", **ANIMATED))
    frame = file.index(b"\x2c\0\0\0\0")
    file[frame + 5 : frame + 9] = struct.pack("<HH", 60000, 60000)
    assert why_unreadable(bytes(file)) == f"more than {MAX_PIXELS} pixels"
