"""Ceilings: what the best attacker reaches on noised originals, and so no attacker on outputs can pass.

An output is a random function of ``z_t = sqrt(abar) x + sqrt(1 - abar) eps`` alone, so no attacker on outputs does
better than the best one on ``z_t`` (data processing). With ``snr = abar / (1 - abar)``, ``y = z_t / sqrt(1 - abar)`` is
``N(sqrt(snr) x, I)``, and:

- linkage: the most probable of N equally likely candidates maximises ``S_j = sqrt(snr) <y, x_j> - snr |x_j|^2 / 2``;
- one-to-one: the better of that and of the most probable matching, which maximises the sum of S. Neither is proven to
  have the highest expected share of right pairs, which would take a permanent: a strong attacker, and no bound;
- substitution or membership: x and x' differ by ``mu = |x - x'| sqrt(snr)``, and TPR at FPR a is at most
  ``Phi(Phi^-1(a) + mu)`` (Dong, Roth and Su 2022);
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
from scipy.special import ndtr, ndtri

from anonymizer.records import CeilingRate, Ceilings, MembershipCeiling
from metrics.stats.assignment import assign
from metrics.stats.intervals import Floats, Names, Numbers, wilson_interval

TRIALS = 4000  # noise draws times candidates: bounds the width of an interval over the noise
COLUMNS = 2**14  # of a block of the Gram matrix
SAME_DISTANCE = 1e-6  # relative distance below which two originals are copies
FPR_1, FPR_01 = 0.01, 0.001


@dataclass(frozen=True)
class Candidates:
    """N originals in the space that is noised: coordinates ``points`` (N, d) that keep their distances, and people.

    ``is_sample``: they were drawn by chance from more, which the figures are to hold for.
    """

    points: Floats
    subjects: Names
    is_sample: bool = False

    def __len__(self) -> int:
        return len(self.points)

    def take(self, rows: Numbers) -> Candidates:
        """Return some of them, as a sample of all."""
        return Candidates(self.points[rows], self.subjects[rows], is_sample=True)


def place(latents: Floats, subjects: Names, *, is_sample: bool = False) -> Candidates:
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
        return Candidates(rows.astype(np.float64) - rows.mean(0, dtype=np.float64), subjects, is_sample)
    gram = np.zeros((len(rows), len(rows)))
    for start in range(0, rows.shape[1], COLUMNS):
        block = rows[:, start : start + COLUMNS].astype(np.float64)
        block -= block.mean(0)
        gram += block @ block.T
    spread, axes = np.linalg.eigh(gram)
    return Candidates(axes * np.sqrt(spread.clip(0)), subjects, is_sample)


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
    named, gallery = candidates if k == 1 else _centres(candidates, groups), len(candidates)
    ranks, assigned = _simulate_linkage(named.points * math.sqrt(snr), rng)
    rank1 = _rate(_share_named(ranks, 1, k), named, 1 / k, gallery)
    # The errors of a matching come in pairs at least: half of its rows count as trials.
    by_matching = _rate(assigned / k, named, 1 / k, gallery, trials=assigned.size // 2)
    membership = {fpr: bound_membership(candidates, snr / k**2, fpr) for fpr in (FPR_1, FPR_01)}
    return Ceilings(
        k=k,
        outputs=outputs,
        linkage_rank1=rank1,
        linkage_rank5=_rate(_share_named(ranks, 5, k), named, min(1, 5 / k), gallery),
        linkage_assigned=max(rank1, by_matching, key=lambda rate: rate.high),
        knows_others=None if k == 1 else _link_last_member(candidates, snr / k**2, rng, groups),
        membership_tpr_at_1=membership[FPR_1],
        membership_tpr_at_01=membership[FPR_01],
    )


def tpr_at(fpr: float, mu: Floats | float) -> Floats:
    """Return the highest TPR at this FPR of any test of N(0, 1) against N(mu, 1)."""
    return np.asarray(ndtr(ndtri(fpr) + mu))


def bound_membership(candidates: Candidates, snr: float, fpr: float) -> MembershipCeiling:
    """Return the highest TPR for pairs of different people, of which one is behind an output.

    ``nearest``: the other person who is most alike, for the median person, by the photo that is farthest from all
    others; in a sample others are less alike than in the whole, so that it is overstated. ``median``: the median pair.
    ``worst``: the pair that is least alike. Copies of one picture are no pair.
    """
    squares = (candidates.points**2).sum(1)
    distances = squares[:, None] + squares[None] - 2 * candidates.points @ candidates.points.T
    people, person = np.unique(candidates.subjects, return_inverse=True)
    is_pair = (person[:, None] != person[None]) & (distances > SAME_DISTANCE**2 * squares.max())
    if not is_pair.any():
        raise ValueError("candidates must hold two different pictures, got copies of one")
    distances = np.sqrt(np.where(is_pair, distances, np.nan).clip(0))
    nearest = np.full(len(people), -np.inf)
    usable = is_pair.any(1)
    np.maximum.at(nearest, person[usable], np.nanmin(distances[usable], axis=1))
    pairs = np.array([np.median(nearest[nearest >= 0]), np.nanmedian(distances), np.nanmax(distances)])
    return MembershipCeiling(*tpr_at(fpr, pairs * math.sqrt(snr)).tolist())


def _scores(signal: Floats, rng: np.random.Generator, draws: int) -> Iterator[Floats]:
    """Yield, for each draw of the noise, the log posterior (N, N) of each candidate in each row, up to a constant."""
    half = (signal**2).sum(1) / 2
    for _ in range(draws):
        yield (signal + rng.standard_normal(signal.shape)) @ signal.T - half


def _draws(rows: int) -> int:
    return -(-TRIALS // rows)


def _simulate_linkage(signal: Floats, rng: np.random.Generator) -> tuple[Numbers, Floats]:
    """Return the ranks (draws, N) of the right candidate, and where the most probable matching is right."""
    own = np.arange(len(signal))
    ranks, right = [], []
    for scores in _scores(signal, rng, _draws(len(signal))):
        ranks.append(1 + (scores > np.diag(scores)[:, None]).sum(1))
        right.append(assign(scores, rng) == own)
    return np.array(ranks), np.array(right, float)


def _centres(candidates: Candidates, groups: Sequence[Numbers]) -> Candidates:
    """Return the means of groups, each a person of its own."""
    points = np.array([candidates.points[members].mean(0) for members in groups])
    return Candidates(points, np.arange(len(groups)).astype(np.str_), candidates.is_sample)


def _share_named(ranks: Numbers, guesses: int, k: int) -> Floats:
    """Return the chance (draws, N) that one of so many guesses is the member that was asked for.

    The best guesses are members of the most probable groups in turn; each is the one with a chance of 1/k.
    """
    return np.clip(guesses - (ranks - 1) * k, 0, k) / k


def _link_last_member(
    candidates: Candidates, snr: float, rng: np.random.Generator, groups: Sequence[Numbers]
) -> CeilingRate:
    """Return the rate at which an attacker who knows all other members of each group names the last one.

    Its candidates are the originals of no known member; less what is known, the output is of the last one, by 1/k.
    """
    group = np.full(len(candidates), -1)
    for number, members in enumerate(groups):
        group[members] = number
    rows = np.flatnonzero(group >= 0)
    is_known = (group[rows, None] == group[None]) & (rows[:, None] != np.arange(len(candidates)))
    hits = []
    for scores in _scores(candidates.points * math.sqrt(snr), rng, _draws(len(rows))):
        scores = np.where(is_known, -np.inf, scores[rows])
        hits.append(scores.max(1) <= scores[np.arange(len(rows)), rows])
    last = Candidates(candidates.points[rows], candidates.subjects[rows], candidates.is_sample)
    return _rate(np.array(hits, float), last, 1.0, int(len(candidates) - is_known.sum(1).min()))


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
