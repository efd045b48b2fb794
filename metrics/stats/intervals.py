"""Trials of an attack, and the interval that their number and the people behind them allow for its rate.

Wilson (1927) for plain rates, a bootstrap over persons where one person is several trials. How often the intervals
cover the truth where persons are few: docs/decisions/007-few-people.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import stdtrit

CONFIDENCE = 0.95
REPLICATES = 2000
MAX_DRAWS = 2**21  # draws held at once; bounds memory

Columns = TypeVar("Columns", bound=Any)


@dataclass(frozen=True)
class Interval:
    """A two-sided interval for a share."""

    low: float
    high: float


@dataclass(frozen=True)
class Trials:
    """One attack, tried many times: ``hits`` (N,) bool, and whose each trial is, ``subjects`` (N,) of text."""

    hits: npt.NDArray[np.bool_]
    subjects: npt.NDArray[np.str_]

    def __post_init__(self) -> None:
        if self.hits.shape != self.subjects.shape or self.hits.ndim != 1:
            raise ValueError(f"hits and subjects must be (N,), got {self.hits.shape} and {self.subjects.shape}")

    def __add__(self, other: Trials) -> Trials:
        return concatenate(self, other)

    def __len__(self) -> int:
        return len(self.hits)

    @property
    def rate(self) -> float:
        return float(self.hits.mean()) if len(self) else math.nan

    @property
    def people(self) -> int:
        return len(np.unique(self.subjects))


def concatenate(one: Columns, other: Columns) -> Columns:
    """The rows of both: two dataclasses of a kind whose fields are all columns, an array each."""
    names = [field.name for field in fields(one)]
    rows = {name: np.concatenate([getattr(one, name), getattr(other, name)]) for name in names}
    both: Columns = type(one)(**rows)
    return both


def as_subjects(names: Sequence[object]) -> npt.NDArray[np.str_]:
    return np.array([str(name) for name in names], dtype=np.str_)


def wilson_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> Interval:
    """Wilson's score interval. Raises ValueError without a trial."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"successes must be in 0..trials and trials positive, got {successes} of {trials}")
    return _wilson(successes / trials, trials, confidence)


def _wilson(share: float, trials: float, confidence: float) -> Interval:
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    scale = 1 + z * z / trials
    centre = (share + z * z / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + z * z / (4 * trials * trials))
    return Interval(max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half)))


def rule_of_three(trials: int, confidence: float = CONFIDENCE) -> float:
    """The upper bound for a share that showed no hit in ``trials``: exactly 1 - 0.05^(1/n), about 3/n (Hanley 1983)."""
    if trials < 1:
        raise ValueError(f"trials must be positive, got {trials}")
    return 1.0 - float((1 - confidence) ** (1 / trials))


def cluster_bootstrap(
    trials: Trials, rng: np.random.Generator, replicates: int = REPLICATES, confidence: float = CONFIDENCE
) -> Interval:
    """For trials that come several to a person: persons are drawn again with replacement, percentiles taken.

    Percentiles alone are too narrow where hits are rare or persons few or alike, so the result covers Wilson's interval
    at the effective number of trials too. That is what the variance between persons tells, times ``(z / t)^2``, t of
    Student with one degree of freedom less than persons (as Korn and Graubard 1998 do with Clopper and Pearson's).
    Where all trials hit or none does there is no variance, and persons, not trials, are counted by the rule of three;
    one hit more says no more than that: an upper bound is never below it, nor a lower one above its counterpart. One
    person says nothing about others: [0, 1]. Raises ValueError without a trial.
    """
    if not len(trials):
        raise ValueError("trials must not be empty: an interval needs at least one")
    hits, counts = _count_by_subject(trials)
    people, share = len(counts), trials.rate
    if people == 1:
        return Interval(0.0, 1.0)
    margin = rule_of_three(people, confidence)
    if share in (0.0, 1.0):
        return Interval(0.0, margin) if share == 0 else Interval(1 - margin, 1.0)
    rates = _resample_rates(hits, counts, rng, replicates)
    low, high = np.quantile(rates, [(1 - confidence) / 2, (1 + confidence) / 2])
    variance = float(rates.var()) * people / (people - 1)
    fewer = small_sample_factor(people, confidence) ** -2
    effective = min(len(trials), share * (1 - share) / variance * fewer) if variance else len(trials)
    score = _wilson(share, effective, confidence)
    return Interval(min(float(low), score.low, 1 - margin), max(float(high), score.high, margin))


def small_sample_factor(people: int, confidence: float = CONFIDENCE) -> float:
    """How much wider an interval is because its variance was told from few persons: Student's t over the normal's z.

    With ``people - 1`` degrees of freedom, 1.15 for 10 persons. Raises ValueError for fewer than two.
    """
    if people < 2:
        raise ValueError(f"people must be two or more to vary, got {people}")
    at = (1 + confidence) / 2
    return float(stdtrit(people - 1, at)) / NormalDist().inv_cdf(at)


def _count_by_subject(trials: Trials) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Hits and trials of each person, (S,) each."""
    _, whose = np.unique(trials.subjects, return_inverse=True)
    counts = np.bincount(whose)
    hits = np.bincount(whose[trials.hits], minlength=len(counts))
    return hits.astype(np.int64), counts.astype(np.int64)


def _resample_rates(
    hits: npt.NDArray[np.int64], counts: npt.NDArray[np.int64], rng: np.random.Generator, replicates: int
) -> npt.NDArray[np.float64]:
    """The rate in each of ``replicates`` draws of as many persons: (R,)."""
    people = len(counts)
    rows = max(1, MAX_DRAWS // people)
    parts = []
    for start in range(0, replicates, rows):
        drawn = rng.integers(people, size=(min(rows, replicates - start), people))  # (rows, S)
        parts.append(hits[drawn].sum(1) / counts[drawn].sum(1))
    return np.concatenate(parts)


def rate_interval(trials: Trials, rng: np.random.Generator) -> Interval:
    """Wilson's where each person is one trial, the cluster bootstrap otherwise. Raises ValueError without a trial."""
    if trials.people == len(trials):
        return wilson_interval(int(trials.hits.sum()), len(trials))
    return cluster_bootstrap(trials, rng)
