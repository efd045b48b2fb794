"""The results of an audit's attacks, and lines that are withdrawn because a recogniser saw too little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from metrics.attacks import linkage
from metrics.features import Embedder
from metrics.stats.intervals import Bools
from metrics.stats.risk import Figure, not_run, with_note, without_values

MAX_UNDETECTED_SHARE = 0.5  # of images without a detected face, for figures of a recogniser


@dataclass
class Findings:
    """The figures, the rank distributions by attack, and the records that each attack linked."""

    figures: list[Figure] = field(default_factory=list)
    ranks: dict[str, linkage.RankDistribution] = field(default_factory=dict)
    hits: dict[str, Bools] = field(default_factory=dict)  # (N,) for attacks that point at a record's original

    def skip(self, attack: str, attacker: str, note: str, feature: str = "") -> None:
        self.figures.append(not_run(note, attack=attack, attacker=attacker, feature=feature))


def withdraw_undetected(lines: Sequence[Figure], embedder: Embedder | None) -> list[Figure]:
    """Drop the share of undetected images where no face is needed; withdraw all other figures where it is large.

    Images without a detected face are not protected: a recogniser that detects few faces has nothing to say.
    """
    undetected = [line for line in lines if line.measure.startswith(linkage.NOT_DETECTED)]
    if embedder is None or not embedder.is_face:
        return [line for line in lines if line not in undetected]
    share = max((line.value for line in undetected if line.value is not None), default=0.0)
    if share <= MAX_UNDETECTED_SHARE:
        return list(lines)
    note = f"no face is detected on {share:.0%}: this recogniser has nothing to say"
    return [line if line in undetected else with_note(without_values(line), note) for line in lines]
