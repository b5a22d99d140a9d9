"""Image files of every kind in README's table, made by Pillow or by hand, and what they show."""

import io
import struct

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

# 32 rows of 48 pixels, of four colours in blocks of 16x24: JPEG and WebP keep them within a few grey levels.
COLOURS = np.array([[[250, 20, 20], [20, 250, 20]], [[20, 20, 250], [240, 240, 240]]], np.uint8)
PICTURE = COLOURS.repeat(16, axis=0).repeat(24, axis=1)
ORIENTATIONS = range(1, 9)


def file_of(picture, kind, **settings):
    """The bytes of an image file."""
    file = io.BytesIO()
    (picture if isinstance(picture, Image.Image) else Image.fromarray(picture)).save(file, kind, **settings)
    return file.getvalue()


IN_MODES = {
    mode: Image.fromarray(PICTURE).convert(mode) for mode in ("RGB", "RGBA", "L", "LA", "P", "CMYK", "1")
}
IN_MODES["RGBA"].putalpha(IN_MODES["L"].point(lambda level: level // 2))  # transparent, each colour otherwise
GREY = np.asarray(IN_MODES["L"])[..., None].repeat(3, axis=2)
IN_PALETTE = np.asarray(IN_MODES["P"].convert("RGB"))
SHARP = {"quality": 95, "subsampling": 0}
ANIMATED = {"save_all": True, "append_images": [Image.fromarray(255 - PICTURE)] * 2}


# By the rows of README's table: {variant: (file, what it shows)}.
READ = {
    "JPEG: grey, colour or CMYK, progressive or not": {
        "JPEG": (file_of(PICTURE, "JPEG", **SHARP), PICTURE),
        "grey JPEG": (file_of(IN_MODES["L"], "JPEG", quality=95), GREY),
        "CMYK JPEG": (file_of(IN_MODES["CMYK"], "JPEG", quality=95), PICTURE),
        "progressive JPEG": (file_of(PICTURE, "JPEG", progressive=True, **SHARP), PICTURE),
    },
    "PNG: grey, colour, palette or transparent, 1 to 16 bits": {
        "PNG": (file_of(PICTURE, "PNG"), PICTURE),
        "grey PNG": (file_of(IN_MODES["L"], "PNG"), GREY),
        "grey PNG with alpha": (file_of(IN_MODES["LA"], "PNG"), GREY),
        "PNG with alpha": (file_of(IN_MODES["RGBA"], "PNG"), PICTURE),
        "PNG with a palette": (file_of(IN_MODES["P"], "PNG"), IN_PALETTE),
        "PNG of one bit": (
            file_of(IN_MODES["1"], "PNG"),
            np.asarray(IN_MODES["1"].convert("RGB")),
        ),
        "16-bit PNG": (tf.io.encode_png(PICTURE.astype(np.uint16) * 257).numpy(), PICTURE),
        "16-bit grey PNG": (tf.io.encode_png(GREY[..., :1].astype(np.uint16) * 257).numpy(), GREY),
    },
    "GIF; of an animation the first picture": {
        "GIF": (file_of(IN_MODES["P"], "GIF"), IN_PALETTE),
        "animated GIF": (file_of(IN_MODES["P"], "GIF", **ANIMATED), IN_PALETTE),
    },
    "WebP: lossy, lossless or transparent; of an animation the first picture": {
        "WebP": (file_of(PICTURE, "WEBP", quality=95), PICTURE),
        "lossless WebP": (file_of(PICTURE, "WEBP", lossless=True), PICTURE),
        "WebP with EXIF": (file_of(PICTURE, "WEBP", quality=95, exif=b"Exif\0\0x"), PICTURE),
        "WebP with alpha": (file_of(IN_MODES["RGBA"], "WEBP", quality=95), PICTURE),
        "lossless WebP with alpha": (file_of(IN_MODES["RGBA"], "WEBP", lossless=True, exact=True), PICTURE),
        "animated WebP": (file_of(PICTURE, "WEBP", quality=95, **ANIMATED), PICTURE),
        "animated lossless WebP with alpha": (
            file_of(IN_MODES["RGBA"], "WEBP", lossless=True, exact=True, **ANIMATED),
            PICTURE,
        ),
    },
    "BMP of 24 or 32 bits, or of 8 with a palette": {
        "BMP": (file_of(PICTURE, "BMP"), PICTURE),
        "BMP with alpha": (file_of(IN_MODES["RGBA"], "BMP"), PICTURE),
        "grey BMP": (file_of(IN_MODES["L"], "BMP"), GREY),
        "BMP with a palette": (file_of(IN_MODES["P"], "BMP"), IN_PALETTE),
    },
}
FILES = {variant: found for row in READ.values() for variant, found in row.items()}


def bmp(bits, packing=0, masks=()):
    """A BMP of 2x2 pixels, all zeros."""
    masks = b"".join(struct.pack("<I", mask) for mask in masks)
    header = struct.pack("<IiiHHIIiiII", 40, 2, 2, 1, bits, packing, 16, 0, 0, 0, 0) + masks
    return struct.pack("<2sIHHI", b"BM", 30 + len(header), 0, 0, 14 + len(header)) + header + bytes(16)


# By the rows of README's table: [(file, what is said of it)].
REFUSED = {
    "BMP of 1, 4 or 16 bits, compressed, with colour masks, of OS/2": [
        (file_of(IN_MODES["1"], "BMP"), "BMP of 1 bits a pixel"),
        (bmp(4), "BMP of 4 bits a pixel"),
        (bmp(16), "BMP of 16 bits a pixel"),
        (bmp(8, packing=1), "compressed BMP, or one with colour masks of its own"),
        (bmp(32, packing=3, masks=(255, 255 << 8, 255 << 16)), "compressed BMP, or one with colour masks"),
        (b"BM" + struct.pack("<IHHIIHHHH", 38, 0, 0, 26, 12, 2, 2, 1, 24) + bytes(16), "BMP of OS/2"),
    ],
    "JPEG of 12 bits, or lossless": [
        (
            FILES["JPEG"][0].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc0\0\x11\x0c"),
            "JPEG of 12 bits or lossless",
        ),
        (
            FILES["JPEG"][0].replace(b"\xff\xc0\0\x11\x08", b"\xff\xc3\0\x11\x08"),
            "JPEG of 12 bits or lossless",
        ),
    ],
    "TIFF, HEIC, AVIF, JPEG 2000, JPEG XL, Photoshop, ICO, SVG, PNM": [
        (file_of(PICTURE, "TIFF"), "TIFF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(40), "HEIC"),
        (b"\0\0\0\x20ftypavif\0\0\0\0avifmif1" + bytes(40), "AVIF"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "JPEG 2000"),
        (b"\xff\x0a" + bytes(40), "JPEG XL"),
        (b"8BPS\0\1" + bytes(40), "Photoshop"),
        (file_of(PICTURE, "ICO"), "ICO"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (file_of(PICTURE, "PPM"), "PNM"),
    ],
}


def held(orientation, kind="JPEG", byte_order="<"):
    """A file whose EXIF says how the camera was held."""
    exif = Image.Exif()
    exif.endian = byte_order
    exif[0x010F] = "a camera"
    exif[0x0112] = orientation
    settings = {"JPEG": SHARP, "PNG": {}, "WEBP": {"lossless": True}}[kind]
    return file_of(PICTURE, kind, exif=exif.tobytes(), **settings)


def upright(file):
    """What Pillow shows of a file, turned as its EXIF says."""
    with Image.open(io.BytesIO(file)) as photo:
        return np.asarray(ImageOps.exif_transpose(photo).convert("RGB"))


def segment(marker, content):
    """A segment of a JPEG."""
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def behind_other_segments(file):
    """A JPEG with all that may stand before its EXIF."""
    before = [
        segment(0xE0, b"JFXX\0\x10" + bytes(30)),
        segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x='adobe:ns:meta/'/>"),
        segment(0xE2, b"ICC_PROFILE\0\1\1" + bytes(600)),
        segment(0xFE, b"a comment that says Exif\0\0 and goes on"),
        segment(0xED, b"Photoshop 3.0\0" + bytes(20)),
        segment(0xEE, b"Adobe\0d\0\0\0\0\1"),
        b"\xff\xff\xff",  # bytes that fill up
    ]
    exif = file.index(b"\xff\xe1")
    return file[:exif] + b"".join(before) + file[exif:]
