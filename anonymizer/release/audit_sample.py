"""The evidence of an audit: originals beside their outputs, and other images, as tensors; for the custodian only."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from anonymizer.config import SourceConfig
from anonymizer.crypto.custodian_key import keyed_source_digest
from anonymizer.data import image_codec, released_images
from anonymizer.data.sources import open_source
from anonymizer.errors import CustodianKeyError, IntegrityError, RecordError, SourceError
from anonymizer.records import Entry, Record, Status, normalize_subject
from anonymizer.release.ledger import Ledger
from anonymizer.storage.digest_index import DigestIndex, Positions
from anonymizer.storage.layout import Release, SealKey
from anonymizer.storage.path import StoragePath

Row = Mapping[str, Any]
Numbers = np.ndarray[Any, np.dtype[np.int64]]


@dataclass(frozen=True)
class ImageSet:
    """Images (N, 3, S, S) float32 in [-1, 1], and what the source says of each.

    ``labels`` name who or what is shown, where the configuration reads them; ``columns`` hold further values.
    """

    images: torch.Tensor
    record_ids: Sequence[str]
    labels: Sequence[str | None]
    subjects: Sequence[str | None]  # the person, where the configuration reads ``source.subject``
    columns: Sequence[Mapping[str, object]]
    byte_sizes: Sequence[int]  # of the encoded file
    dimensions: Sequence[tuple[int, int]]  # width and height of the part of the file that is shown
    digests: Sequence[bytes]  # SHA-256 of the encoded file

    def __len__(self) -> int:
        return len(self.record_ids)

    def filter(self, mask: Sequence[bool]) -> ImageSet:
        """Return the images where ``mask`` is true."""
        return self.take([index for index, is_selected in enumerate(mask) if is_selected])

    def take(self, indices: Sequence[int]) -> ImageSet:
        """Return the images at some indices, which may repeat."""
        names = [field.name for field in fields(self) if field.name != "images"]
        columns: dict[str, Any] = {name: [getattr(self, name)[index] for index in indices] for name in names}
        return ImageSet(images=self.images[torch.tensor(indices, dtype=torch.long)], **columns)


@dataclass(frozen=True)
class AuditSample:
    """N released records with their originals. Item i of all sequences belongs to one record of one release."""

    originals: ImageSet
    outputs: torch.Tensor  # (N, 3, S, S) in [-1, 1]
    encoded_outputs: Sequence[bytes]
    output_paths: Sequence[StoragePath]
    ledger: Sequence[Row]
    manifest: Sequence[Row]
    released: int  # records in the whole release, or distinct images of several
    unread: int  # sampled records whose original can no longer be read
    changed: int  # sampled records under whose id the source has other bytes than were released

    @property
    def missing(self) -> int:
        """Number of sampled records that cannot be measured."""
        return self.unread + self.changed

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
    """Return a random sample of at most ``limit`` released records. ``source`` may read more columns than the run did.

    An original counts if its bytes have the keyed digest of the ledger, so the release must be opened with its key;
    other bytes under the same id are not measured. ``union``: earlier releases with the same key, sampled as well, each
    image once; their originals are looked up in the source as it is now. Raises CustodianKeyError without the key,
    SourceError if no original can be read any more, IntegrityError if a released image is missing or changed.
    """
    key = require_key(release)
    releases = (release, *union)
    rows, released = _sample_rows(releases, limit, rng)
    published = _read_published(releases, rows)
    if union:
        record_ids = _current_record_ids(release, [row for _, row in rows])
    else:
        record_ids = [row["record_id"] for _, row in rows]
    sampled = set(record_ids)
    originals = _decode_images(source, (e for e in open_source(source).entries() if e.record_id in sampled), size)
    expected = [row["source_hmac"] for _, row in rows]
    hmacs = [keyed_source_digest(key, digest) for digest in originals.digests]
    positions = {record_id: position for position, record_id in enumerate(originals.record_ids)}
    readable = [(positions[name], index) for index, name in enumerate(record_ids) if name in positions]
    pairs = sorted((position, index) for position, index in readable if hmacs[position] == expected[index])
    if not pairs:
        raise SourceError(
            f"source.uri {source.uri!r}: holds none of the released originals any more: bring them back for the audit"
        )
    order = [index for _, index in pairs]
    encoded = [published[index][1] for index in order]
    return AuditSample(
        originals=originals.take([position for position, _ in pairs]),
        outputs=torch.stack([image_codec.decode(data, size, source.square_fit).tensor for data in encoded]),
        encoded_outputs=encoded,
        output_paths=[releases[rows[i][0]].public_or_candidate / published[i][0]["file"] for i in order],
        ledger=[rows[index][1] for index in order],
        manifest=[published[index][0] for index in order],
        released=released,
        unread=len(rows) - len(readable),
        changed=len(readable) - len(pairs),
    )


def require_key(release: Release) -> SealKey:
    """Return the key that a release was opened with. Raises CustodianKeyError where it is not that of its maker."""
    if (key := release.sealing_key) is None:
        raise CustodianKeyError(
            f"release {str(release.root)!r}: originals are compared under the custodian's key, which is not set, or "
            "was thrown away when the release was made: set the one that it was made with"
        )
    return key


def draw_images(source: SourceConfig, size: int, limit: int, rng: np.random.Generator) -> ImageSet:
    """Return a random sample of at most ``limit`` usable images of a source, in the source's order.

    Raises SourceError if the source cannot be read or holds no usable image.
    """
    return draw_and_count(source, size, limit, rng)[0]


def draw_and_count(source: SourceConfig, size: int, limit: int, rng: np.random.Generator) -> tuple[ImageSet, int]:
    """Return ``draw_images``, and how many records were drawn, of which some images may be unusable."""
    listed = (entry for entry in open_source(source).entries() if entry.problem is None)
    drawn = _sample_entries(listed, limit, rng)
    images = _decode_images(source, drawn, size)
    if not len(images):
        raise SourceError(f"source.uri {source.uri!r}: holds no picture that can be used here: check the source")
    return images, len(drawn)


def without_columns(source: SourceConfig) -> SourceConfig:
    """Return a source without the columns of a release: all that is not asked for is dropped."""
    return source.model_copy(update={"drop": ("*",), "restricted": (), "subject": None})


@dataclass(frozen=True)
class Outsiders:
    """Images of people outside the release; how many were excluded as the same image, and how many for the person."""

    images: ImageSet
    same_picture: int
    same_person: int

    @property
    def note(self) -> str | None:
        """What was excluded, in words; None where nothing was."""
        if not self.same_picture + self.same_person:
            return None
        return (
            f"outsiders: {self.same_picture} left out that are originals of the release, and {self.same_person} that "
            "show its people"
        )


def exclude_insiders(candidates: ImageSet, insiders: ImageSet, *, identified: bool) -> Outsiders:
    """Return the candidates that are not among ``insiders``, the originals of a release.

    Images are the same if their encoded bytes are, or all pixels; one that was saved again, or cropped, is not
    recognised. ``identified``: labels name the people on both sides, and the release's people are excluded too.
    """
    digests, people = set(insiders.digests), {_person(name) for name in insiders.labels if identified} - {""}
    pixels = set(map(_hash_pixels, insiders.images))
    is_same = [
        digest in digests or _hash_pixels(image) in pixels
        for digest, image in zip(candidates.digests, candidates.images, strict=True)
    ]
    is_known = [_person(name) in people and not same for name, same in zip(candidates.labels, is_same, strict=True)]
    outside = [not (same or known) for same, known in zip(is_same, is_known, strict=True)]
    return Outsiders(candidates.filter(outside), sum(is_same), sum(is_known))


def _person(name: str | None) -> str:
    return normalize_subject(name or "")


def _hash_pixels(image: torch.Tensor) -> bytes:
    return hashlib.sha256(image.contiguous().numpy().tobytes()).digest()


def _sample_entries(entries: Iterable[Entry], limit: int, rng: np.random.Generator) -> list[Entry]:
    """Return a random sample of at most ``limit`` entries, in their order; holds no more than that of a long list."""
    keyed = ((float(rng.random()), number, entry) for number, entry in enumerate(entries))
    return [entry for _, _, entry in sorted(heapq.nlargest(limit, keyed), key=lambda item: item[1])]


def _decode_images(source: SourceConfig, entries: Iterable[Entry], size: int) -> ImageSet:
    """Return the images that can be read and decoded, in the order of the entries."""
    decoded: list[tuple[torch.Tensor, tuple[int, int], Record, int, bytes]] = []
    for record in open_source(source).read(list(entries)):
        with suppress(RecordError):
            if record.problem is None:
                image = image_codec.decode(record.data, size, source.square_fit, source.limits)
                digest, shape = hashlib.sha256(record.data).digest(), (image.width, image.height)
                decoded.append((image.tensor, shape, replace(record, data=b""), len(record.data), digest))
    tensors, dimensions, records, byte_sizes, digests = zip(*decoded, strict=True) if decoded else ((),) * 5
    return ImageSet(
        images=torch.stack(tensors) if tensors else torch.empty(0, 3, size, size),
        record_ids=[record.entry.record_id for record in records],
        labels=[record.label for record in records],
        subjects=[record.subject for record in records],
        columns=[record.columns for record in records],
        byte_sizes=byte_sizes,
        dimensions=dimensions,
        digests=digests,
    )


def _sample_rows(
    releases: Sequence[Release], limit: int, rng: np.random.Generator
) -> tuple[list[tuple[int, Row]], int]:
    """Return a sample of the released ledger rows, each with the number of its release, and how many rows there are.

    Of the first release all rows count, of each further one those whose image is in none before it. Groups of the first
    release are in the sample as a whole or not at all.
    """
    positions = [np.arange(sum(map(len, _released_tables(releases[0], ()))))]
    known = [_index_digests(releases[0], [], [])] if len(releases) > 1 else []
    for release in releases[1:]:
        masks: list[np.ndarray[Any, Any]] = []
        known.append(_index_digests(release, known.copy(), masks))
        unique = known[-1].unique_positions()
        positions.append(unique[np.concatenate(masks)[unique]])
    count = sum(map(len, positions))
    if not count:
        raise IntegrityError("release: nothing was released: there is nothing to audit")
    sampled = _choose(_group_numbers(releases[0]), count, limit, rng)
    rows, begin = list[tuple[int, Row]](), 0
    for number, (release, own) in enumerate(zip(releases, positions, strict=True)):
        inside = sampled[(sampled >= begin) & (sampled < begin + len(own))] - begin
        rows += [(number, row) for row in _take_rows(release, own[inside])]
        begin += len(own)
    return rows, count


def _group_numbers(release: Release) -> Numbers | None:
    """Return the number of the group of each released row; None where a release has no groups."""
    names = pa.chunked_array(
        [chunk for table in _released_tables(release, ("group",)) for chunk in table["group"].chunks], pa.string()
    )
    if names.null_count == len(names):
        return None
    return np.concatenate([chunk.indices.to_numpy() for chunk in names.dictionary_encode().chunks])


def _choose(groups: Numbers | None, count: int, limit: int, rng: np.random.Generator) -> Numbers:
    """Return the positions, which ascend, of a sample of rows, or of whole groups (and one at least)."""
    if groups is None or limit >= count:
        return np.sort(rng.choice(count, min(limit, count), replace=False))
    further = np.arange(groups.max(initial=-1) + 1, groups.max(initial=-1) + 1 + count - len(groups))
    numbers = np.concatenate([groups, further])  # rows of further releases are in no group
    sizes, order = np.bincount(numbers), rng.permutation(numbers.max() + 1)
    fitting = max(1, int(np.searchsorted(np.cumsum(sizes[order]), limit, side="right")))
    return np.flatnonzero(np.isin(numbers, order[:fitting]))


def _index_digests(release: Release, known: Sequence[DigestIndex], masks: list[np.ndarray[Any, Any]]) -> DigestIndex:
    """Return an index of the released images; append to ``masks`` which of them are in no ``known`` index."""

    def digests() -> Iterator[list[str]]:
        for table in _released_tables(release, ("sha256",)):
            texts = table["sha256"].to_pylist()
            masks.append(np.all([np.ones(len(texts), bool), *(i.first_positions(texts) < 0 for i in known)], axis=0))
            yield texts

    return DigestIndex(digests())


def _take_rows(release: Release, positions: Positions) -> Iterator[Row]:
    """Yield the released rows at some positions, which ascend."""
    begin = 0
    for table in _released_tables(release, None) if len(positions) else ():
        inside = positions[(positions >= begin) & (positions < begin + len(table))] - begin
        yield from table.take(pa.array(inside)).to_pylist()
        begin += len(table)


def _released_tables(release: Release, columns: Sequence[str] | None) -> Iterator[pa.Table]:
    """Yield the released rows, shard by shard. Raises IntegrityError if the ledger is gone."""
    is_empty = True
    for _, table in Ledger.open(release).scan(columns, Status.RELEASED):
        is_empty = False
        yield table
    if is_empty:
        raise IntegrityError(
            f"release {str(release.root)!r}: no records of it are here, or they were purged: it cannot be attacked"
        )


def _read_published(releases: Sequence[Release], rows: Sequence[tuple[int, Row]]) -> list[tuple[Row, bytes]]:
    """Return, for each ledger row, its manifest row and its encoded image."""
    published: dict[tuple[int, str], tuple[Row, bytes]] = {}
    for number, release in enumerate(releases):
        if not release.is_assembled:
            raise IntegrityError("release: no manifest.parquet: finish the run before the audit")
        output_ids = [row["output_id"] for owner, row in rows if owner == number]
        manifest = released_images.find_rows(release.manifest, output_ids)
        for row, data in released_images.read_images(release.public_or_candidate, manifest):
            published[number, row["output_id"]] = row, data
    found = [published.get((number, row["output_id"])) for number, row in rows]
    intact = [
        pair
        for pair, (_, row) in zip(found, rows, strict=True)
        if pair is not None and hashlib.sha256(pair[1]).hexdigest() == row["sha256"]
    ]
    if lost := len(rows) - len(intact):
        raise IntegrityError(
            f"release: {lost} of {len(rows)} released pictures are missing, or not those of the ledger: restore public/"
        )
    return intact


def _current_record_ids(release: Release, rows: Sequence[Row]) -> list[str | None]:
    """Return the ids of the rows' originals in the current source; None where another original has taken the id."""
    digests: dict[str, str | None] = {}
    record_ids: dict[str | None, str] = {}
    for _, table in Ledger.open(release).scan(("record_id", "source_hmac")):
        for record_id, digest in zip(table["record_id"].to_pylist(), table["source_hmac"].to_pylist(), strict=True):
            digests[record_id] = digest
            record_ids.setdefault(digest, record_id)

    def current(row: Row) -> str | None:
        record_id, digest = row["record_id"], row["source_hmac"]
        if digests.get(record_id) == digest:
            return str(record_id)
        return record_ids.get(digest, None if record_id in digests else record_id)

    return list(map(current, rows))
