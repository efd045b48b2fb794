"""What an audit must say besides its figures: what they do not cover, and what attackers lacked."""

from __future__ import annotations

import math
from dataclasses import replace

from anonymizer.config import RunConfig
from anonymizer.records import Plan
from anonymizer.release.audit_sample import AuditSample
from metrics.audit.gaussian_bound import Certificate


def max_abar(sample: AuditSample) -> float:
    """abar where the least noise was added: pictures may have several levels, and models, after a gate or an update."""
    return 1 / (1 + math.exp(-max(row["log_snr"] for row in sample.ledger)))


def limit_certificate(bound: Certificate, settings: RunConfig) -> Certificate:
    """The certificate, unless what it bounds is not all that an output tells of its original."""
    if settings.model.has_record_condition:
        why = "each record told the model its class or prompt, which no bound on the noise covers."
    elif settings.source.fit == "tiles":
        why = "pictures were noised at their own sides, and the bound was computed for squares of the model's size."
    else:
        return bound
    return replace(bound, sentence=f"No formal guarantee: {why} Only the measured risk speaks for this level.")


def attacker_limits(settings: RunConfig) -> str | None:
    """What attackers lacked that they could have: a policy takes no figure of such an audit for a bound."""
    if settings.model.has_record_condition:
        return (
            "attackers who know the method drew without what the model was told of each record: with it they do better"
        )
    if settings.source.fit == "tiles":
        return "pictures were compared as squares of the model's size: at their own sides attackers may do better"
    return None


def _levels_caveat(shown: AuditSample, the_plan: Plan) -> str | None:
    """What is to be said where pictures have several levels."""
    found = sorted({row["level"] for row in shown.ledger})
    if len(found) < 2:
        return None
    return (
        f"pictures were drawn at {', '.join(f'{level:g}' for level in found)}; attackers who know the method drew "
        f"theirs at {the_plan.level:g}, and would do better at each picture's own level"
    )


def caveats(sample: AuditSample, the_plan: Plan, settings: RunConfig) -> list[str]:
    """What is to be said where attackers were given less than there is to know."""
    return [note for note in (_levels_caveat(sample, the_plan), attacker_limits(settings)) if note is not None]
