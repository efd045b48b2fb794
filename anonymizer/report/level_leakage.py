"""What it gives away that a gate let pictures out: the level that a picture needed is public, and says something."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class LevelShare:
    """How many pictures were released at a level, and what that level says of one of them, in bits."""

    level: float
    pictures: int
    bits: float


@dataclass(frozen=True)
class LevelLeakage:
    """The levels of a release, and what they say of a picture on average: the entropy of the levels, in bits."""

    levels: Sequence[LevelShare]
    bits: float


def measure_leakage(levels: Mapping[float, int]) -> LevelLeakage | None:
    """What levels (level -> pictures) give away; none where all pictures have one.

    Whoever knows how many pictures have which level, and sees that one has a level of share p, learns -log2(p) bits
    about whether its original is easily redrawn: nothing more, since the level depends on the scores alone.
    """
    total = sum(levels.values())
    if len(levels) < 2:
        return None
    drawn = [LevelShare(level, count, -math.log2(count / total)) for level, count in sorted(levels.items())]
    return LevelLeakage(drawn, sum(one.pictures / total * one.bits for one in drawn))
