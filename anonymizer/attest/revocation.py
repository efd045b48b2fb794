"""Pictures that were taken back: one signed statement for each erasure, carried on from release to release."""

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
    """What is said of pictures that were taken back."""

    version: Literal[1]
    revoked: str
    publisher: PublicKey
    asked: str


def build(revoked: Mapping[str, str], signer: CryptoSigner) -> SignedStatement:
    """A statement about pictures (output id -> SHA-256) that must not be used any more."""
    told = {
        "version": 1,
        "revoked": datetime.now(UTC).date().isoformat(),
        "publisher": signing.format_public_key(signer.public_key),
        "asked": REQUEST,
    }
    return dsse.build(PREDICATE_TYPE, revoked, told, signer)


def read(folder: StoragePath) -> list[SignedStatement]:
    """All revocations in a public half, none where there is no list. ValueError where one is damaged or not signed by
    whom it names."""
    if not (folder / REVOCATIONS).exists():
        return []
    found = dsse.loads((folder / REVOCATIONS).read(), PREDICATE_TYPE)
    for signed in found:
        if not signed.is_signed_by(signing.parse_public_key(publisher_of(signed))):
            raise ValueError("holds a revocation that is not signed by its publisher")
    return found


def publisher_of(signed: SignedStatement) -> str:
    """The public key of whoever revoked. ValueError where it is no revocation."""
    return parse(RevocationPredicate, signed.predicate).publisher
