"""The last steps of a release: evaluate the policy, sign the candidate, wait for approvals, publish in one move."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from typing import Any

from securesystemslib.signer import CryptoSigner

from anonymizer.attest import dsse, statement
from anonymizer.attest.dsse import SignedStatement
from anonymizer.attest.predicate import Materials
from anonymizer.attest.statement import valid_approvers
from anonymizer.attest.verify import Finding, check_public
from anonymizer.config import PolicyConfig, RunConfig
from anonymizer.crypto import signing
from anonymizer.crypto.custodian_key import CustodianKey, load_key
from anonymizer.errors import ConfigError, CustodianKeyError, GateError, IntegrityError, OutputError, SigningKeyError
from anonymizer.policy.gates import COUNT_RULES, Verdict, evaluate_release
from anonymizer.records import Plan, Summary
from anonymizer.release import approval, audit_files, event_log, history, succession
from anonymizer.release.assemble import read_manifest_digest, remove_incomplete
from anonymizer.release.finished_ledger import FinishedLedger
from anonymizer.release.plan import write_config
from anonymizer.storage import parquet
from anonymizer.storage.layout import AUDIT, MANIFEST, REVOCATIONS, Release
from anonymizer.storage.path import StoragePath, absolute_uri

DECISION_PREDICATE = "urn:anonymizer:predicate:decision:v1"


@dataclass(frozen=True)
class PublicationStatus:
    """Whether a release is published, and which approvals it has."""

    is_published: bool
    approved_by: tuple[str, ...]
    required_approvals: int

    def __str__(self) -> str:
        if self.is_published:
            return f"published, approved by {', '.join(self.approved_by)}" if self.approved_by else "published"
        return (
            f"not published: {len(self.approved_by)} of {self.required_approvals} approvals, see `anonymizer approve`"
        )


def check_signing_key(config: RunConfig) -> None:
    """Raise SigningKeyError for an unusable key, ConfigError where a decision could not be signed or approved.

    CustodianKeyError where a release would be signed without a key to seal it with.
    """
    signer = signing.signer_from_env(config.signing_key_env)
    if signer is None and config.policy != PolicyConfig():
        raise ConfigError(
            f"{config.signing_key_env}: not set, and a policy's decision is signed: set it to a private key or its "
            f"file; {signing.KEY_HINT}"
        )
    if signer is not None and not load_key(config.key_env).is_persistent:
        raise CustodianKeyError(
            f"{config.key_env}: not set, and what is signed must be sealed with it before: set it to 32 or more "
            "random hex digits, for example from `openssl rand -hex 32`"
        )
    own = signing.format_public_key(signer.public_key) if signer else None
    others = [name for name, text in config.policy.approvers.items() if text != own]
    if config.policy.approvals > len(others):
        raise ConfigError(
            f"policy.approvals: {config.policy.approvals} asked for, and {len(others)} approvers are other than "
            "the publisher, who cannot approve: name more"
        )


def read_status(release: Release) -> PublicationStatus | None:
    """Return how far a release is; None where the policy has not accepted it."""
    if not release.statement.exists():
        return None
    signed = read_statement(release)
    return PublicationStatus(release.is_published, valid_approvers(signed), signed.predicate["approvals"]["required"])


def refuse_unpublished(release: Release, config: RunConfig, plan: Plan) -> None:
    """Raise IntegrityError where a public half lies there that this release did not publish."""
    signer = signing.signer_from_env(config.signing_key_env)
    trusted = signing.read_public_keys(config.trust, "trust")
    if signer is not None:
        trusted.append(signing.format_public_key(signer.public_key))
    if problem := publication_problem(release, plan):
        raise IntegrityError(
            f"release: public/ was not published by this release ({problem}): hand out nothing of it; move it away, or "
            "back to restricted/candidate if that is gone, then run the same command again"
        )
    publisher = read_statement(release).predicate["publisher"]
    if publisher not in trusted and not (publisher is None and config.policy == PolicyConfig()):
        raise IntegrityError(
            "release: public/ is not signed by this run's own key or one in trust: hand out nothing of it; see "
            "`anonymizer verify`"
        )


def publication_problem(release: Release, plan: Plan) -> str | None:
    """Return why a public half cannot be one that this release published; None where it can.

    Anybody with access to the storage can move a folder there. Pictures are not read: ``verify`` does that.
    """
    try:
        signed = statement.read(release.public)
        predicate = statement.parse_predicate(signed)
        manifest = statement.file_digest(release.public / MANIFEST)
    except (ValueError, OSError):
        return "it has no statement that can be read"
    if predicate.publisher is not None and not signed.is_signed_by(signing.parse_public_key(predicate.publisher)):
        return "the publisher's signature does not hold"
    if (approved := len(valid_approvers(signed))) < predicate.approvals.required:
        return f"{approved} of {predicate.approvals.required} approvals"
    if predicate.release not in (None, plan.id):
        return "its statement is another release's"
    return None if signed.digests.get(MANIFEST) == manifest else "its manifest is not the signed one"


def decide_and_publish(
    release: Release, config: RunConfig, key: CustodianKey, ledger: FinishedLedger, write_documents: WriteDocuments
) -> PublicationStatus:
    """Publish an assembled release, as far as the policy and the approvals allow.

    ``write_documents`` writes card, report and metadata into the candidate (``anonymizer.report.write_public``). Raises
    GateError, after the decision is recorded, where the policy rejects the release or nothing was released.
    """
    release = replace(release, key=key)
    signer = signing.signer_from_env(config.signing_key_env)
    publisher = signing.format_public_key(signer.public_key) if signer else None
    if release.is_published:
        refuse_unpublished(release, config, ledger.plan)
        release.candidate.remove()  # left by a copy that was interrupted at its end
        if replaced := _replaced(release, config):
            succession.finish(release, replaced, [publisher] if publisher else [])
        return PublicationStatus(True, valid_approvers(read_statement(release)), config.policy.approvals)
    history.read_previous_statement(config, release)  # raises where it is not the one that was planned with
    is_successor = succession.is_successor(release)
    succession.refuse_pending(config.previous, str(release.root), key, replaces=is_successor)
    write_config(release, ledger.plan.id, config)
    evaluation = _evaluate_policy(release, config, ledger, publisher)
    _record_decision(release, config, evaluation, ledger.plan, signer)
    _refuse_rejected(evaluation)
    _refuse_empty(release, evaluation.summary)
    is_current = _is_statement_current(release, config, evaluation, ledger.plan)
    if not is_current:
        _sign_candidate(release, config, evaluation, key, signer, ledger, write_documents)
    return _publish_if_approved(release, read_statement(release), _replaced(release, config), is_checked=not is_current)


def approve(
    release: Release,
    signer: CryptoSigner,
    trusted: Sequence[str] = (),
    pinned: str | None = None,
    report: Callable[[Sequence[Finding]], None] = lambda findings: None,
) -> PublicationStatus:
    """Add an approver's signature to the statement, and publish the release when there are enough.

    Needs no key but the signer's: all that counts was signed by the publisher, one of the ``trusted`` public keys where
    there are any. It must lie where it was decided on, or ``pinned`` is its statement's SHA-256. ``report`` is called
    with the findings of the candidate before it is signed. Raises SigningKeyError where the key is not that of an
    approver, IntegrityError where something is not as signed, GateError where the policy would reject the release by
    now.
    """
    if release.is_published:
        raise IntegrityError("release: is published already: approvals come before that")
    if not release.statement.exists():
        raise IntegrityError("release: nothing to approve: run the same `anonymizer run` again, which asks the policy")
    signed, own_key = read_statement(release), signing.format_public_key(signer.public_key)  # once: this is signed
    findings = approval.check_candidate(release, signed, trusted)
    if own_key == signed.predicate["publisher"]:
        raise SigningKeyError("--key: is the publisher's own: somebody else must approve")
    approvers: Mapping[str, str] = signed.predicate["approvals"]["approvers"]
    name = next((name for name, public_key in approvers.items() if public_key == own_key), None)
    if name is None:
        raise SigningKeyError("--key: its public key is not among policy.approvers: ask for it to be named there")
    decision = approval.check_decision(release, signed, read_last_decision(release), datetime.now(UTC), pinned)
    succession.refuse_pending(decision.previous, str(release.root), release.key, replaces=decision.replaces)
    report(findings)
    if name not in valid_approvers(signed):
        signed = signed.with_signature(signer)
        release.statement.write(dsse.dumps([signed]))
        event_log.record(release, "approved", actor=name, key=own_key)
    return _publish_if_approved(release, signed, decision.previous if decision.replaces else None)


def read_statement(release: Release) -> SignedStatement:
    """Return the statement of a release, its signatures unchecked. Raises IntegrityError where it is damaged."""
    try:
        return statement.read(release.public_or_candidate)
    except (ValueError, OSError) as error:
        raise IntegrityError(f"release: its statement: {error}: restore it, or remove it and run again") from None


def read_last_decision(release: Release) -> SignedStatement | None:
    """Return the policy's last decision, with its reasons; None where it has not been asked."""
    if not release.decision_log.exists():
        return None
    try:
        decision = dsse.loads(release.decision_log.read(), DECISION_PREDICATE)[-1]
        if not all({"rule", "bound", "result"} <= rule.keys() for rule in decision.predicate["rules"]):
            raise ValueError
        return decision
    except (OSError, ValueError, IndexError, KeyError, TypeError, AttributeError):
        raise IntegrityError(f"release: restricted/{release.decision_log.name} is damaged: restore it") from None


@dataclass(frozen=True)
class PolicyEvaluation:
    """What the policy decides on, and its verdict. ``audit``: public summary of an audit of just this release."""

    summary: Summary
    manifest_digest: str  # SHA-256
    audit: Mapping[str, Any] | None
    publisher: str | None  # public key
    verdict: Verdict
    weaker: Sequence[str] = ()  # a line for each rule of the previous release that is dropped or loosened
    audited: datetime | None = None  # the time of the audit


# Writes card, report and metadata into a candidate, and returns the SHA-256 of what it wrote, by name.
WriteDocuments = Callable[[StoragePath, RunConfig, FinishedLedger, PolicyEvaluation], Mapping[str, str]]


def _evaluate_policy(
    release: Release, config: RunConfig, ledger: FinishedLedger, publisher: str | None
) -> PolicyEvaluation:
    manifest, audit = statement.file_digest(release.manifest), audit_files.read(release)
    if audit is not None and audit.manifest_sha256 != manifest:
        audit = None  # of another version of this release
    summary = ledger.summary
    verdict = evaluate_release(config.policy, summary, manifest, audit, datetime.now(UTC), ledger.plan.ceilings)
    audited, public = (audit.when, audit.public) if audit else (None, None)
    weaker = history.list_weaker_rules(config)
    return PolicyEvaluation(summary, manifest, public, publisher, verdict, weaker, audited)


def _refuse_empty(release: Release, summary: Summary) -> None:
    """Raise GateError, with what became of the records, where no image was released.

    The successor of an erasure may be empty: it carries the revocations.
    """
    if summary.released or succession.is_successor(release):
        return
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in summary.reasons.items())
    waiting = f", and {summary.waiting:,} wait for others alike" if summary.waiting else ""
    raise GateError(
        f"release: nothing is published, since no picture could be released: of {summary.read:,} records "
        f"{summary.quarantined:,} were quarantined and {summary.failed:,} failed{waiting} ({reasons}): see the reasons "
        "in restricted/report.html, then mend the source or the settings, or `anonymizer retry --failed`"
    )


def _refuse_rejected(evaluation: PolicyEvaluation) -> None:
    if evaluation.verdict.passed:
        return
    failed = evaluation.verdict.failed_rules
    names, hint = {result.rule for result in failed}, ""
    if any(name.startswith("ceilings.") for name in names):
        hint = "; make this release anew at a higher level"
    elif not names <= COUNT_RULES:
        hint = "" if evaluation.audit else "; attack it with `anonymizer audit`, then run the same command again"
    elif names - {"max_quarantined", "groups.min_k", "groups.max_leftover"}:
        hint = "; `anonymizer retry --failed` does failed records again"
    raise GateError(f"policy: the release is not let out: {'; '.join(map(str, failed))}: see `anonymizer status`{hint}")


def _record_decision(
    release: Release, config: RunConfig, evaluation: PolicyEvaluation, plan: Plan, signer: CryptoSigner | None
) -> None:
    """Append the decision with its reasons, signed, to the restricted half, and an event to the log."""
    verdict = evaluation.verdict
    predicate = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "plan": plan.id,
        "result": verdict.result,
        "rules": [result.to_json() for result in verdict.rule_results],
        "policy": config.policy.model_dump(mode="json"),
        "audited": None if evaluation.audited is None else evaluation.audited.isoformat(),
        "release": absolute_uri(str(release.root)),
        "previous": None if config.previous is None else absolute_uri(config.previous),
        "replaces": succession.is_successor(release),
    }
    decision = dsse.build(DECISION_PREDICATE, {MANIFEST: evaluation.manifest_digest}, predicate, signer)
    earlier = release.decision_log.read() if release.decision_log.exists() else b""
    release.decision_log.write(earlier + dsse.dumps([decision]))
    failed = [result.rule for result in verdict.failed_rules]
    event_log.record(release, "gate", result=verdict.result, broken=failed, waived=verdict.waived_rules)


def _is_statement_current(release: Release, config: RunConfig, evaluation: PolicyEvaluation, plan: Plan) -> bool:
    """Return whether the candidate's statement is of this very release and manifest, and has today's decision.

    Approvals of another decision are void. Another release's statement, approvals and all, may lie there.
    """
    if not release.statement.exists():
        return False
    signed = read_statement(release)
    predicate, decision = signed.predicate, _build_decision(config, evaluation) | {"release": plan.id}
    if signed.digests.get(MANIFEST) != evaluation.manifest_digest:
        return False
    return {name: predicate.get(name) for name in decision} == decision


def _build_decision(config: RunConfig, evaluation: PolicyEvaluation) -> dict[str, Any]:
    audit, publisher = evaluation.audit, evaluation.publisher
    return statement.build_decision(config.policy, evaluation.verdict, audit, publisher, evaluation.weaker)


def _sign_candidate(
    release: Release,
    config: RunConfig,
    evaluation: PolicyEvaluation,
    key: CustodianKey,
    signer: CryptoSigner | None,
    ledger: FinishedLedger,
    write_documents: WriteDocuments,
) -> None:
    """Write the documents of the public half, and the statement about all of it.

    Everything in the candidate is checked as ``verify`` does before the statement is signed: an attacker who can write
    there must not get a signature for other content than was assembled.
    """
    folder, audit = release.candidate, evaluation.audit
    release.statement.remove()  # before the documents that it is about are written anew
    revocations = release.revocations.read() if release.revocations.exists() else None
    digest = None if revocations is None else hashlib.sha256(revocations).hexdigest()
    if digest != ledger.plan.inherited.get(REVOCATIONS):
        raise IntegrityError(f"restricted/{REVOCATIONS}: is not what was there when the plan was made: restore it")
    copies = {AUDIT: None if audit is None else json.dumps(audit, indent=2).encode(), REVOCATIONS: revocations}
    for name, data in copies.items():
        (folder / name).remove()
        if data is not None:
            (folder / name).write_uncommitted(data)
    manifest = parquet.open_table(release.manifest)
    written: dict[str, object] = {
        **write_documents(folder, config, ledger, evaluation),
        MANIFEST: read_manifest_digest(release),
    }
    written |= {name: data and hashlib.sha256(data).hexdigest() for name, data in copies.items()}
    head = event_log.record(release, "sealed", publisher=evaluation.publisher, ledger=ledger.digest)
    materials = Materials(
        originals=len(ledger.originals),
        hmac_sha256=key.materials_hmac(ledger.originals.keys()),
        sealed=key.is_persistent,
        previous=history.read_previous_statement(config, release),
    )
    digests = statement.subject_digests(folder)
    if changed := sorted(name for name, digest in written.items() if digests.get(name) != digest):
        raise IntegrityError(f"release: {changed[0]} was changed while it was to be signed: run the same command again")
    predicate = {
        **statement.build_predicate(ledger.plan, ledger.summary, manifest, config, materials),
        **_build_decision(config, evaluation),
        "sizes": statement.file_sizes(folder, digests),
        "events": asdict(head),
    }
    unsigned = dsse.build(statement.PREDICATE_TYPE, digests, predicate | {"publisher": None}, None)
    release.statement.write(dsse.dumps([unsigned]))
    try:
        _refuse_changed_candidate(release, {"signature", "approvals"})
    except IntegrityError:
        release.statement.remove()
        raise
    release.statement.write(dsse.dumps([dsse.build(statement.PREDICATE_TYPE, digests, predicate, signer)]))


def _replaced(release: Release, config: RunConfig) -> str | None:
    """Return the address of the release that this one takes the place of; None where it takes that of no other."""
    return config.previous if succession.is_successor(release) else None


def _publish_if_approved(
    release: Release, signed: SignedStatement, replaced: str | None, *, is_checked: bool = False
) -> PublicationStatus:
    """Make the signed candidate public in one move, if enough approvers have signed it; destroy what it replaces.

    ``is_checked``: whether it was checked a moment ago, when it was signed.
    """
    approvers = valid_approvers(signed)
    required = signed.predicate["approvals"]["required"]
    if len(approvers) < required:
        return PublicationStatus(False, approvers, required)
    if not is_checked:
        _refuse_changed_candidate(release, {"signature"} if signed.predicate["publisher"] is None else set(), signed)
    if release.candidate.is_link:
        raise IntegrityError("restricted/candidate: is a link, and public/ would be one: restore the folder itself")
    remove_incomplete(release.public)
    logged = [e["details"].get("statement") for e in event_log.read(release) if e["event"] == "published"]
    if signed.digest not in logged:  # before the move, and once: an interrupted publication comes here again
        event_log.record(release, "published", statement=signed.digest, approved=list(approvers))
    try:
        release.candidate.move_to(release.public, last=MANIFEST)
    except OutputError:
        if not release.is_published:  # else another process was first
            raise
    if read_statement(release).digest != signed.digest:
        raise IntegrityError("release: another one was put in its place while it was published: restore it")
    if replaced is not None:
        succession.finish(release, replaced, [signed.predicate["publisher"]])
    return PublicationStatus(True, approvers, required)


def _refuse_changed_candidate(
    release: Release, missing: Collection[str], signed: SignedStatement | None = None
) -> None:
    """Raise IntegrityError where the candidate is not what its statement says; ``missing`` checks may fail.

    ``signed``: the statement that was signed or approved, by its publisher.
    """
    publisher = None if signed is None else signed.predicate["publisher"]
    pinned = None if signed is None else signed.digest
    for finding in check_public(release.candidate, [publisher] if publisher else (), pinned=pinned):
        if finding.result == "fail" and finding.check not in missing:
            raise IntegrityError(
                f"release: not published, since {finding.check} is not as signed: restore restricted/candidate/"
            )
