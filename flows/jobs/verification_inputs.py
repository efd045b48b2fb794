"""What a verifier brings along: approvers' keys by name, and lists of revocations."""

from __future__ import annotations

from pathlib import Path

import yaml

from anonymizer.attest import revocation
from anonymizer.attest.dsse import SignedStatement
from anonymizer.attest.verify.inventory import read_bounded
from anonymizer.crypto import signing
from anonymizer.errors import SigningKeyError, UsageError
from anonymizer.storage.layout import REVOCATIONS
from anonymizer.storage.path import StoragePath

MAX_BYTES = 2**28  # of a list of revocations, some hundred bytes for each image


def read_approvers(file: str) -> dict[str, str]:
    """Return approvers' public keys by name, from a YAML mapping as in ``policy.approvers``. Raises SigningKeyError."""
    try:
        tree = yaml.safe_load(Path(file).read_bytes())
        keys = {str(name): str(key) for name, key in tree.items()}
        for key in keys.values():
            signing.parse_public_key(key)
        is_usable = bool(keys) and len(set(keys.values())) == len(keys)
    except (OSError, ValueError, AttributeError, RecursionError, yaml.YAMLError):
        is_usable = False
    if not is_usable:  # its content is not repeated, which may be a private key
        raise SigningKeyError(
            "--approvers: no YAML file with a public key of each approver, in lines like `alice: ed25519:...`"
        )
    return keys


def read_revocations(uri: str) -> list[SignedStatement]:
    """Return the revocations in a file at any address, or in the public half of a release. Raises UsageError."""
    path = StoragePath.from_uri(uri)
    try:
        file = next((p for p in (path / REVOCATIONS, path / "public" / REVOCATIONS) if p.exists()), path)
        revocations = revocation.loads(read_bounded(file, MAX_BYTES))
        if not revocations:
            raise ValueError("holds none")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--revocations {uri!r}: {reason}: name a {REVOCATIONS} that its publisher signed") from None
    return revocations
