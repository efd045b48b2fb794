"""Check of one released image: its digest, its size, and that it holds one opaque picture and no metadata."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Mapping
from typing import Any

from PIL import Image

from anonymizer.data.metadata import find_metadata

IMAGE_COLUMNS = ["output_id", "file", "member", "sha256", "bytes", "width", "height", "format"]
PILLOW_FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}  # some other decoders of Pillow run programs
ManifestRow = Mapping[str, Any]


def find_problem(row: ManifestRow, data: bytes, *, decode: bool) -> str | None:
    """Return the fault of the encoded image of a manifest row (its ``IMAGE_COLUMNS``), or None.

    Without ``decode`` only digest and structure are checked, not the pixels.
    """
    if len(data) != row["bytes"] or hashlib.sha256(data).hexdigest() != row["sha256"]:
        return "is not what was signed"
    if metadata := find_metadata(data):
        return f"carries {', '.join(metadata)}"
    try:
        with Image.open(io.BytesIO(data), formats=[PILLOW_FORMATS[row["format"]]]) as image:
            if image.size != (row["width"], row["height"]):
                return "has another size than the manifest says"
            if image.mode != "RGB" or getattr(image, "n_frames", 1) != 1:
                return "holds more than one opaque picture"  # another could hide behind the first
            if decode:
                image.load()
    except Exception:  # hostile bytes can raise any error in a decoder
        return "does not decode"
    return None
