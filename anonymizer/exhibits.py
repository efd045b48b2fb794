"""What an audit looks at: originals beside their outputs, and other photos, as tensors. For the custodian alone."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from itertools import compress
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from anonymizer import images, ledger, parquet, plan, public
from anonymizer.config import SourceConfig
from anonymizer.errors import IntegrityError, RecordError, SourceError
from anonymizer.layout import Release
from anonymizer.records import Entry, Record, Status
from anonymizer.sources import open_source


@dataclass(frozen=True)
class Photos:
    """Pictures (N, 3, S, S) float32 in [-1, 1], what the source calls them, their encoded sizes in bytes, and shapes.

    ``labels`` say who or what is on them where the source was asked for it; ``columns`` hold further values;
    ``digests`` are SHA-256 of the encoded bytes.
    """

    pictures: torch.Tensor
    record_ids: Sequence[str]
    labels: Sequence[str | None]
    columns: Sequence[Mapping[str, object]]
    sizes: Sequence[int]
    shapes: Sequence[tuple[int, int]]  # width and height of what a picture shows of its file
    digests: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.record_ids)

    def where(self, kept: Sequence[bool]) -> Photos:
        """Those that are kept, in their order."""
        rows: dict[str, Any] = {
            field.name: list(compress(getattr(self, field.name), kept))
            for field in fields(self)
            if field.name != "pictures"
        }
        return Photos(pictures=self.pictures[torch.tensor(kept, dtype=torch.bool)], **rows)


@dataclass(frozen=True)
class Exhibits:
    """N released records: their originals, their outputs as they lie in ``public/``, and their rows.

    Row i of ``originals``, ``outputs``, ``ledger`` and ``manifest`` is one record.
    """

    originals: Photos
    outputs: torch.Tensor  # (N, 3, S, S) in [-1, 1]
    encoded: Sequence[bytes]  # of the outputs
    ledger: Sequence[Mapping[str, Any]]
    manifest: Sequence[Mapping[str, Any]]
    released: int  # records in the whole release
    unread: int  # of those drawn, whose original can no longer be had

    def __len__(self) -> int:
        return len(self.ledger)


def exhibits(release: Release, source: SourceConfig, size: int, most: int, rng: np.random.Generator) -> Exhibits:
    """At most ``most`` released records, drawn by chance. ``source`` may ask for more columns than the run did.

    SourceError if no original can be read any more; IntegrityError if a released picture is missing.
    """
    released = _released(release)
    drawn = sorted(rng.choice(len(released), min(most, len(released)), replace=False))
    rows = {row["record_id"]: row for row in released.take(pa.array(drawn, pa.int64())).to_pylist()}
    manifest = _manifest(release, [row["output_id"] for row in rows.values()])
    found = {row["output_id"]: data for row, data in public.contents(release.public, list(manifest.values()))}
    if len(found) < len(rows):
        raise IntegrityError(
            f"release: {len(rows) - len(found)} of {len(rows)} released pictures cannot be read: restore public/"
        )
    originals = _photos(source, (e for e in open_source(source).entries() if e.record_id in rows), size)
    if not len(originals):
        raise SourceError(
            f"source.uri {source.uri!r}: holds none of the released originals any more: bring them back for the audit"
        )
    kept = [rows[record_id] for record_id in originals.record_ids]
    encoded = [found[row["output_id"]] for row in kept]
    return Exhibits(
        originals=originals,
        outputs=torch.stack([images.decode(data, size).tensor for data in encoded]),
        encoded=encoded,
        ledger=kept,
        manifest=[manifest[row["output_id"]] for row in kept],
        released=len(released),
        unread=len(rows) - len(kept),
    )


def photos(source: SourceConfig, size: int, most: int, rng: np.random.Generator) -> Photos:
    """At most ``most`` usable pictures of a source, drawn by chance, in the source's order.

    SourceError if the source cannot be used or holds no usable picture.
    """
    entries = (entry for entry in open_source(source).entries() if entry.problem is None)
    found = _photos(source, _draw(entries, most, rng), size)
    if not len(found):
        raise SourceError(f"source.uri {source.uri!r}: holds no picture that can be used here: check the source")
    return found


@dataclass(frozen=True)
class Outsiders:
    """Photos that are in fact of others, and how many were left out: the same pictures, then further ones of people."""

    photos: Photos
    same_picture: int
    same_person: int

    @property
    def note(self) -> str | None:
        """What was left out, in words; none where nothing was."""
        if not self.same_picture + self.same_person:
            return None
        return (
            f"outsiders: {self.same_picture} left out that are originals of the release, and {self.same_person} that "
            "show its people"
        )


def outsiders(photos: Photos, insiders: Photos, *, identified: bool) -> Outsiders:
    """Leave out of ``photos`` what is among ``insiders``, the originals of a release, and so is no outsider.

    A picture is the same if its encoded bytes are, or all its pixels; one that was saved again, or cropped, is not
    recognised. Where ``identified``, labels say who is shown on either side, and the release's people are left out too.
    """
    digests, people = set(insiders.digests), {name for name in insiders.labels if identified and name is not None}
    pixels = {_pixels(picture) for picture in insiders.pictures}
    same = [d in digests or _pixels(p) in pixels for d, p in zip(photos.digests, photos.pictures, strict=True)]
    known = [name in people and not found for name, found in zip(photos.labels, same, strict=True)]
    kept = [not (a or b) for a, b in zip(same, known, strict=True)]
    return Outsiders(photos.where(kept), sum(same), sum(known))


def _pixels(picture: torch.Tensor) -> bytes:
    return hashlib.sha256(picture.contiguous().numpy().tobytes()).digest()


def _draw(entries: Iterable[Entry], most: int, rng: np.random.Generator) -> list[Entry]:
    """At most ``most`` entries, in their order; holds no more than that of a long list."""
    drawn: list[tuple[float, int, Entry]] = []
    for number, entry in enumerate(entries):
        item = (float(rng.random()), number, entry)
        if len(drawn) < most:
            heapq.heappush(drawn, item)
        else:
            heapq.heappushpop(drawn, item)
    return [entry for _, _, entry in sorted(drawn, key=lambda item: item[1])]


def _photos(source: SourceConfig, entries: Iterable[Entry], size: int) -> Photos:
    """The pictures that can be read and decoded, in the order of the entries."""
    kept: list[tuple[images.Picture, Record, int, bytes]] = []
    for record in open_source(source).read(list(entries)):
        with suppress(RecordError):
            if record.problem is None:
                picture = images.decode(record.data, size, source.fit, source.limits)
                digest = hashlib.sha256(record.data).digest()
                kept.append((picture, replace(record, data=b""), len(record.data), digest))
    records = [record for _, record, _, _ in kept]
    return Photos(
        pictures=torch.stack([picture.tensor for picture, _, _, _ in kept]) if kept else torch.empty(0, 3, size, size),
        record_ids=[record.entry.record_id for record in records],
        labels=[record.label for record in records],
        columns=[record.columns for record in records],
        sizes=[size for _, _, size, _ in kept],
        shapes=[(picture.width, picture.height) for picture, _, _, _ in kept],
        digests=[digest for _, _, _, digest in kept],
    )


def _released(release: Release) -> pa.Table:
    tables = [
        table.filter(pc.equal(table["status"], Status.RELEASED.value)).replace_schema_metadata()
        for _, table in ledger.committed(release, plan.read(release))
    ]
    released = pa.concat_tables(tables)
    if not len(released):
        raise IntegrityError("release: nothing was released: there is nothing to audit")
    return released


def _manifest(release: Release, output_ids: Sequence[str]) -> dict[str, Mapping[str, Any]]:
    if not release.is_published:
        raise IntegrityError("release: no public/manifest.parquet: finish the run before the audit")
    table = parquet.read(release.manifest)
    wanted = table.filter(pc.is_in(table["output_id"], value_set=pa.array(output_ids, pa.string())))
    return {row["output_id"]: row for row in wanted.to_pylist()}
