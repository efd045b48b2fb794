"""Histograms: every value counted once, quartiles, bins, short labels."""

from __future__ import annotations

import numpy as np

from anonymizer.policy import public_scores
from anonymizer.report import histograms


def test_histogram_counts_every_value_once() -> None:
    draw = np.random.default_rng(0)
    for values in (draw.normal(0.8, 0.1, 1000), np.full(5, 0.3), np.array([-1.0, 1.0]), np.array([0.1, 250.0])):
        shape = histograms.from_values(values)
        assert shape is not None
        assert sum(bar.count for bar in shape.bars) == shape.total == len(values)
        assert len(shape.bars) <= histograms.MAX_BARS
        for bar in shape.bars:
            assert 0 <= bar.x <= bar.x + bar.width <= shape.width
            assert shape.top - 1.5 <= bar.y <= shape.base


def test_histogram_has_median_and_quartiles() -> None:
    shape = histograms.from_values(np.linspace(0, 1, 101))
    assert shape is not None
    assert shape.summary == "Median 0.500, middle half 0.250 to 0.750, all 0.000 to 1.000."


def test_histogram_of_bins_keeps_gaps_and_signs() -> None:
    assert (
        public_scores.bin_label(1.0) == public_scores.bin_label(1 + 1e-7) == "0.9 to 1.0"
    )  # else the bin would tell exact copies
    shape = histograms.from_bins([(public_scores.bin_label(-0.05), 2), (public_scores.bin_label(0.2), 5), (None, 1)])
    assert shape is not None
    assert [bar.count for bar in shape.bars] == [2, 0, 0, 5]
    assert shape.summary == "Median between 0.2 and 0.3, middle half between -0.1 and 0.3."


def test_histogram_without_values_is_none() -> None:
    assert histograms.from_values(np.array([float("nan")])) is None
    assert histograms.from_bins([(None, 3)]) is None


def test_counts_are_short() -> None:
    counts = {999: "999", 1000: "1.0k", 9_949: "9.9k", 9_999: "10k", 999_999: "1.0M", 1_200_000: "1.2M"}
    assert {n: histograms.format_count(n) for n in counts} == counts
