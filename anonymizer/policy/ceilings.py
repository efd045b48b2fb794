"""Ceilings in a policy: which settings allow one, whether a bound is kept, and what it says in words."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import astuple
from typing import Any

from pydantic import TypeAdapter

from anonymizer.config import CeilingName, RunConfig
from anonymizer.config.groups import LABEL
from anonymizer.records import CeilingRate, Ceilings, MembershipCeiling


def find_broken_assumptions(config: RunConfig) -> list[str]:
    """Return why no ceiling holds with these settings: what tells of an original besides its noised picture."""
    model = config.model
    reasons = {
        "model: each record's own class or prompt is drawn into its output": model.has_record_condition,
        "source.fit tiles: pictures are noised at their own sides, in overlapping tiles": config.source.fit == "tiles",
        "policy.escalate: the level at which an output was drawn depends on its original": bool(config.policy.escalate),
        "metrics.gallery 0: no original may be looked at for a ceiling": config.metrics.gallery == 0,
    }
    return [reason for reason, is_broken in reasons.items() if is_broken]


def find_caveats(config: RunConfig) -> list[str]:
    """Return what ceilings do not cover with these settings: what is known of an original besides pictures."""
    scores = config.output.public_scores
    caveats = {
        f"output.public_scores {scores}: a score is computed from the original (none leaves them out)": (
            scores != "none"
        ),
        "policy.scores: whether an output is released depends on its original": bool(config.policy.scores),
        "source.caption: a caption that is published may name its original": config.source.caption is not None,
        "groups.generalise: the ends of a range are values of two members": bool(config.groups.generalise),
    }
    return [caveat for caveat, applies in caveats.items() if applies]


def published_columns(config: RunConfig) -> list[str]:
    """Return the columns of which a release publishes each original's own value, but for captions."""
    label = [] if config.source.label is None else [LABEL]
    return label + [name for name in config.source.carry if name not in config.groups.generalise]


def upper_end(ceilings: Ceilings, name: CeilingName) -> float:
    """Return the highest rate that a ceiling allows: the upper end of its interval.

    ``membership_...`` is for the nearest other person, with ``_median`` or ``_worst`` for these pairs. Without groups
    an attacker who knows all other members knows no more than others do.
    """
    pair = next((pair for pair in ("median", "worst") if name.endswith(f"_{pair}")), "nearest")
    value: CeilingRate | MembershipCeiling | None = getattr(ceilings, name.removesuffix(f"_{pair}"))
    if isinstance(value, MembershipCeiling):
        return float(getattr(value, pair))
    return (value or ceilings.linkage_rank1).high


def parse_ceilings(fields: Mapping[str, Any] | None) -> Ceilings | None:
    """Return ceilings from their JSON form."""
    return None if fields is None else TypeAdapter(Ceilings).validate_json(json.dumps(fields))


def find_exceeded(bounds: Mapping[CeilingName, float], ceilings: Ceilings | None) -> list[CeilingName]:
    """Return the bounds that the upper end of a ceiling exceeds: all of them where none holds, or not for all."""
    if ceilings is None or ceilings.caveats:
        return list(bounds)
    return [name for name, bound in bounds.items() if upper_end(ceilings, name) > bound]


def describe(ceilings: Ceilings) -> dict[str, str]:
    """Return what each ceiling says, by name, with rates rounded up."""
    first, five, matched = (
        format_rate(rate.high) for rate in (ceilings.linkage_rank1, ceilings.linkage_rank5, ceilings.linkage_assigned)
    )
    nearest, median, worst = map(format_rate, astuple(ceilings.membership_tpr_at_1))
    lines = {
        "links at most": f"{first} of outputs by the first guess among {ceilings.linkage_rank1.gallery:,} originals "
        f"({five} by five; {matched} by the best known matching of all outputs)",
    }
    if ceilings.knows_others is not None:
        lines["knows all others"] = (
            f"names the last of a group of {ceilings.k} in at most {format_rate(ceilings.knows_others.high)}, if all "
            f"of {ceilings.knows_others.gallery:,} others of whom the same is published are equally likely before"
        )
    lines["tells a member"] = (
        f"at most {nearest} from the nearest other person, for the median person, at a false-positive rate of 1 % "
        f"({median} for the median pair of these originals, {worst} for the least alike)"
    )
    if ceilings.caveats:
        lines["not covered"] = "; ".join(ceilings.caveats)
    return lines


def format_rate(rate: float) -> str:
    """Return a rate in per cent, rounded up: 7.2 %, or 58 %."""
    percent = 100 * rate
    return f"{math.ceil(percent * 10 - 1e-6) / 10:g} %" if percent < 10 else f"{math.ceil(percent - 1e-6)} %"
