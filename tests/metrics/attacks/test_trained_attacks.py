"""Attackers that learn: they undo what can be undone, and do no harm where there is nothing to learn."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch

from anonymizer.boomerang import Boomerang
from metrics.attacks import inversion, parrot
from metrics.attacks.linkage import link
from metrics.attacks.training_pairs import Pairs, finite_pairs, hold_out
from metrics.audit.mechanisms import LocalSampling, Mechanism, apply, generate_people
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.pictures import pictures

Rows = npt.NDArray[np.float64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def rank_1(originals: Rows | parrot.Matrix, outputs: Rows | parrot.Matrix) -> float:
    who = np.array([f"person {i}" for i in range(len(outputs))])
    return link(outputs, originals, np.arange(len(outputs)), who, np.random.default_rng(0)).within(1).rate


def unit(x: Rows) -> Rows:
    return np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True))


def turned(rng: np.random.Generator, n: int, turn: Rows) -> tuple[Rows, Rows]:
    """Originals, and outputs that are the same in another basis, with some noise."""
    x = rng.normal(size=(n, len(turn)))
    return unit(x), unit(x @ turn + 0.1 * rng.normal(size=x.shape))


def rotation(rng: np.random.Generator, dimensions: int = 16) -> Rows:
    return np.asarray(np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0])


# The attacker's own pairs


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


# The parrot


def test_a_rotation_hides_nobody_from_a_trained_linker(rng: np.random.Generator) -> None:
    turn = rotation(rng)
    originals, outputs = turned(rng, 120, turn)
    linker = parrot.train({"f": originals}, {"f": outputs}, rng)
    gallery, probes = turned(rng, 100, turn)
    embedded = linker.embed_originals({"f": gallery}), linker.embed_outputs({"f": probes})
    assert rank_1(gallery, probes) < 0.06
    assert rank_1(*embedded) > 0.9
    assert all(
        np.allclose(np.linalg.norm(side, axis=1), 1, atol=1e-5) and side.dtype == np.float32 for side in embedded
    )


def test_the_loss_alone_learns_the_rotation_too(rng: np.random.Generator) -> None:
    """InfoNCE from the centred start, without canonical correlation's help."""
    turn = rotation(rng, 8)
    learn, judge = (tuple({"f": side} for side in turned(rng, n, turn)) for n in (120, 40))
    start = parrot._principal_towers(*learn)
    a, b = parrot._train_towers(start, learn, judge)
    assert parrot._score(start, judge) < 0.3 and rank_1(a(judge[0]), b(judge[1])) > 0.9


def test_where_comparing_as_it_is_is_best_training_does_no_harm(rng: np.random.Generator) -> None:
    def noised(n: int) -> tuple[Rows, Rows]:
        x = rng.normal(size=(n, 64))
        return unit(x), unit(x + 2.5 * rng.normal(size=x.shape))

    originals, outputs = noised(80)
    linker = parrot.train({"f": originals}, {"f": outputs}, rng)
    gallery, probes = noised(100)
    trained = rank_1(linker.embed_originals({"f": gallery}), linker.embed_outputs({"f": probes}))
    assert trained >= rank_1(gallery, probes) - 0.05
    assert linker.validation[linker.chosen] >= linker.validation["f"] > linker.validation["canonical"]


def test_independent_outputs_are_linked_no_better_than_by_chance(rng: np.random.Generator) -> None:
    x = [rng.normal(size=(n, 16)) for n in (80, 80, 200, 200)]
    linker = parrot.train({"f": x[0]}, {"f": x[1]}, rng)
    assert rank_1(linker.embed_originals({"f": x[2]}), linker.embed_outputs({"f": x[3]})) < 0.03


def test_the_feature_that_survives_is_found_among_others(rng: np.random.Generator) -> None:
    x = {"survives": rng.normal(size=(80, 16)), "lost": rng.normal(size=(80, 500))}
    y = {"survives": x["survives"] + 0.1 * rng.normal(size=(80, 16)), "lost": rng.normal(size=(80, 500))}
    linker = parrot.train(x, y, rng)
    assert linker.validation["survives"] > 0.9 > linker.validation["lost"]
    assert linker.validation[linker.chosen] == max(linker.validation.values())
    assert linker.embed_outputs(y).shape == linker.embed_originals(x).shape


def test_faces_that_are_not_detected_do_not_stop_the_linker(rng: np.random.Generator) -> None:
    originals, outputs = turned(rng, 80, rotation(rng))
    face = originals.copy()
    face[:30] = np.nan
    linker = parrot.train({"f": originals, "face": face}, {"f": outputs, "face": np.full_like(face, np.nan)}, rng)
    found = linker.embed_outputs({"f": outputs, "face": np.full_like(face, np.nan)})
    assert np.isfinite(found).all()
    nothing = {name: np.full((3, 16), np.nan) for name in ("f", "face")}
    assert np.isnan(linker.embed_outputs(nothing)).all(), "what is not there is for linkage to count, not to guess"


def test_training_twice_gives_the_same_linker_and_leaves_global_seeds_alone() -> None:
    originals, outputs = turned(np.random.default_rng(0), 40, rotation(np.random.default_rng(1)))
    before = torch.random.get_rng_state()
    a, b = (parrot.train({"f": originals}, {"f": outputs}, np.random.default_rng(5)) for _ in range(2))
    assert a.validation == b.validation and torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("originals", "outputs", "says"),
    [
        ({}, {}, "must match"),
        ({"f": np.ones((30, 4))}, {"g": np.ones((30, 4))}, "must match"),
        ({"f": np.ones((5, 4))}, {"f": np.ones((5, 4))}, "make more pairs"),
        ({"f": np.ones((30, 4))}, {"f": np.ones((30, 4))}, "must differ"),
    ],
)
def test_features_that_cannot_be_learnt_from_are_refused(
    originals: parrot.Features, outputs: parrot.Features, says: str, rng: np.random.Generator
) -> None:
    with pytest.raises(ValueError, match=says):
        parrot.train(originals, outputs, rng)


def test_a_feature_that_is_missing_later_is_named(rng: np.random.Generator) -> None:
    originals, outputs = turned(rng, 40, rotation(rng))
    linker = parrot.train({"clip": originals}, {"clip": outputs}, rng)
    with pytest.raises(ValueError, match="clip missing"):
        linker.embed_outputs({"pixels": outputs})


def test_reciprocal_rank_of_a_frame_solved_by_hand() -> None:
    originals = np.eye(3, dtype=np.float32)
    outputs = np.array([[1, 0, 0], [1, 0.5, 0], [0, 0, np.nan]], dtype=np.float32)  # ranks 1, 2, and 2 of 3 blindly
    assert parrot.reciprocal_rank(originals, outputs) == pytest.approx((1 + 1 / 2 + 1 / 2) / 3)


# Inversion


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
