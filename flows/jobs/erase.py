"""What the task of an erasure does, without Prefect: the new release, its publication, and the end of the old one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from anonymizer import report
from anonymizer.attest.verify import check_public
from anonymizer.config import RunConfig
from anonymizer.crypto import signing
from anonymizer.crypto.custodian_key import load_key
from anonymizer.errors import CustodianKeyError, GateError, IntegrityError, SigningKeyError, StepError
from anonymizer.release import assemble, erase, history, plan, preflight, publish
from anonymizer.release.plan import resolve_config
from anonymizer.storage import run_lock
from anonymizer.storage.layout import Release
from flows.jobs.release import redact_errors


@dataclass(frozen=True)
class ErasureSummary:
    """Counts only: safe to hand to a scheduler. Once the new release is published, the old one is gone.

    ``erased`` counts records, with further ones of the same originals; ``revoked`` those that were public.
    """

    released: int
    erased: int
    revoked: int
    published: bool
    standing: str


def check(release: str, records: Path, output: str) -> RunConfig:
    """What can be told before the work, and the settings of the new release; writes nothing."""
    old, new, wanted = Release.at(release), Release.at(output), erase.ErasureRequest.read(records)
    begun = erase.is_begun(old, new)
    stands = begun and new.plan.exists()  # from here on the old release is needed no more than its pictures are
    settings = resolve_config(new) if stands else _successor_settings(old, output)
    if signing.signer_from_env(settings.signing_key_env) is None:
        raise SigningKeyError(f"{settings.signing_key_env}: not set, and a revocation is signed; {signing.KEY_HINT}")
    made_with = plan.read(new if stands else old).key_check
    if made_with is not None and load_key(settings.key_env).check_value != made_with:
        raise CustodianKeyError(f"{settings.key_env}: not the key that {release!r} was made with: set that one")
    if stands:
        erase.check_same_request(new, wanted)
    else:
        erase.check(old, new, wanted)
        if not begun:
            preflight.check_output(settings)
    return settings


def run(release: str, records: Path, output: str) -> ErasureSummary:
    """Write, publish, destroy; what is done already is not done again."""
    settings = check(release, records, output)
    old, new, key = Release.at(release), Release.at(output), load_key(settings.key_env)
    signer = signing.signer_from_env(settings.signing_key_env)
    assert signer is not None
    with run_lock.exclusive_run(output):
        if not new.plan.exists():
            erase.write_successor(old, new, settings, erase.ErasureRequest.read(records), key, signer)
        the_plan = plan.read(new)
        if not new.is_complete:
            assemble.assemble(new, settings)
            if not new.purged.exists():  # what would show originals was kept long enough
                report.write_restricted(new, the_plan, settings, assemble.summarize_release(new, the_plan))
        try:
            standing = publish.decide_and_publish(new, settings, key, report.write_public)
        except GateError as problem:
            raise GateError(
                f"{problem}; the old release stands until then: finish with the same `anonymizer erase`"
            ) from None
        if standing.is_published:
            _destroy_verified(old, new)
    told = erase.read_counts(new)
    return ErasureSummary(
        released=assemble.summarize_release(new, the_plan).released,
        erased=told.records + told.copies,
        revoked=told.pictures,
        published=standing.is_published,
        standing=str(standing),
    )


def run_for_scheduler(release: str, records: Path, output: str) -> ErasureSummary:
    """``run``, with errors that a scheduler may keep."""
    error = StepError("erase: failed, run the same command again to finish")
    return redact_errors(Release.at(output).restricted, "erase", error, lambda: run(release, records, output))


def _successor_settings(old: Release, output: str) -> RunConfig:
    """Those of the old release, which the new one follows."""
    before = resolve_config(old)
    own = {"output": before.output.model_copy(update={"uri": output}), "previous": history.absolute_uri(str(old.root))}
    return before.model_copy(update=own)


def _destroy_verified(old: Release, new: Release) -> None:
    """The old release, once the new one is what it should be."""
    bad = [finding for finding in check_public(new.public) if finding.result == "fail"]
    if bad:
        raise IntegrityError(f"erase: the new release does not verify ({bad[0].check}): the old one was left as it is")
    erase.destroy(old, new, publish.read_statement(new).digest)
