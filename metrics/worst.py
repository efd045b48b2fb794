"""The highest of several results: the people hit most, the worst subgroup, the best attacker.

Where the highest is reported, its upper bound counts. It needs no correction for having been chosen: the highest of
all upper bounds lies above the truth of whichever is really the highest at least as often as that one's own bound does.
The chosen value and lower bound are biased upwards, which overstates the risk: conservative for whoever publishes, and
no proof that the chosen one is the strongest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import numpy.typing as npt

from metrics.risk import Described, Figure, Trials, figure, noted


@dataclass(frozen=True)
class Individual:
    """How often the attack hit one person: ``hits`` of ``n`` trials."""

    subject: str
    hits: int
    n: int

    @property
    def rate(self) -> float:
        return self.hits / self.n


def split(trials: Trials, groups: npt.NDArray[np.str_]) -> dict[str, Trials]:
    """The trials of each group, by name in order; ``groups`` (N,) says which group each trial belongs to."""
    if groups.shape != trials.hits.shape:
        raise ValueError(f"groups must be (N,) as the trials are, got {groups.shape} and {trials.hits.shape}")
    return {str(g): Trials(trials.hits[groups == g], trials.subjects[groups == g]) for g in np.unique(groups)}


def worst_subjects(trials: Trials, most: int) -> list[Individual]:
    """At most ``most`` people with the highest rates, highest first; of equal rates the one with more trials first.

    People who were never hit are left out. The highest of many rates is partly luck: it names who to look at.
    """
    counts = Counter(trials.subjects.tolist())
    hits = Counter(trials.subjects[trials.hits].tolist())
    found = [Individual(subject, hits[subject], counts[subject]) for subject in hits]
    return sorted(found, key=lambda one: (-one.rate, -one.n, one.subject))[:most]


def by_subgroup(
    trials: Trials,
    groups: npt.NDArray[np.str_],
    rng: np.random.Generator,
    *,
    column: str,
    measure: str,
    controls: Mapping[str, Trials] | None = None,
    chance: float | None = None,
    **described: Unpack[Described],
) -> list[Figure]:
    """A figure for each subgroup, ``column = value`` in order; ``groups`` (N,) says whose trial is whose.

    ``controls`` are the control's trials of each subgroup, see ``split``. Subgroups that are too small say so. The one
    that could be worst, by its upper bound, is noted.
    """
    lines = [
        figure(
            mine,
            rng,
            measure=measure,
            control=(controls or {}).get(name),
            chance=chance,
            **(described | Described(subgroup=f"{column} = {name}")),
        )
        for name, mine in split(trials, groups).items()
    ]
    measured = [line for line in lines if line.value is not None]
    if len(measured) < 2:
        return lines
    worst = _could_be_highest(measured)
    note = f"of {len(measured)} subgroups the one that could be worst: at most {worst.high:.1%}"
    return [noted(line, note) if line is worst else line for line in lines]


def best_of(lines: Sequence[Figure]) -> Figure:
    """The attacker that could be best: of figures of one measure, the one with the highest upper bound.

    That bound is of the risk where each figure has one, of the rate otherwise, and holds without a correction for
    choosing (see the module's docstring). Without any value, the figure with the most trials. Raises ValueError for no
    figure or several measures.
    """
    measures = sorted({line.measure for line in lines})
    if len(measures) != 1:
        raise ValueError(
            f"figures must be of one measure, got {', '.join(measures) or 'none'}: choose for each measure"
        )
    measured = [line for line in lines if line.value is not None]
    if not measured:
        return max(lines, key=lambda line: line.n)
    best = _could_be_highest(measured)
    return noted(best, f"the highest upper bound of {len(measured)} attackers") if len(measured) > 1 else best


def _could_be_highest(lines: Sequence[Figure]) -> Figure:
    above = all(line.risk_high is not None for line in lines)
    return max(lines, key=lambda line: (line.risk_high if above else line.high) or 0.0)
