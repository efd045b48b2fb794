"""The matched filter: the likelihood of outputs given candidates, from the level and how pictures of the kind vary.

Principal components of public pictures have variances l_i. An exact reverse process keeps of each component the share
``rho_i = snr_i / (1 + snr_i)`` with ``snr_i = abar l_i / (1 - abar)``, a deterministic one its square root, and draws
the rest anew: ``y_i | x_i ~ N(rho_i x_i, l_i (1 - rho_i^2))``, and ``y_i ~ N(0, l_i)`` for an output of someone else.
No training: the score is an inner product of weighted components (North 1963).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metrics.attacks.linkage import Similarity, row_blocks
from metrics.stats.intervals import Floats, Names

FILTER_NAME = "matched filter"
MAX_COMPONENTS = 500
LEAST_VARIANCE = 1e-6  # of the mean one; what rounding to 8 bits adds to each pixel is more
MIN_PEOPLE = 10  # with several photos, for the variance within a person


@dataclass(frozen=True)
class Components:
    """``axes`` (D, R), orthonormal, about ``mean`` (D,), with ``variances`` (R,)."""

    mean: Floats
    axes: Floats
    variances: Floats

    def project(self, rows: Floats) -> Floats:
        """Return the components of rows (N, D): (N, R); NaN for a row with NaN."""
        return np.asarray((rows - self.mean) @ self.axes)


def fit_components(pictures: Floats, count: int = MAX_COMPONENTS) -> Components:
    """Return the principal components of public pictures (n, D), of any n: at most half of n, and at most ``count``.

    Of fewer pictures than numbers, later components are mostly noise of the sample, and what a network keeps of the
    finest detail is not what the formula says: both are left out. Raises ValueError for fewer than four pictures, or
    pictures that do not differ.
    """
    n, width = pictures.shape
    if n < 4 or not np.isfinite(pictures).all():
        raise ValueError(f"pictures must be four or more rows of finite numbers, got {pictures.shape}")
    mean = pictures.mean(axis=0, dtype=np.float64).astype(pictures.dtype)
    centred = pictures - mean
    is_wide = width > n
    squares, vectors = np.linalg.eigh((centred @ centred.T if is_wide else centred.T @ centred).astype(np.float64))
    total = float(squares.clip(0).sum())
    if not total > 0:
        raise ValueError("pictures do not differ: give others of the kind")
    kept = min(count, n // 2, width)
    vectors = vectors[:, ::-1][:, :kept].astype(centred.dtype)
    axes = np.linalg.qr(centred.T @ vectors)[0] if is_wide else vectors  # orthonormal where a component has no variance
    squares = squares[::-1][:kept].clip(LEAST_VARIANCE * total / width)
    return Components(mean, axes, squares / (n - 1))


def between_shares(components: Components, pictures: Floats, people: Names) -> Floats | None:
    """Return the share (R,) of each component's variance that lies between people, for photos (n, D) of ``people``.

    One-way analysis of variance of the people with several photos; each share is drawn towards that of all components,
    as if ``MIN_PEOPLE`` more had shown that one. None for fewer than ``MIN_PEOPLE`` people.
    """
    _, person, counts = np.unique(people, return_inverse=True, return_counts=True)
    several = counts[person] > 1
    groups, person = np.unique(person[several], return_inverse=True)
    if len(groups) < MIN_PEOPLE:
        return None
    rows, sizes = components.project(pictures[several]).astype(np.float64), np.bincount(person)
    sums = np.zeros((len(groups), rows.shape[1]))
    np.add.at(sums, person, rows)
    means = sums / sizes[:, None]
    within = np.square(rows - means[person]).sum(0) / (len(rows) - len(groups))
    of_means = (np.square(means - rows.mean(0)) * sizes[:, None]).sum(0) / (len(groups) - 1)
    between, tiny = ((of_means - within) / sizes.mean()).clip(0), np.finfo(float).tiny
    overall = between.sum() / max(tiny, float((between + within).sum()))
    shares = between / np.maximum(tiny, between + within)
    return np.asarray((len(groups) * shares + MIN_PEOPLE * overall) / (len(groups) + MIN_PEOPLE))


@dataclass(frozen=True)
class MatchedFilter:
    """Log-likelihood ratios of outputs y and candidates x.

    ``gain y x - candidate x^2 / 2 - output y^2 / 2``, each (R,), summed over components, and ``constant``.
    """

    components: Components
    gain: Floats
    candidate: Floats
    output: Floats
    constant: float

    def similarity(self, outputs: Floats, candidates: Floats) -> Similarity:
        """Compare outputs (N, D) and candidates (M, D) by ``log p(y | x) - log p(y)``; NaN is a blind guess."""
        y, x = (self.components.project(rows).astype(np.float64) for rows in (outputs, candidates))
        by_candidate = np.square(x) @ self.candidate / 2 - self.constant

        def blocks(rows: slice) -> Floats:
            by_output = np.square(y[rows]) @ self.output / 2
            return np.asarray((y[rows] * self.gain) @ x.T - by_candidate - by_output[:, None])

        return Similarity(blocks, len(x), np.asarray(np.isfinite(y).all(axis=1)))

    def scores(self, outputs: Floats, candidates: Floats) -> Floats:
        """Return all log-likelihood ratios (N, M)."""
        return self.similarity(outputs, candidates).blocks(slice(None))

    def evidence(self, outputs: Floats, candidates: Floats) -> Floats:
        """Return for each candidate (M, D) the log-likelihood ratio (M,) that it is behind one of the outputs (N, D).

        The mean of the ratios of all outputs, since each of them may be the one; block by block.
        """
        similarity, total = self.similarity(outputs, candidates), np.full(len(candidates), -np.inf)
        for rows in row_blocks(len(outputs), len(candidates)):
            total = np.logaddexp(total, np.logaddexp.reduce(similarity.blocks(rows), axis=0))
        return np.asarray(total - np.log(len(outputs)))


def matched_filter(
    components: Components,
    abar: float,
    is_deterministic: bool = False,
    between: Floats | None = None,
    photos: int = 1,
) -> MatchedFilter:
    """Return the filter for one noise level, of a sampler that draws noise on its way or of a deterministic one.

    ``between`` (R,): candidates are means of ``photos`` other photos of the person, and this share of a component's
    variance lies between people; None: candidates are the originals. Raises ValueError.
    """
    if photos < 1:
        raise ValueError(f"photos must be positive, got {photos}")
    share = np.ones_like(components.variances) if between is None else between
    known = photos * share / (1 + (photos - 1) * share)  # E[x | mean photo] / mean photo
    return _filter(components, abar, is_deterministic, known, 1 - known * share, np.ones_like(share))


def group_filter(
    components: Components, abar: float, k: int, alike: Floats, is_deterministic: bool = False, known: int = 0
) -> MatchedFilter:
    """Return the filter for an output of the mean of ``k`` originals; candidates are sums of ``known`` + 1 of them.

    ``alike`` (R,): the share of a component's variance that lies between groups. What is not known of the mean is
    expected to be as what is: for known + 1 = m of k members of one group,
    ``E[mean | sum] = (1 + (k - m) alike / (1 + (m - 1) alike)) sum / k``. Raises ValueError.
    """
    if not 0 <= known < k:
        raise ValueError(f"known must be in 0..k - 1, got {known} of {k}")
    m, others = known + 1, k - known - 1
    shrunk = alike / (1 + (m - 1) * alike)  # E[another member | sum] / sum
    spread = (others * (1 - alike) + others**2 * alike * (1 - m * shrunk)) / k**2  # of the mean, by variances
    return _filter(components, abar, is_deterministic, (1 + others * shrunk) / k, spread, alike + (1 - alike) / k)


def _filter(
    components: Components, abar: float, is_deterministic: bool, slope: Floats, spread: Floats, power: Floats
) -> MatchedFilter:
    """Return the filter where the noised picture is ``slope`` times the candidate, give or take ``spread``.

    ``spread`` and ``power``, which is the variance of the noised picture before noise, are multiples of the variances.
    """
    if not 0 <= abar < 1:
        raise ValueError(f"abar must be in [0, 1), got {abar:g}")
    snr = abar / (1 - abar) * components.variances
    rho = snr / (1 + snr)
    kept = np.sqrt(rho) if is_deterministic else rho
    lost = 1 / (1 + snr) if is_deterministic else (1 + 2 * snr) / (1 + snr) ** 2  # 1 - kept^2 without cancellation
    left = components.variances * (lost + kept**2 * spread)  # variance of y given the candidate
    total = components.variances * (lost + kept**2 * power)  # and without
    return MatchedFilter(
        components,
        gain=kept * slope / left,
        candidate=(kept * slope) ** 2 / left,
        output=kept**2 * (power - spread) * components.variances / (left * total),
        constant=float(np.log(total / left).sum() / 2),
    )
