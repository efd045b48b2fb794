"""From committed shards to a candidate: reconcile, and write what may become ``public/`` in output order."""

from __future__ import annotations

import hashlib
import json
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer import carried, images, ledger, parquet, plan, previous, scores
from anonymizer.config import RunConfig
from anonymizer.errors import IntegrityError, OutputError
from anonymizer.layout import MANIFEST, Release
from anonymizer.place import Place
from anonymizer.records import Status
from anonymizer.sealed import Sealer
from anonymizer.sinks import Placed, ReleasedPicture, open_sink

KEPT = "kept"  # in staging, the folder of what was published before


@dataclass(frozen=True)
class Summary:
    """What a release came to; counts only."""

    read: int
    released: int
    quarantined: int
    failed: int
    shards: int
    seconds: float
    reasons: Mapping[str, int]


def summary(release: Release, the_plan: plan.Plan) -> Summary:
    """Counts of what is committed so far."""
    shards = [(ledger.summarize(number, table), table) for number, table in ledger.committed(release, the_plan)]
    reasons: dict[str, int] = {}
    for _, table in shards:
        for item in pc.value_counts(table["reason"].drop_null()).to_pylist():
            reasons[item["values"]] = reasons.get(item["values"], 0) + item["counts"]
    total = [s for s, _ in shards]
    return Summary(
        read=sum(s.read for s in total),
        released=sum(s.released for s in total),
        quarantined=sum(s.quarantined for s in total),
        failed=sum(s.failed for s in total),
        shards=len(total),
        seconds=sum(s.seconds for s in total),
        reasons=dict(sorted(reasons.items())),
    )


def assemble(release: Release, config: RunConfig) -> None:
    """Write the pictures and the manifest that may become the public half; does nothing where they are there already.

    IntegrityError if counts disagree, or if what is there is not what the ledger speaks of.
    """
    the_plan = plan.read(release)
    tables = dict(ledger.committed(release, the_plan))
    ledger.reconcile(release, the_plan, tables)
    if not release.is_assembled:
        _stage_kept(release, config, tables)
    _quarantine(release, config, tables)
    rows, models = _released(tables)
    if not release.is_assembled:
        attempt = release.assembling / secrets.token_hex(6)
        try:
            for half in (release.public, release.candidate):
                make_room(half)
            _write(attempt, release, config, rows, models)
            attempt.move_to(release.candidate, last=MANIFEST)
        except (IntegrityError, OutputError):
            if not release.is_assembled:  # nobody else was quicker
                raise
    _check_assembled(release, rows)
    release.assembling.remove()
    release.staging.remove()
    release.reopened.remove()


def _stage_kept(release: Release, config: RunConfig, tables: Mapping[int, pa.Table]) -> None:
    """What earlier releases published of records that are kept, beside what this run drew."""
    kept = pa.concat_tables(table.filter(table["kept"]).replace_schema_metadata() for table in tables.values())
    previous.stage(release, kept, release.staging / KEPT, images.SUFFIXES[config.output.image])


def _quarantine(release: Release, config: RunConfig, tables: Mapping[int, pa.Table]) -> None:
    """The outputs that the gate held back, and nothing else, in ``restricted/quarantine/``."""
    if release.purged.exists():  # they have been kept long enough, here or in the release that this one follows
        return
    suffix, sealer = images.SUFFIXES[config.output.image], Sealer(config.restricted.recipients)
    held = _ending(tables, Status.QUARANTINED)
    there = {place.name for place in release.quarantine.children()}
    for row in held.to_pylist():
        name = f"{row['output_id']}{suffix}"
        if sealer.name(name) not in there:
            sealer.put(release.quarantine / name, _staged(release, row, suffix))
    for stale in there - {sealer.name(f"{output_id}{suffix}") for output_id in held["output_id"].to_pylist()}:
        (release.quarantine / stale).remove()


def _write(folder: Place, release: Release, config: RunConfig, rows: pa.Table, models: Mapping[str, str]) -> None:
    """Pictures and manifest of the public half."""
    columns = {n: a.type for n, a in carried.to_arrays(rows["carried"].to_pylist(), config.source.carry).items()}
    sink = open_sink(config.output, columns)
    placed = list(sink.write(_pictures(release, rows, config), folder.fs, folder.path))
    (folder / MANIFEST).put(parquet.to_bytes(_manifest(rows, placed, config, models)))
    if not {item.file for item in placed} <= set(folder.files()):
        raise IntegrityError("release: pictures vanished while it was written: run the same command again")


def make_room(half: Place) -> None:
    """Away with a half without a manifest: on a disk somebody took that, elsewhere a copy was stopped."""
    if half.exists() and half.is_local:
        raise IntegrityError(f"release: {half.name}/ has lost its manifest: restore it, or choose another output")
    half.remove()


def _check_assembled(release: Release, rows: pa.Table) -> None:
    shown = parquet.read(release.manifest, ["output_id", "sha256"])
    if not shown.equals(rows.select(["output_id", "sha256"])):
        raise IntegrityError(
            f"release: {release.handout.name}/ does not hold what the ledger speaks of: restore both from one copy, or "
            "choose another output"
        )


def _ending(tables: Mapping[int, pa.Table], status: Status) -> pa.Table:
    """Rows of all shards that ended so, each with its shard's staging folder."""
    parts = []
    for table in tables.values():
        kept = table.filter(pc.equal(table["status"], status.value)).replace_schema_metadata()
        own = table.schema.metadata[b"staging"].decode()
        parts.append(kept.append_column("staging", pc.if_else(kept["kept"], KEPT, own)))
    return pa.concat_tables(parts)


def _released(tables: Mapping[int, pa.Table]) -> tuple[pa.Table, Mapping[str, str]]:
    """Released rows of all shards in output order; and the scores' models."""
    models: dict[str, str] | None = None
    for shard, table in tables.items():
        own = json.loads(table.schema.metadata[b"metric_models"])
        if models not in (None, own):
            raise IntegrityError(f"shard {shard}: scored by other models than the rest: {ledger.redo(shard)}")
        models = own
    rows = _ending(tables, Status.RELEASED).sort_by("output_id")
    if len(pc.unique(rows["output_id"])) != len(rows):
        raise IntegrityError("release: two records share an output id: nothing is published")
    return rows, models or {}


def _pictures(release: Release, rows: pa.Table, config: RunConfig) -> Iterator[ReleasedPicture]:
    suffix = images.SUFFIXES[config.output.image]
    for batch in rows.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            data = _staged(release, row, suffix)
            columns = carried.from_json(row["carried"])
            yield ReleasedPicture(row["output_id"], data, suffix, row["label"], row["caption"], columns)


def _staged(release: Release, row: Mapping[str, Any], suffix: str) -> bytes:
    """The bytes that the ledger speaks of, and no others."""
    try:
        data: bytes = (release.staging / row["staging"] / f"{row['output_id']}{suffix}").read()
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        if row["kept"]:
            raise IntegrityError(
                "release: a picture that is kept is missing or damaged in the releases before this one: nothing is "
                "published: restore their public/, then run the same command again"
            )
        redo = ledger.redo(row["shard"])
        raise IntegrityError(
            f"shard {row['shard']}: a staged picture is missing or damaged: nothing is published: {redo}"
        )
    return data


def _manifest(rows: pa.Table, placed: Sequence[Placed], config: RunConfig, models: Mapping[str, str]) -> pa.Table:
    if [p.output_id for p in placed] != rows["output_id"].to_pylist():
        raise IntegrityError("release: other pictures were written than the ledger has: nothing is published")
    columns: dict[str, Any] = {
        "output_id": rows["output_id"],
        "file": pa.array([p.file for p in placed], pa.string()),
        "member": pa.array([p.member for p in placed], pa.string()),
        "sha256": rows["sha256"],
        "bytes": rows["bytes"],
        "width": rows["width"],
        "height": rows["height"],
        "format": pa.repeat(config.output.image, len(rows)),
        "label": rows["label"],
        "caption": rows["caption"],
    }
    columns |= carried.to_arrays(rows["carried"].to_pylist(), config.source.carry)
    columns |= {name: rows[name] for name in ("level", "t_boom", "log_snr", "sampler", "steps")}
    columns |= {"model": rows["model"], "model_digest": rows["model_digest"]}
    columns |= {"config_fingerprint": rows["config_fingerprint"]}
    columns |= scores.public_columns(rows, config.output.public_scores)
    public = {name: made_by for name, made_by in models.items() if name in scores.COLUMNS}
    return pa.table(columns).replace_schema_metadata({"metric_models": carried.to_json(public) or "{}"})
