"""Ceilings: what the best attacker reaches on noised originals, and so no attacker on outputs can pass.

An output is a random function of ``z_t = sqrt(abar) x + sqrt(1 - abar) eps`` alone, so no attacker on outputs does
better than the best one on ``z_t`` (data processing). With ``snr = abar / (1 - abar)``, ``y = z_t / sqrt(1 - abar)`` is
``N(sqrt(snr) x, I)``, and:

- linkage: of N equally likely candidates, the most probable one maximises ``S_j = sqrt(snr) <y, x_j> - snr |x_j|^2 /
  2``; the most probable person has the largest sum of ``exp(S_j)`` over their photos. Candidates of which something
  else is published than of the output are none;
- one-to-one: the better of that and of the most probable matching, which maximises the sum of S. Neither is proven to
  have the highest expected share of right pairs, which would take a permanent: a strong attacker, and no bound;
- substitution or membership: x and x' differ by ``mu = |x - x'| sqrt(snr)``, and TPR at FPR a is at most
  ``Phi(Phi^-1(a) + mu)`` (Dong, Roth and Su 2022); squares of mu add up over the photos of a person;
- n outputs of one original, by their mean: n times the snr;
- a mean of k originals: a member enters by 1/k, so that one output gives ``snr / k^2`` to an attacker who knows all
  other members, and to one who knows only the groups 1/k of the rate at which a group is recognised.

Scores depend on inner products only, so everything is computed in coordinates of the span of the candidates.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtr, ndtri, softmax

from anonymizer.records import CeilingRate, Ceilings, MembershipCeiling
from metrics.stats.assignment import assign
from metrics.stats.intervals import Bools, Floats, Names, Numbers, wilson_interval

TRIALS = 4000  # noise draws times candidates: bounds the width of an interval over the noise
COLUMNS = 2**14  # of a block of the Gram matrix
SAME_DISTANCE = 1e-6  # relative distance below which two originals are copies
FPR_1, FPR_01 = 0.01, 0.001


@dataclass(frozen=True)
class Candidates:
    """N originals in the space that is noised: coordinates ``points`` (N, d) that keep their distances, and people.

    ``is_sample``: they were drawn by chance from more, which the figures are to hold for. ``published`` (N,): what is
    published of each with its output, as attackers know it of all candidates; None for nothing.
    """

    points: Floats
    subjects: Names
    is_sample: bool = False
    published: Names | None = None

    def __len__(self) -> int:
        return len(self.points)

    def take(self, rows: Numbers) -> Candidates:
        """Return some of them, as a sample of all."""
        published = None if self.published is None else self.published[rows]
        return Candidates(self.points[rows], self.subjects[rows], is_sample=True, published=published)

    def is_published_equally(self) -> Bools:
        """Return (N, N) whether the same is published of both."""
        values = np.zeros(len(self)) if self.published is None else self.published
        return np.asarray(values[:, None] == values[None])


def place(latents: Floats, subjects: Names, *, is_sample: bool = False, published: Names | None = None) -> Candidates:
    """Return candidates from originals as they are noised (N, ...). Raises ValueError for fewer than two people.

    Where there are more dimensions than originals, coordinates along the principal axes of their span take their place:
    the noise off that span tells nothing, and on it is N(0, I) in any orthonormal basis.
    """
    rows = np.asarray(latents).reshape(len(latents), -1)
    if len(np.unique(subjects)) < 2 or len(subjects) != len(rows) or not np.isfinite(rows).all():
        raise ValueError(
            f"candidates must be finite rows of two people or more, got {rows.shape}, {len(np.unique(subjects))} people"
        )
    if rows.shape[1] <= len(rows):
        return Candidates(rows.astype(np.float64) - rows.mean(0, dtype=np.float64), subjects, is_sample, published)
    gram = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], COLUMNS):
        block = rows[:, start : start + COLUMNS].astype(np.float64)
        block -= block.mean(0)
        gram += block @ block.T
    spread, axes = np.linalg.eigh(gram)
    return Candidates(axes * np.sqrt(spread.clip(0)), subjects, is_sample, published)


def compute_ceilings(
    candidates: Candidates, abar: float, rng: np.random.Generator, *, k: int = 1, outputs: int = 1,
    groups: Sequence[Numbers] = (),
) -> Ceilings:  # fmt: skip
    """Return the ceilings at noise level ``abar`` in (0, 1).

    ``k``: originals behind each output, the mean of ``groups`` (rows of candidates, k or more each; needed for k > 1);
    ``outputs``: independent draws of each original, or of each group, that the attacker sees. Intervals are 95 %. Of
    all originals they are over the noise, since these records are the release; of a sample over noise and people. For
    a uniform prior over a release of which the candidates are a sample the rate is an upper bound: the best rule for
    the release, taken on the sample, is right as often for a sampled record as for any, and the sample's own best rule
    is no worse. Raises ValueError.
    """
    if not 0 < abar < 1:
        raise ValueError(f"abar must be in (0, 1), got {abar:g}")
    if k < 1 or outputs < 1 or (k > 1 and (not len(groups) or min(map(len, groups)) < k)):
        raise ValueError(f"k and outputs must be 1 or more, and groups have k members, got {k} and {outputs}")
    snr = outputs * abar / (1 - abar)
    named = candidates if k == 1 else _centres(candidates, groups)
    shares = _shares_of_people(candidates, [np.array([row]) for row in range(len(candidates))] if k == 1 else groups)
    first, five, assigned = _simulate_linkage(named, shares, math.sqrt(snr), rng)
    gallery = len(candidates)
    rank1 = _rate(first, named, 1 / k, gallery)
    # The errors of a matching come in pairs at least: half of its rows count as trials.
    by_matching = _rate(assigned, named, 1 / k, gallery, trials=assigned.size // 2)
    membership = {fpr: bound_membership(candidates, snr / k**2, fpr) for fpr in (FPR_1, FPR_01)}
    return Ceilings(
        k=k,
        outputs=outputs,
        linkage_rank1=rank1,
        linkage_rank5=_rate(five, named, min(1, 5 / k), gallery),
        linkage_assigned=max(rank1, by_matching, key=lambda rate: rate.high),
        knows_others=None if k == 1 else _link_last_member(candidates, snr / k**2, rng, groups),
        membership_tpr_at_1=membership[FPR_1],
        membership_tpr_at_01=membership[FPR_01],
    )


def tpr_at(fpr: float, mu: Floats | float) -> Floats:
    """Return the highest TPR at this FPR of any test of N(0, 1) against N(mu, 1)."""
    return np.asarray(ndtr(ndtri(fpr) + mu))


def bound_membership(candidates: Candidates, snr: float, fpr: float) -> MembershipCeiling:
    """Return the highest TPR for pairs of different people, of which one, with all photos, is behind outputs.

    ``nearest``: the other person who is most alike, for the median person; in a sample others are less alike than in
    the whole, so that it is overstated. ``median``: the median pair. ``worst``: the pair that is least alike. A photo
    of one is compared with the photo of the other that is farthest; people of whom other values are published differ by
    these, and are no pair. Copies of one picture are no pair either.
    """
    squares = (candidates.points**2).sum(1)
    distances = (squares[:, None] + squares[None] - 2 * candidates.points @ candidates.points.T).clip(0)
    distances[distances <= SAME_DISTANCE**2 * squares.max()] = 0
    distances[~candidates.is_published_equally()] = -np.inf
    people, person = np.unique(candidates.subjects, return_inverse=True)
    farthest = np.full((len(people), len(candidates)), -np.inf)
    np.maximum.at(farthest, person, distances)
    pairs = np.zeros((len(people), len(people)))
    np.add.at(pairs, person, farthest.T)  # -inf where some photo has no counterpart
    np.fill_diagonal(pairs, -np.inf)
    pairs = np.sqrt(np.where(pairs > 0, pairs, np.nan))
    usable = np.isfinite(pairs).any(1)
    if not usable.any():
        raise ValueError("candidates must hold two different pictures of which the same is published, got none")
    mu = np.array([np.median(np.nanmin(pairs[usable], axis=1)), np.nanmedian(pairs), np.nanmax(pairs)])
    return MembershipCeiling(*tpr_at(fpr, mu * math.sqrt(snr)).tolist())


def _scores(signal: Floats, rng: np.random.Generator, draws: int) -> Iterator[Floats]:
    """Yield, for each draw of the noise, the log posterior (N, N) of each candidate in each row, up to a constant."""
    half = (signal**2).sum(1) / 2
    for _ in range(draws):
        yield (signal + rng.standard_normal(signal.shape)) @ signal.T - half


def _draws(rows: int) -> int:
    return -(-TRIALS // rows)


def _shares_of_people(candidates: Candidates, groups: Sequence[Numbers]) -> Floats:
    """Return (G, people) the chance that a person is the member of a group who is asked for: 1/k for each member."""
    people, person = np.unique(candidates.subjects, return_inverse=True)
    shares = np.zeros((len(groups), len(people)))
    for number, members in enumerate(groups):
        np.add.at(shares[number], person[members], 1 / len(members))
    return shares


def _simulate_linkage(
    named: Candidates, shares: Floats, signal: float, rng: np.random.Generator
) -> tuple[Floats, Floats, Floats]:
    """Return the chance (draws, N) that the best guess is the person asked for, that one of five is, and by matching.

    The most probable people are guessed, of those behind candidates of which the same is published as of the output.
    """
    first, five, matched = [], [], []
    is_candidate = named.is_published_equally()
    for scores in _scores(named.points * signal, rng, _draws(len(named))):
        scores = np.where(is_candidate, scores, -np.inf)
        posterior = softmax(scores, axis=1) @ shares
        best = np.argsort(posterior, axis=1)[:, :-6:-1]
        right = np.take_along_axis(shares, best, axis=1)
        first.append(right[:, 0])
        five.append(right.sum(1))
        chosen = shares[assign(scores, rng)]
        matched.append((shares * chosen).sum(1))
    return np.array(first), np.array(five), np.array(matched)


def _centres(candidates: Candidates, groups: Sequence[Numbers]) -> Candidates:
    """Return the means of groups, each a person of its own."""
    points = np.array([candidates.points[members].mean(0) for members in groups])
    first = np.array([members[0] for members in groups])  # the same is published of all members
    published = None if candidates.published is None else candidates.published[first]
    return Candidates(points, np.arange(len(groups)).astype(np.str_), candidates.is_sample, published)


def _link_last_member(
    candidates: Candidates, snr: float, rng: np.random.Generator, groups: Sequence[Numbers]
) -> CeilingRate:
    """Return the rate at which an attacker who knows all other members of each group names the last person.

    Its candidates are originals of which the same is published and that show no known member, all of them equally
    likely before; less what is known, the output is of the last one, by 1/k.
    """
    rows = np.concatenate(groups)
    people, person = np.unique(candidates.subjects, return_inverse=True)
    is_excluded = ~candidates.is_published_equally()[rows]
    for begin, members in zip(np.cumsum([0, *map(len, groups)]), groups, strict=False):
        for row, member in enumerate(members, begin):
            is_excluded[row] |= np.isin(person, np.setdiff1d(person[members], person[member]))
    photos_of = np.eye(len(people))[person]  # (N, people)
    hits = []
    for scores in _scores(candidates.points * math.sqrt(snr), rng, _draws(len(rows))):
        posterior = softmax(np.where(is_excluded, -np.inf, scores[rows]), axis=1) @ photos_of
        hits.append(posterior.argmax(axis=1) == person[rows])
    last = Candidates(candidates.points[rows], candidates.subjects[rows], candidates.is_sample)
    return _rate(np.array(hits, float), last, 1.0, int((~is_excluded).sum(1).max()))


def _rate(successes: Floats, named: Candidates, most: float, gallery: int, trials: int | None = None) -> CeilingRate:
    """Return the mean of ``successes`` (draws, N), each in [0, ``most``], with Wilson's interval.

    A mean of values in [0, 1] varies at most as one of coins does, of which there are ``trials``: by default each draw
    of each row, and of a sample the people in it.
    """
    count = len(np.unique(named.subjects)) if named.is_sample else trials or successes.size
    value = float(successes.mean())
    low = wilson_interval(math.floor(value / most * count), count).low
    high = wilson_interval(min(count, math.ceil(value / most * count)), count).high
    return CeilingRate(value=value, low=min(value, low * most), high=max(value, high * most), gallery=gallery)
