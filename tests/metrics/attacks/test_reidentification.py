from __future__ import annotations

import numpy as np
import pytest

from metrics.attacks import linkage, reidentification
from metrics.attacks.linkage import row_blocks
from metrics.attacks.reidentification import (
    Decisions,
    Faces,
    closed_set,
    enrol,
    open_set,
    person_scores,
    set_thresholds,
    verification,
)
from metrics.stats.intervals import as_subjects
from tests.support.embeddings import Floats, directions, includes, names, people, unit

RNG = np.random.default_rng
DESCRIBED = {"attack": "reidentification", "attacker": "holds other photos", "feature": "planted"}


def faces(angles: list[float], people: str) -> Faces:
    """Faces on the unit circle, by angle in degrees."""
    radians = np.radians(angles)
    return Faces(np.stack([np.cos(radians), np.sin(radians)], 1), as_subjects(list(people)))


def test_a_person_scores_as_the_best_of_his_photos() -> None:
    gallery = faces([0, 60, 90], "aab")
    probes = faces([60, 90, np.nan], "aba")
    result = person_scores(probes.embeddings, gallery, as_subjects(["a", "b", "c"]))
    lost = -np.inf
    expected = [[1, np.cos(np.radians(30)), lost], [np.cos(np.radians(30)), 1, lost], [lost, lost, lost]]
    np.testing.assert_allclose(result, expected)


def test_four_probes_solved_by_hand() -> None:
    """Of a, b, c at 0, 40 and 90 degrees: 10 is nearest to a, 30 to b; 80 to c, then b, then a."""
    result = closed_set(faces([10, 10, 80, 80], "abca"), faces([0, 40, 90], "abc"), RNG(0))
    assert result.ranks.tolist() == [1, 2, 1, 3]
    assert result.chance(1) == pytest.approx(1 / 3) and (result.control != result.ranks).all()


def test_a_lost_face_is_given_up_and_counted() -> None:
    result = closed_set(faces([0, np.nan, 90, 0], "aabb"), faces([0, 90], "ab"), RNG(0))
    assert result.ranks.tolist() == [1, 3, 1, 2]
    assert result.control.tolist() == [2, 3, 2, 1]
    assert result.unseen.hits.tolist() == [False, True, False, False]


def test_a_person_without_a_usable_photo_comes_last() -> None:
    result = closed_set(faces([0, 90, 45], "abc"), faces([0, 90, np.nan], "abc"), RNG(0))
    assert result.ranks.tolist() == [1, 1, 3]


def test_enrolment_takes_detected_photos_first() -> None:
    given = faces([np.nan, 10, 20, 30, np.nan], "aaabc")
    assert np.degrees(np.arctan2(*enrol(given, 1).embeddings.T[::-1]))[:2].round().tolist() == [10, 30]
    assert enrol(given, 1).identities.tolist() == ["a", "b", "c"]
    assert enrol(given, 2).identities.tolist() == ["a", "a", "b", "c"]
    drawn = {enrol(given, 1, RNG(seed)).embeddings[0, 0].round(3) for seed in range(20)}
    assert drawn == {np.cos(np.radians(10)).round(3), np.cos(np.radians(20)).round(3)}
    with pytest.raises(ValueError, match="at least 1"):
        enrol(given, 0)


def test_thresholds_solved_by_hand() -> None:
    scores = np.array([0.4, 0.1, 0.3, 0.2, 0.9, 0.5, 0.5, 0.7, 0.8, 0.6])
    assert set_thresholds(scores, (0.1, 0.2, 0.3, 0.05)).tolist() == [0.8, 0.7, 0.6, np.inf]
    assert np.mean(scores > 0.8) == 0.1
    with pytest.raises(ValueError, match="impostors are empty"):
        set_thresholds(np.array([]), (0.1,))


def test_a_tie_at_the_threshold_lets_no_more_impostors_through() -> None:
    scores = np.array([0.5, 0.5, 0.5, 0.1])
    (limit,) = set_thresholds(scores, (0.5,))
    assert np.mean(scores > limit) <= 0.5


def test_verification_solved_by_hand() -> None:
    """The two impostor pairs lie 40 and 50 degrees apart; at FMR 1/2 one may pass: what is nearer than 50 does."""
    unmodified, gallery = faces([0, 80], "ab"), faces([30, 40], "ab")
    pairs = np.cos(np.radians([40, 50]))  # 0 with b's 40, 80 with a's 30
    assert set_thresholds(pairs, (0.5,)) == pytest.approx(pairs[1])
    probes = faces([75, 85, np.nan, 39], "aabb")  # 45 and 55 from a's photo; lost; 1 from b's
    result = verification(probes, unmodified, gallery, RNG(0), at=(0.5,))
    assert result.impostors == 2
    assert result.trials(0.5).hits.tolist() == [True, False, False, True]
    assert result.unseen.hits.tolist() == [False, False, True, False]
    # the only other person's photo instead: 35, 45; lost; 9
    assert result.control_trials(0.5).hits.tolist() == [True, True, False, True]


def test_each_photo_of_a_person_makes_a_pair() -> None:
    result = verification(faces([0, 9, 90], "aab"), faces([0, 90], "ab"), faces([0, 90, 5], "aba"), RNG(0), at=(0.5,))
    assert result.subjects.tolist() == ["a", "a", "a", "a", "b"]


def test_open_set_solved_by_hand() -> None:
    """Four people at right angles, so a stranger's best score is 0: who is a degree from his own place is found,
    who is a degree from another's is not."""
    gallery, unmodified = faces([0, 90, 180, 270], "abcd"), faces([0, 90, 180, 270], "abcd")
    right = open_set(faces([1, 91, 181, 271], "abcd"), unmodified, gallery, RNG(0), at=(0.5,))
    assert right.trials(0.5).rate == 1 and right.control_trials(0.5).rate == 0
    assert right.impostors == 2 and right.candidates.tolist() == [2, 2, 2, 2]
    assert sorted(right.subjects.tolist()) == list("abcd")
    elsewhere = open_set(faces([181, np.nan, 1, 91], "abcd"), unmodified, gallery, RNG(0), at=(0.5,))
    assert elsewhere.trials(0.5).rate == 0 and elsewhere.unseen.rate == 0.25


@pytest.mark.parametrize("photos", (1, 5))
def test_unmodified_people_are_found_again(photos: int) -> None:
    rng = RNG(1)
    everything, _ = people(rng, 30, 10, 0.7)
    gallery = enrol(everything[np.arange(300) % 10 < 5], photos, rng)
    probes = everything[np.arange(300) % 10 >= 5]
    assert closed_set(probes, gallery, rng).within(1).rate > 0.97
    opened, verified = open_set(probes, probes, gallery, rng), verification(probes, probes, gallery, rng)
    assert len(opened) == 150 and opened.trials(0.1).rate > 0.9 and opened.control_trials(0.1).rate < 0.05
    assert len(verified) == 150 * photos and verified.trials(1e-2).rate > 0.9


def test_strangers_are_found_by_chance() -> None:
    rng = RNG(2)
    gallery = Faces(directions(rng, 40, 64), names(40))
    unmodified, probes = (Faces(directions(rng, 2000, 64), names(40, 50)) for _ in range(2))
    result = closed_set(probes, gallery, rng)
    for k in (1, 5):
        assert includes(result.within(k), k / 40) and includes(result.control_within(k), k / 40)
    verified = verification(probes, unmodified, gallery, rng)
    for at in verified.at:
        assert includes(verified.trials(at), at) and includes(verified.control_trials(at), at)
    opened = open_set(probes, unmodified, gallery, rng)
    for at in opened.at:
        assert includes(opened.trials(at), at / 20) and includes(opened.control_trials(at), at / 20)


def test_the_order_of_photos_does_not_matter() -> None:
    rng = RNG(3)
    everything, _ = people(rng, 12, 4, 2.0)
    gallery, probes = everything[np.arange(48) % 4 < 2], everything[np.arange(48) % 4 >= 2]
    order = rng.permutation(len(gallery))
    for attack in (closed_set, lambda p, g, r: verification(p, p, g, r, at=(0.1,))):
        one, two = attack(probes, gallery, RNG(4)), attack(probes, gallery[order], RNG(4))
        assert one.within(1).rate == two.within(1).rate if attack is closed_set else one.hits.sum() == two.hits.sum()


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    everything, _ = people(RNG(5), 10, 4, 2.0)
    gallery, probes = everything[np.arange(40) % 4 < 2], everything[np.arange(40) % 4 >= 2]
    closed, opened = closed_set(probes, gallery, RNG(6)), open_set(probes, probes, gallery, RNG(6), at=(0.1,))
    monkeypatch.setattr(linkage, "BLOCK", 50)
    assert len(list(row_blocks(20, 20))) == 10
    assert (closed_set(probes, gallery, RNG(6)).ranks == closed.ranks).all()
    assert (open_set(probes, probes, gallery, RNG(6), at=(0.1,)).hits == opened.hits).all()


def test_many_impostor_pairs_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    everything, _ = people(RNG(7), 20, 5, 3.0)
    whole = verification(everything, everything, everything, RNG(8), at=(0.1,))
    monkeypatch.setattr(reidentification, "MAX_IMPOSTOR_PAIRS", 5000)
    part = verification(everything, everything, everything, RNG(8), at=(0.1,))
    assert whole.impostors == 100 * 95 and part.impostors < 5000
    assert part.trials(0.1).rate == pytest.approx(whole.trials(0.1).rate, abs=0.05)


def test_halves_merge_to_the_whole() -> None:
    everything, _ = people(RNG(9), 20, 4, 1.0)
    odd = np.arange(80) % 2 == 1
    whole = verification(everything, everything, everything, RNG(0), at=(0.1,))
    merged = sum_of([verification(everything[h], everything, everything, RNG(0), at=(0.1,)) for h in (odd, ~odd)])
    assert len(merged) == len(whole) and merged.hits.sum() == whole.hits.sum()
    with pytest.raises(ValueError, match="at must be equal"):
        _ = whole + verification(everything, everything, everything, RNG(0), at=(0.2,))


def sum_of(parts: list[Decisions]) -> Decisions:
    return parts[0] + parts[1]


def test_probes_of_people_who_are_not_enrolled_are_an_error() -> None:
    with pytest.raises(ValueError, match="gallery lacks 1 of the probes' people"):
        closed_set(faces([0, 1], "ax"), faces([0, 90], "ab"), RNG(0))
    with pytest.raises(ValueError, match="four people"):
        open_set(faces([0], "a"), faces([0], "a"), faces([0, 90], "ab"), RNG(0))


def test_figures_say_what_is_missing() -> None:
    everything, _ = people(RNG(10), 24, 3, 0.3)
    lost: Floats = everything.embeddings.copy()
    lost[::3] = np.nan
    probes = Faces(unit(lost), everything.identities)
    result = open_set(probes, everything, everything, RNG(11), at=(0.1, 0.01))
    tenth, hundredth, missed = reidentification.figures(result, RNG(12), **DESCRIBED)
    assert tenth.measure == "TPIR at FPIR 0.1" and tenth.value == pytest.approx(2 / 3) and tenth.gallery == 12
    assert hundredth.value is None and "36 impostor comparisons, 100 are needed" in (hundredth.note or "")
    assert missed.measure == "not detected" and missed.value == pytest.approx(1 / 3)
