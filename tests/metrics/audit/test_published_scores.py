"""Published scores: exact ones name the original, bins hardly, and pairs are scored as the release was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from anonymizer.policy import public_scores
from metrics.attacks import leaks
from metrics.audit import side_channels
from metrics.audit.published_scores import MAX_RECORDS, PublishedColumn, PublishedScores, recompute_scores
from metrics.stats.risk import Figure
from tests.support.releases import PlainScorer

N = 60
WHOLE, ALONE = "with what is published, rank-1", "rank-1, by what is published alone"


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def pictures(count: int, seed: int) -> torch.Tensor:
    """Pictures that differ in brightness and detail."""
    source = torch.Generator().manual_seed(seed)
    light = torch.rand(count, 1, 1, 1, generator=source) - 0.5
    return (
        light + 0.3 * torch.rand(count, 1, 1, 1, generator=source) * torch.randn(count, 3, 8, 8, generator=source)
    ).clamp(-1, 1)


def published(originals: torch.Tensor, outputs: torch.Tensor, how: str = "exact") -> dict[str, PublishedColumn]:
    exact = PlainScorer().score(originals, outputs)
    result = {name: np.array([getattr(one, name) for one in exact]) for name in ("clip_similarity", "lpips")}
    if how == "exact":
        return {name: PublishedColumn(name, values) for name, values in result.items()}
    return {
        f"{name}_bin": PublishedColumn(
            name, np.array([public_scores.bin_center(v) for v in values]), public_scores.bin_center
        )
        for name, values in result.items()
    }


def released(count: int, how: str) -> tuple[dict[str, PublishedColumn], torch.Tensor, torch.Tensor]:
    """Published columns, originals, and outputs that share half of their light with them."""
    originals = pictures(count, 1)
    outputs = 0.5 * originals + 0.5 * pictures(count, 2)
    return published(originals, outputs, how), originals, outputs


def test_exact_scores_name_the_original() -> None:
    result = recompute_scores(*released(N, "exact"), PlainScorer(), rng())
    for public, recomputed in result.scores.values():
        assert np.allclose(public, np.diagonal(recomputed), atol=1e-6)
    lines = figures(result)
    assert set(lines) == {"published clip_similarity", "published lpips", "all published scores"}
    assert all(line.value is not None and line.value > 0.9 and line.gallery == N for line in lines.values())
    for line in figures(result, measure=ALONE).values():
        assert line.risk_low is not None and line.risk_low > 0.3  # light alone, without what is published, finds few


def test_bins_are_bins_on_both_sides_and_tell_little() -> None:
    result = recompute_scores(*released(N, "binned"), PlainScorer(), rng())
    for public, recomputed in result.scores.values():
        assert (public == np.diagonal(recomputed)).all()
        middles = [public_scores.bin_center(value) for value in public]
        assert (public == middles).all() and len(np.unique(recomputed)) < 20
    lines = figures(result)
    assert "published lpips_bin" in lines
    for line in lines.values():
        assert line.value is not None and line.chance == pytest.approx(1 / N) and line.value < 0.3


def test_scores_of_other_outputs_are_a_guess() -> None:
    columns, originals, outputs = released(N, "exact")
    moved = {name: replace(column, values=np.roll(column.values, 1)) for name, column in columns.items()}
    result = recompute_scores(moved, originals, outputs, PlainScorer(), rng())
    for line in figures(result).values():
        assert line.low is not None and line.low <= 1 / N + 0.02


def test_many_records_are_tried_by_a_sample_and_a_missing_score_is_a_blind_guess() -> None:
    columns, originals, outputs = released(MAX_RECORDS + 20, "exact")
    columns["lpips"] = replace(columns["lpips"], values=np.full(MAX_RECORDS + 20, np.nan))
    result = recompute_scores(columns, originals, outputs, PlainScorer(), rng())
    assert result.rows.shape == (MAX_RECORDS,) and len(np.unique(result.rows)) == MAX_RECORDS
    assert np.isnan(result.scores["lpips"][0]).all() and result.scores["lpips"][1].shape == (MAX_RECORDS, MAX_RECORDS)
    low = figures(result, MAX_RECORDS + 20)["published lpips"]
    assert low.value is not None and low.value < 0.1 and low.gallery == MAX_RECORDS


def test_a_bin_is_read_back_as_its_middle() -> None:
    for value in np.linspace(-0.3, 1.4, 171).tolist():
        assert abs(public_scores.bin_center(value) - value) <= 0.05 + 1e-9
        assert public_scores.bin_label(public_scores.bin_center(value)) == public_scores.bin_label(value)
    assert public_scores.to_number("0.6 to 0.7") == pytest.approx(0.65) and public_scores.to_number(0.61) == 0.61
    assert np.isnan([public_scores.bin_center(float("nan")), public_scores.to_number(None)]).all()
    assert public_scores.find_score_columns(["file", "lpips_bin", "clip_similarity"]) == {
        "lpips_bin": "lpips",
        "clip_similarity": "clip_similarity",
    }


def test_one_person_alone_cannot_be_told_from_anybody() -> None:
    result = recompute_scores(*released(4, "exact"), PlainScorer(), rng())
    (line,) = side_channels.published_score_figures(result, np.array(["one"] * 4), rng())
    assert line.measure == "not run" and line.note == "one person alone: there is nobody to be told from"


def test_what_pictures_give_away_by_themselves_is_not_put_down_to_the_score() -> None:
    """Outputs next to their originals: everybody is found by likeness, and being told the score adds nobody."""
    originals = pictures(N, 1)
    outputs = originals + 0.001
    columns = {"lpips": published(originals, outputs)["lpips"]}
    result = recompute_scores(columns, originals, outputs, PlainScorer(), rng())
    (whole,), (single,) = figures(result).values(), figures(result, measure=ALONE).values()
    assert whole.value == 1.0 and single.value == 0 and single.control == 0
    assert single.note is not None and "with it 100.0%, without it 100.0%" in single.note


def test_of_originals_in_one_bin_the_most_alike_comes_first() -> None:
    likeness = rng().random((N, N))
    likeness[np.arange(N), np.arange(N)] = 1.0
    pair, names = (np.zeros(N), np.zeros((N, N))), np.array([f"person {i}" for i in range(N)])
    assert leaks.link_by_scores([pair], np.arange(N), names, rng(), likeness).within(1).rate == 1
    assert leaks.link_by_scores([pair], np.arange(N), names, rng()).within(1).rate < 0.15


def figures(result: PublishedScores, count: int = N, measure: str = WHOLE) -> dict[str, Figure]:
    names = np.array([f"person {i}" for i in range(count)])
    lines = side_channels.published_score_figures(result, names, rng())
    return {line.feature: line for line in lines if line.measure == measure}
