"""Attacks on groups of k, on Gaussian originals and exact outputs of their means."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy.stats import multivariate_normal, norm

from metrics.attacks.groups import (
    average_by_group,
    find_siblings,
    homogeneous_groups,
    rank_members,
    rank_with_known,
)
from metrics.attacks.linkage import cosine_similarity, rank, similarity_matrix
from metrics.attacks.matched_filter import Components, group_filter, matched_filter
from metrics.stats.intervals import wilson_interval

WIDTH = 40
COMPONENTS = Components(np.zeros(WIDTH), np.eye(WIDTH), np.ones(WIDTH))


@dataclass(frozen=True)
class Release:
    """Originals (N, D) in groups of k, of which a share of the variance is common, and outputs of their means."""

    originals: Any
    outputs: Any
    groups: Any
    alike: Any
    abar: float


def released(k: int, groups: int, abar: float, share: float = 0.5, each: bool = False, seed: int = 1) -> Release:
    rng = np.random.default_rng(seed)
    common = math.sqrt(share) * rng.normal(size=(groups, 1, WIDTH))
    originals = common + math.sqrt(1 - share) * rng.normal(size=(groups, k, WIDTH))
    rho = abar  # snr / (1 + snr) of variance 1
    noise = rng.normal(size=(groups, k if each else 1, WIDTH)) * math.sqrt(1 - rho**2)
    outputs = np.broadcast_to(rho * originals.mean(1, keepdims=True) + noise, originals.shape)
    names = np.repeat([f"group {i:04d}" for i in range(groups)], k)
    order = rng.permutation(groups * k)
    flat = (rows.reshape(-1, WIDTH)[order] for rows in (originals, outputs))
    return Release(*flat, names[order], np.full(WIDTH, share), abar)


def known_to(release: Release, known: int | None = 0) -> Any:
    return rank_with_known(
        COMPONENTS, release.abar, release.outputs, release.originals, release.groups, release.alike,
        np.random.default_rng(2), known=known,
    )  # fmt: skip


def rate(ranking: Any) -> float:
    return float((ranking.ranks == 1).mean())


def compare(release: Release) -> Any:
    sizes = np.unique(release.groups, return_counts=True)[1]
    matched = group_filter(COMPONENTS, release.abar, int(sizes[0]), release.alike)
    return matched.similarity(release.outputs, release.originals)


@pytest.mark.parametrize("k", [2, 5])
@pytest.mark.parametrize("each", [False, True])
def test_within_a_known_group_nobody_does_better_than_one_in_k(k: int, each: bool) -> None:
    release = released(k, 600 // k, 0.9, each=each)
    ranking = rank_members(compare(release), release.groups, np.random.default_rng(3))
    interval = wilson_interval(int((ranking.ranks == 1).sum()), 600, 0.999)
    assert interval.low <= 1 / k <= interval.high
    assert ranking.chance(1) == pytest.approx(1 / k) and (ranking.candidates == k).all()


def test_an_output_dealt_to_the_member_it_was_made_of_would_be_noticed() -> None:
    """A planted leak: each member's output is made of the member itself."""
    release = released(5, 100, 0.9)
    leaky = Release(release.originals, release.originals, release.groups, release.alike, release.abar)
    ranking = rank_members(compare(leaky), release.groups, np.random.default_rng(3))
    assert (ranking.ranks == 1).mean() > 0.9 and (ranking.control == 1).mean() < 0.1


def test_among_all_originals_rank_1_stays_below_one_in_k() -> None:
    release = released(4, 100, 0.97)
    ranking = known_to(release)
    assert 0.1 < rate(ranking) <= 1 / 4
    by_filter = rank(compare(release), np.arange(400), release.groups, np.random.default_rng(4))
    assert rate(by_filter) == pytest.approx(rate(ranking), abs=0.02)
    assert (ranking.control == 1).mean() < 0.03  # without outputs nothing is known of anybody


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_who_knows_all_others_finds_the_last_member(share: float) -> None:
    """As often as the posterior does whose densities scipy computes, candidate by candidate."""
    k, width, abar = 3, 4, 0.9
    of = Components(np.zeros(width), np.eye(width), np.ones(width))
    full = released(k, 20, abar, share)
    originals, outputs = full.originals[:, :width], full.outputs[:, :width]
    ranking = rank_with_known(
        of, abar, outputs, originals, full.groups, full.alike[:width], np.random.default_rng(2), known=None
    )
    covariance = share * np.ones((k, k)) + (1 - share) * np.eye(k)
    group = multivariate_normal(np.zeros(k), covariance)
    n, expected = len(full.groups), []
    for row in range(n):
        others = np.flatnonzero((full.groups == full.groups[row]) & (np.arange(n) != row))
        posterior = np.full(n, -np.inf)
        for j in np.setdiff1d(np.arange(n), others):
            members = originals[[*others, j]]
            posterior[j] = group.logpdf(members.T).sum() - norm.logpdf(originals[j]).sum()
            posterior[j] += norm.logpdf(outputs[row], abar * members.mean(0), math.sqrt(1 - abar**2)).sum()
        expected.append(1 + (posterior > posterior[row]).sum())
    assert ranking.ranks.tolist() == expected and (ranking.candidates == n - 2).all()


def test_each_other_that_is_known_helps_and_the_control_guesses_by_likeness_alone() -> None:
    release = released(5, 80, 0.95)
    rankings = [known_to(release, known) for known in (0, 2, 3, None)]
    rates = [rate(ranking) for ranking in rankings]
    assert rates == sorted(rates) and rates[-1] > 3 * rates[0]
    without = [(ranking.control == 1).mean() for ranking in rankings]
    assert without[0] < 0.03 < without[-1] < rates[-1]
    strangers = known_to(released(5, 80, 0.95, share=0.0), None)
    assert (strangers.control == 1).mean() < 0.03  # those who are not alike tell nothing of each other


def test_published_labels_narrow_who_the_last_member_may_be() -> None:
    release = released(3, 40, 1e-6, share=0.0)
    labels = np.char.replace(release.groups, "group", "label")
    ranking = rank_with_known(
        COMPONENTS, release.abar, release.outputs, release.originals, release.groups, release.alike,
        np.random.default_rng(2), known=1, labels=labels,
    )  # fmt: skip
    assert (ranking.candidates == 2).all() and 0.3 < rate(ranking) < 0.7


def test_all_outputs_of_a_group_together_tell_more_than_one() -> None:
    release = released(5, 80, 0.8, share=0.0, each=True)
    together = Release(release.originals, average_by_group(release.outputs, release.groups), release.groups,
                       release.alike, release.abar)  # fmt: skip
    assert rate(known_to(together, None)) > 1.5 * rate(known_to(release, None))


@pytest.mark.parametrize("known", [0, 1, 3])
def test_the_filter_of_a_group_is_the_ratio_of_normal_densities(known: int) -> None:
    """The reference is the joint covariance of output and known sum, of k members with a common part."""
    k, abar, variance, share = 4, 0.6, 2.0, 0.3
    one = Components(np.zeros(1), np.eye(1), np.array([variance]))
    matched = group_filter(one, abar, k, np.array([share]), known=known)
    rho = abar * variance / (1 - abar + abar * variance)
    members = variance * (share * np.ones((k, k)) + (1 - share) * np.eye(k))
    mean, held = np.full(k, 1 / k), (np.arange(k) <= known).astype(float)
    of_output = rho**2 * mean @ members @ mean + variance * (1 - rho**2)
    joint = np.array([[of_output, rho * mean @ members @ held], [rho * mean @ members @ held, held @ members @ held]])
    for y, s in [(0.3, -1.0), (2.0, 1.5)]:
        expected = multivariate_normal([0, 0], joint).logpdf([y, s])
        expected -= multivariate_normal(0, joint[0, 0]).logpdf(y) + multivariate_normal(0, joint[1, 1]).logpdf(s)
        assert matched.scores(np.array([[y]]), np.array([[s]]))[0, 0] == pytest.approx(expected)


def test_a_group_of_one_is_a_record() -> None:
    alike = np.full(WIDTH, 0.4)
    rows = np.random.default_rng(8).normal(size=(3, WIDTH))
    assert group_filter(COMPONENTS, 0.5, 1, alike).scores(rows, rows) == pytest.approx(
        matched_filter(COMPONENTS, 0.5).scores(rows, rows)
    )
    with pytest.raises(ValueError, match=r"known must be in 0\.\.k - 1"):
        group_filter(COMPONENTS, 0.5, 2, alike, known=2)


def test_outputs_of_one_group_are_found_among_all_and_others_by_chance() -> None:
    for abar, least, most in ((0.99, 0.95, 1.0), (1e-6, 0.0, 0.12)):
        release = released(4, 60, abar, each=True)
        unit = release.outputs / np.linalg.norm(release.outputs, axis=1, keepdims=True)
        hits, control, chance = find_siblings(cosine_similarity(unit, unit), release.groups, np.random.default_rng(9))
        assert least <= hits.rate <= most and control.rate < 0.06 and chance == pytest.approx(3 / 239)


def test_equal_outputs_are_siblings_by_chance_alone() -> None:
    names = np.repeat([f"{i}" for i in range(50)], 2)
    for blank in (np.zeros((100, 100)), np.full((100, 100), np.nan)):
        hits, *_ = find_siblings(similarity_matrix(blank), names, np.random.default_rng(10))
        assert hits.rate < 0.1


def test_groups_that_share_a_label_are_counted_beside_chance() -> None:
    groups = np.repeat([f"{i}" for i in range(40)], 3)
    labels = np.repeat(["ill", "well"], 60)
    same, dealt = homogeneous_groups(labels, groups, np.random.default_rng(11))
    assert same.rate == 1 and len(same) == 40 and 0.05 < dealt.rate < 0.5  # two of 3 ** -2 or so
    labels[0] = "well"
    same, _ = homogeneous_groups(labels, groups, np.random.default_rng(11))
    assert same.rate == pytest.approx(39 / 40)
