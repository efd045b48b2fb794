"""A point of a calibration's curve: what attackers find at a level, in each half, and what pictures are good for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from metrics.attacks import attributes
from metrics.audit import audit
from metrics.audit.mechanisms import Mechanism
from metrics.audit.workbench import Workbench
from metrics.features import Embedder
from metrics.stats.intervals import CONFIDENCE, Bools, Estimate, Floats, Names
from metrics.stats.risk import Figure
from metrics.utility import fidelity, utility

REPLICATES = 1000
CHOOSING, CONFIRMING = "choosing", "confirming"

ImageScore = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # originals and outputs (N, 3, S, S) to (N,)


@dataclass(frozen=True)
class CurvePoint:
    """``figures`` of each half; ``utility`` of all records, with 95 % intervals, none where they are too few."""

    figures: Mapping[str, Sequence[Figure]]
    utility: Mapping[str, Estimate | None]


def split_halves(subjects: Names, rng: np.random.Generator) -> Mapping[str, Bools]:
    """Who chooses a level and who confirms it: rows (N,) of two halves that share no person."""
    people, person = np.unique(subjects, return_inverse=True)
    first = (rng.permutation(len(people)) < len(people) // 2)[person]
    return {CHOOSING: first, CONFIRMING: ~first}


class CalibrationCurve:
    """Two halves of a sample and what is measured on them at every level."""

    def __init__(
        self, bench: Workbench, parts: Mapping[str, Bools], attacks: Sequence[str], scores: Mapping[str, ImageScore]
    ) -> None:
        self.evidence, self.rows_by_half, self.attacks, self.scores = bench.evidence, parts, attacks, scores
        self.benches = {half: bench.subset(rows, f", {half}") for half, rows in parts.items()}
        self.rng = bench.rng
        self.utility_embedder = next((e for e in bench.embedders if e.name == "clip"), bench.embedders[0])

    def measure(
        self, method: Mechanism, outputs: torch.Tensor, progress: Callable[[int], None] = lambda done: None
    ) -> CurvePoint:
        """``outputs`` (N, 3, S, S) are what ``method`` made of the originals, as they would be released."""
        beside = {
            h: b.with_outputs(method, outputs[torch.from_numpy(self.rows_by_half[h])]) for h, b in self.benches.items()
        }
        figures = {half: audit.run_attacks(bench, self.attacks, progress).figures for half, bench in beside.items()}
        return CurvePoint(figures, self._measure_utility(outputs, beside))

    def _measure_utility(self, outputs: torch.Tensor, beside: Mapping[str, Workbench]) -> dict[str, Estimate | None]:
        evidence, subjects = self.evidence, self.evidence.subjects
        found: dict[str, Estimate | None] = {
            name: estimate_median(
                score(evidence.originals, outputs).cpu().numpy(), subjects, self.rng(f"median {name}")
            )
            for name, score in self.scores.items()
        }
        before, after = (
            self._embed_all(kind, beside) for kind in (Workbench.embed_originals, Workbench.embed_released)
        )
        found |= _estimate_distances(before, after, subjects, self.rng("fidelity"), self.utility_embedder.name)
        for column, values in evidence.attributes.items():
            found |= _estimate_accuracies(column, values, before, after, subjects, self.rng(f"utility {column}"))
        return found

    def _embed_all(self, kind: Callable[[Workbench, Embedder], Floats], beside: Mapping[str, Workbench]) -> Floats:
        """Embeddings of all records, from those of the halves."""
        parts = {half: kind(bench, self.utility_embedder) for half, bench in beside.items()}
        rows = np.empty((len(self.evidence), parts[CHOOSING].shape[1]), np.float32)
        for half, part in parts.items():
            rows[self.rows_by_half[half]] = part
        return rows


def estimate_median(scores: Floats, subjects: Names, rng: np.random.Generator) -> Estimate | None:
    """The median and its interval: people are drawn again with replacement, percentiles taken."""
    scores = scores.astype(np.float64)
    kept = np.isfinite(scores)
    if not kept.any():
        return None
    _, person = np.unique(subjects[kept], return_inverse=True)
    of = [np.flatnonzero(person == p) for p in range(person.max() + 1)]
    drawn = [np.concatenate([of[p] for p in rng.integers(len(of), size=len(of))]) for _ in range(REPLICATES)]
    again = [float(np.median(scores[kept][rows])) for rows in drawn]
    low, high = np.quantile(again, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Estimate(float(np.median(scores[kept])), float(low), float(high))


def _estimate_distances(
    before: Floats, after: Floats, subjects: Names, rng: np.random.Generator, reader: str
) -> dict[str, Estimate | None]:
    try:
        measured = fidelity.measure_distances(before, after, rng, subjects)
    except ValueError:  # too few people
        return {}
    found: dict[str, Estimate | None] = {}
    for one in measured:
        name = f"{one.measure} ({reader})"
        found[name] = Estimate(one.value, one.low, one.high)
        found[f"{name}, floor"] = Estimate(one.floor, one.floor_low, one.floor_high)
    return found


def _estimate_accuracies(
    column: str, values: Sequence[object], before: Floats, after: Floats, subjects: Names, rng: np.random.Generator
) -> dict[str, Estimate | None]:
    known = np.array([value is not None and value == value for value in values])
    if len(np.unique(subjects[known])) < 2:
        return {f"accuracy of {column}, taught by outputs": None}
    labels = attributes.group_values([value for value, k in zip(values, known, strict=True) if k])
    taught = utility.predict_by_transfer(before[known], after[known], labels, subjects[known], rng)
    shown = utility.measure_utility(taught, rng)
    return {
        f"accuracy of {column}, taught by outputs": shown.outputs,
        f"accuracy of {column}, taught by originals": shown.originals,
    }
