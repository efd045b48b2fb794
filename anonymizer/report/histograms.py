"""Histograms as geometry: counts, bars and ticks that a template draws as SVG."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anonymizer.policy.public_scores import BIN_WIDTH

WIDTH, HEIGHT, SIDE, TOP, FOOT = 360, 200, 16, 36, 26  # of the drawing; room at its sides, above and below the bars
BIN_WIDTHS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
MAX_BARS = 16
BIN_START = re.compile(r"-?\d+\.\d+")  # at the beginning of a bin's label


@dataclass(frozen=True)
class Bar:
    """One bar, in the drawing's units."""

    low: str
    high: str
    count: int
    label: str
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Histogram:
    """A distribution, ready to be drawn. ``middle`` are x of quartiles and median, where they are known exactly."""

    bars: Sequence[Bar]
    ticks: Sequence[tuple[float, str]]
    quartiles: tuple[float, float, float] | None
    summary: str
    total: int
    width: int = WIDTH
    height: int = HEIGHT
    base: int = HEIGHT - FOOT
    top: int = TOP


def from_values(values: npt.NDArray[np.float64]) -> Histogram | None:
    """The distribution of finite values, with its quartiles; nothing where there are none."""
    values = values[np.isfinite(values)]
    if not len(values):
        return None
    least, most = float(values.min()), float(values.max())
    step = next((s for s in BIN_WIDTHS if math.floor(most / s) - math.floor(least / s) < MAX_BARS), None)
    step = step or (most - least) / (MAX_BARS - 1)
    first, last = math.floor(least / step), math.floor(most / step)
    counts = np.bincount(
        np.clip(np.floor(values / step).astype(int) - first, 0, last - first), minlength=last - first + 1
    )
    low, median, high = (float(q) for q in np.quantile(values, (0.25, 0.5, 0.75)))
    words = f"Median {median:.3f}, middle half {low:.3f} to {high:.3f}, all {least:.3f} to {most:.3f}."
    return _lay_out(counts.tolist(), first * step, step, words, (low, median, high))


def from_bins(labels: Iterable[tuple[str | None, int]]) -> Histogram | None:
    """The distribution of values that are known as bins only: label, such as ``0.6 to 0.7``, and count."""
    found = {}
    for label, count in labels:
        if label is not None and (match := BIN_START.match(label)):
            found[round(float(match[0]) / BIN_WIDTH)] = count
    if not found:
        return None
    first, last = min(found), max(found)
    counts = [found.get(i, 0) for i in range(first, last + 1)]
    passed = np.cumsum(counts) / sum(counts)
    low, median, high = ((first + int(np.searchsorted(passed, q))) * BIN_WIDTH for q in (0.25, 0.5, 0.75))
    words = f"Median between {median:.1f} and {median + BIN_WIDTH:.1f}, middle half between {low:.1f} and {high + BIN_WIDTH:.1f}."  # noqa: E501
    return _lay_out(counts, first * BIN_WIDTH, BIN_WIDTH, words, None)


def _lay_out(
    counts: Sequence[int], low: float, step: float, words: str, quartiles: tuple[float, float, float] | None
) -> Histogram:
    slots = max(len(counts), 6)  # a single bar stays a bar
    pitch = (WIDTH - 2 * SIDE) / slots
    begin = SIDE + pitch * (slots - len(counts)) / 2
    room = HEIGHT - TOP - FOOT
    digits = max(1, -math.floor(math.log10(step) + 1e-9))

    def x(value: float) -> float:
        return round(begin + (value - low) / step * pitch, 2)

    bars = []
    for i, count in enumerate(counts):
        edge, height = low + i * step, max(room * count / max(counts), 1.5 if count else 0)
        bars.append(
            Bar(
                low=f"{edge:.{digits}f}",
                high=f"{edge + step:.{digits}f}",
                count=count,
                label=format_count(count) if count else "",
                x=round(begin + i * pitch + 0.75, 2),
                y=round(TOP + room - height, 2),
                width=round(pitch - 1.5, 2),
                height=round(height, 2),
            )
        )
    every = max(1, math.ceil(len(counts) / 6))
    ticks = [(x(low + i * step), f"{low + i * step:.{digits}f}") for i in range(0, len(counts) + 1, every)]
    middle = (x(quartiles[0]), x(quartiles[1]), x(quartiles[2])) if quartiles else None
    return Histogram(bars, ticks, middle, words, int(sum(counts)))


def format_count(count: int) -> str:
    """A count in at most four characters, below a thousand million."""
    for unit, name in ((10**6, "M"), (10**3, "k")):
        if count >= 0.9995 * unit:
            return f"{count / unit:.1f}{name}" if count < 9.95 * unit else f"{count / unit:.0f}{name}"
    return str(count)
