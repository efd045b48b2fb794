"""The commands as functions, for scripts and notebooks: settings in, results out, nothing printed.

Settings are a configuration object, nested mappings, or the address of a YAML file. Heavy imports wait for a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from anonymizer.config import AuditConfig, AugmentConfig, EnhanceConfig, RunConfig
from anonymizer.errors import AnonymizerError, GateError, SigningKeyError
from anonymizer.policy.calibration import build_resolved
from anonymizer.storage.layout import STATEMENT, Release
from anonymizer.storage.path import StoragePath
from flows.lineage.emit import emit_run_events
from flows.runtime import run_templates, task_runners
from flows.runtime.run_templates import read_config
from flows.start import run_flow

UNTRUSTED = ("statement", "signature")  # checks after whose failure no more is read, where trusted keys are given

if TYPE_CHECKING:
    from anonymizer.attest.verify import Finding
    from anonymizer.backbones import Backbone
    from anonymizer.data.sources import Field
    from anonymizer.records import Plan
    from anonymizer.release.group_planning import GroupCounts


@dataclass(frozen=True)
class PlanReport:
    """What a run would do: its plan, and what should be known before it starts."""

    plan: Plan
    done: int  # records that are finished, of a release that was begun
    seconds: float  # estimated for what is left, from one timed network call
    fields: Sequence[Field]  # columns of the source and metadata in its images, and what becomes of them
    cautions: Sequence[str]  # settings that reveal more than images
    backbone: Backbone
    groups: GroupCounts | None = None  # where boomerang.k is 2 or more


def plan(config: RunConfig | Mapping[str, Any] | str) -> PlanReport:
    """Return what ``release`` would do. Writes nothing; raises AnonymizerError for what ``release`` would refuse.

    With groups every picture is read.
    """
    from anonymizer.crypto.custodian_key import load_key
    from anonymizer.data.sources import open_source, sample_metadata
    from anonymizer.release import plan as planning
    from anonymizer.release import preflight
    from anonymizer.release.ledger import Ledger
    from flows.jobs import ceilings, models
    from flows.jobs import release as release_job

    config = read_config(RunConfig, config)
    check(config)
    backbone, key = models.backbone_of(config.model), load_key(config.key_env)
    opened = Release.at(config.output.uri, key)
    preflight.check_previous(config, key, release_job.load_checked_scorer(config.metrics, backbone).names)
    groups = release_job.count_groups(config) if config.boomerang.k > 1 else None
    if opened.plan.exists():
        plan = planning.resume(config, backbone, key, opened)
        done = Ledger(opened, plan).summarize().read
    else:
        records = planning.count_records(config) if groups is None else groups.records
        plan, done = planning.build_plan(config, backbone, key, records), 0
        if groups is not None:
            plan = replace(plan, shards=groups.shards)
        plan = ceilings.add_ceilings(config, backbone, key, plan)
    images = plan.records if groups is None else groups.images
    pending = round(images * (1 - done / max(1, plan.records)))
    seconds = planning.estimate_seconds(config, backbone, replace(plan, records=pending))
    source = open_source(config.source)
    fields = [*source.fields(), *sample_metadata(source)]
    return PlanReport(plan, done, seconds, fields, list_cautions(config, plan), backbone, groups)


def release(config: RunConfig | Mapping[str, Any] | str) -> dict[str, Any]:
    """Make a release, or finish one that was stopped; return its counts by outcome and reason.

    ``problems`` of the result are lineage events that were lost. Everything that is wrong with the input is raised as
    AnonymizerError before the work starts. GateError: a policy or missing approvals hold the release back.
    """
    from anonymizer.release.ledger import Ledger

    config = read_config(RunConfig, config)
    if (counts := run_release(config)) is None:
        opened = Release.at(config.output.uri)
        counts = asdict(Ledger.open(opened).summarize())
    return counts


def run_release(config: RunConfig) -> dict[str, Any] | None:
    """Run the release flow; return its counts, or None where the release was complete already."""
    from anonymizer.crypto.custodian_key import load_key
    from anonymizer.release import plan as planning
    from anonymizer.release import publish
    from flows.jobs import models
    from flows.jobs import release as release_job

    check(config)
    opened = Release.at(config.output.uri)
    if opened.is_complete:  # but is it what was asked for?
        plan = planning.resume(config, models.backbone_of(config.model), load_key(config.key_env), opened)
        publish.refuse_unpublished(opened, config, plan)
        return None
    secrets = (config.key_env, config.signing_key_env)
    return run_flow("release", config, secrets=secrets, prepare=lambda: release_job.prepare_for_flow(config))


def audit(release: str, **settings: Any) -> dict[str, Any]:
    """Attack the release at ``release`` and write the audit into its restricted half; return counts.

    ``settings`` are those of an audit: ``identity="folder"``, ``attacks=["linkage"]``, ``others={"uri": ...}``.
    """
    return run_audit(build_resolved(AuditConfig, {"release": release, **settings}))


def run_audit(config: AuditConfig) -> dict[str, Any]:
    """Run the audit flow; return its counts, and as ``problems`` the lineage events that were lost."""
    from flows.jobs import audit as audit_job

    run_config = audit_job.check(config)
    with emit_run_events(run_config, "audit", config.release) as outcome:
        summary = run_flow("audit", config, secrets=(run_config.key_env, run_config.signing_key_env))
    return summary | {"problems": outcome.problems}


def augment(config: AugmentConfig | Mapping[str, Any] | str) -> dict[str, Any]:
    """Draw local samples for training, with their labels; return counts. They are not anonymised."""
    from flows.jobs import augment as augment_job

    config = read_config(AugmentConfig, config)
    augment_job.check(config)
    return run_flow("augment", config)


def enhance(config: EnhanceConfig | Mapping[str, Any] | str) -> dict[str, Any]:
    """Enlarge images by upsampling and local sampling; return counts. Nobody is anonymised."""
    from flows.jobs import enhance as enhance_job

    config = read_config(EnhanceConfig, config)
    enhance_job.check(config)
    return run_flow("enhance", config)


def verify(
    uri: str, trust: Sequence[str] = (), *, decode: int | None = None, rescore: int | None = None, replay: int = 0,
    approvers: str | None = None, revocations: Sequence[str] = (), seal: bool = False,
) -> list[Finding]:  # fmt: skip
    """Check a release, or only a public half, against its signed statement; return one finding for each check.

    ``trust``: public keys, or files with one, that the publisher's must be among; where it is not, nothing else is
    read. ``approvers``: a YAML file with the approvers' public keys by name. ``revocations``: files, URIs or public
    halves with lists that were handed out later. ``decode``: about how many images to decode, None for all.
    ``rescore``, ``replay``: how many outputs to score or to draw again from their originals; ``rescore`` None is 8
    where originals are at hand. ``seal``: put the custodian's seals on a release of a version that made none, if no
    check fails. Raises GateError for a release that its policy holds back.
    """
    from anonymizer.attest.verify import check_public
    from anonymizer.attest.verify.findings import failed
    from flows.jobs import verification_inputs as inputs

    root = StoragePath.from_uri(uri)
    is_public_half = (root / STATEMENT).exists()  # whatever else lies in it
    is_whole = not is_public_half and ((root / "public").exists() or (root / "restricted").exists())
    release = Release(root) if is_whole else None
    if release is not None and release.is_assembled and not release.statement.exists() and not release.is_published:
        raise GateError(
            f"release {uri!r}: its policy holds it back, and nothing is signed yet: see `anonymizer status`"
        )
    half = root if release is None else release.public if release.public.exists() else release.candidate
    pinned = None if approvers is None else inputs.read_approvers(approvers)
    lists = {name: inputs.read_revocations(name) for name in revocations}
    keys = read_public_keys(trust)
    findings = list(check_public(half, keys, decode, approvers=pinned, revocations=lists))
    if keys and any(finding.result == "fail" and finding.check in UNTRUSTED for finding in findings):
        return findings
    if release is None:
        if rescore or replay:
            reason = "--rescore and --replay need the restricted half: give the whole release"
            findings.append(failed("originals", reason))
        return findings
    findings += _verify_whole(release, half == release.candidate, rescore, replay)
    has_passed = not any(finding.result == "fail" for finding in findings)
    _log_verification(release, has_passed)
    if seal and has_passed:
        findings.append(_seal(release, keys))
    return findings


def _seal(release: Release, trusted: Sequence[str]) -> Finding:
    """Seal a release that was verified, if it was signed by a key that is trusted."""
    from anonymizer.attest.verify.findings import noted, passed
    from anonymizer.crypto.custodian_key import load_key
    from anonymizer.release import adoption
    from anonymizer.release.plan import read_config

    if not trusted:
        raise SigningKeyError("--seal: name the publisher's public key with --trust: anybody can sign with one")
    if not adoption.lacks_seals(release):
        return noted("seals", "are there already")
    adoption.adopt(release, load_key(read_config(release).key_env))
    return passed("seals", "the restricted half is sealed with the custodian's key from now on")


def read_public_keys(texts: Sequence[str]) -> list[str]:
    """Return public keys as given, or from their files; what is neither may be a private one, and is not repeated."""
    from anonymizer.crypto import signing

    return signing.read_public_keys(texts, "--trust")


def _verify_whole(release: Release, is_candidate: bool, rescore: int | None, replay: int) -> Iterator[Finding]:
    """Yield what is to be known of a whole release besides its public half."""
    from anonymizer.attest.verify.findings import failed, noted
    from flows.jobs import replay as replay_job

    if is_candidate:
        yield noted("state", "not published: what was checked is the candidate")
    elif release.candidate.exists():
        yield failed("state", "there is a candidate beside public/: run the same `anonymizer run` again")
    if release.restricted.exists():
        yield from replay_job.verify_release(release, rescore, replay)
    else:
        yield noted("restricted", "is not here: the public half was checked alone")


def _log_verification(release: Release, passed: bool) -> None:
    from anonymizer.release import event_log

    with suppress(AnonymizerError):  # a broken chain is among the findings
        if release.event_log.exists():
            event_log.record(release, "verified", result="pass" if passed else "fail")


def check(config: RunConfig) -> None:
    """Raise what is wrong and takes a moment to see; write nothing."""
    from flows.jobs import release as release_job

    task_runners.check(config)
    run_templates.refuse_placeholders(config)
    release_job.check(config)


def list_cautions(config: RunConfig, plan: Plan) -> list[str]:
    """Return a line for each setting or circumstance that reveals more than the images."""
    from anonymizer.release import history, preflight
    from anonymizer.release import plan as planning

    cautions = [*planning.list_cautions(config, plan), *preflight.list_cautions(config)]
    if config.policy.weaker_than_previous is not None and Release.at(config.previous or "").is_published:
        weaker = "; ".join(history.list_weaker_rules(config))
        cautions.append(f"policy: is weaker than that of the previous release, and says so in public: {weaker}")
    if missing := history.count_missing(config):
        cautions.append(
            f"previous: {missing} earlier releases are not at hand: who was only there gets a second output"
        )
    return cautions
