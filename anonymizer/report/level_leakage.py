"""Information that the public level of an image gives away about its original, if levels differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LevelLeakage:
    """The levels of a release as (level, images, bits), and the mean bits of an image: the entropy of the levels."""

    levels: Sequence[tuple[float, int, float]]
    mean_bits: float


def measure_leakage(levels: Mapping[float, int]) -> LevelLeakage | None:
    """Return the information in levels (level -> number of images), or None if all images have the same one.

    A level of share p gives away -log2(p) bits about how easily the original is redrawn. It gives away nothing more,
    since the level depends on the scores alone.
    """
    if len(levels) < 2:
        return None
    total = sum(levels.values())
    rows = [(level, count, -math.log2(count / total)) for level, count in sorted(levels.items())]
    return LevelLeakage(rows, sum(count / total * bits for _, count, bits in rows))
