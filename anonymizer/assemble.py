"""From committed shards to ``public/``: reconcile, write in output order, and show it in one move."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from anonymizer import carried, images, ledger, plan, report, scores
from anonymizer.config import RunConfig
from anonymizer.errors import IntegrityError
from anonymizer.layout import Release
from anonymizer.place import Place
from anonymizer.records import Status
from anonymizer.sinks import Placed, ReleasedPicture, open_sink


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
    """Write the public half and show it; does nothing where it is shown already. IntegrityError if counts disagree."""
    if not release.is_published:
        _publish(release, config)
    release.staging.remove()


def _publish(release: Release, config: RunConfig) -> None:
    if release.public.exists():
        if release.public.is_local:
            raise IntegrityError("release: public/ has lost its manifest: restore it, or choose another output")
        release.public.remove()  # of an earlier attempt that was stopped while copying
    release.assembling.remove()
    the_plan = plan.read(release)
    tables = dict(ledger.committed(release, the_plan))
    ledger.reconcile(release, the_plan, tables)
    rows, models = _released(tables)
    _tidy_quarantine(release, tables.values())

    columns = {n: a.type for n, a in carried.to_arrays(rows["carried"].to_pylist(), config.source.carry).items()}
    sink = open_sink(config.output, columns)
    placed = list(sink.write(_pictures(release, rows, config), release.assembling.fs, release.assembling.path))
    manifest = _manifest(rows, placed, config, models)
    (release.assembling / "manifest.parquet").put(_parquet(manifest))
    report.write_public(release.assembling, the_plan, config, summary(release, the_plan), manifest)
    release.assembling.move_to(release.public, last=release.manifest.name)


def _tidy_quarantine(release: Release, tables: Iterable[pa.Table]) -> None:
    """Remove what attempts that were stopped have put there; the rows of the ledger keep theirs."""
    held: set[str] = set()
    for table in tables:
        kept = table.filter(pc.equal(table["status"], Status.QUARANTINED.value))
        held.update(kept["output_id"].drop_null().to_pylist())
    for place in release.quarantine.children():
        if place.name.partition(".")[0] not in held:
            place.remove()


def _released(tables: Mapping[int, pa.Table]) -> tuple[pa.Table, Mapping[str, str]]:
    """Released rows of all shards in output order, each with its staging folder; and the scores' models."""
    parts: list[pa.Table] = []
    models: dict[str, str] | None = None
    for shard, table in tables.items():
        metadata = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
        own = json.loads(metadata["metric_models"])
        if models not in (None, own):
            raise IntegrityError(f"shard {shard}: scored by other models than the rest: {ledger.redo(shard)}")
        models = own
        kept = table.filter(pc.equal(table["status"], Status.RELEASED.value)).replace_schema_metadata()
        parts.append(kept.append_column("staging", pa.repeat(metadata["staging"], len(kept))))
    rows = pa.concat_tables(parts).sort_by("output_id")
    if len(pc.unique(rows["output_id"])) != len(rows):
        raise IntegrityError("release: two records share an output id: nothing is published")
    return rows, models or {}


def _pictures(release: Release, rows: pa.Table, config: RunConfig) -> Iterator[ReleasedPicture]:
    suffix = images.SUFFIXES[config.output.image]
    for batch in rows.to_batches(max_chunksize=1000):
        for row in batch.to_pylist():
            data = _staged(release.staging / row["staging"] / f"{row['output_id']}{suffix}", row)
            columns = carried.from_json(row["carried"])
            yield ReleasedPicture(row["output_id"], data, suffix, row["label"], row["caption"], columns)


def _staged(place: Place, row: Mapping[str, Any]) -> bytes:
    """The bytes that the ledger speaks of, and no others."""
    try:
        data = place.read()
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
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
    columns |= {"model": pa.repeat(config.model.public_name, len(rows)), "model_digest": rows["model_digest"]}
    columns |= {"config_fingerprint": rows["config_fingerprint"]}
    columns |= scores.public_columns(rows, config.output.public_scores)
    return pa.table(columns).replace_schema_metadata({"metric_models": carried.to_json(models) or "{}"})


def _parquet(table: pa.Table) -> bytes:
    buffer = pa.BufferOutputStream()
    pq.write_table(table, buffer, compression="zstd")
    return bytes(buffer.getvalue().to_pybytes())
