"""The releases before this one: unchanged originals keep the output that was published, erased ones do not return.

A second output of one original would add to what the first one reveals, so none is sampled: what was published once is
published again, byte for byte, whatever the settings are now. An original is identified by its bytes (a keyed digest),
not by its name; one that is missing from some releases is looked up in all of them.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.attest import statement
from anonymizer.config import PolicyConfig, RunConfig
from anonymizer.data import released_images
from anonymizer.errors import ConfigError, IntegrityError, OutputError
from anonymizer.policy import comparison
from anonymizer.records import Status
from anonymizer.release import event_log, plan
from anonymizer.release.ledger import PREFETCH_FILES, Ledger
from anonymizer.schema import LEDGER_SCHEMA
from anonymizer.storage import parquet
from anonymizer.storage.digest_index import DigestIndex
from anonymizer.storage.external_sort import ExternalSort
from anonymizer.storage.layout import Release, SealKey
from anonymizer.storage.path import StoragePath, absolute_uri
from anonymizer.storage.prefetch import prefetch_map

ERASED_SCHEMA = pa.schema([("kind", pa.string()), ("hmac", pa.string())])  # kind: original, subject, record

STAGED_FOLDER = "published"  # in staging, the images of releases before this one, by their digests
STAGED_MARKER = "complete"  # in that folder, written last

# Columns whose values a reused output keeps from the release that it was made for; its scores are measured again.
REUSED_COLUMNS = (
    *("level", "t_boom", "log_snr", "sampler", "steps", "model", "model_digest", "config_fingerprint"),
    *("code_version", "sha256", "bytes", "width", "height"),
)
CHUNK_ROWS = 50_000  # rows that are combined into one chunk
DICTIONARY_COLUMNS = {"sampler", "model", "model_digest", "config_fingerprint", "code_version"}  # few distinct values
TEXTS = pa.dictionary(pa.int32(), pa.string())
REUSED_SCHEMA = pa.schema(
    [(name, TEXTS if name in DICTIONARY_COLUMNS else LEDGER_SCHEMA.field(name).type) for name in REUSED_COLUMNS]
)


@dataclass(frozen=True)
class PublishedHistory:
    """What earlier releases published, and the keyed digests of what was erased.

    ``releases``, the latest first: an index of the originals that are in no later one, and their ``REUSED_COLUMNS``.
    ``images``: where ``stage_images`` has put what they published.
    """

    releases: Sequence[tuple[DigestIndex, pa.Table]] = ()
    erased: frozenset[str] = frozenset()
    images: StoragePath | None = None

    def find_row(self, source_hmac: str) -> Mapping[str, Any] | None:
        """Return the ``REUSED_COLUMNS`` of an original that was published; None for any other."""
        for index, rows in self.releases:
            position = int(index.first_positions([source_hmac])[0])
            if position >= 0:
                row: Mapping[str, Any] = rows.slice(position, 1).to_pylist()[0]
                return row
        return None

    def read_image(self, sha256: str) -> bytes:
        """Return the encoded image that was published. Raises IntegrityError for other bytes than those."""
        assert self.images is not None
        try:
            data = _staged_path(self.images, sha256).read()
        except FileNotFoundError:
            data = b""
        if hashlib.sha256(data).hexdigest() != sha256:
            raise IntegrityError(
                "staging: a picture of an earlier release is missing or damaged: remove restricted/staging/"
                f"{STAGED_FOLDER} and run the same command again"
            )
        return data

    def is_erased(self, digests: Set[str]) -> bool:
        """Return whether one of a record's keyed digests (original, person, id) was erased from an earlier release."""
        return not self.erased.isdisjoint(digests)


EMPTY_HISTORY = PublishedHistory()


@dataclass(frozen=True)
class Difference:
    """Counts of images that the previous release has too, that are new, and that only the previous one has."""

    kept: int
    new: int
    left_out: int

    def __str__(self) -> str:
        return f"{self.kept:,} kept, {self.new:,} new, {self.left_out:,} left out"


def read_previous_statement(config: RunConfig, release: Release) -> str | None:
    """Return the SHA-256 of the previous release's statement; None where there is no previous release.

    Raises ConfigError where it was erased or replaced since the plan: reused outputs may have been revoked.
    """
    if config.previous is None:
        return None
    before, planned = Release.at(config.previous), read_predecessors(release)[:1]
    digest = statement_digest_at(config.previous)
    if not before.plan.exists() or digest is None or any(one.statement not in (None, digest) for one in planned):
        raise ConfigError(
            f"previous {config.previous!r}: was erased meanwhile, or is another release by now: make this release "
            "anew, in another output, with the release that took its place as previous"
        )
    return digest


def list_weaker_rules(config: RunConfig) -> list[str]:
    """Return a line for each rule of the previous release that ``config`` drops or loosens, and for its sampler.

    Raises ConfigError where there are some and ``policy.weaker_than_previous`` gives no reason.
    """
    if config.previous is None:
        return []
    before = Release.at(config.previous)
    lines = comparison.weaker_rules(read_policy(before), config.policy)
    if config.boomerang.is_deterministic and not (earlier := plan.read_config(before).boomerang).is_deterministic:
        lines.append(f"boomerang.sampler: {earlier.sampler} before, {config.boomerang.sampler} now, without noise")
    if lines and config.policy.weaker_than_previous is None:
        raise ConfigError(
            f"policy: is weaker than that of previous {config.previous!r} ({'; '.join(lines)}): keep its rules, or "
            "give the reason as policy.weaker_than_previous, which is published"
        )
    return lines


def read_policy(release: Release) -> PolicyConfig:
    """Return the policy that a published release was let out by: the signed one, or that of its settings before."""
    try:
        signed = statement.parse_predicate(statement.read(release.public)).policy
    except (ValueError, OSError) as error:
        raise IntegrityError(f"release {str(release.root)!r}: its statement: {error}: restore it") from None
    return plan.read_config(release).policy if signed is None else signed


def statement_digest_at(uri: str) -> str | None:
    """Return the SHA-256 of the statement of the published release at an address; None where there is none."""
    release = Release.at(uri)
    try:
        return statement.read(release.public).digest if release.is_published else None
    except (ValueError, OSError):
        return None


@dataclass(frozen=True)
class Predecessor:
    """A release before another one, as it was when that one was planned.

    ``statement``, ``ledger``: SHA-256 of its statement and over its ledger; None in lists of earlier versions, and of a
    release that was never at hand. ``at_hand``: whether its records and images were there.
    """

    uri: str
    statement: str | None = None
    ledger: str | None = None
    at_hand: bool = False

    def find(self, key: SealKey | None) -> Release | None:
        """Return the release, if it has its records and images.

        Raises IntegrityError if it is another one by now, or lacks parts that nobody erased or purged.
        """
        release = Release.at(self.uri, key)
        if not _is_at_hand(release):
            if not _is_gone(release):
                raise IntegrityError(
                    f"previous: parts of the release at {self.uri!r}, which came before this one, are missing: restore "
                    "it, or move all of it away"
                )
            return None
        if self.statement not in (None, statement_digest_at(self.uri)):
            raise IntegrityError(
                f"previous: at {self.uri!r}, where a release before this one lay, is another one by now: restore it"
            )
        return release


def carry_forward(config: RunConfig, release: Release) -> dict[str, str]:
    """Write what every later release needs, and return the SHA-256 of each file, by name (``collect_inherited``)."""
    return write_inherited(release, collect_inherited(config, release))


def collect_inherited(config: RunConfig, release: Release) -> dict[str, bytes]:
    """Return the erased digests, the revocation list and the list of predecessors, by the names of their files.

    They are those that were there when the previous release was planned. Raises IntegrityError if they are not.
    """
    if config.previous is None:
        return {}
    before = Release.at(config.previous, release.key)
    planned, contents = plan.read(before).inherited, dict[str, bytes]()
    for path in (before.erased, before.revocations):
        if path.name in planned or path.exists():
            contents[path.name] = path.read()
            if hashlib.sha256(contents[path.name]).hexdigest() != planned.get(path.name):
                raise IntegrityError(f"previous {config.previous!r}: restricted/{path.name} is not what was planned")
    own = Predecessor(
        absolute_uri(config.previous), statement_digest_at(config.previous), Ledger.open(before).digest(), at_hand=True
    )
    earlier = [replace(one, at_hand=one.find(release.key) is not None) for one in read_predecessors(before)]
    contents[release.predecessors.name] = json.dumps([asdict(one) for one in (own, *earlier)]).encode()
    return contents


def write_inherited(release: Release, contents: Mapping[str, bytes]) -> dict[str, str]:
    """Write files that come from earlier releases, and return the SHA-256 of each; others in their place are removed.

    The digests are of what was meant to be written, whatever lies there a moment later.
    """
    for path in release.inherited:
        if path.name in contents:
            path.write(contents[path.name])
        else:
            path.remove()
    return {name: hashlib.sha256(data).hexdigest() for name, data in contents.items()}


def read_predecessors(release: Release) -> list[Predecessor]:
    """Return the list of all releases before this one, the latest first."""
    path = release.predecessors
    try:
        items = json.loads(path.read()) if path.exists() else []
        return [Predecessor(item) if isinstance(item, str) else Predecessor(**item) for item in items]
    except (ValueError, TypeError):
        raise OutputError(
            f"release: restricted/{path.name} is damaged: restore it, or people get a second output"
        ) from None


def predecessors(release: Release) -> list[Release]:
    """Return the releases before this one that still have their records, the latest first.

    Raises IntegrityError where another release lies in the place of one of them.
    """
    return [before for one in read_predecessors(release) if (before := one.find(release.key)) is not None]


def _planned_predecessors(release: Release) -> list[tuple[Predecessor, Release]]:
    """Return the releases before this one that were at hand when it was planned.

    Raises IntegrityError where one of them is gone or another by now: its people would get a second output.
    """
    pairs = []
    for one in read_predecessors(release):
        before = one.find(release.key)
        if before is None and one.at_hand:
            raise IntegrityError(
                f"previous: the release at {one.uri!r} was there when this one was planned, and is gone or incomplete: "
                "restore it, or begin anew in another output"
            )
        if before is not None:
            pairs.append((one, before))
    return pairs


def count_missing(config: RunConfig) -> int:
    """Return how many releases before this one have no records, other than those that an erasure destroyed."""
    if config.previous is None:
        return 0
    before = Release.at(config.previous)
    releases = [before, *(Release.at(one.uri) for one in read_predecessors(before))]
    return sum(not _has_records(r) and (not r.event_log.exists() or r.plan.exists()) for r in releases)


def _has_records(release: Release) -> bool:
    return release.plan.exists() and release.ledger.exists()


def _is_at_hand(release: Release) -> bool:
    return release.is_published and _has_records(release)


def _is_gone(release: Release) -> bool:
    """Return whether nothing of a release is there, or its log says that it was erased or its records purged."""
    if next(release.root.children(), None) is None:
        return True
    events = [(event["event"], event["details"].get("what")) for event in event_log.read(release)]
    return ("purged", "records") in events or any(name == event_log.DESTROYED for name, _ in events)


def load(release: Release) -> PublishedHistory:
    """Return what the releases before this one published, the latest of each original, and what was erased."""
    releases: list[tuple[DigestIndex, pa.Table]] = []
    for planned, before in _planned_predecessors(release):
        releases.append(_load_unknown(before, planned.ledger, [index for index, _ in releases]))
    return PublishedHistory(releases, _read_erased(release), release.staging / STAGED_FOLDER)


def _load_unknown(release: Release, planned: str | None, known: Sequence[DigestIndex]) -> tuple[DigestIndex, pa.Table]:
    """Return index and rows of the originals that a release published and that are in no ``known`` index.

    Raises IntegrityError if its ledger has not the ``planned`` digest any more.
    """
    ledger = Ledger.open(release)
    chunks, pending = [REUSED_SCHEMA.empty_table()], list[pa.Table]()

    def combine() -> None:
        chunks.append(pa.concat_tables(pending).unify_dictionaries().combine_chunks())
        pending.clear()

    def digests() -> Iterator[list[str]]:
        for _, rows in ledger.scan(("source_hmac", *REUSED_COLUMNS), Status.RELEASED):
            texts = rows["source_hmac"].to_pylist()
            is_new = np.ones(len(texts), bool)
            for index in known:
                is_new &= index.first_positions(texts) < 0
            rows = rows.replace_schema_metadata().filter(pa.array(is_new))
            pending.append(rows.select(REUSED_COLUMNS).cast(REUSED_SCHEMA))
            if sum(map(len, pending)) >= CHUNK_ROWS:
                combine()
            yield rows["source_hmac"].to_pylist()

    index = DigestIndex(digests())
    if planned not in (None, ledger.digest()):
        raise IntegrityError("previous: the ledger of a release before this one has changed since the plan: restore it")
    if pending:
        combine()
    return index, pa.concat_tables(chunks)


def stage_images(release: Release) -> None:
    """Copy every image that an earlier release published into the staging folder, each once, its digest checked.

    Does nothing where all of them are there. Raises IntegrityError where some are missing or damaged.
    """
    folder, releases = release.staging / STAGED_FOLDER, [before for _, before in _planned_predecessors(release)]
    known: list[DigestIndex] = []
    if not releases or (folder / STAGED_MARKER).exists():
        return
    for before in releases:
        manifest = parquet.open_table(before.manifest).select(["file", "member", "sha256"])
        _copy_images(before, _unknown_rows(manifest, known), lambda row: _staged_path(folder, row["sha256"]))
        batches = manifest.select(["sha256"]).to_batches(parquet.BATCH_ROWS)
        known.append(DigestIndex(batch["sha256"].to_pylist() for batch in batches))
    (folder / STAGED_MARKER).write(b"")


def stage_remaining(old: Release, new: Release, outputs: Sequence[pa.Table], suffix: str) -> None:
    """Copy the published images that remain after an erasure to where the new release's shards have staged them.

    ``outputs``: tables with ``output_id`` and ``staging``, the folder of the shard.
    """
    if not outputs:
        return
    table = pa.concat_tables(outputs).unify_dictionaries()
    index = DigestIndex(chunk.to_pylist() for chunk in table["output_id"].chunks)
    folders = table["staging"]

    def remaining() -> Iterator[Mapping[str, Any]]:
        manifest = parquet.open_table(old.manifest).select(["output_id", "file", "member", "sha256"])
        for batch in manifest.to_batches(parquet.BATCH_ROWS):
            positions = index.first_positions(batch["output_id"].to_pylist())
            rows = batch.filter(pa.array(positions >= 0)).to_pylist()
            names = folders.take(pa.array(positions[positions >= 0])).to_pylist()
            yield from (row | {"staging": name} for row, name in zip(rows, names, strict=True))

    _copy_images(old, remaining(), lambda row: new.staging / f"{row['staging']}/{row['output_id']}{suffix}")


def _staged_path(folder: StoragePath, sha256: str) -> StoragePath:
    return folder / sha256[:2] / sha256


def _unknown_rows(manifest: parquet.TableLike, known: Sequence[DigestIndex]) -> Iterator[Mapping[str, Any]]:
    """Yield the rows of a manifest whose images are in no ``known`` index."""
    for batch in manifest.to_batches(parquet.BATCH_ROWS):
        texts = batch["sha256"].to_pylist()
        is_new = np.all([np.ones(len(texts), bool), *(index.first_positions(texts) < 0 for index in known)], axis=0)
        yield from batch.filter(pa.array(is_new)).to_pylist()


def _copy_images(
    release: Release, rows: Iterable[Mapping[str, Any]], path_of: Callable[[Mapping[str, Any]], StoragePath]
) -> None:
    """Copy the images of manifest rows of a release. Raises IntegrityError where some are missing or damaged."""
    requested = 0

    def counted() -> Iterator[Mapping[str, Any]]:
        nonlocal requested
        for row in rows:
            requested += 1
            yield row

    def copy(image: tuple[Mapping[str, Any], bytes]) -> bool:
        row, data = image
        is_intact: bool = hashlib.sha256(data).hexdigest() == row["sha256"]
        if is_intact:
            path_of(row).write_uncommitted(data)
        return is_intact

    with ThreadPoolExecutor(PREFETCH_FILES, "published") as pool:
        images = released_images.read_images(release.public, counted())
        copied = sum(prefetch_map(copy, images, pool, 2 * PREFETCH_FILES))
    if copied < requested:
        raise IntegrityError(
            f"previous: {requested - copied} pictures that were published are missing or damaged: restore public/ of "
            "the releases before this one, then run the same command again"
        )


def compare_with_previous(
    config: RunConfig, release: Release, originals: ExternalSort | None = None
) -> Difference | None:
    """Return how a release differs from the previous one; None where that has no records, or there is none.

    ``originals``: those of the release, where the ledger has been read already (``Ledger.sort_originals``).
    """
    previous = None if config.previous is None else str(Release.at(config.previous).root)
    before = next((r for r in predecessors(release) if str(r.root) == previous), None)
    if before is None:
        return None
    ledger = Ledger.open(release)
    kept = new = left_out = 0
    with (
        Ledger.open(before).sort_originals(ledger.plan.records) as earlier,  # the same partitions, so that they align
        nullcontext(originals) if originals is not None else ledger.sort_originals() as later,
    ):
        for pair in zip(earlier.tables(), later.tables(), strict=True):
            was, now = (Counter(_released_digests(rows)) for rows in pair)
            kept, new, left_out = kept + (was & now).total(), new + (now - was).total(), left_out + (was - now).total()
    return Difference(kept, new, left_out)


def _released_digests(rows: pa.Table) -> list[str]:
    digests: list[str] = rows.filter(pc.equal(rows["status"], Status.RELEASED.value))["source_hmac"].to_pylist()
    return digests


def add_erased(earlier: bytes | None, digests: Mapping[str, str]) -> bytes:
    """Return the list of what must not come back with further keyed digests (digest -> original, subject or record)."""
    rows = [] if earlier is None else parquet.ParquetTable(pa.BufferReader(earlier)).read().to_pylist()
    kinds = {row["hmac"]: row["kind"] for row in rows} | dict(digests)
    rows = [{"kind": kind, "hmac": hmac} for hmac, kind in sorted(kinds.items())]
    return parquet.to_bytes(pa.Table.from_pylist(rows, ERASED_SCHEMA))


def _read_erased(release: Release) -> frozenset[str]:
    if not release.erased.exists():
        if release.revocations.exists():
            raise OutputError("release: restricted/erased.parquet is missing: restore it, or people come back")
        return frozenset()
    try:
        return frozenset(parquet.read(release.erased)["hmac"].to_pylist())
    except (pa.ArrowException, OSError, KeyError):
        raise OutputError("release: restricted/erased.parquet is damaged: restore it, or people come back") from None
