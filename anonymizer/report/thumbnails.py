"""Thumbnails of released images and of originals, as data URIs of bounded size."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from anonymizer.config import Limits, RunConfig
from anonymizer.crypto.custodian_key import keyed_source_digest
from anonymizer.data import image_codec, released_images
from anonymizer.data.sources import open_source
from anonymizer.errors import AnonymizerError, RecordError
from anonymizer.records import Reason
from anonymizer.release import plan
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath

MAX_SIDE = 256  # pixels
MAX_BYTES = 24 * 2**10  # an image that is no larger is its own thumbnail
MAX_PIXELATED = 128  # pixels of the longer side up to which pages show pixels as squares
IMAGE_COLUMNS = ["output_id", "file", "member", "sha256", "format", "width", "height"]  # needed to read an image
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Thumbnail:
    """An image on a page."""

    uri: str
    width: int
    height: int

    @property
    def is_small(self) -> bool:
        return max(self.width, self.height) <= MAX_PIXELATED


@dataclass(frozen=True)
class ImagePair:
    """What an output was drawn from, and the output; each is a thumbnail, or the reason why there is none.

    ``originals`` are those of a group's members, or the one of ``record_id``. ``figures`` are captions.
    """

    record_id: str
    output_id: str
    originals: Mapping[str, Thumbnail | str]  # by record id
    output: Thumbnail | str
    figures: Sequence[tuple[str, str]]


def output_thumbnail(data: bytes, width: int, height: int, image_format: str) -> Thumbnail:
    """Return a thumbnail of an encoded output: its own bytes if they are few, else a copy. Raises RecordError."""
    if len(data) <= MAX_BYTES and max(width, height) <= MAX_SIDE:
        return _to_thumbnail(data, image_format, width, height)
    return original_thumbnail(data, width, height, "pad")


def original_thumbnail(
    data: bytes, width: int, height: int, fit: image_codec.Fit, limits: Limits = image_codec.LIMITS
) -> Thumbnail:
    """Return a copy in the proportions of a width x height output, at most 256 pixels long. Raises RecordError."""
    scale = min(1.0, MAX_SIDE / max(width, height))
    shape = (max(1, round(width * scale)), max(1, round(height * scale)))
    image = image_codec.decode(data, max(shape), fit, limits)
    size: Literal["model", "original"] = "model" if width == height else "original"
    image_format: image_codec.Encoding = "png" if max(shape) <= MAX_PIXELATED else "jpeg"
    encoded = image_codec.encode(image.tensor, shape, image_format, 85, size)
    return _to_thumbnail(encoded.data, image_format, encoded.width, encoded.height)


def released_thumbnails(folder: StoragePath, rows: Iterable[Row]) -> dict[str, Thumbnail]:
    """Return output id -> thumbnail for rows of the manifest in ``folder``.

    Left out are images that cannot be read, or are others than the manifest names: a page must not show them.
    """
    thumbnails = {}
    for row, data in released_images.read_images(folder, rows):
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            continue
        with suppress(RecordError):
            thumbnails[row["output_id"]] = output_thumbnail(data, row["width"], row["height"], row["format"])
    return thumbnails


def read_pairs(
    release: Release, config: RunConfig, rows: Sequence[Row], figures: Callable[[Row], Sequence[tuple[str, str]]]
) -> tuple[dict[str, ImagePair], str]:
    """Return record id -> pair for rows of the ledger, and why the source cannot be read any more, if so."""
    outputs = {}
    if release.manifest.exists():
        public = released_images.find_rows(release.manifest, [row["output_id"] for row in rows])
        outputs = released_thumbnails(release.public_or_candidate, public)
    drawn_from = [{**row, **member} for row in rows for member in row.get("members") or [row]]
    members = {row["record_id"]: [member["record_id"] for member in row.get("members") or [row]] for row in rows}
    originals, source_error = original_thumbnails(release, config, drawn_from)
    missing = "gone" if source_error else "not read"
    return {
        row["record_id"]: ImagePair(
            record_id=row["record_id"],
            output_id=row["output_id"],
            originals={name: originals.get(name, missing) for name in members[row["record_id"]]},
            output=outputs.get(row["output_id"], "not found"),
            figures=figures(row),
        )
        for row in rows
    }, source_error


def original_thumbnails(
    release: Release, config: RunConfig, rows: Sequence[Row]
) -> tuple[dict[str, Thumbnail | str], str]:
    """Return record id -> original as the model saw it, or why there is none, and why the source is unreadable, if so.

    ``rows`` are rows of the ledger. The originals are read again from the source; other bytes than were released, which
    the release's key tells, are not shown.
    """
    by_id = {row["record_id"]: row for row in rows}
    thumbnails: dict[str, Thumbnail | str] = {}
    try:
        the_plan = plan.read(release)
        entries = [
            entry
            for shard in sorted({row["shard"] for row in rows})
            for entry in plan.read_entries(release, the_plan, shard)
            if entry.record_id in by_id
        ]
        for record in open_source(config.source).read(entries):
            row = by_id[record.entry.record_id]
            problem = record.problem or _changed(release, row, record.data)
            try:
                thumbnails[row["record_id"]] = (
                    problem.value
                    if problem
                    else original_thumbnail(
                        record.data, row["width"], row["height"], config.source.square_fit, config.source.limits
                    )
                )
            except RecordError as error:
                thumbnails[row["record_id"]] = error.reason.value
    except AnonymizerError as error:
        return thumbnails, str(error)
    except Exception as error:  # libraries of sources raise errors of their own
        return thumbnails, f"the source raised {type(error).__name__}"
    return thumbnails, ""


def _changed(release: Release, row: Row, data: bytes) -> Reason | None:
    key = release.sealing_key
    if key is None or row["source_hmac"] is None:
        return None
    is_same = keyed_source_digest(key, hashlib.sha256(data).digest()) == row["source_hmac"]
    return None if is_same else Reason.CHANGED


def _to_thumbnail(data: bytes, image_format: str, width: int, height: int) -> Thumbnail:
    media_type = image_codec.MEDIA_TYPES[image_format]
    return Thumbnail(f"data:{media_type};base64,{base64.b64encode(data).decode()}", width, height)
