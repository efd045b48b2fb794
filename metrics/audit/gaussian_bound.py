"""What the noise alone guarantees about an output, whoever attacks; usually nothing, and then it says so.

The forward step is a Gaussian mechanism, ``z_t = sqrt(abar) z0 + sqrt(1 - abar) eps``, and the reverse half sees
nothing else of the original (Dong, Roth and Su 2022: Gaussian differential privacy, here between two originals instead
of two datasets). It holds as long as the noise is secret, and model, prompt and level do not depend on the picture. A
gate that tries again because an output is too close does look at the picture: count each attempt as an output, and know
that what the gate gives away by its answer is not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch

VACUOUS_ADVANTAGE = 0.5  # advantage; an attacker may tell the two pictures apart three times out of four
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
RENYI_ORDER = 2.0  # of the Renyi divergence that a certificate states
MAX_IMAGES = 1000  # pictures looked at; bounds time and memory
SAME_DISTANCE = 1e-6  # relative distance below which two pictures are one

Floats = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Certificate:
    """The guarantee at one level for pictures like these ``n``; distances are in the space that is noised.

    Tuples run over ``QUANTILES``: of all pairs of different pictures, and of each picture and its nearest other.
    ``advantage`` and ``renyi`` (of order ``ORDER``, in nats) are for the nearest, the median and the farthest pair.
    ``information_bits`` bounds what ``k`` outputs tell about which of the ``n`` was the original, all as likely before;
    ``most_bits`` is what knowing the original would tell.
    """

    n: int
    k: int
    abar: float
    pair_distances: tuple[float, ...]
    nearest_distances: tuple[float, ...]
    pair_mu: tuple[float, ...]
    nearest_mu: tuple[float, ...]
    advantage_nearest: float
    advantage_median: float
    advantage_farthest: float
    renyi_nearest: float
    renyi_median: float
    renyi_farthest: float
    information_bits: float
    most_bits: float
    sentence: str


@overload
def mu(distance: float, abar: float, k: int = 1) -> float: ...
@overload
def mu(distance: Floats, abar: float, k: int = 1) -> Floats: ...
def mu(distance: float | Floats, abar: float, k: int = 1) -> float | Floats:
    """``d sqrt(k abar / (1 - abar))``: k outputs tell two originals apart no better than N(0, 1) from N(mu, 1).

    ``distance`` is Euclidean, in the space that is noised. Raises ValueError.
    """
    if not 0 <= abar < 1:
        raise ValueError(f"abar must be in [0, 1), got {abar:g}: without noise the original itself would be released")
    if k < 1:
        raise ValueError(f"k must be positive, got {k}: it counts the outputs of one original")
    return distance * math.sqrt(k * abar / (1 - abar))


def advantage(mu: float) -> float:
    """``2 Phi(mu / 2) - 1``: total variation of N(0, 1) and N(mu, 1), the most that any test's TPR exceeds its FPR."""
    return math.erf(mu / math.sqrt(8))


def renyi(mu: float, alpha: float) -> float:
    """``alpha mu^2 / 2`` nats: Renyi divergence of order ``alpha`` of N(0, 1) and N(mu, 1); order 1 is Kullback's."""
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be positive and finite, got {alpha:g}")
    return alpha * mu**2 / 2


def information_bound(latents: torch.Tensor | Floats, abar: float, k: int = 1) -> float:
    """Bits that k outputs tell about which of N pictures (N, ...) was the original, all as likely before: a bound.

    The least of two: ``log2 N``, and the capacity of the Gaussian channel for pictures of this covariance S,
    ``log2 det(1 + k abar / (1 - abar) S) / 2`` (Cover and Thomas 2006, 9.4). The latter is at most half the mean
    Kullback divergence over all ordered pairs, the simpler bound.
    """
    return _information(_gram(_rows(latents)), mu(1.0, abar, k) ** 2)


def compute_certificate(
    latents: torch.Tensor | Floats, abar: float, rng: np.random.Generator, k: int = 1, max_images: int = MAX_IMAGES
) -> Certificate:
    """The guarantee for ``k`` outputs of each original at noise level ``abar``, for the data's own distances.

    ``latents`` (N, ...) are the originals as they are noised (``backbone.encode``). Of more than ``most`` a sample is
    taken; neighbours are then farther than in the whole, and the advantage at the nearest pair is overstated. Raises
    ValueError for fewer than two different pictures.
    """
    if len(latents) > max_images:
        latents = latents[np.sort(rng.choice(len(latents), max_images, replace=False))]
    gram = _gram(_rows(latents))
    distances = _distances(gram)
    pairs = distances[np.triu_indices(len(distances), 1)]
    pairs, nearest = pairs[pairs > 0], np.where(distances > 0, distances, np.inf).min(1)
    if not len(pairs):
        raise ValueError("latents must hold two different pictures, got copies of one: give more of the data")
    of_pairs, of_nearest = (np.quantile(d, QUANTILES) for d in (pairs, nearest))
    at = [mu(float(d), abar, k) for d in (pairs.min(), np.median(pairs), pairs.max())]
    advantages, divergences = [advantage(m) for m in at], [renyi(m, RENYI_ORDER) for m in at]
    return Certificate(
        n=len(gram),
        k=k,
        abar=abar,
        pair_distances=_floats(of_pairs),
        nearest_distances=_floats(of_nearest),
        pair_mu=_floats(mu(of_pairs, abar, k)),
        nearest_mu=_floats(mu(of_nearest, abar, k)),
        advantage_nearest=advantages[0],
        advantage_median=advantages[1],
        advantage_farthest=advantages[2],
        renyi_nearest=divergences[0],
        renyi_median=divergences[1],
        renyi_farthest=divergences[2],
        information_bits=_information(gram, mu(1.0, abar, k) ** 2),
        most_bits=math.log2(len(gram)),
        sentence=describe_advantages(advantages[0], advantages[1], advantages[2], k),
    )


def describe_advantages(nearest: float, median: float, farthest: float, k: int) -> str:
    """Says plainly what the advantages at the nearest, the median and the farthest pair of originals amount to."""
    seen = "one output" if k == 1 else f"{k} outputs of one original"
    if nearest > VACUOUS_ADVANTAGE:
        return (
            f"No formal guarantee: the noise allows an attacker who sees {seen} an advantage of {_round_up(nearest)} "
            f"in telling even the two most alike originals apart, {_round_up(median)} for a typical pair. "
            "Only the measured risk speaks for this level."
        )
    if farthest > VACUOUS_ADVANTAGE:
        return (
            f"No formal guarantee for all originals: from {seen} an attacker tells the two most alike apart with an "
            f"advantage of at most {_round_up(nearest)}, but the noise allows {_round_up(median)} for a typical pair "
            f"and {_round_up(farthest)} for the two least alike. Only the measured risk speaks for this level."
        )
    return (
        f"A formal guarantee: whatever an attacker does with {seen}, his advantage in telling two of these originals "
        f"apart is at most {_round_up(farthest)}, and {_round_up(median)} for a typical pair, as long as the noise is "
        "secret and nothing else depends on the original."
    )


def _round_up(share: float) -> str:
    """A share rounded up to whole hundredths: a bound must not be rounded down."""
    return f"{math.ceil(share * 100 - 1e-9) / 100:.2f}"


def _rows(latents: torch.Tensor | Floats) -> Floats:
    """(N, ...) to (N, D) in float64."""
    rows = torch.as_tensor(latents).detach().to("cpu", torch.float64).flatten(1).numpy()
    if len(rows) < 2 or not np.isfinite(rows).all():
        raise ValueError(f"latents must be at least two rows of finite numbers, got {tuple(latents.shape)}: check them")
    return rows


def _gram(rows: Floats) -> Floats:
    """Inner products of the rows about their mean: (N, N)."""
    centred = rows - rows.mean(0)
    gram: Floats = centred @ centred.T
    return gram


def _distances(gram: Floats) -> Floats:
    """(N, N); zero for copies of one picture."""
    norms = np.diag(gram)
    squares = norms[:, None] + norms[None] - 2 * gram
    squares[squares < SAME_DISTANCE**2 * norms.max()] = 0
    np.fill_diagonal(squares, 0)
    distances: Floats = np.sqrt(squares)
    return distances


def _information(gram: Floats, snr: float) -> float:
    """The covariance's eigenvalues that are not zero are the Gram matrix's, divided by N."""
    spread = np.linalg.eigvalsh(gram).clip(0) / len(gram)  # (N,)
    return min(float(np.log1p(snr * spread).sum()) / 2 / math.log(2), math.log2(len(gram)))


def _floats(values: Floats) -> tuple[float, ...]:
    return tuple(float(value) for value in values)
