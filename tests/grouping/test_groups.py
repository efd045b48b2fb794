"""Grouping as a whole: what every group keeps, whatever the data; clusters that are found; order that is ignored."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer.grouping import groups as grouping
from anonymizer.grouping.groups import Grouping, group_records
from anonymizer.grouping.partition import split_by_medians


def digests_of(count: int, seed: int = 0) -> np.ndarray:
    return np.array([f"{value:032d}" for value in np.random.default_rng(seed).permutation(count)], "S32")


def rng() -> np.random.Generator:
    return np.random.default_rng(42)


def as_sets(result: Grouping) -> set[frozenset[int]]:
    return {frozenset(map(int, group)) for group in result.groups}


@settings(max_examples=60, deadline=None)
@given(data=st.data(), count=st.integers(0, 60), k=st.integers(2, 6), merge=st.booleans(), cell=st.integers(4, 40))
def test_every_group_is_large_enough_within_a_stratum_and_of_different_tags(
    data: st.DataObject, count: int, k: int, merge: bool, cell: int
) -> None:
    seed = data.draw(st.integers(0, 99))
    features = np.random.default_rng(seed).integers(-2, 3, (count, 4)).astype(np.float16)  # with many ties
    strata = np.array(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)), np.int64)
    tags = np.array(data.draw(st.lists(st.integers(-1, 12), min_size=count, max_size=count)), np.int64)[:, None]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "CELL_POINTS", cell)
        result = group_records(features, digests_of(count), k, rng(), strata=strata, tags=tags, merge=merge)
    for group in result.groups:
        assert k <= len(group) <= (2 * k - 1 if merge else k)
        assert len(set(strata[group])) == 1
        held = [tag for tag in tags[group, 0] if tag >= 0]
        assert len(held) == len(set(held))
    members = [*map(int, np.concatenate([*result.groups, result.left_over]))] if count else []
    assert sorted(members) == list(range(count))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 50), seed=st.integers(0, 999), merge=st.booleans())
def test_the_order_of_records_does_not_matter(count: int, seed: int, merge: bool) -> None:
    random = np.random.default_rng(seed)
    features, order = random.standard_normal((count, 5)).astype(np.float32), random.permutation(count)
    strata, tags, digests = random.integers(0, 2, count), random.integers(0, 9, (count, 1)), digests_of(count, seed)
    one = group_records(features, digests, 3, rng(), strata=strata, tags=tags, merge=merge)
    other = group_records(
        features[order], digests[order], 3, rng(), strata=strata[order], tags=tags[order], merge=merge
    )
    assert as_sets(one) == {frozenset(int(order[index]) for index in group) for group in as_sets(other)}


def test_clusters_of_k_far_from_each_other_are_found() -> None:
    """With 800 clusters and cells of 200 points no median may cut through a cluster either."""
    random = np.random.default_rng(3)
    k, centers = 5, 100 * random.permutation(800)[:, None] * np.ones((1, 3))
    features = (np.repeat(centers, k, 0) + random.uniform(-1, 1, (800 * k, 3))).astype(np.float32)
    order = random.permutation(800 * k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grouping, "CELL_POINTS", 200)
        result = group_records(features[order], digests_of(800 * k), k, rng(), perturbation=0)
    expected = {frozenset(map(int, np.flatnonzero(order // k == cluster))) for cluster in range(800)}
    assert as_sets(result) == expected


@pytest.mark.parametrize("count", [20, 100, 5003])
def test_no_more_are_left_over_than_a_stratum_must_leave(count: int) -> None:
    features, strata = np.random.default_rng(1).standard_normal((count, 8)).astype(np.float32), np.arange(count) % 3
    result = group_records(features, digests_of(count), 7, rng(), strata=strata)
    assert np.array_equal(np.bincount(strata[result.left_over], minlength=3), np.bincount(strata) % 7)


def test_those_left_over_join_the_nearest_group_up_to_its_largest_size() -> None:
    features = np.array([[0], [1], [2], [3], [50], [51], [52]], np.float32)
    result = group_records(features, digests_of(7), 3, rng(), merge=True, perturbation=0)
    assert sorted(map(len, result.groups)) == [3, 4]
    assert frozenset({4, 5, 6}) in as_sets(result)
    single = group_records(features[:5], digests_of(5), 3, rng(), merge=True, perturbation=0)
    assert sorted(map(len, single.groups)) == [5]  # 2 k - 1


def test_a_stratum_below_k_is_left_over_even_when_merged() -> None:
    strata = np.array([0, 0, 1, 1, 1, 1])
    result = group_records(np.zeros((6, 2), np.float32), digests_of(6), 3, rng(), strata=strata, merge=True)
    assert list(result.left_over) == [0, 1]
    assert as_sets(result) == {frozenset({2, 3, 4, 5})}


def test_another_key_gives_other_groups_and_the_same_key_the_same() -> None:
    features = np.random.default_rng(2).standard_normal((400, 16)).astype(np.float32)

    def pairs(seed: int) -> set[tuple[int, int]]:
        result = group_records(features, digests_of(400), 4, np.random.default_rng(seed))
        return {pair for group in result.groups for pair in combinations(map(int, group), 2)}

    assert pairs(1) == pairs(1)
    assert len(pairs(1) & pairs(2)) < 0.25 * len(pairs(1))


def test_copies_are_refused() -> None:
    with pytest.raises(ValueError, match="two records have the same one"):
        group_records(np.zeros((4, 2), np.float32), np.array([b"a", b"b", b"b", b"c"]), 2, rng())


@pytest.mark.parametrize("value", [0.0, 7.0])
def test_features_that_are_all_equal_still_give_groups(value: float) -> None:
    result = group_records(np.full((5000, 4), value, np.float16), digests_of(5000), 5, rng())
    assert len(result.groups) == 1000


@pytest.mark.parametrize(("count", "multiple"), [(5000, 5), (4999, 7), (300, 2)])
def test_parts_are_small_whole_and_multiples(count: int, multiple: int) -> None:
    points = np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32)
    parts = list(split_by_medians(points, np.arange(count), 256, multiple, rng()))
    assert sorted(np.concatenate(parts)) == list(range(count))
    assert all(len(part) <= 256 for part in parts)
    assert sum(len(part) % multiple > 0 for part in parts) <= 1


def test_parts_lie_on_two_sides_of_the_widest_axis() -> None:
    points = np.random.default_rng(0).standard_normal((400, 3)).astype(np.float32) * np.array([1, 30, 1], np.float32)
    first, second = split_by_medians(points, np.arange(400), 200, 2, rng())
    low, high = sorted((points[first, 1], points[second, 1]), key=lambda part: float(part.mean()))
    assert low.max() < high.min() + 5


def share_recovered(features: np.ndarray, perturbation: float, attack: Callable[..., Grouping]) -> float:
    ours = group_records(features, digests_of(len(features)), 5, rng(), perturbation=perturbation)
    theirs = attack(features, digests_of(len(features), 9), 5, np.random.default_rng(7), perturbation=0)
    pairs = [{pair for g in result.groups for pair in combinations(map(int, g), 2)} for result in (ours, theirs)]
    return len(pairs[0] & pairs[1]) / len(pairs[0])


def test_a_holder_of_the_originals_recomputes_groups_only_where_nothing_perturbs_them() -> None:
    features = (np.random.default_rng(0).standard_normal((1500, 64)) / np.arange(1, 65)).astype(np.float32)
    assert share_recovered(features, 0, group_records) == 1
    assert share_recovered(features, grouping.PERTURBATION, group_records) < 0.4
