"""Attacks on groups of k: an output is a local sample of the mean of k originals.

By symmetry nobody tells which member of its group is behind an output, better than with 1 / k. What a group does not
hide: its last member from an attacker who knows all others, that several outputs are of one group, and what its members
have in common.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metrics.attacks.linkage import Ranking, Similarity, ranks, row_blocks
from metrics.attacks.matched_filter import Components, group_filter
from metrics.stats.intervals import Floats, Names, Numbers, Trials


@dataclass(frozen=True)
class Grouping:
    """The group of each of N records, as numbers (N,) from 0, and the size (N,) of each record's group."""

    number: Numbers
    size: Numbers
    names: Names

    @classmethod
    def of(cls, groups: Names) -> Grouping:
        names, number, counts = np.unique(groups, return_inverse=True, return_counts=True)
        return cls(number, counts[number], names)

    def members(self) -> list[Numbers]:
        """Return the rows of each group, by its number."""
        order = np.argsort(self.number, kind="stable")
        return np.split(order, np.flatnonzero(np.diff(self.number[order])) + 1)

    def mean(self, rows: Floats) -> Floats:
        """Return the mean of each record's group, (N, D) for rows (N, D)."""
        sums = np.zeros((len(self.names), rows.shape[1]), rows.dtype)
        np.add.at(sums, self.number, rows)
        return np.asarray(sums[self.number] / self.size[:, None].astype(rows.dtype))


def rank_members(similarity: Similarity, groups: Names, rng: np.random.Generator) -> Ranking:
    """Rank the members of its group behind output i: the attacker knows the groups, and which one an output is of.

    Record i is one of the candidates, and row i of ``similarity`` its output. The control asks for another member. The
    trials of a group depend on each other: its name stands for its people.
    """
    grouping = Grouping.of(groups)
    right, control = np.ones(len(groups), np.int64), np.ones(len(groups), np.int64)
    for members in grouping.members():
        k = len(members)
        scores = np.concatenate([similarity.blocks(slice(row, row + 1))[:, members] for row in members])
        luck, own = rng.random((2, k)), np.arange(k)
        wrong = (own + rng.integers(1, k, k)) % k if k > 1 else own
        right[members], control[members] = ranks(scores, own, luck[0]), ranks(scores, wrong, luck[1])
    return Ranking(right, control, grouping.size, similarity.seen, groups)


def rank_with_known(
    components: Components,
    abar: float,
    outputs: Floats,
    originals: Floats,
    groups: Names,
    alike: Floats,
    rng: np.random.Generator,
    *,
    is_deterministic: bool = False,
    known: int | None = 0,
    labels: Names | None = None,
) -> Ranking:
    """Rank originals (N, D) behind output i (N, D) for an attacker who knows some of its group's others.

    ``known``: so many, drawn by ``rng``; None: all others. Those are no candidates. ``alike`` (R,) is the share of a
    component's variance that lies between groups (``between_shares``): by likeness the known ones tell of the last one
    without any output, and that guess is the control. Of several outputs of a group, their mean stands in all its rows.
    ``labels`` (N,) are published: those of other labels are no candidates. The trials of a group depend on each other:
    its name stands for its people.
    """
    scores = _MemberScores(components, abar, is_deterministic, Grouping.of(groups), alike, known, rng)
    y, x = (components.project(rows).astype(np.float64) for rows in (outputs, originals))
    luck, n = rng.random((2, len(groups))), len(groups)
    right, control, candidates = (np.empty(n, np.int64) for _ in range(3))
    for row in range(n):
        by_likeness, by_output = scores.of(row, y, x)
        if labels is not None:
            by_likeness[labels != labels[row]] = -np.inf
        candidates[row] = np.isfinite(by_likeness).sum()
        for found, one, tie in ((right, by_likeness + by_output, luck[0]), (control, by_likeness, luck[1])):
            found[row] = ranks(one[None], np.array([row]), tie[[row]])[0]
    return Ranking(right, control, candidates, np.asarray(np.isfinite(y).all(axis=1)), groups)


class _MemberScores:
    """Log-likelihood ratios of all originals for one output, with some others of its group known."""

    def __init__(
        self, components: Components, abar: float, is_deterministic: bool, grouping: Grouping, alike: Floats,
        known: int | None, rng: np.random.Generator,
    ) -> None:  # fmt: skip
        self.grouping, self.alike, self.variances = grouping, alike, components.variances
        self.members = [rng.permutation(rows) for rows in grouping.members()]
        self.position = np.empty(len(grouping.number), np.int64)
        for rows in self.members:
            self.position[rows] = np.arange(len(rows))
        self.known_of = {int(k): int(k) - 1 if known is None else min(known, int(k) - 1) for k in grouping.size}
        self.filters = {
            k: group_filter(components, abar, k, alike, is_deterministic, m) for k, m in self.known_of.items()
        }

    def of(self, row: int, y: Floats, x: Floats) -> tuple[Floats, Floats]:
        """Return (N,) by likeness to the known others, and by the output; -inf for those others."""
        k, of_group = int(self.grouping.size[row]), self.members[self.grouping.number[row]]
        count = self.known_of[k]
        others = of_group[(self.position[row] + 1 + np.arange(count)) % k]
        held = x[others].sum(0)
        slope = self.alike / (1 + (count - 1) * self.alike) if count else np.zeros_like(self.alike)
        left = self.variances * (1 - count * self.alike * slope).clip(np.finfo(float).eps)
        likeness = x @ (slope * held / left) - np.square(x) @ (1 / left - 1 / self.variances) / 2
        likeness[others] = -np.inf
        matched = self.filters[k]
        by_output = x @ (matched.gain * y[row] - matched.candidate * held) - np.square(x) @ matched.candidate / 2
        return np.asarray(likeness), np.asarray(by_output)


def find_siblings(similarity: Similarity, groups: Names, rng: np.random.Generator) -> tuple[Trials, Trials, float]:
    """Return whether each output's most similar other output is of its group, the control, and chance.

    ``similarity`` compares N outputs with each other, as with several outputs of one group. Nothing about originals is
    known. The control deals the groups among the outputs at random.
    """
    grouping = Grouping.of(groups)
    nearest, dealt = np.empty(len(groups), np.int64), rng.permutation(grouping.number)
    for rows in row_blocks(len(groups), len(groups)):
        scores = np.where(np.isnan(block := similarity.blocks(rows)), -np.inf, block)
        at = np.arange(len(groups))[rows]
        scores[np.arange(len(at)), at] = -np.inf
        equal = scores == scores.max(axis=1, keepdims=True)
        equal[np.arange(len(at)), at] = False
        nearest[rows] = np.where(equal, rng.random(scores.shape), -1.0).argmax(axis=1)
    hits = grouping.number[nearest] == grouping.number
    chance = float(((grouping.size - 1) / (len(groups) - 1)).mean())
    return Trials(hits, groups), Trials(dealt[nearest] == dealt, groups), chance


def homogeneous_groups(labels: Names, groups: Names, rng: np.random.Generator) -> tuple[Trials, Trials]:
    """Return which groups have one label in all of their rows (N,), and the same with the labels dealt at random.

    Of such a group everybody's label is known who knows a member. Groups of one row are left out.
    """
    grouping = Grouping.of(groups)
    of_several = [rows for rows in grouping.members() if len(rows) > 1]
    dealt = rng.permutation(labels)
    names = np.array([groups[rows[0]] for rows in of_several], dtype=np.str_)
    same, by_chance = (
        np.array([len(np.unique(column[rows])) == 1 for rows in of_several], dtype=bool) for column in (labels, dealt)
    )
    return Trials(same, names), Trials(by_chance, names)


def average_by_group(outputs: Floats, groups: Names) -> Floats:
    """Return for each row the mean output (N, D) of its group, by which all outputs of a group are attacked at once."""
    return Grouping.of(groups).mean(outputs)
