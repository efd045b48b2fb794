"""What is looked at before an approver signs: what the publisher signed, as approvers hold no key but their own.

Anything else in the restricted half may have been written by others. It can stop an approval, and never allow one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from anonymizer.attest.dsse import SignedStatement
from anonymizer.attest.verify import Finding, check_public
from anonymizer.config import PolicyConfig
from anonymizer.crypto import signing
from anonymizer.errors import ConfigError, GateError, IntegrityError
from anonymizer.release import plan
from anonymizer.release.history import statement_digest_at
from anonymizer.storage.layout import MANIFEST, Release

RUN_AGAIN = "run the same `anonymizer run` again"


@dataclass(frozen=True)
class SignedDecision:
    """A policy and its decision on a candidate, in the publisher's words.

    ``release``: its address. ``audited``: the time of the audit that it counted. ``previous``: address of the release
    before, which is destroyed when this one is published if ``replaces``.
    """

    policy: PolicyConfig
    rules: Sequence[Mapping[str, Any]]
    audited: datetime | None
    release: str
    previous: str | None
    replaces: bool

    @classmethod
    def parse(cls, predicate: Mapping[str, Any]) -> SignedDecision:
        """Return a decision's predicate as an object. Raises ValueError, KeyError or TypeError for any other."""
        audited, previous = predicate["audited"], predicate["previous"]
        return cls(
            policy=PolicyConfig.model_validate_json(json.dumps(predicate["policy"])),
            rules=predicate["rules"],
            audited=None if audited is None else datetime.fromisoformat(audited),
            release=str(predicate["release"]),
            previous=None if previous is None else str(previous),
            replaces=predicate["replaces"] is True,
        )


def check_candidate(release: Release, signed: SignedStatement, trusted: Sequence[str]) -> list[Finding]:
    """Return the findings of a candidate that is what this statement says, by one of the ``trusted`` keys.

    Raises IntegrityError for any other, one that is put in its place meanwhile included; approvals may be missing.
    """
    publisher = signed.predicate["publisher"]
    if publisher is None or not signed.is_signed_by(signing.parse_public_key(publisher)):
        raise IntegrityError("release: signature is not as signed (the publisher's does not hold): do not approve it")
    findings = list(check_public(release.candidate, trusted, pinned=signed.digest))
    for finding in findings:
        if finding.result == "fail" and finding.check != "approvals":
            raise IntegrityError(f"release: {finding.check} is not as signed ({finding.message}): do not approve it")
    return findings


def check_decision(
    release: Release, signed: SignedStatement, decision: SignedStatement | None, now: datetime, pinned: str | None
) -> SignedDecision:
    """Return the decision by which a candidate was signed.

    Raises IntegrityError where the publisher signed another one, or for another release, GateError where it does not
    hold any more (a waiver or an audit is too old by now, the release was audited again), ConfigError where the release
    before is not what it was.
    """
    publisher = signed.predicate["publisher"]
    if decision is None or publisher is None or not decision.is_signed_by(signing.parse_public_key(publisher)):
        raise IntegrityError(
            f"restricted/{release.decision_log.name}: its last line is not signed by the publisher: {RUN_AGAIN}"
        )
    try:
        parsed = SignedDecision.parse(decision.predicate)
        is_same = _is_decision_of(signed, decision, parsed)
    except (ValueError, KeyError, TypeError):
        raise IntegrityError(
            f"restricted/{release.decision_log.name}: its last line is of another version: {RUN_AGAIN}"
        ) from None
    if pinned not in (None, signed.digest):
        raise IntegrityError(f"release: has another statement than the pinned one ({signed.digest}): do not approve it")
    if pinned is None and str(Release.at(parsed.release).root) != str(release.root):
        raise IntegrityError(
            f"release: was decided on at another address, {parsed.release!r}, and may be another release: approve that "
            f"one; if it is only seen under another path here, pin it: --statement {signed.digest}"
        )
    if plan.read(Release(release.root)).id != signed.predicate["release"]:
        raise IntegrityError(f"release: what lies in its candidate was signed for another release: {RUN_AGAIN}")
    if not is_same or _is_audited_again(release, signed):
        raise GateError(f"policy: what it decided on has changed since the release was signed: {RUN_AGAIN}")
    if outdated := list(_outdated_rules(parsed, signed, now)):
        raise GateError(f"policy: the release is not let out any more: {'; '.join(outdated)}: {RUN_AGAIN}")
    expected = signed.predicate["materials"]["previous"]
    if (None if parsed.previous is None else statement_digest_at(parsed.previous)) != expected:
        raise ConfigError(
            f"previous {parsed.previous!r}: was erased meanwhile, or is not the release that this one was signed to "
            "follow: make this release anew, in another output, with the release that took its place as previous"
        )
    return parsed


def _is_decision_of(signed: SignedStatement, decision: SignedStatement, parsed: SignedDecision) -> bool:
    """Return whether a decision is the one that a statement names."""
    predicate, policy = signed.predicate, parsed.policy
    rules = [{name: rule[name] for name in ("rule", "bound", "result")} for rule in parsed.rules]
    approvals = {"required": policy.approvals, "approvers": dict(sorted(policy.approvers.items()))}
    return (
        decision.digests == {MANIFEST: signed.digests[MANIFEST]}
        and decision.predicate["plan"] == predicate["release"]
        and (decision.predicate["result"], predicate["gate"]["result"]) == ("pass", "pass")
        and (rules, approvals) == (predicate["gate"]["rules"], predicate["approvals"])
        and decision.predicate["policy"] == predicate.get("policy", decision.predicate["policy"])  # none in version 1
    )


def _is_audited_again(release: Release, signed: SignedStatement) -> bool:
    """Return whether there is another audit of this very release than the one that was signed."""
    if not release.audit_summary.exists():
        return signed.predicate["audit"] is not None
    try:
        audit = json.loads(release.audit_summary.read())
        return bool(audit["manifest_sha256"] == signed.digests[MANIFEST] and audit != signed.predicate["audit"])
    except (ValueError, KeyError, TypeError):
        return True


def _outdated_rules(decision: SignedDecision, signed: SignedStatement, now: datetime) -> Iterator[str]:
    """Yield which rules a release kept when it was signed, and does not keep by now."""
    ends = {waiver["rule"]: waiver["until"] for waiver in signed.predicate["gate"]["waivers"]}
    for rule in decision.rules:
        if rule["result"] == "waived" and ends[rule["rule"]] < now.astimezone(UTC).date().isoformat():
            yield f"{rule['rule']} ({rule['bound']}): its waiver ended on {ends[rule['rule']]}"
        elif rule["result"] == "pass" and rule["rule"] == "audit_days":
            days = None if decision.audited is None else (now - decision.audited).days
            if days is None or not 0 <= days <= (decision.policy.audit_days or 0):
                yield f"audit_days ({rule['bound']}): {days} days old"
