"""What an audit looks at: originals beside their outputs, and other photos, as tensors. For the custodian alone."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from anonymizer.config import SourceConfig
from anonymizer.data import image_codec, released_images
from anonymizer.data.sources import open_source
from anonymizer.errors import IntegrityError, RecordError, SourceError
from anonymizer.records import Entry, Record, Status
from anonymizer.release.ledger import Ledger
from anonymizer.storage import parquet
from anonymizer.storage.digest_index import DigestIndex, Positions
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath

Row = Mapping[str, Any]


@dataclass(frozen=True)
class ImageSet:
    """Pictures (N, 3, S, S) float32 in [-1, 1], what the source calls them, their encoded sizes in bytes, and shapes.

    ``labels`` say who or what is on them where the source was asked for it; ``columns`` hold further values;
    ``digests`` are SHA-256 of the encoded bytes.
    """

    images: torch.Tensor
    record_ids: Sequence[str]
    labels: Sequence[str | None]
    columns: Sequence[Mapping[str, object]]
    byte_sizes: Sequence[int]
    dimensions: Sequence[tuple[int, int]]  # width and height of what a picture shows of its file
    digests: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.record_ids)

    def filter(self, mask: Sequence[bool]) -> ImageSet:
        """Those that are kept, in their order."""
        return self.take([at for at, is_kept in enumerate(mask) if is_kept])

    def take(self, indices: Sequence[int]) -> ImageSet:
        """Those at the given places; one may be taken several times."""
        rows: dict[str, Any] = {
            field.name: [getattr(self, field.name)[at] for at in indices]
            for field in fields(self)
            if field.name != "images"
        }
        return ImageSet(images=self.images[torch.tensor(indices, dtype=torch.long)], **rows)


@dataclass(frozen=True)
class AuditSample:
    """N released records: their originals, their outputs as they lie in ``public/``, and their rows.

    Row i of ``originals``, ``outputs``, ``files``, ``ledger`` and ``manifest`` is one record of one release.
    """

    originals: ImageSet
    outputs: torch.Tensor  # (N, 3, S, S) in [-1, 1]
    encoded_outputs: Sequence[bytes]  # of the outputs
    output_paths: Sequence[StoragePath]  # where they lie
    ledger: Sequence[Row]
    manifest: Sequence[Row]
    released: int  # records in the whole release, or pictures of several
    unread: int  # of those drawn, whose original can no longer be had

    def __len__(self) -> int:
        return len(self.ledger)


def draw_sample(
    release: Release,
    source: SourceConfig,
    size: int,
    limit: int,
    rng: np.random.Generator,
    union: Sequence[Release] = (),
) -> AuditSample:
    """At most ``most`` released records, drawn by chance. ``source`` may ask for more columns than the run did.

    With those of a ``union`` of earlier releases, made with the same key, each picture once; their originals are looked
    for in the source as it is. SourceError if no original can be read any more; IntegrityError if a released picture is
    missing.
    """
    releases = (release, *union)
    released = _released_indices(releases)
    count = sum(map(len, released))
    if not count:
        raise IntegrityError("release: nothing was released: there is nothing to audit")
    rows = _sampled_rows(releases, released, sorted(rng.choice(count, min(limit, count), replace=False)))
    manifest, found = _read_published(releases, rows)
    names = _current_record_ids(release, rows) if union else [row["record_id"] for row in rows]
    wanted = set(names)
    originals = _decode_images(source, (e for e in open_source(source).entries() if e.record_id in wanted), size)
    if not len(originals):
        raise SourceError(
            f"source.uri {source.uri!r}: holds none of the released originals any more: bring them back for the audit"
        )
    places = {record_id: at for at, record_id in enumerate(originals.record_ids)}
    order = sorted((places[name], number) for number, name in enumerate(names) if name in places)
    kept = [number for _, number in order]
    encoded = [found[number] for number in kept]
    return AuditSample(
        originals=originals.take([at for at, _ in order]),
        outputs=torch.stack([image_codec.decode(data, size, source.square_fit).tensor for data in encoded]),
        encoded_outputs=encoded,
        output_paths=[
            releases[rows[number]["release"]].public_or_candidate / manifest[number]["file"] for number in kept
        ],
        ledger=[rows[number] for number in kept],
        manifest=[manifest[number] for number in kept],
        released=count,
        unread=len(rows) - len(kept),
    )


def draw_images(source: SourceConfig, size: int, limit: int, rng: np.random.Generator) -> ImageSet:
    """At most ``most`` usable pictures of a source, drawn by chance, in the source's order.

    SourceError if the source cannot be used or holds no usable picture.
    """
    entries = (entry for entry in open_source(source).entries() if entry.problem is None)
    found = _decode_images(source, _sample_entries(entries, limit, rng), size)
    if not len(found):
        raise SourceError(f"source.uri {source.uri!r}: holds no picture that can be used here: check the source")
    return found


@dataclass(frozen=True)
class Outsiders:
    """Photos that are in fact of others, and how many were left out: the same pictures, then further ones of people."""

    images: ImageSet
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


def exclude_insiders(candidates: ImageSet, insiders: ImageSet, *, identified: bool) -> Outsiders:
    """Leave out of ``photos`` what is among ``insiders``, the originals of a release, and so is no outsider.

    A picture is the same if its encoded bytes are, or all its pixels; one that was saved again, or cropped, is not
    recognised. Where ``identified``, labels say who is shown on either side, and the release's people are left out too.
    """
    digests, people = set(insiders.digests), {name for name in insiders.labels if identified and name is not None}
    pixels = {_pixels(picture) for picture in insiders.images}
    same = [d in digests or _pixels(p) in pixels for d, p in zip(candidates.digests, candidates.images, strict=True)]
    known = [name in people and not found for name, found in zip(candidates.labels, same, strict=True)]
    kept = [not (a or b) for a, b in zip(same, known, strict=True)]
    return Outsiders(candidates.filter(kept), sum(same), sum(known))


def _pixels(picture: torch.Tensor) -> bytes:
    return hashlib.sha256(picture.contiguous().numpy().tobytes()).digest()


def _sample_entries(entries: Iterable[Entry], most: int, rng: np.random.Generator) -> list[Entry]:
    """At most ``most`` entries, in their order; holds no more than that of a long list."""
    drawn: list[tuple[float, int, Entry]] = []
    for number, entry in enumerate(entries):
        item = (float(rng.random()), number, entry)
        if len(drawn) < most:
            heapq.heappush(drawn, item)
        else:
            heapq.heappushpop(drawn, item)
    return [entry for _, _, entry in sorted(drawn, key=lambda item: item[1])]


def _decode_images(source: SourceConfig, entries: Iterable[Entry], size: int) -> ImageSet:
    """The pictures that can be read and decoded, in the order of the entries."""
    kept: list[tuple[image_codec.DecodedImage, Record, int, bytes]] = []
    for record in open_source(source).read(list(entries)):
        with suppress(RecordError):
            if record.problem is None:
                picture = image_codec.decode(record.data, size, source.square_fit, source.limits)
                digest = hashlib.sha256(record.data).digest()
                kept.append((picture, replace(record, data=b""), len(record.data), digest))
    records = [record for _, record, _, _ in kept]
    return ImageSet(
        images=torch.stack([picture.tensor for picture, _, _, _ in kept]) if kept else torch.empty(0, 3, size, size),
        record_ids=[record.entry.record_id for record in records],
        labels=[record.label for record in records],
        columns=[record.columns for record in records],
        byte_sizes=[size for _, _, size, _ in kept],
        dimensions=[(picture.width, picture.height) for picture, _, _, _ in kept],
        digests=[digest for _, _, _, digest in kept],
    )


def _released_indices(releases: Sequence[Release]) -> list[Positions]:
    """Of each release the places, among its released rows, of those whose pictures were in none of the releases before.

    Of the first release these are all its rows.
    """
    count = sum(map(len, _released_tables(releases[0], ())))
    found, known = [np.arange(count)], [_index_digests(release) for release in releases[:1] if len(releases) > 1]
    for release in releases[1:]:
        own, places, at = _index_digests(release), [], 0
        firsts = own.unique_positions()
        for table in _released_tables(release, ("sha256",)):
            here = firsts[(firsts >= at) & (firsts < at + len(table))]
            texts = table["sha256"].take(pa.array(here - at)).to_pylist()
            new = np.all([lookup.first_positions(texts) < 0 for lookup in known], axis=0)
            places.append(here[new])
            at += len(table)
        found.append(np.concatenate(places))
        known.append(own)
    return found


def _index_digests(release: Release) -> DigestIndex:
    return DigestIndex(table["sha256"].to_pylist() for table in _released_tables(release, ("sha256",)))


def _sampled_rows(releases: Sequence[Release], places: Sequence[Positions], drawn: Sequence[int]) -> list[Row]:
    """The drawn ones of the rows at the places, in their order, each with the number of its release."""
    rows: list[Row] = []
    begin = 0
    for number, (release, own) in enumerate(zip(releases, places, strict=True)):
        wanted = own[[at - begin for at in drawn if begin <= at < begin + len(own)]]
        begin, first = begin + len(own), 0
        for table in _released_tables(release, None) if len(wanted) else ():
            here = wanted[(wanted >= first) & (wanted < first + len(table))] - first
            rows += [row | {"release": number} for row in table.take(pa.array(here)).to_pylist()]
            first += len(table)
    return rows


def _released_tables(release: Release, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """Released rows, shard by shard."""
    is_empty = True
    for _, table in Ledger.open(release).scan(columns, Status.RELEASED):
        is_empty = False
        yield table
    if is_empty:
        raise IntegrityError(
            f"release {str(release.root)!r}: no records of it are here, or they were purged: it cannot be attacked"
        )


def _read_published(releases: Sequence[Release], rows: Sequence[Row]) -> tuple[list[Row], list[bytes]]:
    """Of each row of a ledger, its row of the manifest and its picture."""
    manifest: dict[int, Row] = {}
    found: dict[int, bytes] = {}
    for at, release in enumerate(releases):
        numbers = {row["output_id"]: number for number, row in enumerate(rows) if row["release"] == at}
        own = _read_manifest_rows(release, list(numbers))
        manifest |= {numbers[output_id]: row for output_id, row in own.items()}
        contents = released_images.read_images(release.public_or_candidate, own.values())
        found |= {numbers[row["output_id"]]: data for row, data in contents}
    if lost := len(rows) - len(found):
        raise IntegrityError(f"release: {lost} of {len(rows)} released pictures cannot be read: restore public/")
    return [manifest[n] for n in range(len(rows))], [found[n] for n in range(len(rows))]


def _current_record_ids(release: Release, rows: Sequence[Row]) -> list[str | None]:
    """What the originals of rows are called in the source of ``release``; none where another has taken the name."""
    hmac_of: dict[str, str | None] = {}
    name_of: dict[str | None, str] = {}
    for _, table in Ledger.open(release).scan(("record_id", "source_hmac")):
        for name, hmac in zip(table["record_id"].to_pylist(), table["source_hmac"].to_pylist(), strict=True):
            hmac_of[name] = hmac
            name_of.setdefault(hmac, name)

    def now(row: Row) -> str | None:
        name, hmac = row["record_id"], row["source_hmac"]
        if hmac_of.get(name) == hmac:
            return str(name)
        return name_of.get(hmac, None if name in hmac_of else name)

    return [now(row) for row in rows]


def _read_manifest_rows(release: Release, output_ids: Sequence[str]) -> dict[str, Row]:
    if not release.is_assembled:
        raise IntegrityError("release: no manifest.parquet: finish the run before the audit")
    wanted = pa.array(output_ids, pa.string())
    batches = parquet.open_table(release.manifest).to_batches(max_chunksize=parquet.BATCH_ROWS)
    found = (batch.filter(pc.is_in(batch["output_id"], value_set=wanted)) for batch in batches)
    return {row["output_id"]: row for batch in found for row in batch.to_pylist()}
