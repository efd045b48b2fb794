"""One picture, read again: the bytes that were signed, one plain image of the right size, and nothing besides."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from anonymizer.data.metadata import find_metadata

IMAGE_COLUMNS = ["output_id", "file", "member", "sha256", "bytes", "width", "height", "format"]
PILLOW_FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}  # no other: Pillow's readers of some are programs
ManifestRow = Mapping[str, Any]


def find_problem(row: ManifestRow, data: bytes, *, decode: bool) -> str | None:
    """What is wrong with a picture, or nothing. ``row``: what the manifest says of it, in ``COLUMNS``.

    Without ``decode`` its pixels are not looked at, only its digest and its structure.
    """
    if len(data) != row["bytes"] or hashlib.sha256(data).hexdigest() != row["sha256"]:
        return "is not what was signed"
    if found := find_metadata(data):
        return f"carries {', '.join(found)}"
    try:
        with Image.open(io.BytesIO(data), formats=[PILLOW_FORMATS[row["format"]]]) as image:
            if image.size != (row["width"], row["height"]):
                return "has another size than the manifest says"
            if image.mode != "RGB" or getattr(image, "n_frames", 1) != 1:
                return "holds more than one opaque picture"  # behind which another may hide
            if decode:
                image.load()
    except Exception:  # hostile bytes raise anything at all in a decoder
        return "does not decode"
    return None
