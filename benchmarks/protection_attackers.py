"""The attackers of `benchmarks/protection.py`: how often each names the right one of the members behind an output.

All see the mean of a group's outputs, whose siblings are easily found. One who recognises a group names the right
member with probability 1/k.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F

from metrics.attacks.groups import rank_with_known
from metrics.attacks.matched_filter import Components, MatchedFilter, between_shares, group_filter, matched_filter
from metrics.stats.assignment import assign
from metrics.stats.intervals import Estimate, Floats, Numbers, Trials, as_subjects, rate_interval, wilson_interval
from metrics.stats.roc import FPRS, threshold_at

CELLS = 16  # pixels are compared on a grid of so many cells a side
FILTER = "filter"

Scores = Callable[[Floats, Floats], Floats]  # outputs (G, D) and candidates (N, D) -> (G, N), higher for the likelier


@dataclass(frozen=True)
class Filters:
    """The matched filters of components (R,) for one noise level; ``within`` (R,): how alike members of groups are."""

    variances: Floats
    abar: float
    k: int
    within: Floats

    @property
    def components(self) -> Components:
        """Rows are components already."""
        return Components(np.zeros(len(self.variances)), np.eye(len(self.variances)), self.variances)

    @property
    def of_one(self) -> MatchedFilter:
        return group_filter(self.components, self.abar, self.k, self.within)

    @property
    def of_mean(self) -> MatchedFilter:
        return matched_filter(self.components, self.abar)


@dataclass(frozen=True)
class Attacked:
    """One feature of what is attacked: outputs (G, D), one row for each of ``groups`` (G, k), and candidates (N, D).

    ``of_one`` scores a candidate as one member, ``of_mean`` as the mean of a whole group.
    """

    outputs: Floats
    candidates: Floats
    groups: Numbers
    of_one: Scores
    of_mean: Scores

    @property
    def k(self) -> int:
        return self.groups.shape[1]

    def truth(self) -> Floats:
        """Return which candidates are members: (G, N)."""
        members = np.zeros((len(self.groups), len(self.candidates)), bool)
        np.put_along_axis(members, self.groups, True, axis=1)
        return members


def downsample(images: torch.Tensor) -> Floats:
    """Return pixels (B, 3 * CELLS^2) without their common brightness; linear, so that means of rows are of pictures."""
    x = F.interpolate(images.float(), (CELLS, CELLS), mode="area").flatten(1)
    return np.asarray(x - x.mean(1, keepdim=True))


def cosine(outputs: Floats, candidates: Floats) -> Floats:
    y, x = (rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12) for rows in (outputs, candidates))
    return np.asarray(y @ x.T)


def scores_of(matched: MatchedFilter) -> Scores:
    """Return scores of components (G, R) and (N, R), without what is the same for all candidates of an output."""
    return lambda y, x: (y * matched.gain) @ x.T - np.square(x) @ matched.candidate / 2


def correlation_within(public: Floats, groups: Numbers) -> Floats:
    """Return the correlation (R,) of members of groups, for public pictures (P, R) as components."""
    _, width = public.shape
    components = Components(np.zeros(width), np.eye(width), np.ones(width))
    rows = groups.ravel()
    names = as_subjects(np.repeat(np.arange(len(groups)), groups.shape[1]).tolist())
    shares = between_shares(components, public[rows], names)
    return np.zeros(width) if shares is None else shares


def run_attackers(
    features: Mapping[str, tuple[Floats, Floats]], others: Floats, groups: Numbers, filters: Filters,
    rng: np.random.Generator,
) -> dict[str, Estimate]:  # fmt: skip
    """Return the rate of each attacker at naming the right member, and the TPR of the likelihood ratio.

    ``features``: outputs (G * n, D) and originals (N, D) by name, for the filter as its components; so are ``others``.
    """
    found: dict[str, Estimate] = {}
    for name, (outputs, originals) in features.items():
        one, mean = (scores_of(f) if name == FILTER else cosine for f in (filters.of_one, filters.of_mean))
        means = outputs.reshape(len(groups), -1, outputs.shape[1]).mean(1)
        attacked = Attacked(means, originals, groups, one, mean)
        found[f"links, {name}"] = link(attacked)
        found[f"links, {name}, assigned"] = link_assigned(attacked, rng)
        if attacked.k > 1:
            found[f"knows groups, {name}"] = link_known_groups(attacked, rng)
        if attacked.k > 1 and name != "clip":  # of which the mean of pictures cannot be had from those of its members
            found[f"knows others, {name}"] = link_last_member(attacked, rng)
        if name == FILTER:
            members, strangers = (filters.of_one.evidence(means, rows) for rows in (originals, others))
            found[f"tells members, {name}"] = tell_members(members, strangers, groups, rng)
            if attacked.k > 1:
                found |= link_by_likeness(attacked, filters, rng)
    return found


def link(attacked: Attacked) -> Estimate:
    """Name the likeliest candidate of each output, row by row."""
    best = attacked.of_one(attacked.outputs, attacked.candidates).argmax(1)
    return _share_of_members(attacked.truth()[np.arange(len(best)), best], attacked.k)


def link_assigned(attacked: Attacked, rng: np.random.Generator) -> Estimate:
    """Assign k candidates to each output, each candidate once, so that the scores have the highest sum."""
    rows = np.repeat(np.arange(len(attacked.groups)), attacked.k)
    column = assign(attacked.of_one(attacked.outputs, attacked.candidates)[rows], rng)
    hits = attacked.truth()[rows, column] & (column >= 0)
    estimate = rate_interval(Trials(hits, as_subjects(rows.tolist())), rng)
    return Estimate(*(bound / attacked.k for bound in (estimate.value, estimate.low, estimate.high)))


def link_known_groups(attacked: Attacked, rng: np.random.Generator) -> Estimate:
    """Assign the known groups to outputs, one to one."""
    means = attacked.candidates[attacked.groups].mean(1)
    column = assign(attacked.of_mean(attacked.outputs, means), rng)
    return _share_of_members(column == np.arange(len(means)), attacked.k)


def link_last_member(attacked: Attacked, rng: np.random.Generator) -> Estimate:
    """Name the last member of each group, for an attacker who knows the others and which output is of that group."""
    hits, names = [], []
    for number, group in enumerate(attacked.groups):
        total = attacked.candidates[group].sum(0)
        others = np.setdiff1d(np.arange(len(attacked.candidates)), group)
        for member in group:
            rows = np.append(others, member)
            means = (total - attacked.candidates[member] + attacked.candidates[rows]) / len(group)
            hits.append(attacked.of_mean(attacked.outputs[number : number + 1], means)[0].argmax() == len(others))
            names.append(number)
    return rate_interval(Trials(np.array(hits), as_subjects(names)), rng)


def link_by_likeness(attacked: Attacked, filters: Filters, rng: np.random.Generator) -> dict[str, Estimate]:
    """Name the last member by its likeness to the others, who were grouped with it, and the output; and without it."""
    rows = attacked.groups.ravel()
    names = as_subjects(np.repeat(np.arange(len(attacked.groups)), attacked.k).tolist())
    outputs = np.repeat(attacked.outputs, attacked.k, axis=0)
    ranking = rank_with_known(
        filters.components, filters.abar, outputs, attacked.candidates[rows], names, filters.within, rng, known=None
    )
    trials = {FILTER: ranking.within(1), "no output": ranking.control_within(1)}
    return {f"likeness, {name}": rate_interval(hits, rng) for name, hits in trials.items()}


def tell_members(members: Floats, others: Floats, groups: Numbers, rng: np.random.Generator) -> Estimate:
    """Return the TPR at FPR 1 % of scores of all candidates (N,), of which those in ``groups`` are members."""
    rows = groups.ravel()
    names = as_subjects(np.repeat(np.arange(len(groups)), groups.shape[1]).tolist())
    return rate_interval(Trials(members[rows] > threshold_at(others, FPRS[0]), names), rng)


def _share_of_members(is_recognised: Floats, k: int) -> Estimate:
    estimate = wilson_interval(int(is_recognised.sum()), len(is_recognised))
    return Estimate(estimate.value / k, estimate.low / k, estimate.high / k)
