from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from anonymizer.boomerang import Boomerang
from metrics.attacks.training_pairs import Pairs, finite_pairs, hold_out
from metrics.audit.mechanisms import LocalSampling, Mechanism, apply, generate_people
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.pictures import pictures


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def paired(method: Mechanism, x: torch.Tensor, rng: np.random.Generator, **more: Any) -> Pairs:
    return finite_pairs(Pairs(x, apply(method, x, rng, **more)))


def test_invented_pairs_follow_the_method_and_the_level(ideal: IdealGaussian, rng: np.random.Generator) -> None:
    heard: list[int] = []
    strangers = generate_people(ideal, 50, rng, batch=20)
    pairs = paired(LocalSampling(Boomerang(ideal), 0.1), strangers, rng, batch=20, progress=heard.append)
    assert pairs.originals.shape == pairs.outputs.shape == (50, 3, 8, 8) and heard == [20, 20, 10]
    assert pairs.outputs.dtype == torch.float32 and pairs.outputs.abs().max() <= 1
    for half in (pairs.originals, pairs.outputs):  # few steps take some of the spread away
        assert half.mean().item() == pytest.approx(ideal.mean, abs=0.02)
        assert half.std().item() == pytest.approx(ideal.spread, rel=0.2)
    abar, power = float(ideal.alphas_cumprod[99]), ideal.spread**2
    expected = abar * power / (abar * power + 1 - abar)  # of exact posterior samples, 0.35
    assert correlation(pairs) == pytest.approx(expected, abs=0.06)
    assert abs(correlation(paired(LocalSampling(Boomerang(ideal, steps=20), 1.0), strangers, rng))) < 0.05


def correlation(pairs: Pairs) -> float:
    return float(np.corrcoef(pairs.originals.flatten(), pairs.outputs.flatten())[0, 1])


def test_pairs_are_made_of_the_pictures_given_in_their_order(ideal: IdealGaussian, rng: np.random.Generator) -> None:
    given = pictures(6, 8)
    pairs = paired(LocalSampling(Boomerang(ideal), 0.001), given, rng, batch=2)
    assert torch.equal(pairs.originals, given)
    torch.testing.assert_close(pairs.outputs, given, atol=0.1, rtol=0)


def test_the_same_generator_makes_the_same_pairs_and_the_next_others(ideal: IdealGaussian) -> None:
    method, rng = LocalSampling(Boomerang(ideal, steps=5), 0.5), np.random.default_rng(1)
    first, second = (paired(method, pictures(4, 8), rng) for _ in range(2))
    again = paired(method, pictures(4, 8), np.random.default_rng(1), batch=3)
    assert torch.equal(first.outputs, again.outputs) and not torch.equal(first.outputs, second.outputs)


def test_pairs_that_the_model_spoilt_are_left_out(ideal: IdealGaussian, rng: np.random.Generator) -> None:
    given = pictures(4, 8)
    given[2, 0, 0, 0] = torch.nan
    method = LocalSampling(Boomerang(ideal, steps=2), 0.5)
    assert torch.equal(paired(method, given, rng).originals, given[[0, 1, 3]])


def test_nobody_is_on_both_sides_of_a_split(rng: np.random.Generator) -> None:
    people = np.repeat(np.arange(20), 5)
    held = hold_out(people, rng)
    assert held.sum() == 25 and not set(people[held]) & set(people[~held])
