"""Failed records, once more: shards that hold some are opened again, and all else in them stands."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer import events, images, ledger, parquet, plan, public
from anonymizer.errors import OutputError
from anonymizer.layout import MANIFEST, Release
from anonymizer.records import Reason, Status


def reopen(release: Release, reasons: Collection[Reason] = ()) -> int:
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
    found = {shard: count for shard, table in _committed(release, the_plan) if (count := _failed(table, reasons)[1])}
    if not found:
        return 0
    if release.is_assembled:
        _take_apart(release, the_plan)
    for shard, table in _committed(release, the_plan):
        if shard in found:
            ledger.reopen(release, shard, table.filter(pc.invert(_failed(table, reasons)[0])))
    events.record(release, "reopened", records=sum(found.values()), shards=len(found))
    return sum(found.values())


def _committed(release: Release, the_plan: plan.Plan) -> Iterator[tuple[int, pa.Table]]:
    return ledger.committed(release, the_plan)


def _failed(table: pa.Table, reasons: Collection[Reason]) -> tuple[pa.Array, int]:
    """Which rows failed for one of the reasons, and how many."""
    wanted = pc.equal(table["status"], Status.FAILED.value)
    if reasons:
        named = pa.array([reason.value for reason in reasons], pa.string())
        wanted = pc.and_(wanted, pc.is_in(table["reason"], value_set=named))
    return wanted, pc.sum(wanted).as_py() or 0


def _take_apart(release: Release, the_plan: plan.Plan) -> None:
    """Put the pictures of a candidate back to where its shards staged them, and the candidate away."""
    folders = {
        output_id: table.schema.metadata[b"staging"].decode()
        for _, table in _committed(release, the_plan)
        for output_id in _drawn(table)
    }
    suffix = images.SUFFIXES[plan.stored(release).output.image]
    rows = parquet.read(release.candidate / MANIFEST, ["file", "member", "output_id"]).to_pylist()
    for row, data in public.contents(release.candidate, [row for row in rows if row["output_id"] in folders]):
        (release.staging / folders[row["output_id"]] / f"{row['output_id']}{suffix}").put(data)
    release.candidate.move_to(release.assembling / secrets.token_hex(6), last=MANIFEST)
    release.assembling.remove()


def _drawn(table: pa.Table) -> list[str]:
    """Outputs that a shard released and drew itself: what is kept comes from the release before."""
    own = pc.and_(pc.equal(table["status"], Status.RELEASED.value), pc.invert(table["kept"]))
    ids: list[str] = table.filter(own)["output_id"].to_pylist()
    return ids
