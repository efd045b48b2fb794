"""Median splits along principal axes: parts of a few thousand alike points (Mondrian: LeFevre et al., 2006)."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

AXIS_SAMPLE = 4096  # points that a principal axis is computed from
CHUNK_ROWS = 2**16  # points that are projected at once


def split_by_medians(
    points: Floats, part: Indices, max_size: int, multiple: int, rng: np.random.Generator
) -> Iterator[Indices]:
    """Yield parts of at most ``max_size`` points, each ascending.

    ``points``: (N, D); ``part``: the rows that are divided, ascending. Each part is split at the median of its first
    principal axis, at a multiple of ``multiple``, so that groups of that size leave no more over than they must. Depth
    first: no more than two parts of each size are held.
    """
    if len(part) <= max(max_size, 2 * multiple):
        yield part
        return
    lower = max(1, round(len(part) / 2 / multiple)) * multiple
    order = np.argpartition(_project(points, part, _principal_axis(points, part, rng)), lower)
    halves = np.sort(part[order[:lower]]), np.sort(part[order[lower:]])
    del part, order
    for half in halves:
        yield from split_by_medians(points, half, max_size, multiple, rng)


def _principal_axis(points: Floats, part: Indices, rng: np.random.Generator) -> Floats:
    """Return the direction (D,) of the largest variance of a sample of the part."""
    rows = part if len(part) <= AXIS_SAMPLE else part[rng.choice(len(part), AXIS_SAMPLE, replace=False, shuffle=False)]
    sample = points[rows].astype(np.float64)
    sample -= sample.mean(0)
    axis: Floats = np.linalg.eigh(sample.T @ sample)[1][:, -1].astype(np.float32)
    return axis


def _project(points: Floats, part: Indices, axis: Floats) -> Floats:
    chunks = [points[part[begin : begin + CHUNK_ROWS]] @ axis for begin in range(0, len(part), CHUNK_ROWS)]
    return np.concatenate(chunks)
