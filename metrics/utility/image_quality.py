"""Quality of enlarged images against references: PSNR, SSIM (Wang et al. 2004), LPIPS, and their means.

PSNR and SSIM compare pixel by pixel, and prefer a blur to plausible detail in another position; LPIPS does not.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from anonymizer.errors import ModelError
from metrics.models.lpips import PerceptualDistance
from metrics.stats.intervals import Floats, chunk_replicates, percentile_interval, small_sample_factor

RANGE = 2.0  # of pixels in [-1, 1]
WINDOW, SIGMA = 11, 1.5  # pixels of SSIM's window, and its standard deviation
K1, K2 = 0.01, 0.03
STRIP_PIXELS = 2**20  # compared at once; bounds memory
MAX_LPIPS_PIXELS = 2**22  # of an image: the network's first layers take 1 KiB for each

QualityScores = Mapping[str, Sequence[float | None]]  # measure -> a value for each row, None where it cannot be had


def psnr(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the peak signal-to-noise ratio in dB (B,), float64, of two (B, 3, H, W) in [-1, 1], row by row.

    ``10 log10(range^2 / mean squared error)``, over all pixels and colours; infinite for equal images.
    """
    squares = [(x - y).square().sum((1, 2, 3)) for x, y in _strips(a, b, overlap=0)]
    return 10 * torch.log10(RANGE**2 * a[0].numel() / torch.stack(squares).sum(0))


def ssim(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the structural similarity (B,), float64, of two (B, 3, H, W) in [-1, 1]; 1 for equal images.

    Means, variances and covariance under a Gaussian window of 11 pixels (sigma 1.5, weights that sum to 1), at each
    position where all of it lies in the image; averaged over positions and colours. The formula is for pixels that
    begin at 0, so [-1, 1] is moved to [0, 2]. Raises ValueError for sides shorter than the window. Source: Wang et al.
    2004.
    """
    height, width = a.shape[-2:]
    if min(height, width) < WINDOW:
        raise ValueError(f"pictures must be {WINDOW} pixels or more on each side, got {height} x {width}")
    positions = a.shape[1] * (height - WINDOW + 1) * (width - WINDOW + 1)
    sums = [_ssim_map(x + 1, y + 1).sum((1, 2, 3)) for x, y in _strips(a, b, overlap=WINDOW - 1)]
    return torch.stack(sums).sum(0) / positions


def _ssim_map(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return equation 13 of Wang et al. at each position: (B, 3, H, W) to (B, 3, H - 10, W - 10)."""
    mean_x, mean_y = _windowed_mean(x), _windowed_mean(y)
    var_x, var_y = _windowed_mean(x * x) - mean_x**2, _windowed_mean(y * y) - mean_y**2
    cov = _windowed_mean(x * y) - mean_x * mean_y
    c1, c2 = (K1 * RANGE) ** 2, (K2 * RANGE) ** 2
    return (2 * mean_x * mean_y + c1) * (2 * cov + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))


def _windowed_mean(x: torch.Tensor) -> torch.Tensor:
    weights = [math.exp(-(at**2) / (2 * SIGMA**2)) for at in range(-(WINDOW // 2), WINDOW // 2 + 1)]
    for dim in (-2, -1):
        length = x.shape[dim] - WINDOW + 1
        parts = torch.zeros_like(x.narrow(dim, 0, length))
        for at, weight in enumerate(weights):
            parts += x.narrow(dim, at, length) * (weight / sum(weights))
        x = parts
    return x


def _strips(a: torch.Tensor, b: torch.Tensor, overlap: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Yield both in float64, some lines at a time, so that memory does not grow with their height."""
    if a.ndim != 4 or a.shape != b.shape:
        raise ValueError(f"pictures must be (B, 3, H, W) of equal shapes, got {tuple(a.shape)} and {tuple(b.shape)}")
    batch, _, height, width = a.shape
    step = max(1, STRIP_PIXELS // (batch * width))
    for top in range(0, height - overlap, step):
        lines = slice(top, top + step + overlap)
        yield a[..., lines, :].double(), b[..., lines, :].double()


def score_images(images: torch.Tensor, references: torch.Tensor, lpips: PerceptualDistance | None) -> QualityScores:
    """Return LPIPS (if given), PSNR and SSIM of (B, 3, H, W) in [-1, 1] against references of the same shape.

    None where images are too small for a measure, or have more than ``MAX_LPIPS_PIXELS`` for LPIPS; PSNR may be
    infinite.
    """
    height, width = images.shape[-2:]
    missing: list[float | None] = [None] * len(images)
    scores: dict[str, Sequence[float | None]] = {}
    if lpips is not None:
        scores["lpips"] = missing
        if height * width <= MAX_LPIPS_PIXELS:
            with contextlib.suppress(ModelError):  # too small for its network
                scores["lpips"] = lpips(images, references).tolist()
    scores["psnr"] = psnr(images, references).tolist()
    scores["ssim"] = ssim(images, references).tolist() if min(height, width) >= WINDOW else missing
    return scores


@dataclass(frozen=True)
class Mean:
    """A mean over ``n`` images and its 95 % interval, None for a single image."""

    value: float
    low: float | None
    high: float | None
    n: int


def mean_with_interval(
    values: Floats | Sequence[float], rng: np.random.Generator, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Mean:
    """Return the mean of (N,) finite values and its interval: percentiles of a bootstrap over images.

    A bootstrap of few sees too little variance, so its distance from the mean is stretched as Student's t is from the
    normal, and by ``sqrt(N / (N - 1))``. Differences of pairs give a paired interval. ``bounds`` limit the interval of
    a bounded measure. Raises ValueError.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x) or not np.isfinite(x).all():
        raise ValueError(f"values must be (N,), finite, one at least, got {x.shape}: leave out what was not measured")
    n, value = len(x), float(x.mean())
    if n == 1:
        return Mean(value, None, None, 1)
    low, high = percentile_interval(
        np.concatenate([x[rng.integers(n, size=(size, n))].mean(1) for size in chunk_replicates(n)])
    )
    wider = small_sample_factor(n) * math.sqrt(n / (n - 1))
    return Mean(value, max(bounds[0], value - (value - low) * wider), min(bounds[1], value + (high - value) * wider), n)
