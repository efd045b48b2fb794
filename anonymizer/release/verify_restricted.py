"""Both halves together: the ledger accounts for what is public, the event log is whole, and nobody else can read it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Container, Iterator
from itertools import chain

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.attest import statement
from anonymizer.attest.predicate import ReleasePredicate
from anonymizer.attest.verify.findings import Finding, failed, noted, pass_or_fail, passed
from anonymizer.config import RunConfig
from anonymizer.crypto import signing
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import AnonymizerError
from anonymizer.records import Plan, Status, Summary
from anonymizer.release import event_log, ledger, plan, publish, retention
from anonymizer.release.assemble import ID_AND_DIGEST, released_digests, summarize_release
from anonymizer.release.event_log import ChainHead
from anonymizer.storage import parquet
from anonymizer.storage.external_sort import ExternalSort
from anonymizer.storage.layout import ENCRYPTED_SUFFIX, MANIFEST, Release


def check_restricted(release: Release, config: RunConfig, key: CustodianKey) -> Iterator[Finding]:
    """What the custodian can check besides. ``key``: the custodian's, or a fresh one where none is at hand."""
    yield from _check_modes(release)
    try:
        said = statement.parse_predicate(publish.read_statement(release))
    except AnonymizerError as problem:
        yield failed("ledger", str(problem))
        return
    yield from _errors_as_findings("events", lambda: _check_events(release, said))
    yield from _errors_as_findings("decision", lambda: _check_decision(release, config, said))
    yield from _errors_as_findings("ledger", lambda: _check_ledger(release, config, said, key))


def _errors_as_findings(check: str, work: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """What ``work`` finds. Whoever could change these files may have written anything at all into them."""
    try:
        yield from work()
    except AnonymizerError as problem:
        yield failed(check, str(problem))
    except Exception:
        yield failed(check, "a file of the restricted half is missing, or not what was written: restore it")


def _check_decision(release: Release, config: RunConfig, said: ReleasePredicate) -> Iterator[Finding]:
    """What the policy said last: that this may go out, by the rules that the settings still have."""
    if (last := publish.read_last_decision(release)) is None:
        yield failed(
            "decision", f"{release.decision_log.name} is missing: nothing says what the policy found: restore it"
        )
        return
    problems = []
    if said.publisher is not None and not last.is_signed_by(signing.parse_public_key(said.publisher)):
        problems.append("the last decision is not signed by the publisher")
    if last.digests != {MANIFEST: statement.file_digest(release.manifest)} or last.predicate["result"] != "pass":
        problems.append("the last decision does not let this release out")
    if last.predicate["policy"] != config.policy.model_dump(mode="json"):
        problems.append("the policy in restricted/config.yaml is not the one that decided")
    yield from pass_or_fail("decision", problems, f"the policy passed it on {str(last.predicate['when'])[:10]}")


def _check_ledger(release: Release, config: RunConfig, said: ReleasePredicate, key: CustodianKey) -> Iterator[Finding]:
    if not release.ledger.exists():
        logged = any(e["event"] == "purged" and e["details"]["what"] == "records" for e in event_log.read(release))
        if logged and "records" in retention.read_purged(release):
            yield noted("ledger", "the records of this release were purged: nothing can be reconciled any more")
        else:
            yield failed("ledger", "restricted/ledger is missing, and nothing says that it was purged: restore it")
        return
    the_plan = plan.read(release)
    ledger.reconcile(release, the_plan)
    counts = summarize_release(release, the_plan)
    told = f"{counts.read:,} read, {counts.released:,} released, {counts.quarantined:,} quarantined, {counts.failed:,}"
    differences = [*_compare_with_public(release, the_plan), *_compare_with_statement(release, the_plan, counts, said)]
    yield from pass_or_fail("ledger", differences, f"{told} failed, and no other")
    yield _check_materials(release, said, the_plan, key, config.key_env)
    yield from _check_settings(config, the_plan, said)
    yield from pass_or_fail(
        "quarantine", list(_check_quarantine(release, the_plan)), "holds what was held back, and nothing else"
    )


def _compare_with_public(release: Release, the_plan: Plan) -> Iterator[str]:
    manifest = parquet.open_table(release.manifest).select(ID_AND_DIGEST)
    batches = (pa.Table.from_batches([batch]) for batch in manifest.to_batches(max_chunksize=parquet.BATCH_ROWS))
    pairs = chain([manifest.schema.empty_table()], batches)  # of a release of nothing too
    more = less = other = 0
    with released_digests(release, the_plan) as ledgers, ExternalSort(pairs, "output_id", the_plan.records) as public:
        for parts in zip(ledgers.tables(), public.tables(), strict=True):  # parted at the same ids
            kept, found = (
                dict(zip(*(part[name].to_pylist() for name in ID_AND_DIGEST), strict=True)) for part in parts
            )
            more += len(found.keys() - kept.keys())
            less += len(kept.keys() - found.keys())
            other += sum(found[i] != kept[i] for i in found.keys() & kept.keys())
    if more:
        yield f"{more:,} pictures are public that no row of the ledger speaks of"
    if less:
        yield f"{less:,} released records are not in the manifest"
    if other:
        yield f"{other:,} pictures are not those that the ledger speaks of"


def _compare_with_statement(release: Release, the_plan: Plan, counts: Summary, said: ReleasePredicate) -> Iterator[str]:
    for name, count in said.counts.model_dump().items():
        if getattr(counts, name) != count:
            yield f"{name}: the ledger has {getattr(counts, name):,}, and {count:,} were signed"
    sealed = event_log.read(release)[: said.events.count][-1:]
    if not sealed or sealed[0]["details"].get("ledger") != ledger.compute_digest(release, the_plan):
        yield "its files are not those that were there when the release was signed: restore restricted/ledger"


def _check_materials(
    release: Release, said: ReleasePredicate, the_plan: Plan, key: CustodianKey, key_env: str
) -> Finding:
    with ledger.sort_originals(release, the_plan) as originals:
        if len(originals) != said.materials.originals:
            signed = said.materials.originals
            return failed("materials", f"the ledger has {len(originals):,} originals, and {signed:,} were signed")
        if the_plan.key_check is None or key.check_value is None:
            return noted("materials", f"not checked: {key_env} is not set, or the release's own key was thrown away")
        if key.check_value != the_plan.key_check:
            return failed("materials", f"{key_env}: not the key that this release was made with: set that one, or none")
        if key.materials_hmac(originals.keys()) != said.materials.hmac_sha256:
            return failed("materials", "the originals in the ledger are not those that were signed")
        return passed("materials", f"{len(originals):,} originals, as signed")


def _check_settings(config: RunConfig, the_plan: Plan, said: ReleasePredicate) -> Iterator[Finding]:
    prints = {config.fingerprint(the_plan.model_digest), the_plan.fingerprint, said.settings.fingerprint}
    same = [] if len(prints) == 1 else ["config.yaml, plan.json and the statement have different fingerprints"]
    yield from pass_or_fail("settings", same, f"fingerprint {the_plan.fingerprint[:16]}… throughout")


def _check_events(release: Release, said: ReleasePredicate) -> Iterator[Finding]:
    found = event_log.read(release)
    ours = event_log.contains_head(release, ChainHead(said.events.count, said.events.hash))
    whole = [] if ours else ["the log is not the one that the statement speaks of"]
    yield from pass_or_fail("events", whole, f"{len(found):,} events, each following from the one before")


def _check_modes(release: Release) -> Iterator[Finding]:
    """Files of the restricted half that somebody else on this machine may read."""
    if not release.root.is_local or os.name != "posix":
        return
    public = (release.candidate.path, release.assembling.path)  # with the modes of what is public
    is_open = sum(
        bool(stat.S_IMODE(os.lstat(path).st_mode) & 0o077) for path in _paths(release.restricted.path, public)
    )
    said = f"{is_open:,} files or folders of the restricted half are open to others: chmod -R go= it"
    yield from pass_or_fail("modes", [said] if is_open else [], "the restricted half is its owner's alone")


def _paths(root: str, others: Container[str]) -> Iterator[str]:
    """A folder and everything below it, but for some folders."""
    yield root
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if os.path.join(folder, name) not in others]
        yield from (os.path.join(folder, name) for name in (*names, *files))


def _check_quarantine(release: Release, the_plan: Plan) -> Iterator[str]:
    held: dict[str, str] = {}
    for _, table in ledger.scan_shards(release, the_plan, ("status", *ID_AND_DIGEST)):
        rows = table.filter(pc.equal(table["status"], Status.QUARANTINED.value))
        held |= dict(zip(*(rows[name].to_pylist() for name in ID_AND_DIGEST), strict=True))
    there = {place.name.partition(".")[0]: place for place in release.quarantine.children()}
    if strange := len(there.keys() - held.keys()):
        yield f"{strange:,} files that no row of the ledger speaks of"
    if "pictures" not in retention.read_purged(release) and (less := len(held.keys() - there.keys())):
        yield f"{less:,} pictures that were held back are missing"
    open_files = [name for name, place in there.items() if name in held and not place.name.endswith(ENCRYPTED_SUFFIX)]
    if other := sum(statement.file_digest(there[name]) != held[name] for name in open_files):
        yield f"{other:,} files are not what was held back"
