"""The ledger: one row for each record read, one Parquet file for each shard, committed in one write."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from datetime import datetime

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.errors import IntegrityError
from anonymizer.records import Entry, Plan, Reason, ShardSummary, Status
from anonymizer.release.plan import read_entries
from anonymizer.release.profiling import METADATA_KEY, Profile
from anonymizer.schema import LEDGER_SCHEMA
from anonymizer.storage import parquet
from anonymizer.storage.external_sort import ExternalSort
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from anonymizer.storage.prefetch import prefetch_map


@dataclass(frozen=True)
class LedgerRow:
    """What became of one record. The columns are documented in docs/formats.md."""

    record_id: str
    source_uri: str
    source_hmac: str | None
    output_id: str | None
    status: Status
    reason: Reason | None
    attempts: int
    level: float
    t_boom: int
    log_snr: float
    sampler: str
    steps: int
    clip_similarity: float | None
    lpips: float | None
    identity_distance: float | None
    model_digest: str
    config_fingerprint: str
    code_version: str
    shard: int
    started: datetime
    seconds: float
    model: str
    faces: int | None = None
    sha256: str | None = None  # of the output, from here on
    bytes: int | None = None
    width: int | None = None
    height: int | None = None
    label: str | None = None
    caption: str | None = None
    carried: str | None = None  # further columns that the configuration names, as JSON
    restricted: str | None = None  # columns that stay here, as JSON
    subject: str | None = None
    earlier: str | None = None  # attempts before this one, as JSON: level, scores, reason
    kept: bool = False  # published in the previous release, and taken over from there


REQUIRED_METADATA = {b"metric_models", b"staging"}
COUNT_COLUMNS = ("status", "seconds")  # what ``summarize`` looks at
READ_AHEAD = 16  # files that are read at a time where reading takes a request
RECONCILED_COLUMNS = ("record_id", "kept", "config_fingerprint", *COUNT_COLUMNS)


class ShardWriter:
    """Stages the outputs of one shard under a fresh name, and commits them with the shard's ledger file.

    Of several attempts at one shard, the first to commit counts. What a killed one left behind is never looked at
    again; assembling removes it. Of a shard that was opened again only the rest is done (``is_left``).
    """

    def __init__(self, release: Release, shard: int, metric_models: Mapping[str, str]) -> None:
        self.release, self.shard, self.metric_models = release, shard, metric_models
        self.reopened_rows = _read_table(reopened_path(release, shard), shard)
        self.finished_ids = (
            frozenset() if self.reopened_rows is None else frozenset(self.reopened_rows["record_id"].to_pylist())
        )
        self.staging_folder = _staging_folder(self.reopened_rows) or f"shard-{shard:05d}-{secrets.token_hex(6)}"

    def is_pending(self, entry: Entry) -> bool:
        """Whether a record has yet to come to its end."""
        return entry.record_id not in self.finished_ids

    def put(self, output_id: str, suffix: str, data: bytes) -> None:
        """Stage one output, released or held back."""
        (self.release.staging / self.staging_folder / f"{output_id}{suffix}").write_uncommitted(data)

    def commit(
        self, rows: Sequence[LedgerRow], expected: int, seconds: float, profile: Profile | None = None
    ) -> ShardSummary:
        """Write the ledger file, which makes the shard count; refuses rows that do not account for every record.

        Where another attempt was first, this one is thrown away and the other's counts are returned. IntegrityError
        where that one's ledger is gone by now, as it is after ``purge``.
        """
        if len(rows) != expected or len({row.record_id for row in rows}) != expected:
            raise IntegrityError(f"shard {self.shard}: {len(rows)} rows for {expected} records: nothing was committed")
        metadata = {"metric_models": json.dumps(dict(self.metric_models)), "staging": self.staging_folder}
        if profile is not None:
            told = None if self.reopened_rows is None else self.reopened_rows.schema.metadata.get(METADATA_KEY)
            metadata[METADATA_KEY.decode()] = (profile.include(Profile.from_json(told)) if told else profile).to_json()
        table = pa.Table.from_pylist([asdict(row) for row in rows], schema=LEDGER_SCHEMA.with_metadata(metadata))
        if self.reopened_rows is not None:
            table = pa.concat_tables([self.reopened_rows.replace_schema_metadata(metadata), table])
        late = self.release.is_assembled  # by somebody who had all shards
        if late or not self.release.shard_ledger(self.shard).create(parquet.to_bytes(table)):
            if late:
                self.release.staging.remove()
            elif self.reopened_rows is None:  # else the folder holds what the other one speaks of
                (self.release.staging / self.staging_folder).remove()
            if (first := read_shard(self.release, self.shard)) is not None:
                return summarize_shard(self.shard, first)
            raise IntegrityError(f"shard {self.shard}: was committed by another attempt, whose ledger is gone")
        reopened_path(self.release, self.shard).remove()
        return replace(summarize_shard(self.shard, table), seconds=seconds)


def read_shard(release: Release, shard: int, columns: Sequence[str] | None = None) -> pa.Table | None:
    """The ledger of a committed shard, or some of its columns, its schema checked; none if it is not committed."""
    return _read_table(release.shard_ledger(shard), shard, columns)


def reopened_path(release: Release, shard: int) -> StoragePath:
    """What stands of a shard that was opened again, and will be committed with the rest of it."""
    return release.reopened / release.shard_ledger(shard).name


def reopen_shard(release: Release, shard: int, remaining_rows: pa.Table) -> None:
    """Take the commit of a shard back, and let ``kept`` of its rows stand."""
    reopened_path(release, shard).write(parquet.to_bytes(remaining_rows))
    release.shard_ledger(shard).remove()


def _staging_folder(table: pa.Table | None) -> str | None:
    return None if table is None else table.schema.metadata[b"staging"].decode()


def _read_table(place: StoragePath, shard: int, columns: Sequence[str] | None = None) -> pa.Table | None:
    if not place.exists():
        return None
    try:
        whole = parquet.ParquetTable(pa.BufferReader(place.read()))
        if not whole.schema.equals(LEDGER_SCHEMA) or not set(whole.schema.metadata or {}) >= REQUIRED_METADATA:
            raise IntegrityError(
                f"ledger of shard {shard}: another schema than this version writes: nothing is published"
            )
        return (whole if columns is None else whole.select(columns)).read()
    except (pa.ArrowException, OSError):
        raise IntegrityError(f"ledger of shard {shard}: damaged: {redo_hint(shard)}") from None


def read_profiles(release: Release, plan: Plan) -> Iterator[Profile]:
    """Where the time of each committed shard went, as far as that was noted; earlier versions did not."""
    for place in (release.shard_ledger(shard) for shard in range(plan.shards)):
        try:
            told = parquet.read_metadata(place).get(METADATA_KEY) if place.exists() else None
        except (pa.ArrowException, OSError):  # `verify` says what is wrong with it
            continue
        if told is not None:
            yield Profile.from_json(told)


def redo_hint(shard: int) -> str:
    """The next step where a shard's files cannot be trusted."""
    return f"remove restricted/ledger/shard-{shard:05d}.parquet and run the same command again"


def scan_shards(release: Release, plan: Plan, columns: Sequence[str] | None = None) -> Iterator[tuple[int, pa.Table]]:
    """Each committed shard's number and ledger, or some columns of it, in order; a few at a time."""
    there = {place.name for place in release.ledger.children()}
    shards = [shard for shard in range(plan.shards) if release.shard_ledger(shard).name in there]
    for shard, table in zip(shards, _read_in_order(release, shards, columns), strict=True):
        if table is not None:
            yield shard, table


def _read_in_order(release: Release, shards: Sequence[int], columns: Sequence[str] | None) -> Iterator[pa.Table | None]:
    """Ledgers of shards in order; from a store far away several at a time."""
    if release.root.is_local:
        yield from (read_shard(release, shard, columns) for shard in shards)
        return
    with ThreadPoolExecutor(READ_AHEAD, "ledger") as pool:
        yield from prefetch_map(lambda shard: read_shard(release, shard, columns), shards, pool, READ_AHEAD)


def compute_digest(release: Release, plan: Plan) -> str:
    """One SHA-256 (hex) over all files of the ledger; the event that a statement speaks of holds it."""
    files = (hashlib.sha256(release.shard_ledger(number).read()).hexdigest().encode() for number in range(plan.shards))
    return hashlib.sha256(b"".join(files)).hexdigest()


def sort_originals(release: Release, plan: Plan) -> ExternalSort:
    """Keyed digests (``source_hmac``) of all originals that could be read, sorted; to be closed."""
    columns = ("source_hmac",)
    digests = (table.filter(table["source_hmac"].is_valid()) for _, table in scan_shards(release, plan, columns))
    tables = (table.replace_schema_metadata() for table in digests)
    return ExternalSort(tables, "source_hmac", plan.records, scratch_folder(release))


def scratch_folder(release: Release) -> str | None:
    """Where rows of the ledger may lie for a while: on the disk where the ledger lies, if it takes them."""
    folder = release.restricted.path
    return folder if release.root.is_local and os.access(folder, os.W_OK | os.X_OK) else None


def summarize_shard(shard: int, table: pa.Table) -> ShardSummary:
    counts = Counter(table["status"].to_pylist())
    return ShardSummary(
        shard=shard,
        read=len(table),
        released=counts[Status.RELEASED],
        quarantined=counts[Status.QUARANTINED],
        failed=counts[Status.FAILED],
        seconds=sum(table["seconds"].to_pylist()),
    )


def reconcile(release: Release, plan: Plan) -> None:
    """Every planned record is in the ledger once, and ended in one of three ways; or IntegrityError."""
    there = {place.name for place in release.ledger.children()}
    missing = sum(release.shard_ledger(shard).name not in there for shard in range(plan.shards))
    if missing:
        raise IntegrityError(
            f"{missing} of {plan.shards} shards are not committed: run the same command again to finish them"
        )
    total = 0
    for shard, table in scan_shards(release, plan, RECONCILED_COLUMNS):
        _reconcile_shard(release, plan, shard, table)
        total += len(table)
    if total != plan.records:
        raise IntegrityError(
            f"release: planned {plan.records} records, the ledger has {total}: nothing is published: "
            "restore restricted/plan.json, or choose another output"
        )


def _reconcile_shard(release: Release, plan: Plan, shard: int, table: pa.Table) -> None:
    s = summarize_shard(shard, table)
    if s.read != s.released + s.quarantined + s.failed:
        accounted = s.released + s.quarantined + s.failed
        raise IntegrityError(f"shard {shard}: read {s.read}, accounted for {accounted}: nothing is published")
    planned = {entry.record_id for entry in read_entries(release, shard)}
    if s.read != len(planned) or set(table["record_id"].to_pylist()) != planned:
        raise IntegrityError(
            f"shard {shard}: planned {len(planned)} records, the ledger has {s.read}, and they are not the same: "
            f"nothing is published: {redo_hint(shard)}"
        )
    made = table.filter(pc.invert(table["kept"]))["config_fingerprint"]
    if not set(made.to_pylist()) <= {plan.fingerprint, *plan.escalated}:
        raise IntegrityError(f"shard {shard}: made with other settings than planned: {redo_hint(shard)}")
