"""The custodian's report: originals with their outputs, the closest pairs first, and every record not released."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow.compute as pc

from anonymizer.config import RunConfig
from anonymizer.crypto.encryption import Encryptor
from anonymizer.records import Plan, Summary
from anonymizer.release import history
from anonymizer.release.finished_ledger import FinishedLedger
from anonymizer.report import histograms
from anonymizer.report.glossary import REASONS, SCORES, Setting, describe_settings, describe_sizes, format_date
from anonymizer.report.ledger_summary import LedgerSummary
from anonymizer.report.level_leakage import measure_leakage
from anonymizer.report.rendering import render
from anonymizer.report.thumbnails import Row, read_pairs
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release
from anonymizer.storage.parquet import TableLike


def write_restricted(release: Release, config: RunConfig, ledger: FinishedLedger, rows: LedgerSummary) -> None:
    """Write ``restricted/report.html``, with originals beside outputs; ``rows`` was collected from ``ledger``."""
    plan, summary, closest = ledger.plan, ledger.summary, rows.closest
    has_all_pairs = bool(closest) and all(len(group) == summary.images for group in closest.values())
    sample = [] if has_all_pairs else rows.sample
    selected = {row["record_id"]: row for group in [*closest.values(), sample] for row in group}
    pairs, source_error = read_pairs(release, config, list(selected.values()), _score_figures)
    manifest = parquet.open_table(release.manifest) if release.manifest.exists() else None
    size = "" if manifest is None else describe_sizes(manifest)
    Encryptor(config.restricted.recipients).write(
        release.report,
        render(
            "restricted.html.j2",
            summary=summary,
            k=config.boomerang.k,
            plan=plan,
            started=format_date(rows.started) if rows.started else "",
            settings=[
                *describe_settings(plan, config, config.model.id, rows.models, size, rows.levels),
                *_describe_run(plan, config, summary, rows.versions),
            ],
            closest=[(SCORES[name], [pairs[row["record_id"]] for row in group]) for name, group in closest.items()],
            sample=[pairs[row["record_id"]] for row in sample],
            source_error=source_error,
            difference=history.compare_with_previous(config, release, ledger.originals),
            leakage=measure_leakage(rows.levels),
            histograms=[(SCORES[n], h) for n, values in rows.values.items() if (h := histograms.from_values(values))],
            not_released=rows.not_released,
            reasons=REASONS,
            copied_columns=_copied_columns(manifest, config),
        ),
    )


def _score_figures(row: Row) -> list[tuple[str, str]]:
    return [(score.short, f"{row[name]:.3f}") for name, score in SCORES.items() if row[name] is not None]


def _describe_run(plan: Plan, config: RunConfig, summary: Summary, versions: Sequence[str]) -> list[Setting]:
    """Return further settings for the custodian only."""
    chosen = config.boomerang.chosen
    key = ("set", "its holder can replay the run") if plan.key_check else ("thrown away", "the run cannot be replayed")
    mean = f"; {summary.seconds / summary.images:.2g} s for each picture" if summary.images else ""
    return [
        *([Setting("Choice of level", f"{chosen.level:g}", str(chosen))] if chosen else []),
        Setting("Key", *key),
        Setting("Work", f"{summary.seconds:,.0f} s", f"of sampling and scoring{mean}"),
        Setting("Shards", f"{summary.shards:,}", f"of up to {plan.shard_size:,} records"),
        Setting("Version", ", ".join(versions), "of the program that made the pictures"),
        Setting("Source", plan.source),
        Setting("Release", plan.output),
    ]


def _copied_columns(manifest: TableLike | None, config: RunConfig) -> list[tuple[str, int, int]]:
    """Return the columns copied from the source into ``public/``, with their numbers of values and distinct values."""
    if manifest is None:
        return []
    columns = ((name, manifest[name]) for name in ("label", "caption", *config.source.carry))  # one at a time
    counts = ((name, len(c) - c.null_count, pc.count_distinct(c).as_py()) for name, c in columns)
    return [(name, values, distinct) for name, values, distinct in counts if values]
