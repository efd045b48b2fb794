from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
import torch

from metrics.attacks import parrot
from tests.support.embeddings import rank_1, unit

Rows = npt.NDArray[np.float64]


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def turned(rng: np.random.Generator, n: int, turn: Rows) -> tuple[Rows, Rows]:
    """Originals, and outputs that are the same in another basis, with some noise."""
    x = rng.normal(size=(n, len(turn)))
    return unit(x), unit(x @ turn + 0.1 * rng.normal(size=x.shape))


def rotation(rng: np.random.Generator, dimensions: int = 16) -> Rows:
    return np.asarray(np.linalg.qr(rng.normal(size=(dimensions, dimensions)))[0])


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
    result = linker.embed_outputs({"f": outputs, "face": np.full_like(face, np.nan)})
    assert np.isfinite(result).all()
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
