from __future__ import annotations

import numpy as np
import pytest
import torch

from metrics.attacks import membership
from metrics.attacks.membership import (
    UNDETECTED_SCORE,
    Candidates,
    MembershipScores,
    denoising_losses,
    nearest_similarity,
    score_closeness,
    score_release,
    score_training_set,
)
from metrics.stats.roc import auc
from tests.support.embeddings import Floats, directions, names, unit
from tests.support.ideal_gaussian import IdealGaussian

RNG = np.random.default_rng


def area(scores: MembershipScores) -> float:
    return auc(scores.members, scores.others).value


def test_the_nearest_of_three_solved_by_hand() -> None:
    targets = np.array([[1.0, 0.0], [0.0, 1.0], [np.nan, 0.0]])
    result = nearest_similarity(np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0], [np.nan, 1.0]]), targets)
    np.testing.assert_allclose(result, [1, 0.8, 0, UNDETECTED_SCORE])
    with pytest.raises(ValueError, match="targets are empty"):
        nearest_similarity(targets, targets[2:])


def test_a_release_of_originals_betrays_all_its_members() -> None:
    photos = directions(RNG(0), 200, 64)
    members, others = Candidates(photos[:100], names(100)), Candidates(photos[100:], names(100, prefix="q"))
    result = score_release(members, others, photos[:100])
    assert area(result) == 1
    first, *rates = membership.figures(result, RNG(1), attack="membership", attacker="unaware", feature="pixels")
    assert first.measure == "AUC" and first.value == 1 and [line.value for line in rates] == [1, None]


def test_an_unrelated_release_betrays_nobody() -> None:
    photos = directions(RNG(2), 900, 32)
    members, others = Candidates(photos[:300], names(300)), Candidates(photos[300:600], names(300, prefix="q"))
    result = auc(*(lambda s: (s.members, s.others))(score_release(members, others, photos[600:])))
    assert result.low <= 0.5 <= result.high


def test_calibration_forgives_faces_that_resemble_everything() -> None:
    """Pictures share a direction, each to a degree of its own; what the method does to others takes that off."""
    rng = RNG(3)

    def pictures() -> Floats:
        return unit(directions(rng, 600, 64) + rng.uniform(0, 3, (600, 1)) * np.eye(64)[0])

    def released(originals: Floats) -> Floats:
        return unit(originals + 1.5 * directions(rng, 600, 64))

    members, others = Candidates(pictures(), names(600)), Candidates(pictures(), names(600, prefix="q"))
    outputs = released(members.embeddings)
    plain = score_release(members, others, outputs)
    calibrated = score_release(members, others, outputs, released(pictures()))
    assert 0.5 < area(plain) < area(calibrated) - 0.03


def test_a_photo_that_was_not_detected_scores_lowest() -> None:
    photos = directions(RNG(4), 4, 8)
    lost = np.full((1, 8), np.nan)
    sides = Candidates(np.concatenate([photos[:1], lost]), names(2)), Candidates(lost, names(1))
    for reference in (None, photos):
        result = score_release(*sides, photos, reference)
        assert result.members[1] == result.others[0] == UNDETECTED_SCORE < result.members[0]


def test_copies_of_training_pictures_are_closer_than_new_ones() -> None:
    rng = RNG(5)
    training, fresh = directions(rng, 300, 32), directions(rng, 200, 32)
    copies = unit(training[:100] + 0.2 * directions(rng, 100, 32))
    new = Candidates(fresh[:100], names(100, prefix="q"))
    assert area(score_closeness(Candidates(copies, names(100)), new, training)) == 1
    usual = score_closeness(Candidates(fresh[100:], names(100)), new, training)
    result = auc(usual.members, usual.others)
    assert result.low <= 0.5 <= result.high


def test_the_loss_of_an_ideal_model_has_its_closed_form(ideal: IdealGaussian) -> None:
    """The error of E[eps | z] at x0 is eps - s (sa d + s eps) / v, with sa = sqrt(abar), s^2 = 1 - abar, d = x0 - mean,
    v = abar spread^2 + s^2; so its expected square is (abar spread^2 / v)^2 + (s sa d / v)^2."""
    offsets = torch.tensor([0.0, 0.2, 0.6])
    images = (ideal.mean + offsets)[:, None, None, None].expand(3, 3, 8, 8)
    result = denoising_losses(ideal, images, RNG(6), levels=(0.3,), repeats=60)
    abar = float(ideal.alphas_cumprod[299])
    v = abar * ideal.spread**2 + 1 - abar
    expected = (abar * ideal.spread**2 / v) ** 2 + (1 - abar) * abar * offsets.numpy() ** 2 / v**2
    np.testing.assert_allclose(result, expected, rtol=0.05)


def test_losses_do_not_depend_on_the_batch(ideal: IdealGaussian, monkeypatch: pytest.MonkeyPatch) -> None:
    images = torch.linspace(-1, 1, 5 * 192).reshape(5, 3, 8, 8)
    whole = denoising_losses(ideal, images, RNG(7), repeats=2)
    monkeypatch.setattr(membership, "CHUNK", 2)
    np.testing.assert_allclose(denoising_losses(ideal, images, RNG(7), repeats=2), whole, rtol=1e-5)
    single = [denoising_losses(ideal, image[None], RNG(7), repeats=2)[0] for image in images]
    np.testing.assert_allclose(single, whole, rtol=1e-5)


def test_what_a_model_knows_well_is_taken_for_a_member(ideal: IdealGaussian) -> None:
    generator = torch.Generator().manual_seed(0)
    near = ideal.mean + ideal.spread * torch.randn(60, 3, 8, 8, generator=generator)
    far = ideal.mean + 1.3 * ideal.spread * torch.randn(60, 3, 8, 8, generator=generator)
    losses = (denoising_losses(ideal, images, RNG(8)) for images in (near, far))
    assert area(score_training_set(*losses, names(60), names(60, prefix="q"))) > 0.95


def test_levels_outside_the_schedule_are_an_error(ideal: IdealGaussian) -> None:
    with pytest.raises(ValueError, match=r"levels must lie in \(0, 1\]"):
        denoising_losses(ideal, torch.zeros(1, 3, 8, 8), RNG(0), levels=(0.0,))


def test_halves_merge_to_the_whole() -> None:
    photos = directions(RNG(9), 40, 8)
    whole = score_release(Candidates(photos[:20], names(20)), Candidates(photos[20:], names(20)), photos[:20])
    halves = [
        score_release(Candidates(photos[m], names(20)[m]), Candidates(photos[20:][m], names(20)[m]), photos[:20])
        for m in (slice(0, 10), slice(10, 20))
    ]
    merged = halves[0] + halves[1]
    np.testing.assert_allclose(merged.members, whole.members)
    np.testing.assert_allclose(merged.others, whole.others)
