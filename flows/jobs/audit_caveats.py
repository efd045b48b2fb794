"""Caveats of an audit: what its figures do not cover, and what its attackers lacked."""

from __future__ import annotations

import math
from collections.abc import Sequence

from anonymizer.config import RunConfig
from anonymizer.records import Plan
from anonymizer.release.audit_sample import AuditSample


def max_abar(sample: AuditSample) -> float:
    """Return abar where the least noise was added: levels and models differ by image after a gate or an update."""
    return 1 / (1 + math.exp(-max(row["log_snr"] for row in sample.ledger)))


def attacker_limits(settings: RunConfig, unprotected: Sequence[str] = ()) -> str | None:
    """Return what real attackers could have and these lacked: a policy takes no figure of such an audit for a bound."""
    if settings.model.has_record_condition:
        return (
            "attackers who know the method drew without what the model was told of each record: with it they do better"
        )
    if settings.source.fit == "tiles":
        return "pictures were compared as squares of the model's size: at their own sides attackers may do better"
    if unprotected:
        return (
            f"{', '.join(unprotected)} of the source is not in the ledger, so that what was told of people may have "
            "changed since: name it in source.subject or source.restricted"
        )
    return None


def caveats(sample: AuditSample, the_plan: Plan, settings: RunConfig, unprotected: Sequence[str] = ()) -> list[str]:
    """Return notes on what the attackers were not given."""
    notes = [attacker_limits(settings, unprotected)]
    if sample.missing:
        notes.append(
            f"not measured: {sample.unread} pictures whose originals are gone, and {sample.changed} under whose ids "
            "the source has other bytes than were released: bring them back, as no bound of a policy holds without them"
        )
    if len(levels := sorted({row["level"] for row in sample.ledger})) > 1:
        notes.insert(
            0,
            f"pictures were drawn at {', '.join(f'{level:g}' for level in levels)}; attackers who know the method drew "
            f"theirs at {the_plan.level:g}, and would do better at each picture's own level",
        )
    return [note for note in notes if note is not None]
