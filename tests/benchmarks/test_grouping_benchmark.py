"""The benchmark of grouping: what it measures is what it says, at a small size."""

from __future__ import annotations

import sys

import pytest

from tests.support import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import grouping


def test_time_and_memory_are_measured_of_a_process() -> None:
    row = grouping.measure_scale(203, 5)
    assert (row["records"], row["left_over"]) == (203, 3)
    assert 0 < row["before"] <= row["peak"]


def test_without_noise_all_groups_are_found_and_with_much_hardly_any(capsys: pytest.CaptureFixture[str]) -> None:
    rows = grouping.measure_recovery("synthetic", grouping.make_features(300), 5, rounds=2)
    assert (rows[0]["pairs"], rows[0]["groups"], rows[0]["spread"]) == (1, 1, 1)
    assert rows[-1]["pairs"] < 0.2
    assert rows[-1]["groups"] < 0.05
    assert rows[-1]["spread"] > 1.2
    assert len(capsys.readouterr().out.splitlines()) == len(rows)
