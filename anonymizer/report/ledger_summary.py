"""One pass over the ledger: what a report shows of a release, in memory that a million records do not fill."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.data import passthrough_columns
from anonymizer.policy import public_scores
from anonymizer.records import Plan, Status
from anonymizer.release import ledger
from anonymizer.report.glossary import SCORES
from anonymizer.storage.layout import Release

N_CLOSEST = 8  # pairs for each score
SAMPLE_SIZE = 24  # pairs drawn at random
MAX_NAMED = 20  # records named for each reason
Row = Mapping[str, Any]


@dataclass
class UnreleasedGroup:
    """Records that ended alike: how many, and the names of the first of them."""

    status: str
    reason: str
    count: int = 0
    record_ids: list[str] = field(default_factory=list)


@dataclass
class LedgerSummary:
    """What the ledger says. ``closest`` and ``sample`` are ledger rows of released records."""

    values: Mapping[str, npt.NDArray[np.float64]]
    closest: Mapping[str, Sequence[Row]]
    sample: Sequence[Row]
    not_released: Sequence[UnreleasedGroup]
    models: Mapping[str, str]
    started: datetime | None
    versions: Sequence[str]
    levels: Mapping[float, int]


def summarize_ledger(release: Release, plan: Plan) -> LedgerSummary:
    """Released scores, the closest pairs by each score, a random sample, and what was not released, by reason."""
    draw = np.random.default_rng(int(plan.fingerprint[:16], 16))  # of rows for a page: the same ones each time
    values: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in SCORES}
    closest: dict[str, list[tuple[float, Row]]] = {name: [] for name in SCORES}
    sample: list[tuple[float, Row]] = []
    others: dict[tuple[str, str], UnreleasedGroup] = {}
    models: dict[str, str] = {}
    started: list[datetime] = []
    versions: set[str] = set()
    levels: Counter[float] = Counter()
    for _, table in ledger.scan_shards(release, plan):
        models |= {
            k: str(v)
            for k, v in passthrough_columns.from_json(table.schema.metadata[b"metric_models"].decode()).items()
        }
        started += [earliest] if (earliest := pc.min(table["started"]).as_py()) else []
        versions |= set(pc.unique(table["code_version"]).to_pylist())
        _count_unreleased(others, table.filter(pc.not_equal(table["status"], Status.RELEASED.value)))
        kept = table.filter(pc.equal(table["status"], Status.RELEASED.value))
        levels.update(kept["level"].to_pylist())
        for name, score in SCORES.items():
            column = pc.fill_null(kept[name], float("nan")).to_numpy().astype(np.float64)
            values[name].append(column[np.isfinite(column)])
            closest[name] = _smallest(closest[name], kept, -column if score.higher_is_closer else column, N_CLOSEST)
        sample = _smallest(sample, kept, draw.random(len(kept)), SAMPLE_SIZE)
    found = {name: np.concatenate([np.empty(0), *parts]) for name, parts in values.items()}
    return LedgerSummary(
        values={name: column for name, column in found.items() if len(column)},
        closest={name: [row for _, row in rows] for name, rows in closest.items() if rows},
        sample=[row for _, row in sample],
        not_released=sorted(others.values(), key=lambda group: (group.status, -group.count, group.reason)),
        models=models,
        started=min(started, default=None),
        versions=sorted(versions),
        levels=dict(sorted(levels.items())),
    )


def closest_bins(release: Release, plan: Plan) -> dict[str, str]:
    """Name of a score -> the bin of the released output that is closest to its original by it."""
    found = summarize_ledger(release, plan).closest
    return {SCORES[name].title: str(public_scores.bin_label(rows[0][name])) for name, rows in found.items()}


def _smallest(
    before: list[tuple[float, Row]], table: pa.Table, rank: npt.NDArray[np.float64], most: int
) -> list[tuple[float, Row]]:
    """The rows of least rank among those found before and those of a table; a rank that is not finite is out."""
    order = [int(i) for i in np.argsort(rank, kind="stable")[:most] if np.isfinite(rank[i])]
    rows = table.take(pa.array(order, pa.int64())).to_pylist()
    return sorted([*before, *zip((float(rank[i]) for i in order), rows, strict=True)], key=lambda item: item[0])[:most]


def _count_unreleased(groups: dict[tuple[str, str], UnreleasedGroup], table: pa.Table) -> None:
    for status, reason, record_id in _iter_rows(table, "status", "reason", "record_id"):
        key = (status, reason or "")
        group = groups.setdefault(key, UnreleasedGroup(*key))
        group.count += 1
        if len(group.record_ids) < MAX_NAMED:
            group.record_ids.append(record_id)


def _iter_rows(table: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in names), strict=True)
