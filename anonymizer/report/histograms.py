"""Geometry of histograms, which a template draws as SVG in the colours of the page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anonymizer.policy.public_scores import BIN_WIDTH, to_number

WIDTH, HEIGHT, SIDE, TOP, FOOT = 360, 200, 16, 36, 26  # of the drawing, and its margins
BIN_WIDTHS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
MAX_BARS = 16


@dataclass(frozen=True)
class Bar:
    """One bar: the interval it stands for, its count, and its rectangle in units of the drawing."""

    interval: str
    count: int
    label: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Histogram:
    """A distribution, ready to draw. ``quartiles`` are the x of quartiles and median, if they are known exactly."""

    bars: Sequence[Bar]
    ticks: Sequence[tuple[float, str]]
    quartiles: Sequence[float] | None
    summary: str
    total: int
    width: int = WIDTH
    height: int = HEIGHT
    base: int = HEIGHT - FOOT
    top: int = TOP


def from_values(values: npt.NDArray[np.float64]) -> Histogram | None:
    """Return the distribution of the finite values with its quartiles, or None if there are none."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    least, low, median, high, most = (float(q) for q in np.quantile(values, (0, 0.25, 0.5, 0.75, 1)))
    fitting = (w for w in BIN_WIDTHS if math.floor(most / w) - math.floor(least / w) < MAX_BARS)
    width = next(fitting, (most - least) / (MAX_BARS - 1))
    first, last = math.floor(least / width), math.floor(most / width)
    indices = np.clip(np.floor(values / width).astype(int) - first, 0, last - first)
    counts = np.bincount(indices, minlength=last - first + 1).tolist()
    summary = f"Median {median:.3f}, middle half {low:.3f} to {high:.3f}, all {least:.3f} to {most:.3f}."
    return _lay_out(counts, first * width, width, summary, (low, median, high))


def from_bins(labels: Iterable[tuple[str | None, int]]) -> Histogram | None:
    """Return the distribution of scores of which only bins are known: pairs of a label and a count."""
    bins = {math.floor(to_number(label) / BIN_WIDTH): count for label, count in labels if label is not None}
    if not bins:
        return None
    first, last = min(bins), max(bins)
    counts = [bins.get(i, 0) for i in range(first, last + 1)]
    cumulative = np.cumsum(counts) / sum(counts)
    low, median, high = ((first + int(np.searchsorted(cumulative, q))) * BIN_WIDTH for q in (0.25, 0.5, 0.75))
    summary = (
        f"Median between {median:.1f} and {median + BIN_WIDTH:.1f}, "
        f"middle half between {low:.1f} and {high + BIN_WIDTH:.1f}."
    )
    return _lay_out(counts, first * BIN_WIDTH, BIN_WIDTH, summary, None)


def _lay_out(
    counts: Sequence[int], low: float, step: float, summary: str, quartiles: Sequence[float] | None
) -> Histogram:
    slots = max(len(counts), 6)  # a single bar must not fill the drawing
    pitch = (WIDTH - 2 * SIDE) / slots
    left = SIDE + pitch * (slots - len(counts)) / 2
    room = HEIGHT - TOP - FOOT
    digits = max(1, -math.floor(math.log10(step) + 1e-9))
    edges = [f"{low + i * step:.{digits}f}" for i in range(len(counts) + 1)]
    heights = [max(room * count / max(counts), 1.5 if count else 0) for count in counts]
    bars = [
        Bar(
            interval=f"{edges[i]} to {edges[i + 1]}",
            count=count,
            label=format_count(count) if count else "",
            x=round(left + i * pitch + 0.75, 2),
            y=round(TOP + room - height, 2),
            width=round(pitch - 1.5, 2),
            height=round(height, 2),
        )
        for i, (count, height) in enumerate(zip(counts, heights, strict=True))
    ]
    ticks = [(round(left + i * pitch, 2), edges[i]) for i in range(0, len(edges), max(1, math.ceil(len(counts) / 6)))]
    marks = None if quartiles is None else [round(left + (value - low) / step * pitch, 2) for value in quartiles]
    return Histogram(bars, ticks, marks, summary, sum(counts))


def format_count(count: int) -> str:
    """Return a count below a thousand million in at most four characters."""
    for unit, suffix in ((10**6, "M"), (10**3, "k")):
        if count >= 0.9995 * unit:
            return f"{count / unit:.1f}{suffix}" if count < 9.95 * unit else f"{count / unit:.0f}{suffix}"
    return str(count)
