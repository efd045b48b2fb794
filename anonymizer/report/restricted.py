"""The custodian's page: originals beside outputs, the closest pairs first, and every record that was not released."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.config import RunConfig
from anonymizer.crypto.encryption import Sealer
from anonymizer.release import history
from anonymizer.release.plan import Plan
from anonymizer.report import histograms, thumbnails
from anonymizer.report.glossary import REASONS, SCORES, Fact, Score, day, settings, sizes
from anonymizer.report.ledger_summary import NAMED, Row, survey
from anonymizer.report.level_leakage import given_away
from anonymizer.report.rendering import render
from anonymizer.report.thumbnails import Shown
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release
from anonymizer.storage.parquet import Rows

if TYPE_CHECKING:
    from anonymizer.release.assemble import Summary


@dataclass(frozen=True)
class Pair:
    """An original beside its output; either is a picture, or the reason why it cannot be shown."""

    record_id: str
    output_id: str
    original: Shown | str
    output: Shown | str
    scores: Sequence[tuple[Score, str]]


@dataclass(frozen=True)
class Carried:
    """A column that goes from the source into ``public/``: how many rows have one, how many differ."""

    name: str
    filled: int
    distinct: int

    @property
    def telling(self) -> bool:
        """Whether nearly every picture has a value of its own, as names and numbers of persons do."""
        return self.distinct > 1 and self.distinct >= self.filled / 2


def write_restricted(release: Release, plan: Plan, config: RunConfig, summary: Summary) -> None:
    """``restricted/report.html``: originals beside outputs, for the custodian's eyes."""
    found = survey(release, plan)
    closest = found.closest
    shown = bool(closest) and all(len(group) == summary.released for group in closest.values())
    sample = [] if shown else found.sample  # of a small release the closest pairs are all pairs
    rows = list({row["record_id"]: row for group in [*closest.values(), sample] for row in group}.values())
    manifest = _manifest(release, config)
    outputs = thumbnails.released(release.handout, _manifest_rows(manifest, rows))
    originals, gone = thumbnails.originals(release, config, rows)

    def pairs(group: Sequence[Row]) -> list[Pair]:
        return [_pair(row, originals, outputs, "gone" if gone else "not read") for row in group]

    size = "" if manifest is None else sizes(manifest)
    Sealer(config.restricted.recipients).write(
        release.report,
        render(
            "restricted.html.j2",
            summary=summary,
            plan=plan,
            started=day(found.started) if found.started else "",
            settings=[
                *settings(plan, config, config.model.id, found.models, size, found.levels),
                *_more(plan, config, summary, found.versions),
            ],
            closest=[(SCORES[name], pairs(group)) for name, group in closest.items()],
            sample=pairs(sample),
            gone=gone,
            against=history.difference(config, release),
            given_away=given_away(found.levels),
            histograms=[(SCORES[n], h) for n, values in found.values.items() if (h := histograms.of_values(values))],
            not_released=found.not_released,
            reasons=REASONS,
            named=NAMED,
            carried=_carried(manifest, config),
        ),
    )


def _pair(row: Row, originals: Mapping[str, Shown | str], outputs: Mapping[str, Shown], missing: str) -> Pair:
    return Pair(
        record_id=row["record_id"],
        output_id=row["output_id"],
        original=originals.get(row["record_id"], missing),
        output=outputs.get(row["output_id"], "not found"),
        scores=[(score, f"{row[name]:.3f}") for name, score in SCORES.items() if row[name] is not None],
    )


def _more(plan: Plan, config: RunConfig, summary: Summary, versions: Sequence[str]) -> list[Fact]:
    """What only the custodian is told."""
    kept = Fact("Key", "set", "who holds it can replay the run")
    lost = Fact("Key", "thrown away", "nobody can replay the run")
    each = f"; {summary.seconds / summary.released:.2g} s for each picture" if summary.released else ""
    chosen = config.boomerang.chosen
    return [
        *([Fact("Choice of level", f"{chosen.level:g}", str(chosen))] if chosen else []),
        kept if plan.key_check else lost,
        Fact("Work", f"{summary.seconds:,.0f} s", f"of sampling and scoring{each}"),
        Fact("Shards", f"{summary.shards:,}", f"of up to {plan.shard_size:,} records"),
        Fact("Version", ", ".join(versions), "of the program that made the pictures"),
        Fact("Source", plan.source),
        Fact("Release", plan.output),
    ]


def _manifest(release: Release, config: RunConfig) -> Rows | None:
    """The columns of the manifest that this page needs; none where the public half is not here."""
    wanted = ["output_id", "file", "member", "format", "width", "height", "label", "caption", *config.source.carry]
    if not release.manifest.exists():
        return None
    return parquet.stored(release.manifest).select(list(dict.fromkeys(wanted)))


def _manifest_rows(manifest: Rows | None, rows: Sequence[Row]) -> list[dict[str, Any]]:
    if manifest is None:
        return []
    wanted = pa.array([row["output_id"] for row in rows], pa.string())
    batches = manifest.to_batches(max_chunksize=parquet.BATCH)
    found = (batch.filter(pc.is_in(batch["output_id"], value_set=wanted)) for batch in batches)
    return [row for batch in found for row in batch.to_pylist()]


def _carried(manifest: Rows | None, config: RunConfig) -> list[Carried]:
    if manifest is None:
        return []
    columns = ((name, manifest[name]) for name in ("label", "caption", *config.source.carry))  # one at a time
    return [
        Carried(name, len(column) - column.null_count, pc.count_distinct(column).as_py())
        for name, column in columns
        if column.null_count < len(column)
    ]
