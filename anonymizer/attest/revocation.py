"""Revocations: one signed statement about the erased images of each erasure, carried over to later releases."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from securesystemslib.signer import CryptoSigner

from anonymizer.attest import dsse
from anonymizer.attest.dsse import SignedStatement
from anonymizer.attest.predicate import PublicKey, StrictModel, parse
from anonymizer.crypto import signing
from anonymizer.storage.layout import REVOCATIONS
from anonymizer.storage.path import StoragePath

PREDICATE_TYPE = "urn:anonymizer:predicate:revocation:v1"
REQUEST = "Delete these pictures, and every copy of them and of what was made from them."


class RevocationPredicate(StrictModel):
    """Predicate of a revocation."""

    version: Literal[1]
    revoked: str
    publisher: PublicKey
    asked: str


def build(revoked: Mapping[str, str], signer: CryptoSigner) -> SignedStatement:
    """Return a statement that images (output id -> SHA-256) must not be used any more."""
    predicate = {
        "version": 1,
        "revoked": datetime.now(UTC).date().isoformat(),
        "publisher": signing.format_public_key(signer.public_key),
        "asked": REQUEST,
    }
    return dsse.build(PREDICATE_TYPE, revoked, predicate, signer)


def read(folder: StoragePath) -> list[SignedStatement]:
    """Return all revocations in a public half. Raises as ``loads`` does."""
    path = folder / REVOCATIONS
    return loads(path.read()) if path.exists() else []


def loads(data: bytes) -> list[SignedStatement]:
    """Return the revocations in a file's content.

    Raises ValueError if one is damaged or not signed by the publisher that it names.
    """
    revocations = dsse.loads(data, PREDICATE_TYPE)
    for revocation in revocations:
        if not revocation.is_signed_by(signing.parse_public_key(publisher_of(revocation))):
            raise ValueError("holds a revocation that is not signed by its publisher")
    return revocations


def publisher_of(revocation: SignedStatement) -> str:
    """Return the public key that a revocation names. Raises ValueError if the statement is no revocation."""
    return parse(RevocationPredicate, revocation.predicate).publisher
