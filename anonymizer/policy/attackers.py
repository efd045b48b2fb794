"""The attackers of an audit as it was run, held against the least that a policy asks for.

A bound on risk says nothing where the auditor may choose attackers who find nothing: the policy names the least.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from anonymizer.config import LeastAttackers


@dataclass(frozen=True)
class Attackers:
    """What the attackers of one audit had, and how hard they tried. ``features`` are as the settings spell them."""

    attacks: Sequence[str]
    features: Sequence[str]
    sample: int  # records attacked
    released: int  # records that could have been
    pairs: int
    outputs: int
    averaged: int
    identity: str | None


def describe_least(least: LeastAttackers) -> str:
    """Return what a policy asks for, in words."""
    effort = f"{least.pairs} pairs, {least.outputs} outputs of {least.averaged} originals"
    identity = f", identity {least.identity}" if least.identity is not None else ""
    return f"features {', '.join(least.features) or 'any'}; {least.sample} records or all; {effort}{identity}"


def find_shortfalls(least: LeastAttackers, attackers: Attackers) -> Iterator[str]:
    """Yield what an audit's attackers lacked of the least, in words."""
    if missing := [name for name in least.features if name not in attackers.features]:
        yield f"features {', '.join(missing)} were not compared by"
    if attackers.sample < min(least.sample, attackers.released):
        yield f"{attackers.sample} of {attackers.released} records were attacked"
    for name in ("pairs", "outputs", "averaged"):
        if (given := getattr(attackers, name)) < getattr(least, name):
            yield f"{name}: {given}"
    if least.identity not in (None, attackers.identity):
        yield f"identity: {attackers.identity or 'none'}"
