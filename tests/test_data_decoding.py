import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from dynkhydra_tf.data.decoding import MAX_PIXELS, claimed_size, decode_picture

# 4 rows of 6 pixels, of four colours in squares of 2x3: a JPEG keeps them within a few grey levels.
COLOURS = np.array([[[250, 20, 20], [20, 250, 20]], [[20, 20, 250], [240, 240, 240]]], np.uint8)
PICTURE = COLOURS.repeat(16, axis=0).repeat(24, axis=1)


def file_of(picture, kind, **settings):
    """The bytes of an image file."""
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **settings)
    return file.getvalue()


IN_MODES = {mode: Image.fromarray(PICTURE).convert(mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "CMYK")}
GREY = np.asarray(IN_MODES["L"])[..., None].repeat(3, axis=2)
FILES = {
    "JPEG": (file_of(PICTURE, "JPEG", quality=95, subsampling=0), PICTURE),
    "grey JPEG": (file_of(IN_MODES["L"], "JPEG", quality=95), GREY),
    "CMYK JPEG": (file_of(IN_MODES["CMYK"], "JPEG", quality=95), PICTURE),
    "progressive JPEG": (file_of(PICTURE, "JPEG", quality=95, progressive=True, subsampling=0), PICTURE),
    "PNG": (file_of(PICTURE, "PNG"), PICTURE),
    "grey PNG": (file_of(IN_MODES["L"], "PNG"), GREY),
    "grey PNG with alpha": (file_of(IN_MODES["LA"], "PNG"), GREY),
    "PNG with alpha": (file_of(IN_MODES["RGBA"], "PNG"), PICTURE),
    "PNG with a palette": (file_of(IN_MODES["P"], "PNG"), np.asarray(IN_MODES["P"].convert("RGB"))),
    "16-bit PNG": (tf.io.encode_png(PICTURE.astype(np.uint16) * 257).numpy(), PICTURE),
    "16-bit grey PNG": (tf.io.encode_png(GREY[..., :1].astype(np.uint16) * 257).numpy(), GREY),
    "GIF": (file_of(IN_MODES["P"], "GIF"), np.asarray(IN_MODES["P"].convert("RGB"))),
    "animated GIF": (
        file_of(IN_MODES["P"], "GIF", save_all=True, append_images=[IN_MODES["L"]]),
        np.asarray(IN_MODES["P"].convert("RGB")),
    ),
    "BMP": (file_of(PICTURE, "BMP"), PICTURE),
    "BMP with alpha": (file_of(IN_MODES["RGBA"], "BMP"), PICTURE),
    "grey BMP": (file_of(IN_MODES["L"], "BMP"), GREY),
    "BMP with a palette": (file_of(IN_MODES["P"], "BMP"), np.asarray(IN_MODES["P"].convert("RGB"))),
    "WebP": (file_of(PICTURE, "WEBP", quality=95), PICTURE),
    "lossless WebP": (file_of(PICTURE, "WEBP", lossless=True), PICTURE),
    "WebP with alpha": (
        file_of(Image.fromarray(PICTURE).convert("RGBA"), "WEBP", exif=b"Exif\0\0x"),
        PICTURE,
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_every_kind_of_file_shows_its_picture(kind):
    file, expected = FILES[kind]
    assert sorted(claimed_size(file).numpy().tolist()) == [32, 48]
    pixels = decode_picture(file).numpy()
    assert pixels.dtype == np.uint8
    # Away from the edges between the colours, where JPEG and WebP blur.
    inside = (slice(4, None, 8), slice(4, None, 8), slice(0, 3))
    assert np.abs(pixels[inside].astype(int) - expected[inside]).max() <= 12


def test_in_a_graph_it_is_the_same():
    traced = tf.function(decode_picture, input_signature=[tf.TensorSpec((), tf.string)])
    for file, _ in FILES.values():
        assert (traced(file).numpy() == decode_picture(file).numpy()).all()


def held(orientation, byte_order="<", jfif=True):
    """A JPEG with an EXIF note, after JFIF's segment or, as cameras write it, in its place."""
    exif = Image.Exif()
    exif.endian = byte_order
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    file = file_of(PICTURE, "JPEG", quality=95, subsampling=0, exif=exif.tobytes())
    assert file[2:4] == b"\xff\xe0" and file[20:22] == b"\xff\xe1"
    return file if jfif else file[:2] + file[20:]


@pytest.mark.parametrize("orientation", range(10))
def test_a_photo_is_turned_upright(orientation):
    files = [held(orientation), held(orientation, ">"), held(orientation, jfif=False)]
    for file in files:
        with Image.open(io.BytesIO(file)) as photo:
            upright = np.asarray(ImageOps.exif_transpose(photo))
        np.testing.assert_array_equal(decode_picture(file), upright)
        assert upright.shape[0] == (48 if 5 <= orientation <= 8 else 32)


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
        file_of(PICTURE, "TIFF"),
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
    assert claimed_size(file).numpy().prod() > MAX_PIXELS
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"of 1 to {MAX_PIXELS} pixels"):
        decode_picture(file)
