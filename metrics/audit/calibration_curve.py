"""A point of a calibration's curve: the attacks' figures at a level, in each half, and the utility of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from metrics.attacks import attributes
from metrics.audit import audit
from metrics.audit.mechanisms import Mechanism
from metrics.audit.workbench import Workbench
from metrics.stats.intervals import Bools, Estimate, Floats, Names, percentile_interval
from metrics.stats.risk import Figure
from metrics.utility import fidelity, utility

REPLICATES = 1000
CHOOSING, CONFIRMING = "choosing", "confirming"

ImageScore = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # originals and outputs (N, 3, S, S) to (N,)
Estimates = dict[str, Estimate | None]


@dataclass(frozen=True)
class CurvePoint:
    """``figures`` of each half; ``utility`` of all records, with 95 % intervals, None where they are too few."""

    figures: Mapping[str, Sequence[Figure]]
    utility: Mapping[str, Estimate | None]


def split_halves(subjects: Names, rng: np.random.Generator) -> Mapping[str, Bools]:
    """Split rows (N,) into a half that chooses a level and one that confirms it, which share no person."""
    people, person = np.unique(subjects, return_inverse=True)
    first = (rng.permutation(len(people)) < len(people) // 2)[person]
    return {CHOOSING: first, CONFIRMING: ~first}


class CalibrationCurve:
    """Two halves of a sample, measured at every level."""

    def __init__(
        self,
        bench: Workbench,
        rows_by_half: Mapping[str, Bools],
        attacks: Sequence[str],
        scores: Mapping[str, ImageScore],
    ) -> None:
        self.evidence, self.rows_by_half, self.attacks, self.scores = bench.evidence, rows_by_half, attacks, scores
        self.benches = {half: bench.subset(rows, f", {half}") for half, rows in rows_by_half.items()}
        self.rng = bench.rng
        self.utility_embedder = next((e for e in bench.embedders if e.name == "clip"), bench.embedders[0])

    def measure(
        self, mechanism: Mechanism, outputs: torch.Tensor, progress: Callable[[int], None] = lambda done: None
    ) -> CurvePoint:
        """Attack each half of ``outputs`` (N, 3, S, S), made by ``mechanism`` as for a release, and measure utility."""
        benches = {
            half: bench.with_outputs(mechanism, outputs[torch.from_numpy(self.rows_by_half[half])])
            for half, bench in self.benches.items()
        }
        figures = {half: audit.run_attacks(bench, self.attacks, progress).figures for half, bench in benches.items()}
        return CurvePoint(figures, self._measure_utility(outputs, benches))

    def _measure_utility(self, outputs: torch.Tensor, benches: Mapping[str, Workbench]) -> Estimates:
        evidence, embedder = self.evidence, self.utility_embedder
        subjects = evidence.subjects
        estimates: Estimates = {
            name: estimate_median(
                score(evidence.originals, outputs).cpu().numpy(), subjects, self.rng(f"median {name}")
            )
            for name, score in self.scores.items()
        }
        before = self._join({half: bench.embed_originals(embedder) for half, bench in benches.items()})
        after = self._join({half: bench.embed_released(embedder) for half, bench in benches.items()})
        estimates |= _estimate_distances(before, after, subjects, self.rng("fidelity"), embedder.name)
        for column, values in evidence.attributes.items():
            estimates |= _estimate_accuracies(column, values, before, after, subjects, self.rng(f"utility {column}"))
        return estimates

    def _join(self, embeddings: Mapping[str, Floats]) -> Floats:
        """Return the embeddings of all records from those of the halves."""
        rows = np.empty((len(self.evidence), embeddings[CHOOSING].shape[1]), np.float32)
        for half, part in embeddings.items():
            rows[self.rows_by_half[half]] = part
        return rows


def estimate_median(scores: Floats, subjects: Names, rng: np.random.Generator) -> Estimate | None:
    """Return the median of the finite scores and its interval: percentiles of a bootstrap over people."""
    finite = np.isfinite(scores)
    if not finite.any():
        return None
    scores = scores[finite].astype(np.float64)
    _, person = np.unique(subjects[finite], return_inverse=True)
    rows = [np.flatnonzero(person == p) for p in range(person.max() + 1)]
    draws = (rng.integers(len(rows), size=len(rows)) for _ in range(REPLICATES))
    medians = np.array([np.median(scores[np.concatenate([rows[p] for p in drawn])]) for drawn in draws])
    return Estimate(float(np.median(scores)), *percentile_interval(medians))


def _estimate_distances(
    before: Floats, after: Floats, subjects: Names, rng: np.random.Generator, embedder: str
) -> Estimates:
    try:
        measured = fidelity.measure_distances(before, after, rng, subjects)
    except ValueError:  # too few people
        return {}
    estimates: Estimates = {}
    for distance in measured:
        name = f"{distance.measure} ({embedder})"
        estimates[name] = Estimate(distance.value, distance.low, distance.high)
        estimates[f"{name}, floor"] = Estimate(distance.floor, distance.floor_low, distance.floor_high)
    return estimates


def _estimate_accuracies(
    column: str, values: Sequence[object], before: Floats, after: Floats, subjects: Names, rng: np.random.Generator
) -> Estimates:
    known, labels = attributes.known_labels(values)
    if len(np.unique(subjects[known])) < 2:
        return {f"accuracy of {column}, taught by outputs": None}
    predictions = utility.predict_by_transfer(before[known], after[known], labels, subjects[known], rng)
    measured = utility.measure_utility(predictions, rng)
    return {
        f"accuracy of {column}, taught by outputs": measured.outputs,
        f"accuracy of {column}, taught by originals": measured.originals,
    }
