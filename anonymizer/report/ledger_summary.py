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

from anonymizer.policy import public_scores
from anonymizer.records import Plan, Status
from anonymizer.release.ledger import Ledger, metric_models
from anonymizer.report.glossary import SCORES
from anonymizer.storage.layout import Release

N_CLOSEST = 8  # pairs for each score
SAMPLE_SIZE = 24  # pairs drawn at random
MAX_NAMED = 20  # records named for each reason
Row = Mapping[str, Any]
RankedRow = tuple[float, Row]


@dataclass
class UnreleasedGroup:
    """Records that ended alike: how many, and the names of the first of them."""

    status: str
    reason: str
    count: int = 0
    record_ids: list[str] = field(default_factory=list)


class LedgerSummary:
    """What reports show of the ledger's rows, collected shard by shard in memory that does not grow with them.

    ``closest`` and ``sample`` are ledger rows of released records; ``values`` are their finite scores, by score.
    """

    def __init__(self, plan: Plan) -> None:
        self._draw = np.random.default_rng(int(plan.fingerprint[:16], 16))  # the same sample each time
        self._values: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in SCORES}
        self._closest: dict[str, list[RankedRow]] = {name: [] for name in SCORES}
        self._sample: list[RankedRow] = []
        self._unreleased: dict[tuple[str, str], UnreleasedGroup] = {}
        self._levels: Counter[float] = Counter()
        self._versions: set[str] = set()
        self.models: dict[str, str] = {}
        self.started: datetime | None = None

    def add(self, table: pa.Table) -> None:
        """Add the rows of one shard, all columns of the ledger."""
        self.models |= metric_models(table)
        self.started = min(filter(None, [self.started, pc.min(table["started"]).as_py()]), default=None)
        self._versions |= set(pc.unique(table["code_version"]).to_pylist())
        is_released = pc.equal(table["status"], Status.RELEASED.value)
        _count_unreleased(self._unreleased, table.filter(pc.invert(is_released)))
        released = table.filter(is_released)
        self._levels.update(released["level"].to_pylist())
        for name, score in SCORES.items():
            column = pc.fill_null(released[name], float("nan")).to_numpy().astype(np.float64)
            self._values[name].append(column[np.isfinite(column)])
            distance = -column if score.higher_is_closer else column
            self._closest[name] = _smallest(self._closest[name], released, distance, N_CLOSEST)
        self._sample = _smallest(self._sample, released, self._draw.random(len(released)), SAMPLE_SIZE)

    @property
    def values(self) -> Mapping[str, npt.NDArray[np.float64]]:
        values = {name: np.concatenate([np.empty(0), *parts]) for name, parts in self._values.items()}
        return {name: column for name, column in values.items() if len(column)}

    @property
    def closest(self) -> Mapping[str, Sequence[Row]]:
        return {name: [row for _, row in rows] for name, rows in self._closest.items() if rows}

    @property
    def sample(self) -> Sequence[Row]:
        return [row for _, row in self._sample]

    @property
    def not_released(self) -> Sequence[UnreleasedGroup]:
        return sorted(self._unreleased.values(), key=lambda group: (group.status, -group.count, group.reason))

    @property
    def versions(self) -> Sequence[str]:
        return sorted(self._versions)

    @property
    def levels(self) -> Mapping[float, int]:
        return dict(sorted(self._levels.items()))


def closest_bins(release: Release, plan: Plan) -> dict[str, str]:
    """Return for each score the bin of the released output that is closest to its original."""
    summary = LedgerSummary(plan)
    for _, table in Ledger(release, plan).scan():
        summary.add(table)
    return {SCORES[name].title: str(public_scores.bin_label(rows[0][name])) for name, rows in summary.closest.items()}


def _smallest(before: list[RankedRow], table: pa.Table, rank: npt.NDArray[np.float64], most: int) -> list[RankedRow]:
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
