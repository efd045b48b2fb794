"""The last steps of a release: ask the policy, sign what it lets out, wait for approvals, and show it in one move."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from securesystemslib.signer import CryptoSigner

from anonymizer import config as configuration
from anonymizer.attest import dsse, statement
from anonymizer.attest.dsse import SignedStatement
from anonymizer.attest.predicate import Materials
from anonymizer.attest.verify import check_public
from anonymizer.config import PolicyConfig, RunConfig
from anonymizer.crypto import signing
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import ConfigError, GateError, IntegrityError, OutputError, SigningKeyError
from anonymizer.policy.gates import COUNT_RULES, AuditResult, Verdict, evaluate_release
from anonymizer.records import Plan, Summary
from anonymizer.release import event_log, history, ledger, plan
from anonymizer.release.assemble import remove_incomplete, summarize_release
from anonymizer.storage import parquet
from anonymizer.storage.layout import AUDIT, MANIFEST, REVOCATIONS, Release
from anonymizer.storage.parquet import TableLike
from anonymizer.storage.path import StoragePath

WriteDocuments = Callable[[StoragePath, Plan, RunConfig, Summary, TableLike, Mapping[str, Any] | None, bool], None]
DECISION_PREDICATE = "urn:anonymizer:predicate:decision:v1"


@dataclass(frozen=True)
class PublicationStatus:
    """How far a release may go: published, or what it waits for."""

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
    """SigningKeyError where the key is none; ConfigError where a policy decides and there is no key to sign with."""
    signer = signing.signer_from_env(config.signing_key_env)
    if signer is None and config.policy != PolicyConfig():
        raise ConfigError(
            f"{config.signing_key_env}: not set, and a policy's decision is signed: set it to a private key or its "
            f"file; {signing.KEY_HINT}"
        )
    own = signing.format_public_key(signer.public_key) if signer else None
    others = [name for name, text in config.policy.approvers.items() if text != own]
    if config.policy.approvals > len(others):
        raise ConfigError(
            f"policy.approvals: {config.policy.approvals} asked for, and {len(others)} approvers are other than "
            "the publisher, who cannot approve: name more"
        )


def read_status(release: Release) -> PublicationStatus | None:
    """How far a release is; none where the policy has not let it out."""
    if not release.statement.exists():
        return PublicationStatus(True, (), 0) if release.is_published else None
    signed = read_statement(release)
    return PublicationStatus(release.is_published, approvals(signed), signed.predicate["approvals"]["required"])


def decide_and_publish(
    release: Release, config: RunConfig, key: CustodianKey, write_documents: WriteDocuments
) -> PublicationStatus:
    """Take an assembled release as far as the policy and the approvals let it go.

    ``write_documents`` writes card, report and metadata into the candidate (``anonymizer.report.write_public``).

    GateError, after the decision is written down, where the policy does not let it out.
    """
    if release.is_published:
        release.candidate.remove()  # of a copy that was stopped when it was done
        return PublicationStatus(True, approvals(read_statement(release)), config.policy.approvals)
    release.config.write(configuration.dump(config).encode())
    signer = signing.signer_from_env(config.signing_key_env)
    case = _evaluate_policy(release, config, signing.format_public_key(signer.public_key) if signer else None)
    _record_decision(release, config, case, signer)
    _refuse_rejected(case)
    history.refuse_erased(config)
    if not _is_statement_current(release, config, case):
        _sign_candidate(release, config, case, key, signer, write_documents)
    return _publish_if_approved(release, read_statement(release))


def approve(release: Release, signer: CryptoSigner) -> PublicationStatus:
    """Add an approver's signature to the statement, and show the release when there are enough.

    SigningKeyError where the key is not of one who may approve.
    """
    if release.is_published:
        raise IntegrityError("release: is published already: approvals come before that")
    if not release.statement.exists():
        raise IntegrityError("release: nothing to approve: run the same `anonymizer run` again, which asks the policy")
    signed = read_statement(release)
    if signing.format_public_key(signer.public_key) == signed.predicate["publisher"]:
        raise SigningKeyError("--key: is the publisher's own: somebody else must approve")
    name = next(
        (n for n, text in _approvers(signed).items() if text == signing.format_public_key(signer.public_key)), None
    )
    if name is None:
        raise SigningKeyError("--key: its public key is not among policy.approvers: ask for it to be named there")
    _refuse_stale(release, signed)
    if name not in approvals(signed):
        signed = signed.with_signature(signer)
        release.statement.write(dsse.dumps([signed]))
        event_log.record(release, "approved", actor=name, key=signing.format_public_key(signer.public_key))
    return _publish_if_approved(release, signed)


def _refuse_stale(release: Release, signed: SignedStatement) -> None:
    """GateError where the policy would not let out by now what it let out when it was sealed."""
    config = plan.resolve_config(release)
    case = _evaluate_policy(release, config, signed.predicate["publisher"])
    _refuse_rejected(case)
    history.refuse_erased(config)
    if not _is_statement_current(release, config, case):
        raise GateError(
            "policy: what it decided on has changed since the release was signed: run the same `anonymizer run` again"
        )


def _refuse_rejected(case: PolicyEvaluation) -> None:
    if not case.verdict.passed:
        broken = "; ".join(str(ruling) for ruling in case.verdict.failed_rules)
        raise GateError(f"policy: the release is not let out: {broken}: see `anonymizer status`{_next_step(case)}")


def _next_step(case: PolicyEvaluation) -> str:
    """What may help, beside another policy or other settings."""
    rules = {ruling.rule for ruling in case.verdict.failed_rules}
    if rules <= COUNT_RULES:
        return "; `anonymizer retry --failed` does failed records again" if rules - {"max_quarantined"} else ""
    return "" if case.audit else "; attack it with `anonymizer audit`, then run the same command again"


def _publish_if_approved(release: Release, signed: SignedStatement) -> PublicationStatus:
    """Make the sealed candidate public in one move, if those who must have approved it."""
    approved = approvals(signed)
    required = signed.predicate["approvals"]["required"]
    if len(approved) < required:
        return PublicationStatus(False, approved, required)
    _refuse_changed_candidate(release, signed)
    remove_incomplete(release.public)
    _log_publication(release, signed, approved)
    try:
        release.candidate.move_to(release.public, last=MANIFEST)
    except OutputError:
        if not release.is_published:  # nobody else was quicker
            raise
    return PublicationStatus(True, approved, required)


def read_statement(release: Release) -> SignedStatement:
    """The statement of a release, whose signatures are not checked here. IntegrityError where it is damaged."""
    try:
        return statement.read(release.public_or_candidate)
    except (ValueError, OSError) as problem:
        raise IntegrityError(f"release: its statement: {problem}: restore it, or remove it and run again") from None


def approvals(signed: SignedStatement) -> tuple[str, ...]:
    """Names of the approvers whose signatures hold."""
    return statement.valid_approvers(signed)


def read_last_decision(release: Release) -> SignedStatement | None:
    """What the policy said last, with its reasons; none where it has not been asked."""
    if not release.decision_log.exists():
        return None
    try:
        return dsse.loads(release.decision_log.read(), DECISION_PREDICATE)[-1]
    except (ValueError, IndexError):
        raise IntegrityError(f"release: restricted/{release.decision_log.name} is damaged: restore it") from None


def read_audit(release: Release) -> AuditResult | None:
    """The audit that lies in the restricted half, if there is one, and it attacked this release alone."""
    if not (release.audit / "audit.json").exists():
        return None
    told = json.loads((release.audit / "audit.json").read())
    if told.get("union"):
        return None
    figures = parquet.read(release.audit / "figures.parquet").to_pylist()
    own = [line for line in figures if line["baseline"] is None]
    return AuditResult(datetime.fromisoformat(told["when"]), told.get("manifest", ""), own, told.get("lacking"))


def _approvers(signed: SignedStatement) -> dict[str, str]:
    found: dict[str, str] = signed.predicate["approvals"]["approvers"]
    return found


@dataclass(frozen=True)
class PolicyEvaluation:
    """What the policy decides on, and what it says. ``audit``: public summary of an audit of just this release."""

    plan: Plan
    counts: Summary
    manifest_digest: str  # SHA-256
    audit: Mapping[str, Any] | None
    publisher: str | None  # public key
    verdict: Verdict


def _evaluate_policy(release: Release, config: RunConfig, publisher: str | None) -> PolicyEvaluation:
    the_plan, manifest, audit = plan.read(release), statement.file_digest(release.manifest), read_audit(release)
    counts = summarize_release(release, the_plan)
    summarized = json.loads(release.audit_summary.read()) if audit is not None else {}
    ours = audit is not None and audit.manifest_sha256 == summarized["manifest_sha256"] == manifest
    return PolicyEvaluation(
        plan=the_plan,
        counts=counts,
        manifest_digest=manifest,
        audit=summarized if ours else None,
        publisher=publisher,
        verdict=evaluate_release(config.policy, counts, manifest, audit if ours else None, datetime.now(UTC)),
    )


def _record_decision(release: Release, config: RunConfig, case: PolicyEvaluation, signer: CryptoSigner | None) -> None:
    """The decision with its reasons, signed, in the restricted half; and an event."""
    told = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "result": case.verdict.result,
        "rules": [rule.to_json() for rule in case.verdict.rule_results],
        "policy": config.policy.model_dump(mode="json"),
    }
    made = dsse.build(DECISION_PREDICATE, {MANIFEST: case.manifest_digest}, told, signer)
    before = release.decision_log.read() if release.decision_log.exists() else b""
    release.decision_log.write(before + dsse.dumps([made]))
    broken = [ruling.rule for ruling in case.verdict.failed_rules]
    event_log.record(release, "gate", result=case.verdict.result, broken=broken, waived=case.verdict.waived_rules)


def _is_statement_current(release: Release, config: RunConfig, case: PolicyEvaluation) -> bool:
    """Whether the candidate bears a statement that says what would be said now; approvals of another one are void."""
    if not release.statement.exists():
        return False
    said = read_statement(release).predicate
    now = statement.build_decision(config.policy, case.verdict, case.audit, case.publisher)
    return {name: said.get(name) for name in now} == now


def _sign_candidate(
    release: Release,
    config: RunConfig,
    case: PolicyEvaluation,
    key: CustodianKey,
    signer: CryptoSigner | None,
    write_documents: WriteDocuments,
) -> None:
    """Write the papers of the public half, and the statement about all of it."""
    folder = release.candidate
    release.statement.remove()  # it would speak of papers that are written anew
    for name, data in _copied_documents(release, case).items():
        (folder / name).remove()
        if data is not None:
            (folder / name).write_uncommitted(data)
    manifest = parquet.open_table(release.manifest)
    write_documents(folder, case.plan, config, case.counts, manifest, case.audit, signer is not None)
    head = event_log.record(
        release, "sealed", publisher=case.publisher, ledger=ledger.compute_digest(release, case.plan)
    )
    origin = _build_origin(release, config, case.plan, key)
    said = statement.build_predicate(case.plan, case.counts, manifest, config.output.public_scores, origin)
    said |= statement.build_decision(config.policy, case.verdict, case.audit, case.publisher) | {"events": asdict(head)}
    made = dsse.build(statement.PREDICATE_TYPE, statement.subject_digests(folder), said, signer)
    release.statement.write(dsse.dumps([made]))


def _copied_documents(release: Release, case: PolicyEvaluation) -> dict[str, bytes | None]:
    """Files of the public half that come from the restricted one."""
    revoked = release.revocations.read() if release.revocations.exists() else None
    return {AUDIT: None if case.audit is None else release.audit_summary.read(), REVOCATIONS: revoked}


def _refuse_changed_candidate(release: Release, signed: SignedStatement) -> None:
    """IntegrityError where the candidate is not, or not any more, what was signed and approved."""
    unsigned = signed.predicate["publisher"] is None
    for finding in check_public(release.candidate):
        if finding.result == "fail" and not (unsigned and finding.check == "signature"):
            raise IntegrityError(
                f"release: not published, since {finding.check} is not as signed: restore restricted/candidate/"
            )


def _log_publication(release: Release, signed: SignedStatement, approved: tuple[str, ...]) -> None:
    """An event, written before what it speaks of, and once: whoever is stopped in between comes here again."""
    published = [event["details"]["statement"] for event in event_log.read(release) if event["event"] == "published"]
    if signed.digest not in published:
        event_log.record(release, "published", statement=signed.digest, approved=list(approved))


def _build_origin(release: Release, config: RunConfig, the_plan: Plan, key: CustodianKey) -> Materials:
    before = None if config.previous is None else read_statement(Release.at(config.previous)).digest
    with ledger.sort_originals(release, the_plan) as originals:
        return Materials(originals=len(originals), hmac_sha256=key.materials_hmac(originals.keys()), previous=before)
