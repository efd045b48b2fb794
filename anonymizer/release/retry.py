"""Retrying failed records: shards that hold some are reopened, and all other rows of them stay.

A group is sampled once: where a member failed before and too few were left, those who wait are done again with it.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.data import image_codec, released_images
from anonymizer.errors import IntegrityError, OutputError
from anonymizer.records import Entry, Reason, Status
from anonymizer.release import event_log
from anonymizer.release.ledger import Ledger, staging_folder
from anonymizer.release.plan import read_config, read_entries
from anonymizer.storage import parquet
from anonymizer.storage.layout import MANIFEST, Release


def reopen_failed(release: Release, reasons: Collection[Reason] = ()) -> int:
    """Reopen the shards with failed records, of some reasons or all, and return how many records these are.

    An assembled release is disassembled, and its approvals are void. Raises OutputError if it is published.
    """
    ledger = Ledger.open(release)
    if release.is_published:
        raise OutputError(
            f"release {str(release.root)!r}: is published and stays as it was signed: make another one with this as "
            "`previous`, which keeps what was published and draws only the rest"
        )
    counts = {shard: pc.sum(_failed_mask(table, reasons)).as_py() for shard, table in ledger.scan(("status", "reason"))}
    counts = {shard: count for shard, count in counts.items() if count}
    if not counts:
        return 0
    if release.is_assembled:
        _disassemble(release, ledger)
    for shard, table in ledger.scan():
        if shard in counts:
            failed = _failed_mask(table, reasons)
            again = pc.or_(failed, _waiting_with(table, failed, read_entries(release, ledger.plan, shard)))
            ledger.reopen_shard(shard, table.filter(pc.invert(again)))
    records: int = sum(counts.values())
    event_log.record(release, "reopened", records=records, shards=len(counts))
    return records


def _failed_mask(table: pa.Table, reasons: Collection[Reason]) -> pa.ChunkedArray:
    """Return which rows failed for one of the reasons."""
    failed = pc.equal(table["status"], Status.FAILED.value)
    if reasons:
        values = pa.array([reason.value for reason in reasons], pa.string())
        failed = pc.and_(failed, pc.is_in(table["reason"], value_set=values))
    return failed


def _waiting_with(table: pa.Table, failed: pa.ChunkedArray, entries: Sequence[Entry]) -> pa.ChunkedArray:
    """Return which rows wait since a failed record left their group, which was never sampled."""
    planned = {entry.record_id: entry.group for entry in entries if entry.group is not None}
    groups = {planned.get(record_id) for record_id in table.filter(failed)["record_id"].to_pylist()}
    groups -= {None, *table["group"].to_pylist()}
    members = pa.array([name for name, group in planned.items() if group in groups], pa.string())
    return pc.and_(pc.equal(table["status"], Status.WAITING.value), pc.is_in(table["record_id"], value_set=members))


def _disassemble(release: Release, ledger: Ledger) -> None:
    """Move the images of a candidate back to the staging folders of their shards, and remove the candidate.

    Raises IntegrityError, and the candidate stays, where some are missing.
    """
    suffix = image_codec.SUFFIXES[read_config(release).output.image]
    paths = {}
    for _, table in ledger.scan(("output_id",), Status.RELEASED):
        folder = release.staging / staging_folder(table)
        for output_id in table["output_id"].to_pylist():
            paths[output_id] = folder / f"{output_id}{suffix}"
    missing = set(paths)
    rows = (row for row in _manifest_rows(release) if row["output_id"] in paths)
    for row, data in released_images.read_images(release.candidate, rows):
        paths[row["output_id"]].write_uncommitted(data)
        missing.remove(row["output_id"])
    # An attempt that was interrupted while it moved the candidate has staged them before.
    if lost := sum(not paths[output_id].exists() for output_id in missing):
        raise IntegrityError(
            f"restricted/candidate: {lost} pictures are gone or cannot be read: nothing is done again: restore them, "
            "or choose another output and run again"
        )
    release.candidate.move_to(release.assembling / secrets.token_hex(6), last=MANIFEST)
    release.assembling.remove()


def _manifest_rows(release: Release) -> Iterator[dict[str, str]]:
    """Yield ``file``, ``member`` and ``output_id`` of each image of a candidate."""
    try:
        manifest = parquet.open_table(release.candidate / MANIFEST).select(["file", "member", "output_id"])
        for batch in manifest.to_batches(parquet.BATCH_ROWS):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, KeyError):
        raise IntegrityError(
            f"restricted/candidate/{MANIFEST}: damaged: nothing is done again: restore it, or choose another output"
        ) from None
