"""Groups of near points: an example that is solved by hand, a plain reference, the fewest that can be left over."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer.grouping.mdav import form_groups


def plain_mdav(points: np.ndarray, k: int) -> list[set[int]]:
    """Domingo-Ferrer and Mateo-Sanz's algorithm by its text, point by point; fewer than k at the end wait."""
    left, groups = list(range(len(points))), []

    def distance(index: int, center: np.ndarray) -> float:
        return float(((points[index] - center) ** 2).sum())

    def take(first: int) -> None:
        group = sorted(left, key=lambda i: (distance(i, points[first]), i))[:k]
        groups.append(set(group))
        left[:] = [i for i in left if i not in group]

    while len(left) >= k:
        mean = points[left].mean(0)
        first = max(left, key=lambda i: distance(i, mean))
        take(first)
        if len(left) >= 2 * k:
            take(max(left, key=lambda i: distance(i, points[first])))
    return groups


def untagged(count: int) -> np.ndarray:
    return np.empty((count, 0), np.int64)


def test_an_example_solved_by_hand() -> None:
    """On a line: 10.5, farthest from the mean of 5.1, takes 9; then 0, farthest from 10.5, takes 1.

    The mean of what is left, {4, 5, 6.5}, is 5.2: 6.5 is farthest and takes 5.
    """
    points = np.array([[6.5], [0], [10.5], [1], [4], [9], [5]], np.float32)
    groups, left_over = form_groups(points, untagged(7), 2)
    assert [set(points[group, 0]) for group in groups] == [{10.5, 9}, {0, 1}, {6.5, 5}]
    assert list(points[left_over, 0]) == [4]


@settings(max_examples=30, deadline=None)
@given(count=st.integers(0, 40), k=st.integers(2, 7), seed=st.integers(0, 999))
def test_groups_are_those_of_a_plain_reference(count: int, k: int, seed: int) -> None:
    points = np.random.default_rng(seed).standard_normal((count, 3)).astype(np.float32)
    if not count:
        assert form_groups(np.empty((0, 3), np.float32), untagged(0), k)[0] == []
        return
    groups, left_over = form_groups(points, untagged(count), k)
    assert [set(group) for group in groups] == plain_mdav(points.astype(np.float64), k)
    assert len(left_over) == count % k


def most_groups(tags: list[int], k: int) -> int:
    """The most groups of k different tags: the largest g with enough points, of which a tag gives at most g."""
    counts = Counter(tags)
    return max(g for g in range(len(tags) // k + 1) if sum(min(c, g) for c in counts.values()) >= g * k)


@settings(max_examples=60, deadline=None)
@given(tags=st.lists(st.integers(0, 6), max_size=40), k=st.integers(2, 5), seed=st.integers(0, 99))
def test_no_group_holds_a_tag_twice_and_as_many_groups_are_formed_as_can_be(tags: list[int], k: int, seed: int) -> None:
    points = np.random.default_rng(seed).standard_normal((max(1, len(tags)), 3)).astype(np.float32)[: len(tags)]
    if not tags:
        return
    groups, left_over = form_groups(points, np.array(tags)[:, None], k)
    for group in groups:
        assert len(group) == len({tags[index] for index in group}) == k
    assert sorted([*np.concatenate([*groups, left_over])]) == list(range(len(tags)))
    assert len(groups) == most_groups(tags, k)


def test_tags_of_several_columns_all_count_and_a_negative_one_is_none() -> None:
    points = np.arange(8, dtype=np.float32)[:, None]
    people = np.array([0, 0, 1, 1, 2, 2, -1, -1])
    earlier = np.array([5, -1, 5, -1, -1, -1, -1, -1])
    groups, _ = form_groups(points, np.stack([people, earlier], 1), 3)
    assert len(groups) == 2
    for group in groups:
        for column in (people, earlier):
            held = [tag for tag in column[group] if tag >= 0]
            assert len(held) == len(set(held))


def test_one_person_alone_forms_no_group() -> None:
    groups, left_over = form_groups(np.zeros((9, 2), np.float32), np.zeros((9, 1), np.int64), 2)
    assert groups == []
    assert len(left_over) == 9
