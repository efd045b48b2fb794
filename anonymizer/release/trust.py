"""Which releases may be built on: those that are whole, and signed by this run's own key or a pinned one."""

from __future__ import annotations

from anonymizer.attest import revocation
from anonymizer.attest.revocation import publisher_of
from anonymizer.attest.verify import check_public
from anonymizer.config import RunConfig
from anonymizer.crypto import signing
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import ConfigError
from anonymizer.release import plan
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.storage.layout import Release


def trusted_keys(config: RunConfig) -> list[str]:
    """Return the public keys whose releases a run builds on: its own, and those in ``trust``.

    Raises SigningKeyError for an unusable key.
    """
    signer = signing.signer_from_env(config.signing_key_env)
    own = [signing.format_public_key(signer.public_key)] if signer else []
    return [*own, *signing.read_public_keys(config.trust, "trust")]


def refuse_untrusted(release: Release, config: RunConfig, key: CustodianKey, name: str) -> None:
    """Raise ConfigError unless every check of both halves of a published release passes, and its signer is trusted.

    Whatever of it is taken over would be signed again. ``name`` is that of the release in the message.
    """
    trusted = trusted_keys(config)
    if not trusted:
        raise ConfigError(
            f"{config.signing_key_env}: not set, and trust names no key: nothing says whose signature {name} should "
            "have: set one of them"
        )
    failed = [finding.check for finding in check_public(release.public, trusted, decode=0) if finding.result == "fail"]
    if "signature" in failed or "statement" in failed:
        raise ConfigError(
            f"{name}: is not signed by this run's own key or one in trust: see `anonymizer verify`; restore it, or "
            "name its publisher's public key in trust if you know whose it is"
        )
    if not failed:
        findings = check_restricted(release, plan.resolve_config(release), key)
        failed = [finding.check for finding in findings if finding.result == "fail"]
    if not failed and any(publisher_of(one) not in trusted for one in revocation.read(release.public)):
        raise ConfigError(
            f"{name}: holds a revocation by a key that is neither this run's own nor in trust: add that key"
        )
    if failed:
        raise ConfigError(f"{name}: does not verify ({failed[0]}): see `anonymizer verify`, and restore it")
