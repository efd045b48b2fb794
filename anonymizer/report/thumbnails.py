"""Pictures for a page: released ones read back, originals read again, both as data URIs of bounded size."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from anonymizer.config import Limits, RunConfig
from anonymizer.data import image_codec, released_images
from anonymizer.data.sources import open_source
from anonymizer.errors import AnonymizerError, RecordError
from anonymizer.release import plan
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath

MAX_SIDE = 256  # pixels of a picture on a page
MAX_BYTES = 24 * 2**10  # a file that is no larger is shown as it is
MAX_PIXELATED = 128  # up to here, pixels are enlarged as squares


@dataclass(frozen=True)
class Thumbnail:
    """A picture on a page."""

    uri: str
    width: int
    height: int

    @property
    def is_small(self) -> bool:
        return max(self.width, self.height) <= MAX_PIXELATED


def output_thumbnail(data: bytes, width: int, height: int, suffix: str) -> Thumbnail:
    """A released picture: its own bytes while they are few, else a copy of at most 256 pixels. Raises RecordError."""
    if len(data) <= MAX_BYTES and max(width, height) <= MAX_SIDE:
        kind = {v: k for k, v in image_codec.SUFFIXES.items()}[suffix]
        return _to_thumbnail(data, image_codec.MEDIA_TYPES[kind], width, height)
    return original_thumbnail(data, width, height, "pad")


def original_thumbnail(
    data: bytes, width: int, height: int, fit: image_codec.Fit, limits: Limits = image_codec.LIMITS
) -> Thumbnail:
    """A picture brought to the shape of a width x height output, at most 256 pixels long. Raises RecordError."""
    scale = min(1.0, MAX_SIDE / max(width, height))
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = image_codec.decode(data, max(shape), fit, limits)
    size: Literal["model", "original"] = "model" if width == height else "original"
    kind: image_codec.Encoding = "png" if max(shape) <= MAX_PIXELATED else "jpeg"
    small = image_codec.encode(picture.tensor, shape, kind, 85, size)
    return _to_thumbnail(small.data, image_codec.MEDIA_TYPES[kind], small.width, small.height)


def released_thumbnails(folder: StoragePath, rows: Sequence[Mapping[str, Any]]) -> dict[str, Thumbnail]:
    """Output id -> picture, for rows of a manifest whose files lie in ``folder``; what cannot be read is left out."""
    found = {}
    for row, data in released_images.read_images(folder, rows):
        with contextlib.suppress(RecordError):
            suffix = image_codec.SUFFIXES[row["format"]]
            found[row["output_id"]] = output_thumbnail(data, row["width"], row["height"], suffix)
    return found


def original_thumbnails(
    release: Release, config: RunConfig, rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Thumbnail | str], str]:
    """Record id -> its original, or why there is none; and why the source as a whole cannot be read, if so.

    ``rows`` are rows of the ledger. The originals are read again from the source, so they may be gone.
    """
    wanted = {row["record_id"]: row for row in rows}
    found: dict[str, Thumbnail | str] = {}
    try:
        entries = [
            entry
            for shard in sorted({row["shard"] for row in rows})
            for entry in plan.read_entries(release, shard)
            if entry.record_id in wanted
        ]
        for record in open_source(config.source).read(entries):
            name = record.entry.record_id
            found[name] = record.problem.value if record.problem else _model_input(record.data, wanted[name], config)
    except AnonymizerError as error:
        return found, str(error)
    except Exception as error:  # as above
        return found, f"the source raised {type(error).__name__}"
    return found, ""


def _model_input(data: bytes, row: Mapping[str, Any], config: RunConfig) -> Thumbnail | str:
    """An original as the model saw it."""
    try:
        return original_thumbnail(data, row["width"], row["height"], config.source.square_fit, config.source.limits)
    except RecordError as error:
        return error.reason.value


def _to_thumbnail(data: bytes, media_type: str, width: int, height: int) -> Thumbnail:
    return Thumbnail(f"data:{media_type};base64,{base64.b64encode(data).decode()}", width, height)
