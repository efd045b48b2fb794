"""Failed records, once more: shards that hold some are opened again, and all else in them stands."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.data import image_codec, released_images
from anonymizer.errors import IntegrityError, OutputError
from anonymizer.records import Plan, Reason, Status
from anonymizer.release import event_log, ledger, plan
from anonymizer.storage import parquet
from anonymizer.storage.layout import MANIFEST, Release
from anonymizer.storage.path import StoragePath

FILE_COLUMNS = ("file", "member", "output_id")


def reopen_failed(release: Release, reasons: Collection[Reason] = ()) -> int:
    """Let the next run do failed records again, those of ``reasons`` or all; returns how many they are.

    A release that was assembled is taken apart again, and its approvals are void. OutputError where it is published:
    what was handed out stays as it was signed.
    """
    the_plan = plan.read(release)
    if release.is_published:
        raise OutputError(
            f"release {str(release.root)!r}: is published and stays as it was signed: make another one with this as "
            "`previous`, which keeps what was published and draws only the rest"
        )
    found = {
        shard: count for shard, table in ledger.scan_shards(release, the_plan) if (count := _count(table, reasons))
    }
    records = sum(found.values())
    if not found:
        return 0
    if release.is_assembled:
        _disassemble(release, the_plan)
    for shard, table in ledger.scan_shards(release, the_plan):
        if shard in found:
            ledger.reopen_shard(release, shard, table.filter(pc.invert(_failed_mask(table, reasons))))
    event_log.record(release, "reopened", records=records, shards=len(found))
    return records


def _failed_mask(table: pa.Table, reasons: Collection[Reason]) -> pa.ChunkedArray:
    """Which rows failed for one of the reasons."""
    wanted = pc.equal(table["status"], Status.FAILED.value)
    if reasons:
        named = pa.array([reason.value for reason in reasons], pa.string())
        wanted = pc.and_(wanted, pc.is_in(table["reason"], value_set=named))
    return wanted


def _count(table: pa.Table, reasons: Collection[Reason]) -> int:
    count: int | None = pc.sum(_failed_mask(table, reasons)).as_py()
    return count or 0


def _disassemble(release: Release, the_plan: Plan) -> None:
    """Put the pictures of a candidate back to where its shards staged them, and the candidate away.

    IntegrityError, and the candidate stays, where it does not hold them all.
    """
    folders = {
        output_id: table.schema.metadata[b"staging"].decode()
        for _, table in ledger.scan_shards(release, the_plan)
        for output_id in _sampled_ids(table)
    }
    suffix = image_codec.SUFFIXES[plan.read_config(release).output.image]

    def staged(output_id: str) -> StoragePath:
        place: StoragePath = release.staging / folders[output_id] / f"{output_id}{suffix}"
        return place

    left, drawn = set(folders), (row for row in _manifest_files(release) if row["output_id"] in folders)
    for row, data in released_images.read_images(release.candidate, drawn):
        staged(row["output_id"]).write_uncommitted(data)
        left.remove(row["output_id"])
    # One that was stopped while it put the candidate away has staged them before.
    if lost := sum(not staged(output_id).exists() for output_id in left):
        raise IntegrityError(
            f"restricted/candidate: {lost} pictures are gone or cannot be read: nothing is done again: restore them, "
            "or choose another output and run again"
        )
    release.candidate.move_to(release.assembling / secrets.token_hex(6), last=MANIFEST)
    release.assembling.remove()


def _manifest_files(release: Release) -> Iterator[dict[str, str]]:
    """Where each picture of a candidate lies."""
    try:
        for batch in (
            parquet.open_table(release.candidate / MANIFEST).select(FILE_COLUMNS).to_batches(parquet.BATCH_ROWS)
        ):
            yield from batch.to_pylist()
    except (pa.ArrowException, OSError, KeyError):
        raise IntegrityError(
            f"restricted/candidate/{MANIFEST}: damaged: nothing is done again: restore it, or choose another output"
        ) from None


def _sampled_ids(table: pa.Table) -> list[str]:
    """Outputs that a shard released and drew itself: what is kept comes from the release before."""
    own = pc.and_(pc.equal(table["status"], Status.RELEASED.value), pc.invert(table["kept"]))
    ids: list[str] = table.filter(own)["output_id"].to_pylist()
    return ids
