"""The curve of a calibration: two halves that share nobody, and medians with intervals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.boomerang import Boomerang
from metrics import features
from metrics.audit.calibration_curve import (
    CHOOSING,
    CONFIRMING,
    CalibrationCurve,
    CurvePoint,
    estimate_median,
    split_halves,
)
from metrics.audit.mechanisms import LocalSampling, RoundTrip
from metrics.audit.workbench import Effort, Evidence, Workbench
from tests.support.audit_evidence import EveryFace, people
from tests.support.ideal_gaussian import IdealGaussian


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2, max_size=60), st.integers(0, 99))
def test_nobody_is_in_both_halves_and_everybody_in_one(names: list[str], seed: int) -> None:
    subjects = np.array(names)
    result = split_halves(subjects, np.random.default_rng(seed))
    sides = {half: set(subjects[rows]) for half, rows in result.items()}
    assert not sides[CHOOSING] & sides[CONFIRMING] and sides[CHOOSING] | sides[CONFIRMING] == set(names)
    assert len(sides[CHOOSING]) == len(set(names)) // 2


def curve(**more: Any) -> tuple[CalibrationCurve, torch.Tensor]:
    originals, names = people(np.random.default_rng(0))
    ideal = IdealGaussian(size=16)
    evidence = Evidence(originals, originals, names, True, RoundTrip(), ideal, **more)
    bench = Workbench(evidence, [*features.load_embedders(["pixels"]), EveryFace()], Effort(40, 2, 24), seed=1)
    parts = split_halves(names, np.random.default_rng(1))
    scores = {"distance": lambda a, b: (a - b).abs().mean((1, 2, 3))}
    return CalibrationCurve(bench, parts, ("linkage", "reidentification"), scores), originals


def value(point: CurvePoint, half: str, attack: str) -> float:
    result = [f.value for f in point.figures[half] if f.attack == attack and f.measure.startswith("rank-1")]
    assert result and all(v is not None for v in result)
    return max(v for v in result if v is not None)


def test_risk_falls_and_pictures_move_as_the_level_rises() -> None:
    made, originals = curve(attributes={"side": [i % 2 for i in range(96)]})
    boomerang, rng = Boomerang(IdealGaussian(size=16), "ddim", 4), np.random.default_rng(2)
    methods = [RoundTrip(), LocalSampling(boomerang, 0.3), LocalSampling(boomerang, 1.0)]
    points = [made.measure(method, method(originals, rng)) for method in methods]
    for half in (CHOOSING, CONFIRMING):
        for attack in ("linkage", "reidentification"):
            risks = [value(point, half, attack) for point in points]
            assert risks[0] == pytest.approx(1, abs=0.05) and risks[0] >= risks[1] > risks[2]
    moved = [point.utility["distance"] for point in points]
    assert all(m is not None for m in moved)
    assert [m.value for m in moved if m] == sorted(m.value for m in moved if m)
    for point in points:
        taught = point.utility["accuracy of side, taught by outputs"]
        assert taught is not None and taught.low <= taught.value <= taught.high


def test_each_half_is_attacked_with_its_own_people_alone() -> None:
    made, originals = curve()
    point = made.measure(RoundTrip(), originals)
    for half in (CHOOSING, CONFIRMING):
        assert {f.n for f in point.figures[half] if f.attack == "linkage"} == {48}
        assert {f.gallery for f in point.figures[half] if f.attack == "linkage"} == {48}


def test_outputs_that_are_their_originals_lie_at_the_floor() -> None:
    made, originals = curve()
    utility = made.measure(RoundTrip(), originals).utility
    distance, floor = utility["Fréchet distance (pixels)"], utility["Fréchet distance (pixels), floor"]
    assert distance is not None and floor is not None and distance.value == pytest.approx(floor.value)


def test_a_median_has_the_interval_that_people_allow() -> None:
    """One photo each of 400 people: the interval of a normal's median is 1.253 * 1.96 / 20 to each side."""
    rng = np.random.default_rng(4)
    result = estimate_median(rng.standard_normal(400), np.arange(400).astype(str), rng)
    assert result is not None and abs(result.value) < 0.15
    assert result.high - result.low == pytest.approx(2 * 1.253 * 1.96 / 20, rel=0.3)
    same = estimate_median(np.repeat(rng.standard_normal(20), 20), np.repeat(np.arange(20).astype(str), 20), rng)
    assert same is not None and same.high - same.low > 0.3  # twenty people, not four hundred


def test_scores_that_are_not_numbers_are_left_out_of_a_median() -> None:
    rng = np.random.default_rng(5)
    assert estimate_median(np.full(4, np.nan), np.array(list("abcd")), rng) is None
    result = estimate_median(np.array([1.0, np.nan, 1.0]), np.array(list("abc")), rng)
    assert result is not None and result.value == result.low == result.high == 1
