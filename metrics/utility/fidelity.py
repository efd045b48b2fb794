"""Fidelity: the distance of the distribution of outputs from that of originals, by features such as CLIP's.

Two samples of one distribution are at a distance too, and an output shares the luck of its original. So originals of
one half of the people are compared with outputs of the other half and, for a floor, with originals of that other half:
as many images of the same people, with nothing done to them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from metrics.attacks.linkage import row_blocks
from metrics.stats.intervals import Bools, Floats, Names, Numbers, normal_quantile, percentile_interval
from metrics.stats.risk import MIN_TRIALS

SPLITS = 40
BIASED = "biased upwards by sample size: compare with the floor, and with distances of this size alone"
SINGULAR = "; below the dimension covariances are singular, and outputs that vary less can lie below the floor"
UNBIASED = "not biased by sample size; below zero: no difference that this sample shows"

Rows = npt.NDArray[np.float64]
Measure = Callable[[Rows, Rows, Names, Names], float]


@dataclass(frozen=True)
class FidelityDistance:
    """A distance of outputs from originals, and its floor: means over ``SPLITS`` of the people into halves.

    ``value``: originals of one half against outputs of the other. ``low`` to ``high``: its 95 % interval for other
    people, by the delete-half jackknife (Shao and Wu 1989: halves spread as wholes do). It takes the two sides as
    independent: where they show the same people, it is two to seven times too wide. It covers no bias; see ``note``.
    ``floor``: originals of one half against originals of the other; 95 % of splits lie in ``floor_low`` to
    ``floor_high``. Each side of a split has ``size`` rows. Rows that are not finite (not detected) are left out.
    """

    measure: str
    value: float
    low: float
    high: float
    floor: float
    floor_low: float
    floor_high: float
    size: int
    dimension: int
    n_originals: int
    n_outputs: int
    left_out_originals: int
    left_out_outputs: int
    note: str

    @property
    def excess(self) -> float:
        """The distance beyond the floor; exactly zero where outputs are their originals."""
        return self.value - self.floor


def frechet_distance(originals: Floats, outputs: Floats) -> float:
    """Return ``|m_a - m_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2))`` of Gaussians fitted to (N, D) and (M, D).

    Biased upwards, the more the smaller the samples. Where ``S = X^T X``, X the centred rows over the root of N - 1,
    the trace of the root is the sum of the singular values of ``X_a X_b^T``: real, and exact where S is singular.
    Raises ValueError. Source: Dowson and Landau 1982; Heusel et al. 2017, FID.
    """
    a, b = _check_rows(originals, outputs)
    shift = a.mean(0) - b.mean(0)  # (D,)
    roots = (np.linalg.qr((x - x.mean(0)) / np.sqrt(len(x) - 1), mode="r") for x in (a, b))
    x_a, x_b = map(np.asarray, roots)  # (min(N, D), D): the same X^T X
    shared = np.linalg.svd(x_a @ x_b.T, compute_uv=False).sum()
    return max(0.0, float(shift @ shift + (x_a**2).sum() + (x_b**2).sum() - 2 * shared))


def kernel_distance(
    originals: Floats,
    outputs: Floats,
    original_subjects: Names | None = None,
    output_subjects: Names | None = None,
    scale: float = 1.0,
) -> float:
    """Return the squared MMD of (N, D) and (M, D), kernel ``(x . y / scale + 1)^3``: unbiased, it may be below zero.

    Pairs of images of one person would bias it and are left out; without subjects (N,) and (M,) all rows are of
    different people. ``scale`` is about the squared norm of a row. Binkowski et al. (2018, KID) divide by D, as the
    entries of their features are about 1; for rows of unit norm that is almost linear and sees means alone. Raises
    ValueError.
    """
    a, b = _check_rows(originals, outputs)
    of_a, of_b = np.arange(len(a)), -1 - np.arange(len(b))
    if original_subjects is not None and output_subjects is not None:
        _, person = np.unique(np.concatenate([original_subjects, output_subjects]), return_inverse=True)
        of_a, of_b = person[: len(a)], person[len(a) :]

    def mean_kernel(x: Rows, y: Rows, of_x: Numbers, of_y: Numbers) -> float:
        total, pairs = 0.0, 0
        for rows in row_blocks(len(x), len(y)):
            k, differ = x[rows] @ y.T / scale + 1, of_x[rows, None] != of_y
            total, pairs = total + float((k * k * k * differ).sum()), pairs + int(differ.sum())
        if not pairs:
            raise ValueError("originals and outputs must be of two people or more, got one: give more pictures")
        return total / pairs

    return mean_kernel(a, a, of_a, of_a) + mean_kernel(b, b, of_b, of_b) - 2 * mean_kernel(a, b, of_a, of_b)


def measure_distances(
    originals: Floats,
    outputs: Floats,
    rng: np.random.Generator,
    original_subjects: Names | None = None,
    output_subjects: Names | None = None,
) -> list[FidelityDistance]:
    """Return the Fréchet and kernel distance of outputs (M, D) from originals (N, D), rows of unit norm.

    ``original_subjects`` (N,) names the person of each row, by default all different; ``output_subjects`` (M,), by
    default the same as for originals. Raises ValueError for too few people.
    """
    x, y = np.asarray(originals, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
    seen_x, of_x = _finite_side("originals", x, original_subjects)
    seen_y, of_y = _finite_side("outputs", y, original_subjects if output_subjects is None else output_subjects)
    _check_rows(x[seen_x], y[seen_y])
    splits = _split_halves((seen_x, seen_y), (of_x, of_y), rng)
    size, dimension = len(splits[0][0]), x.shape[1]

    def measure(name: str, distance: Measure, least: float, note: str) -> FidelityDistance:
        values = np.array([distance(x[a], y[out], of_x[a], of_y[out]) for a, _, out in splits])
        floors = np.array([distance(x[a], x[b], of_x[a], of_x[b]) for a, b, _ in splits])
        value, half = float(values.mean()), normal_quantile() * float(values.std(ddof=1))
        floor_low, floor_high = percentile_interval(floors)
        return FidelityDistance(
            measure=name, value=value, low=max(least, value - half), high=value + half,
            floor=float(floors.mean()), floor_low=floor_low, floor_high=floor_high,
            size=size, dimension=dimension, n_originals=int(seen_x.sum()), n_outputs=int(seen_y.sum()),
            left_out_originals=int((~seen_x).sum()), left_out_outputs=int((~seen_y).sum()), note=note,
        )  # fmt: skip

    note = BIASED + (SINGULAR if size <= dimension else "")
    frechet = measure("Fréchet distance", lambda a, b, of_a, of_b: frechet_distance(a, b), 0.0, note)
    return [frechet, measure("kernel distance", kernel_distance, -math.inf, UNBIASED)]


def _finite_side(side: str, rows: Rows, subjects: Names | None) -> tuple[Bools, Names]:
    """Return which rows are finite, and the person of each row. Raises ValueError for too few people."""
    seen: Bools = np.asarray(np.isfinite(rows).all(axis=-1))
    names = np.arange(len(rows)).astype(np.str_) if subjects is None else subjects
    if names.shape != seen.shape or len(np.unique(names[seen])) < MIN_TRIALS:
        raise ValueError(
            f"{side} must be (N, D) of {MIN_TRIALS} people or more, each row named, got {rows.shape}, {(~seen).sum()} "
            f"of them not finite, and {len(names)} names of {len(np.unique(names))} people: give more pictures"
        )
    return seen, names


def _split_halves(
    seen: tuple[Bools, Bools], subjects: tuple[Names, Names], rng: np.random.Generator
) -> list[tuple[Numbers, ...]]:
    """Return for each split originals of one half of the people, and originals and outputs of the other: (size,)."""
    people, person = np.unique(np.concatenate(subjects), return_inverse=True)
    splits: list[list[Numbers]] = []
    for _ in range(SPLITS):
        first = (rng.permutation(len(people)) < len(people) // 2)[person]
        originals, outputs = first[: len(subjects[0])], first[len(subjects[0]) :]
        luck = rng.random(max(len(originals), len(outputs)))  # row i of both sides has the same
        masks = seen[0] & originals, seen[0] & ~originals, seen[1] & ~outputs
        splits.append([rows[np.argsort(luck[rows])] for rows in map(np.flatnonzero, masks)])
    size = min(len(rows) for split in splits for rows in split)
    return [tuple(rows[:size] for rows in split) for split in splits]


def _check_rows(originals: Floats, outputs: Floats) -> tuple[Rows, Rows]:
    a, b = np.asarray(originals, dtype=np.float64), np.asarray(outputs, dtype=np.float64)
    fit = a.ndim == b.ndim == 2 and min(len(a), len(b)) >= 2 and a.shape[1] == b.shape[1]
    if not fit or not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError(
            f"originals and outputs must be (N, D) and (M, D), two finite rows or more, got {a.shape} and {b.shape}: "
            "embed more pictures, and both alike"
        )
    return a, b
