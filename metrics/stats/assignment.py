"""One-to-one assignment: the matching of all rows with columns that maximises the sum of their scores.

An attacker who knows that each candidate is behind one output at most decides for all outputs together. Exact up to
``MAX_DENSE`` scores (Crouse 2016, ``scipy.optimize.linear_sum_assignment``); beyond, over the best candidates of each
row. Rows and columns are shuffled first: of equal scores the solvers take those that stand first, which would be right
wherever rows and columns are in one order.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_array
from scipy.sparse.csgraph import min_weight_full_bipartite_matching

from metrics.stats.intervals import Floats, Numbers

MAX_DENSE = 2**24  # scores held for an exact assignment
BLOCK = 2**22  # scores of a block of rows
CANDIDATES = 50  # best columns of each row, beyond ``MAX_DENSE``
UNASSIGNED = -1


def assign(scores: Floats, rng: np.random.Generator) -> Numbers:
    """Return the column (N,) of each row of ``scores`` (N, M), each column at most once: the highest sum there is.

    Equal scores are decided by ``rng``; NaN and -inf count as lower than every other score of the matrix. With fewer
    columns than rows some rows stay ``UNASSIGNED``. Raises ValueError.
    """
    if scores.ndim != 2 or not scores.size:
        raise ValueError(f"scores must be (N, M) with a row and a column, got {scores.shape}")
    rows, columns = rng.permutation(scores.shape[0]), rng.permutation(scores.shape[1])
    finite = _finite(scores)
    row, column = linear_sum_assignment(finite[np.ix_(rows, columns)], maximize=True)
    chosen = np.full(len(scores), UNASSIGNED)
    chosen[rows[row]] = columns[column]
    return chosen


def assign_by_blocks(
    scores: Callable[[slice], Floats], rows: int, columns: int, rng: np.random.Generator, candidates: int = CANDIDATES
) -> Numbers:
    """Return the column (N,) of each of N ``rows``, as ``assign`` does; ``scores(rows)`` gives a block (n, M).

    Beyond ``MAX_DENSE`` scores only the best ``candidates`` of each row take part. A row that gets none of them is
    ``UNASSIGNED``, and counts in the sum by the last of them: the sum is at least that of the exact assignment.
    """
    step = max(1, BLOCK // columns)
    blocks = [slice(start, start + step) for start in range(0, rows, step)]
    if rows * columns <= MAX_DENSE:
        return assign(np.concatenate([scores(block) for block in blocks]), rng)
    shuffled, count = rng.permutation(columns), min(candidates, columns)
    best, values = np.empty((rows, count), np.int64), np.empty((rows, count))
    for block in blocks:
        part = _finite(scores(block))[:, shuffled]
        best[block] = np.argpartition(part, -count, axis=1)[:, -count:]
        values[block] = np.take_along_axis(part, best[block], axis=1)
    order = rng.permutation(rows)
    chosen = np.full(rows, UNASSIGNED)
    column = _match_candidates(best[order], values[order], columns)
    chosen[order] = np.where(column < columns, shuffled[np.minimum(column, columns - 1)], UNASSIGNED)
    return chosen


def _match_candidates(best: Numbers, values: Floats, columns: int) -> Numbers:
    """Return the column (N,) of each row among its ``best`` (N, K); ``columns`` or more where it gets none of them.

    Each row has a column of its own besides, at the score of its last candidate, so that a full matching exists.
    """
    rows, count = best.shape
    costs = values.max(axis=1, keepdims=True) - values + 1.0  # rows may be shifted; the solver takes 0 for no edge
    costs = np.column_stack([costs, costs.max(axis=1)])
    targets = np.column_stack([best, columns + np.arange(rows)])
    starts = np.arange(0, rows * (count + 1) + 1, count + 1)
    graph = csr_array((costs.ravel(), targets.ravel(), starts), shape=(rows, columns + rows))
    _, column = min_weight_full_bipartite_matching(graph)
    return np.asarray(column)


def _finite(scores: Floats) -> Floats:
    """Return the scores with a number below all others in place of NaN and -inf."""
    usable = np.isfinite(scores)
    if usable.all():
        return scores
    low, high = (float(scores[usable].min()), float(scores[usable].max())) if usable.any() else (0.0, 0.0)
    return np.where(usable, scores, low - (high - low) - 1.0)
