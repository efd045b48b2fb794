from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from metrics.attacks import linkage
from metrics.attacks.linkage import (
    Ranking,
    draw_other_people,
    link,
    link_by_similarity,
    link_by_value,
    rank_distribution,
    ranks,
)
from tests.support.embeddings import directions, includes, names, unit

RNG = np.random.default_rng


def test_four_rows_solved_by_hand() -> None:
    similarity = np.array([[0.9, 0.1, 0.2, 0.3], [0.9, 0.1, 0.2, 0.3], [0.4, 0.3, 0.2, 0.1], [-1.0, -0.5, 0.0, 0.1]])
    assert ranks(similarity, np.array([0, 1, 1, 2]), RNG(0).random(4)).tolist() == [1, 4, 2, 2]


def test_ties_are_broken_evenly() -> None:
    similarity = np.tile([0.9, 0.5, 0.5, 0.5, 0.1], (3000, 1))
    result = ranks(similarity, np.full(3000, 2), RNG(1).random(3000))
    assert set(result.tolist()) == {2, 3, 4}
    assert all(abs(np.mean(result == rank) - 1 / 3) < 0.04 for rank in (2, 3, 4))


def test_a_row_that_was_not_detected_is_a_blind_guess() -> None:
    result = ranks(np.full((3000, 4), np.nan), np.full(3000, 1), RNG(2).random(3000))
    assert all(abs(np.mean(result == rank) - 1 / 4) < 0.04 for rank in (1, 2, 3, 4))


@given(st.integers(0, 2**32), st.integers(1, 8), st.integers(1, 8))
def test_ranks_agree_with_sorting(seed: int, rows: int, columns: int) -> None:
    rng = RNG(seed)
    similarity, truth = rng.standard_normal((rows, columns)), rng.integers(0, columns, rows)
    order = np.argsort(-similarity, axis=1)
    assert ranks(similarity, truth, rng.random(len(truth))).tolist() == [
        list(o).index(t) + 1 for o, t in zip(order, truth, strict=True)
    ]


@given(st.integers(0, 2**32))
def test_the_order_of_candidates_does_not_matter(seed: int) -> None:
    rng = RNG(seed)
    similarity, truth, order = rng.integers(0, 3, (6, 5)) / 2, rng.integers(0, 5, 6), rng.permutation(5)
    there = ranks(similarity, truth, RNG(seed).random(len(truth)))
    assert (ranks(similarity[:, order], np.argsort(order)[truth], RNG(seed).random(len(truth))) == there).all()


def test_a_truth_outside_the_gallery_is_an_error() -> None:
    with pytest.raises(ValueError, match="one of 3 candidates, got 0 to 3"):
        ranks(np.zeros((2, 3)), np.array([0, 3]), RNG(0).random(2))


def test_a_release_of_originals_is_linked_whole() -> None:
    photos = directions(RNG(3), 200, 32)
    result = link(photos, photos, np.arange(200), names(200), RNG(4))
    assert result.within(1).rate == 1 and result.control_within(1).rate == 0 and result.seen.all()


def test_independent_pictures_are_linked_by_chance() -> None:
    rng = RNG(5)
    result = link(directions(rng, 1000, 32), directions(rng, 50, 32), rng.integers(0, 50, 1000), names(1000), rng)
    for k in (1, 5):
        assert result.chance(k) == pytest.approx(k / 50)
        assert includes(result.within(k), k / 50) and includes(result.control_within(k), k / 50)


def test_a_planted_leak_is_found() -> None:
    """Outputs that keep a tenth of their original are linked far above control."""
    rng = RNG(6)
    photos = directions(rng, 300, 256)
    outputs = unit(0.3 * photos + directions(rng, 300, 256))
    result = link(outputs, photos, np.arange(300), names(300), rng)
    assert result.within(1).rate > 0.8 > 0.05 > result.control_within(1).rate


def test_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = RNG(7)
    outputs, photos, truth = rng.integers(-1, 2, (40, 3)).astype(float), np.eye(3), rng.integers(0, 3, 40)
    whole = link(outputs, photos, truth, names(40), RNG(0))
    monkeypatch.setattr(linkage, "BLOCK", 7)
    parts = link(outputs, photos, truth, names(40), RNG(0))
    assert (whole.ranks == parts.ranks).all() and (whole.control == parts.control).all()


def test_halves_merge_to_the_whole() -> None:
    rng = RNG(8)
    outputs, photos, truth = directions(rng, 40, 8), directions(rng, 40, 8), np.arange(40)
    whole = link(outputs, photos, truth, names(40), rng)
    left, right = (link(outputs[h], photos, truth[h], names(40)[h], rng) for h in (slice(0, 20), slice(20, 40)))
    merged = left + right
    assert (merged.ranks == whole.ranks).all() and (merged.subjects == whole.subjects).all()
    assert len(merged.within(1)) == 40 and merged.chance(1) == whole.chance(1)


def test_undetected_rows_are_counted_apart() -> None:
    photos = directions(RNG(9), 100, 16)
    outputs, gallery = photos.copy(), photos.copy()
    outputs[:30], gallery[40:50] = np.nan, np.nan
    result = link(outputs, gallery, np.arange(100), names(100), RNG(9))
    assert result.unseen.rate == 0.3
    assert result.within(1).hits[50:].all() and result.within(1).hits[30:40].all()
    assert (result.ranks[40:50] > 90).all()  # the attacker's picture of them has no embedding


def test_any_similarity_serves() -> None:
    distance = np.abs(np.subtract.outer(np.arange(30.0), np.arange(30.0)))
    assert link_by_similarity(-distance, np.arange(30), names(30), RNG(0)).within(1).rate == 1


def test_a_number_that_travels_with_the_picture_links_it() -> None:
    rng = RNG(10)
    sizes = rng.permutation(1000)[:200].astype(float)
    assert link_by_value(sizes, sizes, np.arange(200), names(200), rng).within(1).rate == 1
    shuffled = link_by_value(rng.permutation(sizes), sizes, np.arange(200), names(200), rng)
    assert includes(shuffled.within(1), 1 / 200)


def test_a_number_that_all_share_links_nobody() -> None:
    same = np.full(400, 7.0)
    assert includes(link_by_value(same, same, np.arange(400), names(400), RNG(11)).within(5), 5 / 400)


@given(st.lists(st.sampled_from("abcd"), min_size=2, max_size=30), st.integers(0, 2**32))
def test_a_stranger_is_never_oneself(people: list[str], seed: int) -> None:
    subjects = np.array(people)
    if len(set(people)) < 2:
        with pytest.raises(ValueError, match="two persons"):
            draw_other_people(subjects, RNG(seed))
    else:
        assert (subjects[draw_other_people(subjects, RNG(seed))] != subjects).all()


def test_every_stranger_is_drawn_as_often() -> None:
    subjects = np.array(["a", "b", "a", "c", "c"])
    drawn = draw_other_people(subjects, RNG(12), np.zeros(3000, dtype=np.int64))
    assert all(abs(np.mean(drawn == row) - 1 / 3) < 0.04 for row in (1, 3, 4))


def test_the_distribution_ends_at_one() -> None:
    result = rank_distribution(Ranking(*np.array([[1, 3, 12], [2, 12, 7], [12, 12, 12]]), np.ones(3, bool), names(3)))
    assert result.rank.tolist() == [1, 2, 5, 10, 12]
    np.testing.assert_allclose(result.share, np.array([1, 1, 2, 2, 3]) / 3)
    np.testing.assert_allclose(result.control, np.array([0, 1, 1, 2, 3]) / 3)
    np.testing.assert_allclose(result.chance, np.array([1, 2, 5, 10, 12]) / 12)


def test_figures_name_measure_chance_and_control() -> None:
    photos = directions(RNG(13), 60, 16)
    result = link(photos, photos, np.arange(60), names(60), RNG(14))
    lines = linkage.figures(result, RNG(15), attack="linkage", attacker="holds the original", feature="pixels")
    first, fifth, missed = lines
    assert [line.measure for line in lines] == ["rank-1", "rank-5", "not detected"]
    assert first.value == 1 and first.chance == 1 / 60 and first.gallery == 60 and first.control == 0
    assert fifth.risk == 1 and missed.value == 0
