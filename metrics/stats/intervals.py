"""Trials of an attack, and the confidence interval of its success rate.

Wilson (1927) where each person is one trial, a bootstrap over persons where a person is several. Coverage for few
persons: docs/decisions/007-few-people.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri, stdtrit
from scipy.stats import binomtest

CONFIDENCE = 0.95
REPLICATES = 2000
MAX_DRAWS = 2**21  # held at once; bounds memory

Floats = npt.NDArray[np.floating[Any]]
Numbers = npt.NDArray[np.integer[Any]]
Bools = npt.NDArray[np.bool_]
Names = npt.NDArray[np.str_]
Columns = TypeVar("Columns", bound=Any)


@dataclass(frozen=True)
class Estimate:
    """A value and its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Trials:
    """Repetitions of one attack: ``hits`` (N,), and the person behind each, ``subjects`` (N,)."""

    hits: Bools
    subjects: Names

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


def concatenate(first: Columns, second: Columns) -> Columns:
    """Return the rows of both: two dataclasses of one type whose fields are all arrays of rows."""
    names = [field.name for field in fields(first)]
    merged: Columns = type(first)(
        **{name: np.concatenate([getattr(first, name), getattr(second, name)]) for name in names}
    )
    return merged


def as_subjects(names: Sequence[object]) -> Names:
    """Return names of any kind as an array of text (N,)."""
    return np.array([str(name) for name in names], dtype=np.str_)


def normal_quantile(confidence: float = CONFIDENCE) -> float:
    """Return z of a two-sided normal interval: 1.96 for 95 %."""
    return float(ndtri((1 + confidence) / 2))


def percentile_interval(values: Floats, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Return the central quantiles of bootstrap replicates (R,)."""
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def wilson_interval(successes: int, trials: int, confidence: float = CONFIDENCE) -> Estimate:
    """Return a rate and Wilson's score interval. Raises ValueError without a trial."""
    if not 0 <= successes <= trials or trials == 0:
        raise ValueError(f"successes must be in 0..trials and trials positive, got {successes} of {trials}")
    bounds = binomtest(successes, trials).proportion_ci(confidence, "wilson")
    return Estimate(successes / trials, float(bounds.low), float(bounds.high))


def rule_of_three(trials: int, confidence: float = CONFIDENCE) -> float:
    """Return the upper bound of a share without a hit in ``trials``: 1 - 0.05^(1/n), about 3/n (Hanley 1983)."""
    if trials < 1:
        raise ValueError(f"trials must be positive, got {trials}")
    return 1.0 - float((1 - confidence) ** (1 / trials))


def cluster_bootstrap(
    trials: Trials, rng: np.random.Generator, replicates: int = REPLICATES, confidence: float = CONFIDENCE
) -> Estimate:
    """Return a rate with several trials a person, and its interval: percentiles of a bootstrap over persons.

    Percentiles alone are too narrow where hits are rare or persons few or alike, so the interval also covers Wilson's
    at the effective number of trials: the one that the variance between persons gives, times ``(z / t)^2`` with t of
    Student for persons - 1 degrees of freedom (as Korn and Graubard 1998 with Clopper and Pearson's). A rate of 0 or 1
    has no variance: persons, not trials, are counted by the rule of three, which also limits all other rates. One
    person allows no conclusion about others: [0, 1]. Raises ValueError without a trial.
    """
    if not len(trials):
        raise ValueError("trials must not be empty: an interval needs at least one")
    _, person = np.unique(trials.subjects, return_inverse=True)
    counts = np.bincount(person)
    hits = np.bincount(person[trials.hits], minlength=len(counts))
    people, rate = len(counts), trials.rate
    if people == 1:
        return Estimate(rate, 0.0, 1.0)
    margin = rule_of_three(people, confidence)
    if rate in (0.0, 1.0):
        return Estimate(rate, 0.0, margin) if rate == 0 else Estimate(rate, 1 - margin, 1.0)
    draws = (rng.integers(people, size=(size, people)) for size in chunk_replicates(people, replicates))
    rates = np.concatenate([hits[drawn].sum(1) / counts[drawn].sum(1) for drawn in draws])  # (R,)
    low, high = percentile_interval(rates, confidence)
    variance = float(rates.var()) * people / (people - 1)
    fewer = small_sample_factor(people, confidence) ** -2
    effective = min(len(trials), rate * (1 - rate) / variance * fewer) if variance else len(trials)
    # Wilson's formula, since scipy takes whole trials only
    z = normal_quantile(confidence)
    scale = 1 + z * z / effective
    centre = (rate + z * z / (2 * effective)) / scale
    half = z / scale * math.sqrt(rate * (1 - rate) / effective + z * z / (4 * effective * effective))
    return Estimate(rate, min(low, max(0.0, centre - half), 1 - margin), max(high, min(1.0, centre + half), margin))


def chunk_replicates(columns: int, replicates: int = REPLICATES) -> list[int]:
    """Return how many replicates to draw at once, so that no more than ``MAX_DRAWS`` rows are held."""
    rows = max(1, MAX_DRAWS // columns)
    return [min(rows, replicates - start) for start in range(0, replicates, rows)]


def small_sample_factor(people: int, confidence: float = CONFIDENCE) -> float:
    """Return Student's t over the normal's z: how much wider an interval is when few persons give its variance.

    1.15 for 10 persons. Raises ValueError for fewer than two.
    """
    if people < 2:
        raise ValueError(f"people must be two or more to vary, got {people}")
    return float(stdtrit(people - 1, (1 + confidence) / 2)) / normal_quantile(confidence)


def rate_interval(trials: Trials, rng: np.random.Generator) -> Estimate:
    """Return the rate by Wilson, or by the cluster bootstrap if people have several trials. Raises ValueError."""
    if trials.people == len(trials):
        return wilson_interval(int(trials.hits.sum()), len(trials))
    return cluster_bootstrap(trials, rng)
