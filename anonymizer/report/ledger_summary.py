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
from anonymizer.records import Status
from anonymizer.release import ledger
from anonymizer.release.plan import Plan
from anonymizer.report.glossary import SCORES
from anonymizer.storage.layout import Release

CLOSEST = 8  # pairs for each score
SAMPLE = 24  # pairs drawn at random
NAMED = 20  # records named for each reason
Row = Mapping[str, Any]


@dataclass
class NotReleased:
    """Records that ended alike: how many, and the names of the first of them."""

    status: str
    reason: str
    count: int = 0
    record_ids: list[str] = field(default_factory=list)


@dataclass
class Survey:
    """What the ledger says. ``closest`` and ``sample`` are ledger rows of released records."""

    values: Mapping[str, npt.NDArray[np.float64]]
    closest: Mapping[str, Sequence[Row]]
    sample: Sequence[Row]
    not_released: Sequence[NotReleased]
    models: Mapping[str, str]
    started: datetime | None
    versions: Sequence[str]
    levels: Mapping[float, int]


def survey(release: Release, plan: Plan) -> Survey:
    """Released scores, the closest pairs by each score, a random sample, and what was not released, by reason."""
    draw = np.random.default_rng(int(plan.fingerprint[:16], 16))  # of rows for a page: the same ones each time
    values: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in SCORES}
    closest: dict[str, list[tuple[float, Row]]] = {name: [] for name in SCORES}
    sample: list[tuple[float, Row]] = []
    others: dict[tuple[str, str], NotReleased] = {}
    models: dict[str, str] = {}
    started: list[datetime] = []
    versions: set[str] = set()
    levels: Counter[float] = Counter()
    for _, table in ledger.committed(release, plan):
        models |= {
            k: str(v)
            for k, v in passthrough_columns.from_json(table.schema.metadata[b"metric_models"].decode()).items()
        }
        started += [earliest] if (earliest := pc.min(table["started"]).as_py()) else []
        versions |= set(pc.unique(table["code_version"]).to_pylist())
        _count(others, table.filter(pc.not_equal(table["status"], Status.RELEASED.value)))
        kept = table.filter(pc.equal(table["status"], Status.RELEASED.value))
        levels.update(kept["level"].to_pylist())
        for name, score in SCORES.items():
            column = pc.fill_null(kept[name], float("nan")).to_numpy().astype(np.float64)
            values[name].append(column[np.isfinite(column)])
            closest[name] = _least(closest[name], kept, -column if score.higher_is_closer else column, CLOSEST)
        sample = _least(sample, kept, draw.random(len(kept)), SAMPLE)
    found = {name: np.concatenate([np.empty(0), *parts]) for name, parts in values.items()}
    return Survey(
        values={name: column for name, column in found.items() if len(column)},
        closest={name: [row for _, row in rows] for name, rows in closest.items() if rows},
        sample=[row for _, row in sample],
        not_released=sorted(others.values(), key=lambda group: (group.status, -group.count, group.reason)),
        models=models,
        started=min(started, default=None),
        versions=sorted(versions),
        levels=dict(sorted(levels.items())),
    )


def closest(release: Release, plan: Plan) -> dict[str, str]:
    """Name of a score -> the bin of the released output that is closest to its original by it."""
    found = survey(release, plan).closest
    return {SCORES[name].title: str(public_scores.label(rows[0][name])) for name, rows in found.items()}


def _least(
    before: list[tuple[float, Row]], table: pa.Table, rank: npt.NDArray[np.float64], most: int
) -> list[tuple[float, Row]]:
    """The rows of least rank among those found before and those of a table; a rank that is not finite is out."""
    order = [int(i) for i in np.argsort(rank, kind="stable")[:most] if np.isfinite(rank[i])]
    rows = table.take(pa.array(order, pa.int64())).to_pylist()
    return sorted([*before, *zip((float(rank[i]) for i in order), rows, strict=True)], key=lambda item: item[0])[:most]


def _count(groups: dict[tuple[str, str], NotReleased], table: pa.Table) -> None:
    for status, reason, record_id in _columns(table, "status", "reason", "record_id"):
        key = (status, reason or "")
        group = groups.setdefault(key, NotReleased(*key))
        group.count += 1
        if len(group.record_ids) < NAMED:
            group.record_ids.append(record_id)


def _columns(table: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(table[name].to_pylist() for name in names), strict=True)
