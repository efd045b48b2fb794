"""Information that the public level of an image gives away about its original, if levels differ."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LevelShare:
    """Number of images released at a level, and the information in that level, in bits."""

    level: float
    pictures: int
    bits: float


@dataclass(frozen=True)
class LevelLeakage:
    """The levels of a release; ``bits`` is their entropy, the information about an image on average."""

    levels: Sequence[LevelShare]
    bits: float


def measure_leakage(levels: Mapping[float, int]) -> LevelLeakage | None:
    """Return what levels (level -> number of images) give away, or None if all images have the same one.

    A level of share p gives away -log2(p) bits about how easily the original is redrawn. It gives away nothing more,
    since the level depends on the scores alone.
    """
    if len(levels) < 2:
        return None
    total = sum(levels.values())
    shares = [LevelShare(level, count, -math.log2(count / total)) for level, count in sorted(levels.items())]
    return LevelLeakage(shares, sum(share.pictures / total * share.bits for share in shares))
