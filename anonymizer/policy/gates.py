"""Gates: whether an output may be released, and whether a release may be published. Unknown values fail closed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, date, datetime
from typing import Any, Literal

from anonymizer.config import Bound, PolicyConfig, RunConfig, parse_risk_rule
from anonymizer.policy.attackers import Attackers, describe_least, find_shortfalls
from anonymizer.policy.ceilings import find_exceeded, upper_end
from anonymizer.policy.risk_figures import TRAINING_SET, FigureRow, risk_above_chance, select_headlines
from anonymizer.records import Ceilings, Decision, Reason, Scores, Status, Summary

FACE_SCORES = {"identity_distance", "faces"}
HIGHER_IS_CLOSER = {"clip_similarity": True, "lpips": False, "identity_distance": False}
COUNT_RULES = {"min_released", "max_quarantined", "max_failed", "groups.min_k", "groups.max_leftover"}  # need no audit


def gate(scores: Scores, config: RunConfig) -> Decision:
    """Decide whether one output may be released; a requested score that is missing or not finite quarantines it."""
    bounds, metrics = config.policy.scores, config.metrics
    requested = {"clip_similarity": metrics.clip, "lpips": metrics.lpips}
    if any(model != "none" and _finite_score(scores, name) is None for name, model in requested.items()):
        return Decision(Status.QUARANTINED, Reason.NOT_SCORED)
    if FACE_SCORES.intersection(bounds):
        if metrics.identity == "none" or scores.faces is None:
            return Decision(Status.QUARANTINED, Reason.NOT_SCORED)
        if scores.faces == 0 or _finite_score(scores, "identity_distance") is None:
            return Decision(Status.QUARANTINED, Reason.NO_FACE)  # none on the output, or none on the original
    violations = {_violation(name, _finite_score(scores, name), bound) for name, bound in bounds.items()}
    for reason in (Reason.NOT_SCORED, Reason.TOO_CLOSE, Reason.TOO_FAR):
        if reason in violations:
            return Decision(Status.QUARANTINED, reason)
    return Decision(Status.RELEASED)


def nearest(scores: Sequence[Scores]) -> Scores:
    """Return the scores of the nearest of several pairs, each score by itself; one that a pair lacks is lacking."""
    values: dict[str, float | None] = {}
    for name, higher_is_closer in HIGHER_IS_CLOSER.items():
        column = [getattr(one, name) for one in scores]
        lacking = [value for value in column if value is None or not math.isfinite(value)]
        values[name] = lacking[0] if lacking else max(column) if higher_is_closer else min(column)
    counts = [one.faces for one in scores]
    faces = None if None in counts else min(count for count in counts if count is not None)
    return Scores(**values, faces=faces)  # type: ignore[arg-type]


def _violation(name: str, value: float | None, bound: Bound) -> Reason | None:
    """Return how a score violates its bound; a number of faces out of bounds counts as too far, not as too close."""
    if value is None:
        return Reason.NOT_SCORED
    higher_is_closer = HIGHER_IS_CLOSER.get(name)
    if bound.max is not None and value > bound.max:
        return Reason.TOO_CLOSE if higher_is_closer else Reason.TOO_FAR
    if bound.min is not None and value < bound.min:
        return Reason.TOO_CLOSE if higher_is_closer is False else Reason.TOO_FAR
    return None


def _finite_score(scores: Scores, name: str) -> float | None:
    value = getattr(scores, name)
    return None if value is None or not math.isfinite(value) else float(value)


@dataclass(frozen=True)
class AuditResult:
    """An audit of a release: its time, the SHA-256 of the manifest, the figures, its attackers and their limits."""

    when: datetime
    manifest_sha256: str
    figures: Sequence[FigureRow]
    attackers: Attackers
    missing: int = 0  # records of the sample whose original is gone, or is another
    attacker_limits: str | None = None
    public: Mapping[str, Any] = field(default_factory=dict)  # the summary that may be published


@dataclass(frozen=True)
class RuleResult:
    """Result of one rule. ``measured`` is for the custodian: it may hold more than a release publishes."""

    rule: str
    bound: str
    measured: str
    result: Literal["pass", "fail", "waived"]
    is_figure: bool = False  # ``measured`` is a figure of the audit, which no log or scheduler may see

    def __str__(self) -> str:
        return f"{self.rule} ({self.bound})" + ("" if self.is_figure else f": {self.measured}")

    def to_json(self) -> dict[str, Any]:
        """Return the fields under the names that a decision's predicate gives them."""
        fields = asdict(self)
        return fields | {"found": fields.pop("measured")}


@dataclass(frozen=True)
class Verdict:
    """Results of all rules; a release passes unless one fails without a waiver."""

    rule_results: Sequence[RuleResult]

    @property
    def passed(self) -> bool:
        return not self.failed_rules

    @property
    def result(self) -> str:
        return "pass" if self.passed else "fail"

    @property
    def waived_rules(self) -> list[str]:
        return [rule.rule for rule in self.rule_results if rule.result == "waived"]

    @property
    def failed_rules(self) -> list[RuleResult]:
        return [rule for rule in self.rule_results if rule.result == "fail"]


def evaluate_release(
    policy: PolicyConfig,
    counts: Summary,
    manifest_sha256: str,
    audit: AuditResult | None,
    now: datetime,
    ceilings: Ceilings | None = None,
) -> Verdict:
    """Decide whether the release with this manifest may be published; an audit of another manifest does not count."""
    if audit is not None and audit.manifest_sha256 != manifest_sha256:
        audit = None
    results = [
        *_evaluate_counts(policy, counts),
        *_evaluate_ceilings(policy, ceilings),
        *_evaluate_audit(policy, audit, now),
    ]
    return Verdict([_apply_waiver(policy, result, now.astimezone(UTC).date()) for result in results])


def rule_names(policy: PolicyConfig) -> list[str]:
    """Return the names of the rules that a policy sets for a release, as a verdict has them."""
    nothing = Summary(0, 0, 0, 0, 0, 0.0, {})
    return [rule.rule for rule in evaluate_release(policy, nothing, "", None, datetime.now(UTC)).rule_results]


def _evaluate_counts(policy: PolicyConfig, counts: Summary) -> Iterator[RuleResult]:
    if minimum := policy.min_released:
        measured, passes = f"{counts.released} released", counts.released >= minimum
        yield _rule_result("min_released", f"at least {minimum}", measured, passes)
    for rule, count in {"max_quarantined": counts.quarantined, "max_failed": counts.failed}.items():
        maximum: float | None = getattr(policy, rule)
        if maximum is not None:
            share = count / counts.read if counts.read else 1.0
            yield _rule_result(rule, f"at most {maximum:g} of all", f"{count} of {counts.read}", share <= maximum)
    yield from _evaluate_groups(policy, counts)


def _evaluate_groups(policy: PolicyConfig, counts: Summary) -> Iterator[RuleResult]:
    if (least := policy.groups.min_k) is not None:
        k = counts.least_group
        measured = "nothing released" if k is None else f"{k} behind a picture"
        yield _rule_result("groups.min_k", f"at least {least} originals", measured, k is not None and k >= least)
    if (maximum := policy.groups.max_leftover) is not None:
        share = counts.waiting / counts.read if counts.read else 1.0
        measured, passes = f"{counts.waiting} of {counts.read} wait", share <= maximum
        yield _rule_result("groups.max_leftover", f"at most {maximum:g} of all", measured, passes)


def _evaluate_ceilings(policy: PolicyConfig, ceilings: Ceilings | None) -> Iterator[RuleResult]:
    for name, bound in policy.ceilings.items():
        high = None if ceilings is None else upper_end(ceilings, name)
        measured = "no ceiling holds" if high is None else f"at most {high:.3g}"
        if ceilings is not None and ceilings.caveats:
            measured += f", which does not cover {'; '.join(ceilings.caveats)}"
        passes = not find_exceeded({name: bound}, ceilings)
        yield _rule_result(f"ceilings.{name}", f"upper end at most {bound:g}", measured, passes)


def _evaluate_audit(policy: PolicyConfig, audit: AuditResult | None, now: datetime) -> Iterator[RuleResult]:
    figures, missing = audit.figures if audit else [], "no audit of this release"
    gap = _describe_gap(audit) if audit and audit.missing else ""  # a missing original may be one that would be linked
    for attack in policy.required_attacks:
        is_measured = bool(select_headlines(figures, attack))
        unmeasured = "not tried, or nothing could be measured" if audit else missing
        measured = ("measured" if is_measured else unmeasured) + gap
        yield _rule_result(f"audits.{attack}", "must have been tried", measured, is_measured and not gap)
    if policy.required_attacks:
        lacking = list(find_shortfalls(policy.attackers, audit.attackers)) if audit else [missing]
        measured = "; ".join(lacking) or "all of it"
        yield _rule_result("attackers", f"at least {describe_least(policy.attackers)}", measured, not lacking)
    limits = audit.attacker_limits if audit else None  # figures of limited attackers are no upper bounds
    for rule, bound in policy.risk.items():
        high = _highest_upper_bound(figures, *parse_risk_rule(rule))
        measured = "not measured, or not by every attacker" if high is None else f"at most {high:.3f}"
        measured += (f"; {limits}" if limits is not None else "") + gap
        passes = high is not None and high <= bound.upper and limits is None and not gap
        result = _rule_result(rule, f"upper end at most {bound.upper:g}", measured, passes)
        yield replace(result, is_figure=high is not None)
    if policy.audit_days is not None:
        days = (now - audit.when).days if audit else math.inf
        measured, passes = f"{days} days old" if audit else missing, 0 <= days <= policy.audit_days
        yield _rule_result("audit_days", f"at most {policy.audit_days} days old", measured, passes)


def _describe_gap(audit: AuditResult) -> str:
    count = audit.attackers.sample + audit.missing
    return f"; not measured on {audit.missing} of {count}, whose originals are gone or are not those that were released"


def _highest_upper_bound(figures: Sequence[FigureRow], attack: str, measure: str | None) -> float | None:
    """Return the highest upper bound of any attacker, or None if one of them could not be measured.

    Without a measure it is that of the risk above chance in all headline figures.
    """
    overall = [row for row in figures if row["attack"] == attack and row["subgroup"] is None]
    if measure is None:
        bounds = [risk_above_chance(row) for row in select_headlines(overall, attack)]
    else:
        rows = [row for row in overall if row["measure"].startswith(measure) and TRAINING_SET not in row["measure"]]
        bounds = [math.nan if row["value"] is None or row["high"] is None else row["high"] for row in rows]
    has_failed = any(row["measure"] == "not run" for row in overall)
    return None if has_failed or not bounds or not all(map(math.isfinite, bounds)) else max(bounds)


def _rule_result(rule: str, bound: str, measured: str, passes: bool) -> RuleResult:
    return RuleResult(rule, bound, measured, "pass" if passes else "fail")


def _apply_waiver(policy: PolicyConfig, result: RuleResult, today: date) -> RuleResult:
    """Return a failed result as waived if the policy waives its rule until today or later."""
    waiver = next((waiver for waiver in policy.waivers if waiver.rule == result.rule), None)
    if result.result == "pass" or waiver is None:
        return result
    if waiver.until < today:
        return replace(result, measured=f"{result.measured}; its waiver ended on {waiver.until}")
    measured = f"{result.measured}; waived by {waiver.who} until {waiver.until}: {waiver.why}"
    return replace(result, measured=measured, result="waived")
