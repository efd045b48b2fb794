"""The gate: whether an output may be released. When a score is missing, it may not."""

from __future__ import annotations

import math

from anonymizer.config import MetricsConfig
from anonymizer.records import Decision, Reason, Scores, Status


def gate(scores: Scores, metrics: MetricsConfig) -> Decision:
    """Fails closed: a score that the run asks for and that is absent or not finite puts the output in quarantine."""
    asked = [(metrics.clip, scores.clip_similarity), (metrics.lpips, scores.lpips)]
    if any(name != "none" and (value is None or not math.isfinite(value)) for name, value in asked):
        return Decision(Status.QUARANTINED, Reason.NOT_SCORED)
    return Decision(Status.RELEASED)
