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
from anonymizer.storage.path import Place

LONGEST_SIDE = 256  # pixels of a picture on a page
MOST_BYTES = 24 * 2**10  # a file that is no larger is shown as it is
SMALL = 128  # up to here, pixels are enlarged as squares


@dataclass(frozen=True)
class Shown:
    """A picture on a page."""

    uri: str
    width: int
    height: int

    @property
    def small(self) -> bool:
        return max(self.width, self.height) <= SMALL


def shown(data: bytes, width: int, height: int, suffix: str) -> Shown:
    """A released picture: its own bytes while they are few, else a copy of at most 256 pixels. Raises RecordError."""
    if len(data) <= MOST_BYTES and max(width, height) <= LONGEST_SIDE:
        kind = {v: k for k, v in image_codec.SUFFIXES.items()}[suffix]
        return _as_uri(data, image_codec.MEDIA_TYPES[kind], width, height)
    return original(data, width, height, "pad")


def original(data: bytes, width: int, height: int, fit: image_codec.Fit, limits: Limits = image_codec.LIMITS) -> Shown:
    """A picture brought to the shape of a width x height output, at most 256 pixels long. Raises RecordError."""
    scale = min(1.0, LONGEST_SIDE / max(width, height))
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    picture = image_codec.decode(data, max(shape), fit, limits)
    size: Literal["model", "original"] = "model" if width == height else "original"
    kind: image_codec.Encoding = "png" if max(shape) <= SMALL else "jpeg"
    small = image_codec.encode(picture.tensor, shape, kind, 85, size)
    return _as_uri(small.data, image_codec.MEDIA_TYPES[kind], small.width, small.height)


def released(folder: Place, rows: Sequence[Mapping[str, Any]]) -> dict[str, Shown]:
    """Output id -> picture, for rows of a manifest whose files lie in ``folder``; what cannot be read is left out."""
    found = {}
    for row, data in released_images.contents(folder, rows):
        with contextlib.suppress(RecordError):
            suffix = image_codec.SUFFIXES[row["format"]]
            found[row["output_id"]] = shown(data, row["width"], row["height"], suffix)
    return found


def originals(
    release: Release, config: RunConfig, rows: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, Shown | str], str]:
    """Record id -> its original, or why there is none; and why the source as a whole cannot be read, if so.

    ``rows`` are rows of the ledger. The originals are read again from the source, so they may be gone.
    """
    wanted = {row["record_id"]: row for row in rows}
    found: dict[str, Shown | str] = {}
    try:
        entries = [
            entry
            for shard in sorted({row["shard"] for row in rows})
            for entry in plan.read_entries(release, shard)
            if entry.record_id in wanted
        ]
        for record in open_source(config.source).read(entries):
            name = record.entry.record_id
            found[name] = record.problem.value if record.problem else _seen(record.data, wanted[name], config)
    except AnonymizerError as error:
        return found, str(error)
    except Exception as error:  # as above
        return found, f"the source raised {type(error).__name__}"
    return found, ""


def _seen(data: bytes, row: Mapping[str, Any], config: RunConfig) -> Shown | str:
    """An original as the model saw it."""
    try:
        return original(data, row["width"], row["height"], config.source.square_fit, config.source.limits)
    except RecordError as error:
        return error.reason.value


def _as_uri(data: bytes, media_type: str, width: int, height: int) -> Shown:
    return Shown(f"data:{media_type};base64,{base64.b64encode(data).decode()}", width, height)
