from __future__ import annotations

import numpy as np
import pytest
import torch

from metrics.attacks import inversion
from metrics.attacks.training_pairs import Pairs, hold_out
from tests.support.embeddings import rank_1, unit
from tests.support.pictures import pictures


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_exchanged_colours_are_put_back() -> None:
    x, new = pictures(48, 16), pictures(20, 16, seed=1)
    heard: list[int] = []
    inverter = inversion.train(Pairs(x, x[:, [1, 2, 0]]), np.random.default_rng(0), steps=100, progress=heard.append)
    outputs = new[:, [1, 2, 0]]
    restored = inverter.restore(outputs)
    assert inverter.has_improved and sum(heard) == 100
    assert (restored - new).square().mean() < 0.1 * (outputs - new).square().mean()
    assert rank_1(*(unit(p.flatten(1).double().numpy()) for p in (new, restored))) > 0.95


def test_an_untrained_restorer_changes_nothing() -> None:
    for size in (8, 12, 16):
        x = pictures(2, size)
        assert torch.equal(inversion.Restorer()(x), x)


def test_where_nothing_is_to_be_undone_nothing_is_changed() -> None:
    x = pictures(16, 8)
    inverter = inversion.train(Pairs(x, x.clone()), np.random.default_rng(0), steps=3)
    assert not inverter.has_improved and torch.equal(inverter.restore(x), x) and inverter.losses[0] == 0


def test_inverting_twice_gives_the_same_and_leaves_global_seeds_alone() -> None:
    x = pictures(16, 8)
    before = torch.random.get_rng_state()
    a, b = (inversion.train(Pairs(x, -x), np.random.default_rng(0), steps=5).restore(x) for _ in range(2))
    assert torch.equal(a, b) and not torch.equal(a, x) and torch.equal(torch.random.get_rng_state(), before)


def test_what_cannot_be_inverted_is_refused(rng: np.random.Generator) -> None:
    x = pictures(8, 8)
    for call, says in (
        (lambda: Pairs(x, x[:3]), "pair them row by row"),
        (lambda: hold_out([1, 1, 2, 2], rng), "four or more"),
        (lambda: inversion.train(Pairs(x, x), rng, steps=0), "steps must be 1 or more"),
        (lambda: inversion.train(Pairs(x[..., :6], x[..., :6]), rng), "divisible by 4"),
    ):
        with pytest.raises(ValueError, match=says):
            call()
