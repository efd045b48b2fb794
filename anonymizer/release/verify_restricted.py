"""Verify both halves together: the ledger accounts for what is public, event log and modes are sound."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Container, Iterator, Mapping
from itertools import chain
from typing import Any

import pyarrow as pa

from anonymizer.attest import statement
from anonymizer.attest.predicate import ReleasePredicate
from anonymizer.attest.verify.findings import Finding, failed, noted, pass_or_fail, passed
from anonymizer.config import PolicyConfig, RunConfig
from anonymizer.crypto import signing
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import AnonymizerError
from anonymizer.records import Plan, Status
from anonymizer.release import assemble, audit_files, event_log, grouped, plan, publish, retention
from anonymizer.release.event_log import ChainHead
from anonymizer.release.finished_ledger import ID_AND_DIGEST, FinishedLedger
from anonymizer.storage import parquet
from anonymizer.storage.external_sort import ExternalSort
from anonymizer.storage.layout import ENCRYPTED_SUFFIX, MANIFEST, REVOCATIONS, Release

# of the plan, in the statement
SIGNED_SETTINGS = ("level", "t_boom", "T", "log_snr", "sampler", "steps", "accept_deterministic")


def check_restricted(release: Release, config: RunConfig, key: CustodianKey) -> Iterator[Finding]:
    """Yield the findings of the restricted half. ``key``: the custodian's, or a fresh one where it is not available."""
    yield from _check_modes(release)
    try:
        predicate = statement.parse_predicate(publish.read_statement(release))
    except AnonymizerError as error:
        yield failed("ledger", str(error))
        return
    yield from _errors_as_findings("events", lambda: _check_events(release, predicate))
    yield from _errors_as_findings("revocations", lambda: _check_revocations(release))
    yield from _errors_as_findings("decision", lambda: _check_decision(release, config, predicate))
    yield from _errors_as_findings("ledger", lambda: _check_ledger(release, config, predicate, key))
    yield from _errors_as_findings("audit", lambda: _check_audit(release))


def _errors_as_findings(check: str, work: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """Yield the findings of ``work``; files that an attacker changed may hold anything and raise any exception."""
    try:
        yield from work()
    except AnonymizerError as error:
        yield failed(check, str(error))
    except Exception:
        yield failed(check, "a file of the restricted half is missing, or not what was written: restore it")


def _check_modes(release: Release) -> Iterator[Finding]:
    """Look for files of the restricted half that other users of this machine may read."""
    if not release.root.is_local or os.name != "posix":
        return
    public = (release.candidate.path, release.assembling.path)  # with the modes of what is public
    paths = _walk(release.restricted.path, public)
    count = sum(bool(stat.S_IMODE(os.lstat(path).st_mode) & 0o077) for path in paths)
    problem = f"{count:,} files or folders of the restricted half are open to others: chmod -R go= it"
    yield from pass_or_fail("modes", [problem] if count else [], "the restricted half is its owner's alone")


def _walk(root: str, excluded: Container[str]) -> Iterator[str]:
    """Yield a folder and everything below it, except for excluded folders."""
    yield root
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if os.path.join(folder, name) not in excluded]
        yield from (os.path.join(folder, name) for name in (*names, *files))


def _check_events(release: Release, predicate: ReleasePredicate) -> Iterator[Finding]:
    count = len(event_log.read(release))
    signed = ChainHead(predicate.events.count, predicate.events.hash)
    is_signed = event_log.contains_head(release, signed)
    problems = [] if is_signed else ["the log is not the one that the statement speaks of"]
    yield from pass_or_fail("events", problems, f"{count:,} events, each following from the one before")


def _check_audit(release: Release) -> Iterator[Finding]:
    """Check that the files of an audit, where there is one, are what it wrote."""
    if release.sealing_key is None or not (release.audit / audit_files.DOCUMENT).exists():
        return
    if audit_files.is_sealed(release):
        audit_files.read(release)
        yield passed("audit", "its figures and summary are as it wrote them")
    else:
        yield noted("audit", "made by an earlier version, and not sealed: no policy goes by it: audit again")


def _check_revocations(release: Release) -> Iterator[Finding]:
    """Compare both copies of the list of revocations."""
    texts = [
        path.read() if path.exists() else b""
        for path in (release.revocations, release.public_or_candidate / REVOCATIONS)
    ]
    if any(texts):
        problems = [] if texts[0] == texts[1] else ["the list in the restricted half is not the one that is public"]
        yield from pass_or_fail("revocations", problems, "the same list in both halves")


def _check_decision(release: Release, config: RunConfig, predicate: ReleasePredicate) -> Iterator[Finding]:
    """Check that the last decision lets this release out, by the rules that are still configured."""
    decision = publish.read_last_decision(release)
    if decision is None:
        name = release.decision_log.name
        yield failed("decision", f"{name} is missing: nothing says what the policy found: restore it")
        return
    problems = []
    if predicate.publisher is not None and not decision.is_signed_by(signing.parse_public_key(predicate.publisher)):
        problems.append("the last decision is not signed by the publisher")
    manifest = {MANIFEST: statement.file_digest(release.manifest)}
    if decision.digests != manifest or decision.predicate["result"] != "pass":
        problems.append("the last decision does not let this release out")
    if PolicyConfig.model_validate(decision.predicate["policy"]) != config.policy:  # earlier versions knew fewer rules
        problems.append("the policy in restricted/config.yaml is not the one that decided")
    if predicate.policy not in (None, config.policy):
        problems.append("the policy in restricted/config.yaml is not the one that was signed")
    yield from pass_or_fail("decision", problems, f"the policy passed it on {str(decision.predicate['when'])[:10]}")


def _check_ledger(
    release: Release, config: RunConfig, predicate: ReleasePredicate, key: CustodianKey
) -> Iterator[Finding]:
    if not release.ledger.exists():
        events = event_log.read(release)
        is_logged = any(e["event"] == "purged" and e["details"]["what"] == "records" for e in events)
        if is_logged and "records" in retention.read_purged(release):
            yield noted("ledger", "the records of this release were purged: nothing can be reconciled any more")
        else:
            yield failed("ledger", "restricted/ledger is missing, and nothing says that it was purged: restore it")
        return
    ids = OutputIdCheck(key, config)
    with FinishedLedger(release, plan.read(release), config, ids.add) as ledger:
        counts = ledger.summary
        success = (
            f"{counts.read:,} read, {counts.released:,} released, {counts.quarantined:,} quarantined, "
            f"{counts.failed:,} failed, {f'{counts.waiting:,} waiting, ' * (counts.waiting > 0)}and no other"
        )
        problems = [*_compare_with_public(release, ledger), *_compare_with_statement(release, ledger, predicate)]
        if not problems and not assemble.is_manifest_of_ledger(release, config, ledger, predicate.version == 1):
            problems = ["the manifest says other things of the pictures than the ledger: restore both from one copy"]
        yield from pass_or_fail("ledger", problems, success)
        if config.boomerang.k > 1:
            yield _check_groups(ids, ledger, config)
        yield _check_materials(ledger, predicate, key, config.key_env)
        yield from _check_settings(config, ledger.plan, predicate)
        success = "holds what was held back, and nothing else"
        yield from pass_or_fail("quarantine", list(_check_quarantine(release, ledger)), success)


def _compare_with_public(release: Release, ledger: FinishedLedger) -> Iterator[str]:
    manifest = parquet.open_table(release.manifest).select(ID_AND_DIGEST)
    batches = (pa.Table.from_batches([batch]) for batch in manifest.to_batches(max_chunksize=parquet.BATCH_ROWS))
    pairs = chain([manifest.schema.empty_table()], batches)  # of an empty release too
    additional = missing = different = 0
    with ExternalSort(pairs, "output_id", ledger.plan.records) as public:  # partitioned as the ledger's rows are
        for tables in zip(ledger.outputs(Status.RELEASED), public.tables(), strict=True):
            expected, actual = map(_digests, tables)
            additional += len(actual.keys() - expected.keys())
            missing += len(expected.keys() - actual.keys())
            different += sum(actual[name] != expected[name] for name in actual.keys() & expected.keys())
    if additional:
        yield f"{additional:,} pictures are public that no row of the ledger speaks of"
    if missing:
        yield f"{missing:,} released records are not in the manifest"
    if different:
        yield f"{different:,} pictures are not those that the ledger speaks of"


def _digests(table: pa.Table) -> dict[str, str]:
    """Return ``output_id`` -> SHA-256 of the rows of a table."""
    return dict(zip(*(table[name].to_pylist() for name in ID_AND_DIGEST), strict=True))


def _compare_with_statement(release: Release, ledger: FinishedLedger, predicate: ReleasePredicate) -> Iterator[str]:
    for name, signed in predicate.counts.model_dump().items():
        if signed is not None and (count := getattr(ledger.summary, name)) != signed:
            yield f"{name}: the ledger has {count:,}, and {signed:,} were signed"
    if not event_log.has_signed_ledger(release, predicate.events.count, ledger.digest):
        hint = "" if release.key else ", or were sealed since then: set the custodian's key"
        yield f"its files are not those that were there when the release was signed{hint}: restore restricted/ledger"


def _check_materials(ledger: FinishedLedger, predicate: ReleasePredicate, key: CustodianKey, key_env: str) -> Finding:
    count, signed, key_check = len(ledger.originals), predicate.materials, ledger.plan.key_check
    if count != signed.originals:
        return failed("materials", f"the ledger has {count:,} originals, and {signed.originals:,} were signed")
    if signed.sealed not in (None, key_check is not None):
        return failed("materials", "plan.json is not what was signed about the custodian's key: restore it")
    if key_check is None or key.check_value is None:
        return noted("materials", f"not checked: {key_env} is not set, or the release's own key was thrown away")
    if key.check_value != key_check:
        return failed("materials", f"{key_env}: not the key that this release was made with: set that one, or none")
    if key.materials_hmac(ledger.originals.keys()) != signed.hmac_sha256:
        return failed("materials", "the originals in the ledger are not those that were signed")
    return passed("materials", f"{count:,} originals, as signed")


class OutputIdCheck:
    """Counts groups, and outputs of groups whose ids do not follow, under the custodian's key, from the whole group."""

    def __init__(self, key: CustodianKey, config: RunConfig) -> None:
        self.key, self.outputs = key, config.groups.outputs
        self.groups = self.wrong = 0

    def add(self, table: pa.Table) -> None:
        """Add the rows of a shard, which holds all members of its groups."""
        groups: dict[str, dict[str, Mapping[str, Any]]] = {}
        for row in table.filter(table["group"].is_valid()).to_pylist():
            groups.setdefault(row["group"], {})[row["source_hmac"]] = row
        self.groups += len(groups)
        for name, members in groups.items():
            contents = grouped.contents(self.key, name, members.keys(), self.outputs)
            for digest, row in members.items():
                expected = grouped.output_id(self.key, contents[digest], row["config_fingerprint"])
                self.wrong += row["output_id"] != expected


def _check_groups(ids: OutputIdCheck, ledger: FinishedLedger, config: RunConfig) -> Finding:
    """Report on groups, whose members, sizes and columns the ledger has checked as it was read."""
    message = f"{ids.groups:,} of {config.boomerang.k} or more, each of different originals alike in what is published"
    if ledger.plan.key_check is None or ids.key.check_value != ledger.plan.key_check:
        return noted("groups", f"{message}; ids not checked: {config.key_env} is not set to the release's key")
    if ids.wrong:
        return failed("groups", f"{ids.wrong:,} outputs have ids that are not of their whole group, or were dealt anew")
    return passed("groups", f"{message}; ids are of whole groups, and dealt by lot")


def _check_settings(config: RunConfig, plan: Plan, predicate: ReleasePredicate) -> Iterator[Finding]:
    fingerprints = {config.fingerprint(plan.model_digest), plan.fingerprint, predicate.settings.fingerprint}
    problem = "config.yaml, plan.json and the statement have different fingerprints"
    problems = [problem] if len(fingerprints) > 1 else []
    pairs = {name: (getattr(plan, name), getattr(predicate.settings, name)) for name in SIGNED_SETTINGS}
    pairs |= {"model": (plan.model, predicate.model.name), "model_digest": (plan.model_digest, predicate.model.sha256)}
    pairs |= {"ceilings": (plan.ceilings, predicate.ceilings)}
    signed = None if predicate.groups is None else predicate.groups.model_dump()
    pairs |= {"groups": (statement.describe_groups(config), signed)}
    pairs |= {"public_scores": (config.output.public_scores, predicate.manifest.public_scores)}
    if predicate.release not in (None, plan.id):
        problems.append("the statement was signed for another release than that of plan.json")
    if different := [name for name, (here, signed) in pairs.items() if here != signed]:
        problems.append(f"{', '.join(different)}: not as signed in config.yaml or plan.json: restore them")
    yield from pass_or_fail("settings", problems, f"fingerprint {plan.fingerprint[:16]}… throughout")


def _check_quarantine(release: Release, ledger: FinishedLedger) -> Iterator[str]:
    expected: dict[str, str] = {}
    for table in ledger.outputs(Status.QUARANTINED):
        expected |= _digests(table)
    paths = {path.name.partition(".")[0]: path for path in release.quarantine.children()}
    if additional := len(paths.keys() - expected.keys()):
        yield f"{additional:,} files that no row of the ledger speaks of"
    if "pictures" not in retention.read_purged(release) and (missing := len(expected.keys() - paths.keys())):
        yield f"{missing:,} pictures that were held back are missing"
    readable = [name for name, path in paths.items() if name in expected and not path.name.endswith(ENCRYPTED_SUFFIX)]
    if different := sum(statement.file_digest(paths[name]) != expected[name] for name in readable):
        yield f"{different:,} files are not what was held back"
