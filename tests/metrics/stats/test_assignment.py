"""One-to-one assignments, against every permutation, and where scores say nothing."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metrics.stats import assignment
from metrics.stats.assignment import UNASSIGNED, assign, assign_by_blocks


@given(st.integers(1, 5), st.integers(0, 2), st.integers(0, 2**32))
@settings(max_examples=50)
def test_no_permutation_has_a_higher_sum(rows: int, more: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(rows, rows + more))
    chosen = assign(scores, rng)
    best = max(sum(scores[i, p[i]] for i in range(rows)) for p in permutations(range(rows + more), rows))
    assert len(set(chosen)) == rows
    assert scores[np.arange(rows), chosen].sum() == pytest.approx(best)


def test_equal_scores_are_blind_guesses_and_not_the_diagonal() -> None:
    rng = np.random.default_rng(1)
    for blank in (np.zeros((200, 200)), np.full((200, 200), np.nan)):
        assert (assign(blank, rng) == np.arange(200)).mean() < 0.05


def test_rows_beyond_the_columns_stay_unassigned() -> None:
    scores = np.array([[1.0], [3.0], [2.0]])
    assert assign(scores, np.random.default_rng(1)).tolist() == [UNASSIGNED, 0, UNASSIGNED]


def test_a_row_that_could_not_be_compared_takes_what_the_others_leave() -> None:
    scores = np.array([[np.nan, np.nan, np.nan], [5.0, 1.0, 0.0], [6.0, 1.0, 0.5]])
    assert assign(scores, np.random.default_rng(1)).tolist() == [2, 1, 0]


def test_a_large_release_is_matched_by_the_best_candidates_of_each_row(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(2)
    scores = rng.normal(size=(120, 150))
    scores[np.arange(120), rng.permutation(150)[:120]] += 2.0
    exact = assign(scores, rng)
    monkeypatch.setattr(assignment, "MAX_DENSE", 1000)
    monkeypatch.setattr(assignment, "BLOCK", 1000)
    sparse = assign_by_blocks(lambda rows: scores[rows], 120, 150, rng, candidates=40)
    assert (sparse == exact).all()


def test_where_all_want_the_same_few_candidates_the_rest_stays_unassigned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "MAX_DENSE", 100)
    scores = np.tile(np.arange(50.0), (30, 1))
    chosen = assign_by_blocks(lambda rows: scores[rows], 30, 50, np.random.default_rng(3), candidates=4)
    assert sorted(chosen[chosen != UNASSIGNED]) == [47, 48, 49] or sorted(chosen[chosen != UNASSIGNED]) == [
        46,
        47,
        48,
        49,
    ]
    assert (chosen == UNASSIGNED).sum() >= 26


def test_scores_without_a_column_are_refused() -> None:
    with pytest.raises(ValueError, match=r"scores must be \(N, M\)"):
        assign(np.empty((3, 0)), np.random.default_rng(1))
