"""The custodian's page: originals beside outputs, the closest pairs first, and every record that was not released."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.config import RunConfig
from anonymizer.crypto.encryption import Encryptor
from anonymizer.records import Plan, Summary
from anonymizer.release import history
from anonymizer.release.finished_ledger import FinishedLedger
from anonymizer.report import histograms, thumbnails
from anonymizer.report.glossary import REASONS, SCORES, Setting, describe_settings, describe_sizes, format_date
from anonymizer.report.ledger_summary import MAX_NAMED, LedgerSummary, Row
from anonymizer.report.level_leakage import measure_leakage
from anonymizer.report.rendering import render
from anonymizer.report.thumbnails import ImagePair, Thumbnail
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release
from anonymizer.storage.parquet import TableLike


@dataclass(frozen=True)
class PassthroughColumn:
    """A column that goes from the source into ``public/``: how many rows have one, how many differ."""

    name: str
    filled: int
    distinct: int

    @property
    def is_identifying(self) -> bool:
        """Whether nearly every picture has a value of its own, as names and numbers of persons do."""
        return self.distinct > 1 and self.distinct >= self.filled / 2


def write_restricted(release: Release, config: RunConfig, ledger: FinishedLedger, found: LedgerSummary) -> None:
    """Write ``restricted/report.html``, with originals beside outputs; ``found`` was collected from ``ledger``."""
    plan, summary, closest = ledger.plan, ledger.summary, found.closest
    shown = bool(closest) and all(len(group) == summary.released for group in closest.values())
    sample = [] if shown else found.sample  # of a small release the closest pairs are all pairs
    rows = list({row["record_id"]: row for group in [*closest.values(), sample] for row in group}.values())
    manifest = _open_manifest(release, config)
    outputs = thumbnails.released_thumbnails(release.public_or_candidate, _manifest_rows(manifest, rows))
    originals, gone = thumbnails.original_thumbnails(release, config, rows)

    def pairs(group: Sequence[Row]) -> list[ImagePair]:
        return [_image_pair(row, originals, outputs, "gone" if gone else "not read") for row in group]

    size = "" if manifest is None else describe_sizes(manifest)
    Encryptor(config.restricted.recipients).write(
        release.report,
        render(
            "restricted.html.j2",
            summary=summary,
            plan=plan,
            started=format_date(found.started) if found.started else "",
            settings=[
                *describe_settings(plan, config, config.model.id, found.models, size, found.levels),
                *_describe_run(plan, config, summary, found.versions),
            ],
            closest=[(SCORES[name], pairs(group)) for name, group in closest.items()],
            sample=pairs(sample),
            gone=gone,
            against=history.compare_with_previous(config, release, ledger.originals),
            given_away=measure_leakage(found.levels),
            histograms=[(SCORES[n], h) for n, values in found.values.items() if (h := histograms.from_values(values))],
            not_released=found.not_released,
            reasons=REASONS,
            named=MAX_NAMED,
            carried=_passthrough_columns(manifest, config),
        ),
    )


def _image_pair(
    row: Row, originals: Mapping[str, Thumbnail | str], outputs: Mapping[str, Thumbnail], missing: str
) -> ImagePair:
    return ImagePair(
        record_id=row["record_id"],
        output_id=row["output_id"],
        original=originals.get(row["record_id"], missing),
        output=outputs.get(row["output_id"], "not found"),
        figures=[(score.short, f"{row[name]:.3f}") for name, score in SCORES.items() if row[name] is not None],
    )


def _describe_run(plan: Plan, config: RunConfig, summary: Summary, versions: Sequence[str]) -> list[Setting]:
    """What only the custodian is told."""
    kept = Setting("Key", "set", "who holds it can replay the run")
    lost = Setting("Key", "thrown away", "nobody can replay the run")
    each = f"; {summary.seconds / summary.released:.2g} s for each picture" if summary.released else ""
    chosen = config.boomerang.chosen
    return [
        *([Setting("Choice of level", f"{chosen.level:g}", str(chosen))] if chosen else []),
        kept if plan.key_check else lost,
        Setting("Work", f"{summary.seconds:,.0f} s", f"of sampling and scoring{each}"),
        Setting("Shards", f"{summary.shards:,}", f"of up to {plan.shard_size:,} records"),
        Setting("Version", ", ".join(versions), "of the program that made the pictures"),
        Setting("Source", plan.source),
        Setting("Release", plan.output),
    ]


def _open_manifest(release: Release, config: RunConfig) -> TableLike | None:
    """The columns of the manifest that this page needs; none where the public half is not here."""
    wanted = ["output_id", "file", "member", "format", "width", "height", "label", "caption", *config.source.carry]
    if not release.manifest.exists():
        return None
    return parquet.open_table(release.manifest).select(list(dict.fromkeys(wanted)))


def _manifest_rows(manifest: TableLike | None, rows: Sequence[Row]) -> list[dict[str, Any]]:
    if manifest is None:
        return []
    wanted = pa.array([row["output_id"] for row in rows], pa.string())
    batches = manifest.to_batches(max_chunksize=parquet.BATCH_ROWS)
    found = (batch.filter(pc.is_in(batch["output_id"], value_set=wanted)) for batch in batches)
    return [row for batch in found for row in batch.to_pylist()]


def _passthrough_columns(manifest: TableLike | None, config: RunConfig) -> list[PassthroughColumn]:
    if manifest is None:
        return []
    columns = ((name, manifest[name]) for name in ("label", "caption", *config.source.carry))  # one at a time
    return [
        PassthroughColumn(name, len(column) - column.null_count, pc.count_distinct(column).as_py())
        for name, column in columns
        if column.null_count < len(column)
    ]
