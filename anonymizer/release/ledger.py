"""The ledger: one row for each record read, one Parquet file for each shard, committed in one write."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.crypto import seal
from anonymizer.errors import CustodianKeyError, IntegrityError
from anonymizer.records import Entry, Plan, ShardSummary, Status, Summary
from anonymizer.release.plan import read as read_plan
from anonymizer.release.profiling import METADATA_KEY, Profile
from anonymizer.schema import LATER_COLUMNS, LEDGER_SCHEMA
from anonymizer.storage import parquet
from anonymizer.storage.external_sort import ExternalSort
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from anonymizer.storage.prefetch import prefetch_map

REQUIRED_METADATA = {b"metric_models", b"staging"}
SEAL_KEY = "anonymizer.seal"  # in the metadata of a shard's file
LEDGER_ROLE, REOPENED_ROLE = "ledger", "reopened"
PREFETCH_FILES = 16  # files requested at a time from an object store
ORIGINAL_COLUMNS = ("source_hmac", "status")
SUMMARY_COLUMNS = ("status", "seconds", "output_id", "group_size")

LedgerRow = dict[str, Any]  # values by column, see ``anonymizer.schema``; a column that is left out is null


class ShardWriter:
    """Stages the outputs of one shard under a fresh name, and commits them with the shard's ledger file.

    Of several attempts at one shard, the first to commit counts. What an interrupted one left is never read again;
    assembling removes it. Of a reopened shard only the pending records are processed (``is_pending``).
    """

    def __init__(self, ledger: Ledger, shard: int, metric_models: Mapping[str, str]) -> None:
        self.ledger, self.release, self.shard, self.metric_models = ledger, ledger.release, shard, metric_models
        self.reopened_rows = ledger.read_reopened(shard)
        self.finished_ids = frozenset[str]()
        self.staging_folder = f"shard-{shard:05d}-{secrets.token_hex(6)}"
        if self.reopened_rows is not None:
            self.finished_ids = frozenset(self.reopened_rows["record_id"].to_pylist())
            self.staging_folder = staging_folder(self.reopened_rows)

    def is_pending(self, entry: Entry) -> bool:
        """Return whether a record has not reached an outcome yet."""
        return entry.record_id not in self.finished_ids

    def put(self, output_id: str, suffix: str, data: bytes) -> None:
        """Stage one output, released or quarantined."""
        (self.release.staging / self.staging_folder / f"{output_id}{suffix}").write_uncommitted(data)

    def commit(
        self, rows: Sequence[LedgerRow], expected: int, seconds: float, profile: Profile | None = None
    ) -> ShardSummary:
        """Write the ledger file, which commits the shard; return its counts.

        Where another attempt was first, this one is discarded and the other's counts are returned. Raises
        IntegrityError where rows do not account for every record, or where the other's ledger was purged.
        """
        if len(rows) != expected or len({row["record_id"] for row in rows}) != expected:
            raise IntegrityError(f"shard {self.shard}: {len(rows)} rows for {expected} records: nothing was committed")
        metadata = {"metric_models": json.dumps(dict(self.metric_models)), "staging": self.staging_folder}
        if profile is not None:
            earlier = None if self.reopened_rows is None else self.reopened_rows.schema.metadata.get(METADATA_KEY)
            profile = profile.include(Profile.from_json(earlier)) if earlier else profile
            metadata[METADATA_KEY.decode()] = profile.to_json()
        schema = LEDGER_SCHEMA.with_metadata(metadata)
        table = pa.Table.from_pylist([{"kept": False} | row for row in rows], schema=schema)
        if self.reopened_rows is not None:
            table = pa.concat_tables([self.reopened_rows.replace_schema_metadata(metadata), table])
        is_late = self.release.is_assembled  # by a process that had all shards
        if is_late or not self.release.shard_ledger(self.shard).create(self.ledger.to_bytes(self.shard, table)):
            if is_late:
                self.release.staging.remove()
            elif self.reopened_rows is None:  # otherwise the committed rows refer to the same folder
                (self.release.staging / self.staging_folder).remove()
            if (committed := self.ledger.read_shard(self.shard)) is not None:
                return summarize_shard(self.shard, committed)
            raise IntegrityError(f"shard {self.shard}: was committed by another attempt, whose ledger is gone")
        self.ledger.reopened_path(self.shard).remove()
        return replace(summarize_shard(self.shard, table), seconds=seconds)


@dataclass(frozen=True)
class Ledger:
    """The committed shards of a release. Every file that is read has its seal checked, if the release has its key."""

    release: Release
    plan: Plan

    @classmethod
    def open(cls, release: Release) -> Ledger:
        """Return the ledger of a release. Raises OutputError if it has no plan."""
        return cls(release, read_plan(release))

    def missing_shards(self) -> list[int]:
        """Return the numbers of planned shards that are not committed, from one listing of the folder."""
        committed = {path.name for path in self.release.ledger.children()}
        return [n for n in range(self.plan.shards) if self.release.shard_ledger(n).name not in committed]

    def read_files(self) -> Iterator[tuple[int, bytes]]:
        """Yield number and bytes of each committed shard's file, in order; prefetched from an object store."""
        missing = set(self.missing_shards())
        shards = [shard for shard in range(self.plan.shards) if shard not in missing]

        def read(shard: int) -> tuple[int, bytes | None]:
            return shard, self._read_bytes(self.release.shard_ledger(shard), shard, LEDGER_ROLE)

        if self.release.root.is_local:
            yield from ((shard, data) for shard, data in map(read, shards) if data is not None)
            return
        with ThreadPoolExecutor(PREFETCH_FILES, "ledger") as pool:
            for shard, data in prefetch_map(read, shards, pool, PREFETCH_FILES):
                if data is not None:
                    yield shard, data

    def scan(
        self, columns: Sequence[str] | None = None, status: Status | None = None
    ) -> Iterator[tuple[int, pa.Table]]:
        """Yield number and rows of each committed shard, in order: all columns or some, all rows or those of a status.

        The schema metadata of each table is that of its file. Raises IntegrityError for a damaged file.
        """
        needed = columns if columns is None or status is None else list(dict.fromkeys([*columns, "status"]))
        for shard, data in self.read_files():
            table = parse_shard(shard, data, needed)
            if status is not None:
                table = table.filter(pc.equal(table["status"], status.value))
            yield shard, table if columns is None else table.select(columns)

    def read_shard(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table | None:
        """Return the rows of a shard, or some of their columns; None if it is not committed."""
        data = self._read_bytes(self.release.shard_ledger(shard), shard, LEDGER_ROLE)
        return None if data is None else parse_shard(shard, data, columns)

    def read_reopened(self, shard: int) -> pa.Table | None:
        """Return the rows that remain of a shard whose commit was taken back; None for any other."""
        data = self._read_bytes(self.reopened_path(shard), shard, REOPENED_ROLE)
        return None if data is None else parse_shard(shard, data)

    def reopen_shard(self, shard: int, remaining_rows: pa.Table) -> None:
        """Take back the commit of a shard; ``remaining_rows`` are committed again with the rest of it."""
        self.reopened_path(shard).write(self.to_bytes(shard, remaining_rows, REOPENED_ROLE))
        self.release.shard_ledger(shard).remove()

    def reopened_path(self, shard: int) -> StoragePath:
        return self.release.reopened / self.release.shard_ledger(shard).name

    def to_bytes(self, shard: int, rows: pa.Table, role: str = LEDGER_ROLE) -> bytes:
        """Return the file of a shard's rows, sealed for its place here. Raises CustodianKeyError without the key."""
        if self.plan.key_check is not None and self.release.sealing_key is None:
            raise CustodianKeyError("ledger: is sealed with the custodian's key, which is not set: set it")
        data = parquet.to_bytes(rows, {SEAL_KEY: seal.PLACEHOLDER})
        return seal.apply(data, self.release.key, f"{self.plan.id}/{role}/{shard}")

    def _read_bytes(self, path: StoragePath, shard: int, role: str) -> bytes | None:
        try:
            data = path.read()
        except FileNotFoundError:
            return None
        except OSError:
            raise IntegrityError(f"ledger of shard {shard}: damaged: {redo_hint(shard)}") from None
        context, name = f"{self.plan.id}/{role}/{shard}", f"ledger of shard {shard}"
        seal.check(data, self.release.key, context, name, redo_hint(shard))
        return data

    def summarize(self) -> Summary:
        """Return the counts of what is committed so far."""
        shards, reasons = [], Counter[str]()
        for shard, table in self.scan((*SUMMARY_COLUMNS, "reason")):
            shards.append(summarize_shard(shard, table))
            reasons.update(table["reason"].drop_null().to_pylist())
        return combine_summaries(shards, reasons)

    def digest(self) -> str:
        """Return one SHA-256 (hex) over all files of the ledger; an event holds the one that was signed."""
        return digest_files(data for _, data in self.read_files())

    def sort_originals(self, records: int | None = None) -> ExternalSort:
        """Return keyed digest and status of every original that could be read, sorted by digest; to be closed.

        ``records`` determines the partitions; two that were sorted with the same number align.
        """
        tables = (table.filter(table["source_hmac"].is_valid()) for _, table in self.scan(ORIGINAL_COLUMNS))
        return ExternalSort(tables, "source_hmac", records or self.plan.records, scratch_folder(self.release))

    def read_profiles(self) -> Iterator[Profile]:
        """Yield the profile of each committed shard that has one; those of earlier versions do not."""
        for path in map(self.release.shard_ledger, range(self.plan.shards)):
            try:
                profile = parquet.read_metadata(path).get(METADATA_KEY) if path.exists() else None
            except (pa.ArrowException, OSError):  # `verify` reports the damage
                continue
            if profile is not None:
                yield Profile.from_json(profile)


def digest_files(files: Iterable[bytes]) -> str:
    """Return one SHA-256 (hex) over the files of a ledger, in the order of its shards."""
    return hashlib.sha256(b"".join(hashlib.sha256(data).hexdigest().encode() for data in files)).hexdigest()


def parse_shard(shard: int, data: bytes, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of a shard's file, its schema checked. Raises IntegrityError if it is damaged."""
    try:
        table = parquet.ParquetTable(pa.BufferReader(data))
        if not _is_ledger_schema(table.schema) or not set(table.schema.metadata or {}) >= REQUIRED_METADATA:
            raise IntegrityError(
                f"ledger of shard {shard}: another schema than this version writes: nothing is published"
            )
        names = LEDGER_SCHEMA.names if columns is None else columns
        rows = table.select([name for name in names if name in table.schema.names]).read()
        for name in set(names) - set(rows.schema.names):
            rows = rows.append_column(LEDGER_SCHEMA.field(name), pa.nulls(len(rows), LEDGER_SCHEMA.field(name).type))
        rows = rows.select(names)
        metadata = {name: value for name, value in rows.schema.metadata.items() if name != SEAL_KEY.encode()}
        return rows.replace_schema_metadata(metadata)
    except (pa.ArrowException, OSError):
        raise IntegrityError(f"ledger of shard {shard}: damaged: {redo_hint(shard)}") from None


def _is_ledger_schema(schema: pa.Schema) -> bool:
    """Return whether a schema is that of a ledger of this version, or of one without ``LATER_COLUMNS``."""
    earlier = pa.schema([field for field in LEDGER_SCHEMA if field.name not in LATER_COLUMNS])
    return bool(schema.equals(LEDGER_SCHEMA) or schema.equals(earlier))


def redo_hint(shard: int) -> str:
    """Return the next step, for an error message, where a shard's files cannot be trusted."""
    return f"remove restricted/ledger/shard-{shard:05d}.parquet and run the same command again"


def staging_folder(table: pa.Table) -> str:
    """Return the name of the folder in which a shard's outputs are staged."""
    name: str = table.schema.metadata[b"staging"].decode()
    return name


def scratch_folder(release: Release) -> str | None:
    """Return where rows may be spilled: the disk where the ledger lies, if it is writable; else None."""
    folder = release.restricted.path
    return folder if release.root.is_local and os.access(folder, os.W_OK | os.X_OK) else None


def summarize_shard(shard: int, table: pa.Table) -> ShardSummary:
    """Return the counts of a shard's rows; ``table`` has the ``SUMMARY_COLUMNS``."""
    counts = Counter(table["status"].to_pylist())
    ended = {status.value: counts[status] for status in Status}
    released, seconds = (
        table.filter(pc.equal(table["status"], Status.RELEASED.value)),
        sum(table["seconds"].to_pylist()),
    )
    images = pc.count_distinct(released["output_id"]).as_py()
    least = pc.min(pc.fill_null(released["group_size"], 1)).as_py()  # a record without a group is one by itself
    return ShardSummary(shard=shard, read=len(table), seconds=seconds, images=images, least_group=least, **ended)


def combine_summaries(shards: Sequence[ShardSummary], reasons: Mapping[str, int]) -> Summary:
    """Return the counts of several shards together."""
    names = ("read", "released", "quarantined", "failed", "waiting", "images", "seconds")
    totals: dict[str, Any] = {name: sum(getattr(shard, name) for shard in shards) for name in names}
    least = min((shard.least_group for shard in shards if shard.least_group is not None), default=None)
    return Summary(**totals, shards=len(shards), reasons=dict(sorted(reasons.items())), least_group=least)
