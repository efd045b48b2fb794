"""Summary of the ledger's rows for reports, collected in one pass and in bounded memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from heapq import nsmallest
from operator import itemgetter

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.policy import public_scores
from anonymizer.records import Plan, Status
from anonymizer.release.ledger import Ledger
from anonymizer.report.glossary import SCORES
from anonymizer.report.thumbnails import Row
from anonymizer.schema import read_metric_models
from anonymizer.storage.layout import Release

N_CLOSEST = 8  # pairs for each score
SAMPLE_SIZE = 24  # pairs drawn at random
MAX_NAMED = 20  # records named for each reason
RankedRow = tuple[float, Row]


@dataclass
class UnreleasedGroup:
    """Records with the same status and reason: their number, and the ids of the first of them."""

    status: str
    reason: str
    count: int = 0
    record_ids: list[str] = field(default_factory=list)


class LedgerSummary:
    """The content of a ledger for reports; ``started`` is the earliest start, ``levels`` counts released images.

    Rows of groups have their ``members``, and stand for all of them where these share an output.
    """

    def __init__(self, plan: Plan) -> None:
        self._random = np.random.default_rng(int(plan.fingerprint[:16], 16))  # the same sample each time
        self._values: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in SCORES}
        self._closest: dict[str, list[RankedRow]] = {name: [] for name in SCORES}
        self._sample: list[RankedRow] = []
        self._unreleased: dict[tuple[str, str], UnreleasedGroup] = {}
        self._versions: set[str] = set()
        self.levels: Counter[float] = Counter()
        self.models: dict[str, str] = {}
        self.started: datetime | None = None

    def add(self, table: pa.Table) -> None:
        """Add the rows of one shard, with all columns of the ledger."""
        self.models |= read_metric_models(table.schema)
        self.started = min(filter(None, [self.started, pc.min(table["started"]).as_py()]), default=None)
        self._versions.update(pc.unique(table["code_version"]).to_pylist())
        is_released = pc.equal(table["status"], Status.RELEASED.value)
        for row in table.filter(pc.invert(is_released)).select(["status", "reason", "record_id"]).to_pylist():
            key = row["status"], row["reason"] or ""
            group = self._unreleased.setdefault(key, UnreleasedGroup(*key))
            group.count += 1
            if group.count <= MAX_NAMED:
                group.record_ids.append(row["record_id"])
        released = _list_outputs(table, is_released)
        self.levels.update(released["level"].to_pylist())
        for name, score in SCORES.items():
            column = pc.fill_null(released[name], float("nan")).to_numpy().astype(np.float64)
            self._values[name].append(column[np.isfinite(column)])
            distance = -column if score.higher_is_closer else column
            self._closest[name] = _smallest(self._closest[name], released, distance, N_CLOSEST)
        self._sample = _smallest(self._sample, released, self._random.random(len(released)), SAMPLE_SIZE)

    @property
    def values(self) -> Mapping[str, npt.NDArray[np.float64]]:
        """Finite scores of released records, by score."""
        values = {name: np.concatenate([np.empty(0), *parts]) for name, parts in self._values.items()}
        return {name: column for name, column in values.items() if len(column)}

    @property
    def closest(self) -> Mapping[str, Sequence[Row]]:
        """Ledger rows of the closest pairs, by score."""
        return {name: [row for _, row in rows] for name, rows in self._closest.items() if rows}

    @property
    def sample(self) -> Sequence[Row]:
        """Ledger rows of a random sample of released records."""
        return [row for _, row in self._sample]

    @property
    def not_released(self) -> Sequence[UnreleasedGroup]:
        return sorted(self._unreleased.values(), key=lambda group: (group.status, -group.count, group.reason))

    @property
    def versions(self) -> Sequence[str]:
        return sorted(self._versions)


def closest_bins(release: Release, plan: Plan) -> dict[str, str]:
    """Return for each score the bin of the released output that is closest to its original."""
    summary = LedgerSummary(plan)
    for _, table in Ledger(release, plan).scan():
        summary.add(table)
    return {SCORES[name].title: str(public_scores.bin_label(rows[0][name])) for name, rows in summary.closest.items()}


def _list_outputs(table: pa.Table, is_released: pa.ChunkedArray) -> pa.Table:
    """Return one row for each released output, with ``record_id`` and ``source_hmac`` of each member of its group."""
    released = table.filter(is_released)
    if table["group"].null_count == len(table):
        return released
    members: dict[str, list[Row]] = {}
    for row in table.filter(table["group"].is_valid()).select(["group", "record_id", "source_hmac"]).to_pylist():
        members.setdefault(row.pop("group"), []).append(row)
    _, first = np.unique(released["output_id"].to_pylist(), return_index=True)
    released = released.take(pa.array(np.sort(first)))
    return released.append_column("members", pa.array([members[name] for name in released["group"].to_pylist()]))


def _smallest(ranked: list[RankedRow], table: pa.Table, rank: npt.NDArray[np.float64], count: int) -> list[RankedRow]:
    """Return the rows of least finite rank among ranked rows and those of a table."""
    order = np.argsort(rank, kind="stable")[:count]
    order = order[np.isfinite(rank[order])]
    rows = table.take(pa.array(order, pa.int64())).to_pylist()
    return nsmallest(count, [*ranked, *zip(rank[order].tolist(), rows, strict=True)], key=itemgetter(0))
