"""The formal guarantee of the noise alone, against any attacker; usually none, and then it says so.

The forward step is a Gaussian mechanism, ``z_t = sqrt(abar) z0 + sqrt(1 - abar) eps``, and the reverse half sees
nothing else of the original (Dong, Roth and Su 2022: Gaussian differential privacy, here between two originals instead
of two datasets). It holds as long as the noise is secret, and model, prompt and level do not depend on the image. A
gate that resamples outputs that are too close does look at the image: count each attempt as an output; what the gate's
answer itself gives away is not counted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from metrics.stats.intervals import Floats

VACUOUS_ADVANTAGE = 0.5  # an attacker may distinguish two images three times out of four
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
RENYI_ORDER = 2.0
MAX_IMAGES = 1000  # bounds time and memory
SAME_DISTANCE = 1e-6  # relative distance below which two images are one

Distances = TypeVar("Distances", float, Floats)


@dataclass(frozen=True)
class Certificate:
    """The guarantee at one level for images like these ``n``; distances are in the space that is noised.

    Tuples run over ``QUANTILES``: of all pairs of different images, and of each image and its nearest other.
    ``advantage`` and ``renyi`` (of order ``RENYI_ORDER``, in nats) are for the nearest, median and farthest pair.
    ``information_bits`` bounds what ``k`` outputs tell about which of the ``n``, equally likely before, was the
    original; ``most_bits`` is the information in knowing it.
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


def mu(distance: Distances, abar: float, k: int = 1) -> Distances:
    """Return ``d sqrt(k abar / (1 - abar))``: k outputs separate two originals no better than N(0, 1) and N(mu, 1).

    ``distance`` is Euclidean, in the space that is noised. Raises ValueError.
    """
    if not 0 <= abar < 1:
        raise ValueError(f"abar must be in [0, 1), got {abar:g}: without noise the original itself would be released")
    if k < 1:
        raise ValueError(f"k must be positive, got {k}: it counts the outputs of one original")
    return distance * math.sqrt(k * abar / (1 - abar))


def advantage(mu: float) -> float:
    """Return ``2 Phi(mu / 2) - 1``, the total variation of N(0, 1) and N(mu, 1): the most by which TPR exceeds FPR."""
    return math.erf(mu / math.sqrt(8))


def renyi(mu: float, alpha: float) -> float:
    """Return ``alpha mu^2 / 2`` nats, the Renyi divergence of N(0, 1) and N(mu, 1); order 1 is Kullback's."""
    if not 0 < alpha < math.inf:
        raise ValueError(f"alpha must be positive and finite, got {alpha:g}")
    return alpha * mu**2 / 2


def information_bound(latents: torch.Tensor | Floats, abar: float, k: int = 1) -> float:
    """Bound the bits that k outputs tell about which of N images (N, ...), equally likely before, was the original.

    The least of ``log2 N`` and the capacity of the Gaussian channel for images of this covariance S,
    ``log2 det(1 + k abar / (1 - abar) S) / 2`` (Cover and Thomas 2006, 9.4). The latter is at most half the mean
    Kullback divergence over all ordered pairs, the simpler bound.
    """
    gram = _gram(latents)
    spread = np.linalg.eigvalsh(gram).clip(0) / len(gram)  # (N,): the covariance's nonzero eigenvalues
    snr = mu(1.0, abar, k) ** 2
    return min(float(np.log1p(snr * spread).sum()) / 2 / math.log(2), math.log2(len(gram)))


def compute_certificate(
    latents: torch.Tensor | Floats, abar: float, rng: np.random.Generator, k: int = 1, max_images: int = MAX_IMAGES
) -> Certificate:
    """Return the guarantee for ``k`` outputs of each original at noise level ``abar``, for the data's own distances.

    ``latents`` (N, ...) are the originals as they are noised (``backbone.encode``). Of more than ``max_images`` a
    sample is taken; its neighbours are farther away, and the advantage at the nearest pair is overstated. Raises
    ValueError for fewer than two different images.
    """
    if len(latents) > max_images:
        latents = latents[np.sort(rng.choice(len(latents), max_images, replace=False))]
    distances = _distances(_gram(latents))
    pairs = distances[np.triu_indices(len(distances), 1)]
    pairs, nearest = pairs[pairs > 0], np.where(distances > 0, distances, np.inf).min(1)
    if not len(pairs):
        raise ValueError("latents must hold two different pictures, got copies of one: give more of the data")
    of_pairs, of_nearest = (np.quantile(d, QUANTILES) for d in (pairs, nearest))
    at = [mu(float(d), abar, k) for d in (pairs.min(), np.median(pairs), pairs.max())]
    advantages, divergences = [advantage(m) for m in at], [renyi(m, RENYI_ORDER) for m in at]
    return Certificate(
        n=len(latents),
        k=k,
        abar=abar,
        pair_distances=tuple(of_pairs.tolist()),
        nearest_distances=tuple(of_nearest.tolist()),
        pair_mu=tuple(mu(of_pairs, abar, k).tolist()),
        nearest_mu=tuple(mu(of_nearest, abar, k).tolist()),
        advantage_nearest=advantages[0],
        advantage_median=advantages[1],
        advantage_farthest=advantages[2],
        renyi_nearest=divergences[0],
        renyi_median=divergences[1],
        renyi_farthest=divergences[2],
        information_bits=information_bound(latents, abar, k),
        most_bits=math.log2(len(latents)),
        sentence=describe_advantages(advantages[0], advantages[1], advantages[2], k),
    )


def describe_advantages(nearest: float, median: float, farthest: float, k: int) -> str:
    """Describe plainly the advantages at the nearest, the median and the farthest pair of originals."""
    seen = "one output" if k == 1 else f"{k} outputs of one original"
    at_nearest, at_median, at_farthest = map(_round_up, (nearest, median, farthest))
    if nearest > VACUOUS_ADVANTAGE:
        return (
            f"No formal guarantee: the noise allows an attacker who sees {seen} an advantage of {at_nearest} in "
            f"telling even the two most alike originals apart, {at_median} for a typical pair. "
            "Only the measured risk speaks for this level."
        )
    if farthest > VACUOUS_ADVANTAGE:
        return (
            f"No formal guarantee for all originals: from {seen} an attacker tells the two most alike apart with an "
            f"advantage of at most {at_nearest}, but the noise allows {at_median} for a typical pair and "
            f"{at_farthest} for the two least alike. Only the measured risk speaks for this level."
        )
    return (
        f"A formal guarantee: whatever an attacker does with {seen}, the advantage in telling two of these originals "
        f"apart is at most {at_farthest}, and {at_median} for a typical pair, as long as the noise is secret "
        "and nothing else depends on the original."
    )


def _round_up(share: float) -> str:
    """Round a share up to whole hundredths: a bound must not be rounded down."""
    return f"{math.ceil(share * 100 - 1e-9) / 100:.2f}"


def _gram(latents: torch.Tensor | Floats) -> Floats:
    """Return the inner products (N, N), in float64, of the rows (N, ...) about their mean. Raises ValueError."""
    rows = torch.as_tensor(latents).detach().to("cpu", torch.float64).flatten(1).numpy()
    if len(rows) < 2 or not np.isfinite(rows).all():
        raise ValueError(f"latents must be at least two rows of finite numbers, got {tuple(latents.shape)}: check them")
    centred = rows - rows.mean(0)
    return np.asarray(centred @ centred.T)


def _distances(gram: Floats) -> Floats:
    """Return the distances (N, N); zero for copies of one image."""
    norms = np.diag(gram)
    squares = norms[:, None] + norms[None] - 2 * gram
    squares[squares < SAME_DISTANCE**2 * norms.max()] = 0
    np.fill_diagonal(squares, 0)
    return np.sqrt(squares)
