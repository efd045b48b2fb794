"""Find what an encoded image holds besides its pixels, by walking the file's own structure."""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Iterator

from anonymizer.data.pillow_warnings import suppress_pillow_warnings

# PNG chunks of pixels and of how to show them.
PIXEL_PNG_CHUNKS = {b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"cICP"}
PIXEL_PNG_CHUNKS |= {b"acTL", b"fcTL", b"fdAT"}
METADATA_PNG_CHUNKS = {b"iCCP": "icc", b"tIME": "timestamp", b"pHYs": "resolution"}
PNG_TEXT_KEYS = {"exif": "exif", "iptc": "iptc", "xmp": "xmp", "icc": "icc", "time": "timestamp", "date": "timestamp"}
PNG_TEXT_KEYS |= {"comment": "comment", "thumb": "thumbnail"}  # part of a text's key -> kind of metadata
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7]")  # in a JPEG's scan, neither stuffing nor a restart
PIXEL_WEBP_CHUNKS = {b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF"}
METADATA_TIFF_TAGS = {  # text, times, places and embedded blocks
    "text": (269, 270, 271, 272, 285, 305, 315, 316, 337, 33432),
    "timestamp": (306,),
    "exif": (34665,),
    "gps": (34853,),
    "xmp": (700,),
    "iptc": (33723, 34377),
    "icc": (34675,),
}
PILLOW_INFO = {"exif": "exif", "icc_profile": "icc", "xmp": "xmp", "comment": "comment", "photoshop": "iptc"}


def find_metadata(data: bytes) -> list[str]:
    """Return the kinds of metadata in an encoded file, sorted; [] if it holds pixels only.

    PNG, JPEG and WebP are walked chunk by chunk: "exif", "gps", "xmp", "iptc", "icc", "comment", "thumbnail", "text",
    "timestamp", "resolution", "trailing data", and "other (NAME)" for a block that is not known to be harmless. Other
    formats are read with Pillow. A file that is no image, or a broken one, gives ["unreadable"].
    """
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        kinds = _walk_png(data)
    elif data.startswith(b"\xff\xd8"):
        kinds = _walk_jpeg(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        kinds = _walk_webp(data)
    else:
        kinds = _read_with_pillow(data)
    try:
        return sorted(set(kinds))
    except (struct.error, IndexError, ValueError):
        return ["unreadable"]


def _walk_png(data: bytes) -> Iterator[str]:
    at = 8
    while True:
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if len(body) < length:
            raise ValueError("ends early")
        at += 12 + length
        if kind == b"IEND":
            break
        if kind == b"eXIf":
            yield from _walk_exif(body)
        elif kind in (b"tEXt", b"zTXt", b"iTXt"):
            key = body.partition(b"\0")[0].lower()
            yield "text"
            yield from (name for part, name in PNG_TEXT_KEYS.items() if part.encode() in key)
        elif kind in METADATA_PNG_CHUNKS:
            yield METADATA_PNG_CHUNKS[kind]
        elif kind not in PIXEL_PNG_CHUNKS:
            yield f"other ({kind.decode('latin-1')})"
    if at < len(data):
        yield "trailing data"


def _walk_jpeg(data: bytes) -> Iterator[str]:
    at = 2
    while True:
        if data[at] != 0xFF:
            raise ValueError("no marker")
        while data[at] == 0xFF:  # fill bytes
            at += 1
        marker = data[at]
        at += 1
        if marker == 0xD9:
            break
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a body
            continue
        (length,) = struct.unpack_from(">H", data, at)
        body = data[at + 2 : at + length]
        if length < 2 or len(body) < length - 2:
            raise ValueError("ends early")
        at += length
        yield from _walk_jpeg_segment(marker, body)
        if marker == 0xDA:  # the scan follows
            if (match := JPEG_MARKER.search(data, at)) is None:
                raise ValueError("ends early")
            at = match.start()
    if at < len(data):
        yield "trailing data"


def _walk_jpeg_segment(marker: int, body: bytes) -> Iterator[str]:
    if marker == 0xFE:
        yield "comment"
    elif marker == 0xE0 and body.startswith(b"JFIF\0"):
        if body[12] and body[13]:
            yield "thumbnail"
        if body[7:12] not in (b"\0\0\1\0\1", b"\1\0\1\0\1"):
            yield "resolution"
    elif marker == 0xE0 and body.startswith(b"JFXX\0"):
        yield "thumbnail"
    elif marker == 0xE1 and body.startswith(b"Exif\0"):
        yield from _walk_exif(body[6:])
    elif marker == 0xE1 and b"ns.adobe.com/x" in body[:64]:
        yield "xmp"
    elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0"):
        yield "icc"
    elif marker == 0xED:
        yield "iptc"
    elif marker == 0xEE and body.startswith(b"Adobe"):  # the colour transform of the pixels
        return
    elif 0xE0 <= marker <= 0xEF:
        yield f"other (APP{marker - 0xE0})"


def _walk_webp(data: bytes) -> Iterator[str]:
    end = 8 + int(struct.unpack_from("<I", data, 4)[0])
    if len(data) < end:
        raise ValueError("ends early")
    at = 12
    while at < end:
        kind, length = struct.unpack_from("<4sI", data, at)
        body = data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2
        if kind == b"EXIF":
            yield from _walk_exif(body.removeprefix(b"Exif\0\0"))
        elif kind in (b"XMP ", b"ICCP"):
            yield "xmp" if kind == b"XMP " else "icc"
        elif kind not in PIXEL_WEBP_CHUNKS:
            yield f"other ({kind.decode('latin-1')})"
    if at < len(data):
        yield "trailing data"


def _walk_exif(block: bytes) -> Iterator[str]:
    """Yield 'exif', and the other kinds of metadata in the TIFF structure of an EXIF block."""
    yield "exif"
    try:
        order = {b"II": "<", b"MM": ">"}[block[:2]]
        (at,) = struct.unpack_from(order + "I", block, 4)
        for directory in range(2):
            (count,) = struct.unpack_from(order + "H", block, at)
            if directory and count:
                yield "thumbnail"
            tags = {struct.unpack_from(order + "H", block, at + 2 + 12 * i)[0] for i in range(count)}
            if 0x8825 in tags:
                yield "gps"
            if 0x0132 in tags:
                yield "timestamp"
            (at,) = struct.unpack_from(order + "I", block, at + 2 + 12 * count)
            if at == 0:
                return
    except (KeyError, struct.error):
        return


def _read_with_pillow(data: bytes) -> Iterator[str]:
    from PIL import Image

    with suppress_pillow_warnings():
        try:
            with Image.open(io.BytesIO(data), formats=("GIF", "TIFF", "AVIF", "BMP", "PPM")) as image:
                yield from (name for key, name in PILLOW_INFO.items() if image.info.get(key))
                tags = set(getattr(image, "tag_v2", ()))
        except Exception:  # a decoder raises anything at all on hostile bytes
            raise ValueError("no picture") from None
    yield from (name for name, numbers in METADATA_TIFF_TAGS.items() if tags.intersection(numbers))


def count_gif_frames(data: bytes, limit: int) -> int:
    """Return the frames of a GIF, at most ``limit``, without decoding; if it ends early, those before the end."""
    frames, at = 0, 13 + _gif_palette_bytes(data[10]) if len(data) > 10 else len(data)
    while at + 1 < len(data) and frames < limit:
        if data[at] == 0x2C:  # an image: descriptor, palette, code size, blocks
            frames += 1
            if at + 9 >= len(data):
                break
            at += 11 + _gif_palette_bytes(data[at + 9])
        elif data[at] == 0x21:  # an extension: label, blocks
            at += 2
        else:  # the trailer, or damage
            break
        while at < len(data) and data[at]:
            at += 1 + data[at]
        at += 1
    return frames


def _gif_palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0
