"""The gates. Of a record: may this output leave the house? Of a release: may all of it? What cannot be told may not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from typing import Literal, Protocol

from anonymizer.config import Bound, PolicyConfig, RunConfig, parse_risk_rule
from anonymizer.policy.risk_figures import TRAINING_SET, FigureRow, risk_above_chance, select_headlines
from anonymizer.records import Decision, Reason, Scores, Status

FACE_SCORES = ("identity_distance", "faces")
HIGHER_IS_CLOSER = {"clip_similarity": True, "lpips": False, "identity_distance": False}


def gate(scores: Scores, config: RunConfig) -> Decision:
    """Whether one output may be released. A score that is asked for and missing, or no number, holds it back."""
    metrics, asked = config.metrics, config.policy.scores
    needed = {"clip_similarity": metrics.clip != "none", "lpips": metrics.lpips != "none"}
    if any(wanted and _finite_score(scores, name) is None for name, wanted in needed.items()):
        return _quarantine(Reason.NOT_SCORED)
    if any(name in FACE_SCORES for name in asked):
        if metrics.identity == "none" or scores.faces is None:
            return _quarantine(Reason.NOT_SCORED)
        if scores.faces == 0 or _finite_score(scores, "identity_distance") is None:
            return _quarantine(Reason.NO_FACE)  # on the output, or on the original
    found = {_violated_bound(name, _finite_score(scores, name), bound) for name, bound in asked.items()}
    for reason in (Reason.NOT_SCORED, Reason.TOO_CLOSE, Reason.TOO_FAR):
        if reason in found:
            return _quarantine(reason)
    return Decision(Status.RELEASED)


def _violated_bound(name: str, value: float | None, bound: Bound) -> Reason | None:
    """How a score breaks its bound. Too few or too many faces are of no use; that they came too close is not known."""
    if value is None:
        return Reason.NOT_SCORED
    higher = HIGHER_IS_CLOSER.get(name)
    if bound.max is not None and value > bound.max:
        return Reason.TOO_CLOSE if higher else Reason.TOO_FAR
    if bound.min is not None and value < bound.min:
        return Reason.TOO_CLOSE if higher is False else Reason.TOO_FAR
    return None


def _finite_score(scores: Scores, name: str) -> float | None:
    value = getattr(scores, name)
    return None if value is None or not math.isfinite(value) else float(value)


def _quarantine(reason: Reason) -> Decision:
    return Decision(Status.QUARANTINED, reason)


class ReleaseCounts(Protocol):
    """What a release came to."""

    @property
    def read(self) -> int: ...
    @property
    def released(self) -> int: ...
    @property
    def quarantined(self) -> int: ...
    @property
    def failed(self) -> int: ...


@dataclass(frozen=True)
class AuditResult:
    """An audit of a release: when it was, of which manifest (SHA-256), its figures, and what its attackers lacked."""

    when: datetime
    manifest_sha256: str
    figures: Sequence[FigureRow]
    attacker_limits: str | None = None


@dataclass(frozen=True)
class RuleResult:
    """What one rule says. ``found`` is for the custodian; it may say more than a release publishes."""

    rule: str
    bound: str
    found: str
    result: Literal["pass", "fail", "waived"]
    is_figure: bool = False  # ``found`` is a figure of the audit, which a log or a scheduler must not see

    def __str__(self) -> str:
        return f"{self.rule} ({self.bound})" + ("" if self.is_figure else f": {self.found}")


@dataclass(frozen=True)
class Verdict:
    """What all rules say together: pass, unless one fails that nobody has waived."""

    rule_results: Sequence[RuleResult]

    @property
    def passed(self) -> bool:
        return not self.failed_rules

    @property
    def result(self) -> str:
        return "pass" if self.passed else "fail"

    @property
    def waived_rules(self) -> list[str]:
        return [ruling.rule for ruling in self.rule_results if ruling.result == "waived"]

    @property
    def failed_rules(self) -> list[RuleResult]:
        return [ruling for ruling in self.rule_results if ruling.result == "fail"]


def evaluate_release(
    policy: PolicyConfig, counts: ReleaseCounts, manifest: str, audit: AuditResult | None, now: datetime
) -> Verdict:
    """Whether a release may be published. ``manifest`` is the SHA-256 of the one that would be."""
    rulings = [*_evaluate_counts(policy, counts), *_evaluate_audit(policy, manifest, audit, now)]
    return Verdict([_apply_waiver(policy, ruling, now.astimezone(UTC).date()) for ruling in rulings])


COUNT_RULES = {"min_released", "max_quarantined", "max_failed"}  # rules that no audit has a say in


def _evaluate_counts(policy: PolicyConfig, counts: ReleaseCounts) -> Iterator[RuleResult]:
    if least := policy.min_released:
        found = f"{counts.released} released"
        yield _rule_result("min_released", f"at least {least}", found, counts.released >= least)
    shares = {"max_quarantined": counts.quarantined, "max_failed": counts.failed}
    for rule, count in shares.items():
        most: float | None = getattr(policy, rule)
        if most is not None:
            share = count / counts.read if counts.read else 1.0
            yield _rule_result(rule, f"at most {most:g} of all", f"{count} of {counts.read}", share <= most)


def _evaluate_audit(
    policy: PolicyConfig, manifest: str, audit: AuditResult | None, now: datetime
) -> Iterator[RuleResult]:
    if not policy.required_attacks and policy.audit_days is None:
        return
    ours = audit if audit is not None and audit.manifest_sha256 == manifest else None
    missing = "no audit of this release"
    for attack in policy.required_attacks:
        measured = ours is not None and bool(select_headlines(ours.figures, attack))
        nothing = missing if ours is None else "not tried, or nothing could be measured"
        yield _rule_result(f"audits.{attack}", "must have been tried", "measured" if measured else nothing, measured)
    for rule, bound in policy.risk.items():
        attack, measure = parse_risk_rule(rule)
        high = _highest_upper_bound(ours.figures if ours else [], attack, measure)
        partial = ours is not None and ours.attacker_limits is not None  # its figures are no upper bounds
        holds = high is not None and high <= bound.upper and not partial
        found = "not measured, or not by every attacker" if high is None else f"at most {high:.3f}"
        found += f"; {ours.attacker_limits}" if ours and partial else ""
        ruling = _rule_result(rule, f"upper end at most {bound.upper:g}", found, holds)
        yield replace(ruling, is_figure=high is not None)
    if policy.audit_days is not None:
        days = (now - ours.when).days if ours else math.inf
        found = f"{days} days old" if ours else missing
        yield _rule_result("audit_days", f"at most {policy.audit_days} days old", found, 0 <= days <= policy.audit_days)


def _highest_upper_bound(figures: Sequence[FigureRow], attack: str, measure: str | None) -> float | None:
    """The highest upper end that any attacker reached; none if one of them could not be measured.

    Without a measure it is that of the risk above chance, in all that count (see ``headlines``).
    """
    own = [line for line in figures if line["attack"] == attack and line["subgroup"] is None]
    if measure is None:
        asked = select_headlines(own, attack)
        highs = [risk_above_chance(line) for line in asked]
    else:
        asked = [line for line in own if line["measure"].startswith(measure) and TRAINING_SET not in line["measure"]]
        highs = [math.nan if line["value"] is None or line["high"] is None else line["high"] for line in asked]
    failed = any(line["measure"] == "not run" for line in own)
    return None if failed or not asked or not all(map(math.isfinite, highs)) else max(highs)


def _rule_result(rule: str, bound: str, found: str, holds: bool) -> RuleResult:
    return RuleResult(rule, bound, found, "pass" if holds else "fail")


def _apply_waiver(policy: PolicyConfig, ruling: RuleResult, today: date) -> RuleResult:
    """The ruling, or, where it fails and somebody answers for that, a waived one."""
    if ruling.result == "pass":
        return ruling
    for waiver in policy.waivers:
        if waiver.rule == ruling.rule:
            said = f"{ruling.found}; waived by {waiver.who} until {waiver.until}: {waiver.why}"
            if waiver.until >= today:
                return replace(ruling, found=said, result="waived")
            return replace(ruling, found=f"{ruling.found}; its waiver ended on {waiver.until}")
    return ruling
