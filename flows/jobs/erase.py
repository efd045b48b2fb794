"""An erasure: write the successor of a release, publish it, destroy the old release.

A caller of single steps holds ``run_lock.exclusive_run`` on the output around them, as ``run`` does. Completed
steps are not repeated.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from securesystemslib.signer import CryptoSigner

from anonymizer.attest.verify import check_public
from anonymizer.config import RunConfig
from anonymizer.crypto import signing
from anonymizer.crypto.custodian_key import CustodianKey, load_key
from anonymizer.errors import ConfigError, CustodianKeyError, GateError, SigningKeyError
from anonymizer.release import erase, event_log, plan, preflight, publish, succession
from anonymizer.release.erase import ErasureRequest
from anonymizer.release.ledger import Ledger
from anonymizer.release.plan import resolve_config
from anonymizer.release.publish import PublicationStatus
from anonymizer.release.trust import refuse_untrusted
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.storage import run_lock
from anonymizer.storage.layout import Release
from anonymizer.storage.path import absolute_uri
from flows.jobs.release import finish_release


@dataclass(frozen=True)
class Erasure:
    """A checked request: the old release, its successor, and what both need."""

    old: Release
    new: Release
    request: ErasureRequest
    settings: RunConfig
    key: CustodianKey
    signer: CryptoSigner


@dataclass(frozen=True)
class ErasureSummary:
    """Counts only: safe to hand to a scheduler. Once the new release is published, the old one is gone.

    ``erased`` counts records, with further ones of the same originals, and ``revoked`` those that were public; until
    the new release is published both are 0, and the records are ``pending``.
    """

    released: int
    erased: int
    pending: int
    revoked: int
    published: bool
    standing: str


def run(
    release: str, records: Path, output: str, trust: Sequence[str] = (), pinned: str | None = None
) -> ErasureSummary:
    """Write and publish the successor, destroy the old release."""
    erasure = prepare_erasure(release, records, output, trust, pinned)
    with run_lock.exclusive_run(output):
        write_successor(erasure)
        return destroy_predecessor(erasure, publish_successor(erasure))


def check(release: str, records: Path, output: str, trust: Sequence[str] = (), pinned: str | None = None) -> RunConfig:
    """Check a request and return the settings of the new release; writes nothing."""
    return prepare_erasure(release, records, output, trust, pinned).settings


def prepare_erasure(
    release: str, records: Path, output: str, trust: Sequence[str] = (), pinned: str | None = None
) -> Erasure:
    """Check a request against both releases and the keys; writes nothing.

    All of the old release is checked first, as it would be signed again; its publisher must be the one of this
    erasure, or ``trust`` names the public key, and it must lie where it was made, or ``pinned`` is its statement's
    SHA-256. Of a new release that was begun only what is sealed is taken up.
    """
    request, old, new = ErasureRequest.read(records), Release.at(release), Release.at(output)
    is_begun = erase.is_begun(old, new)
    is_planned = is_begun and new.plan.exists()  # from here on, only images of the old release are needed
    opened = plan.open_with_key(output if is_planned else release)
    if opened.key is None:
        raise CustodianKeyError(
            f"release {str(opened.root)!r}: was made without a custodian's key, and nothing seals who is in it: remove "
            "it, and make another release from a source without those people"
        )
    old, new = replace(old, key=opened.key), replace(new, key=opened.key)
    settings = resolve_config(new) if is_planned else _successor_settings(old, output, trust, pinned)
    signer = signing.signer_from_env(settings.signing_key_env)
    if signer is None:
        raise SigningKeyError(f"{settings.signing_key_env}: not set, and a revocation is signed; {signing.KEY_HINT}")
    key = load_key(settings.key_env)
    if is_planned:
        erase.check_same_request(new, request)
    else:
        erase.check(old, new)
        _refuse_changed(old, settings, key, f"release {release!r}")
        preflight.refuse_other_address(settings, old, f"release {release!r}")
        erase.partition(old, request)
        if not is_begun:
            preflight.check_output(settings)
    return Erasure(old, new, request, settings, key, signer)


def _refuse_changed(old: Release, settings: RunConfig, key: CustodianKey, name: str) -> None:
    """Raise ConfigError unless every check of both halves of the old release passes, and its publisher is trusted.

    One that was published without a signature, as its sealed log says, has to be sealed.
    """
    if publish.read_statement(old).predicate["publisher"] is not None:
        refuse_untrusted(old, settings, key, name)
        return
    publishers = [event["details"]["publisher"] for event in event_log.read(old) if event["event"] == "sealed"]
    if publishers[-1:] != [None]:
        raise ConfigError(
            f"{name}: is not signed, and nothing sealed says that it never was: restore it, or remove it and make "
            "another release from a source without those people"
        )
    findings = [*check_public(old.public, decode=0), *check_restricted(old, settings, key)]
    if failed := [f.check for f in findings if f.result == "fail" and f.check != "signature"]:
        raise ConfigError(f"{name}: does not verify ({failed[0]}): see `anonymizer verify`, and restore it")


def write_successor(erasure: Erasure) -> None:
    """Write the restricted half of the new release, unless it was written before."""
    if erasure.new.is_published:
        return
    succession.announce(erasure.old, erasure.new)
    if not erasure.new.plan.exists():
        erase.write_successor(erasure.old, erasure.new, erasure.settings, erasure.request, erasure.key, erasure.signer)


def publish_successor(erasure: Erasure) -> PublicationStatus:
    """Assemble and publish the new release. Raises GateError if it does not pass; the old release stays until then."""
    if erasure.new.is_complete and (status := publish.read_status(erasure.new)) is not None:
        return status
    try:
        return finish_release(erasure.new, erasure.settings)[1]
    except GateError as problem:
        raise GateError(
            f"{problem}; the old release stands until then: finish with the same `anonymizer erase`"
        ) from None


def destroy_predecessor(erasure: Erasure, status: PublicationStatus) -> ErasureSummary:
    """Destroy the old release if the new one is published. Raises IntegrityError where that does not verify."""
    new, is_done = erasure.new, status.is_published
    if is_done:
        publisher = signing.format_public_key(erasure.signer.public_key)
        succession.finish(new, absolute_uri(str(erasure.old.root)), [publisher])
    counts = erase.read_counts(new)
    records = counts.records + counts.copies
    return ErasureSummary(
        released=Ledger.open(new).summarize().released,
        erased=records if is_done else 0,
        pending=0 if is_done else records,
        revoked=counts.pictures if is_done else 0,
        published=is_done,
        standing=str(status),
    )


def _successor_settings(old: Release, output: str, trust: Sequence[str], pinned: str | None) -> RunConfig:
    """Return the settings of the old release with the new output, and the old release as the previous one."""
    settings = resolve_config(old)
    changes = {
        "output": settings.output.model_copy(update={"uri": output}),
        "previous": absolute_uri(str(old.root)),
        "previous_statement": pinned,
        "trust": (*settings.trust, *trust),
    }
    return settings.model_copy(update=changes)
