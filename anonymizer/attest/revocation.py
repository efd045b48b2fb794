"""Pictures that were taken back: one signed statement for each erasure, carried on from release to release."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from securesystemslib.signer import CryptoSigner

from anonymizer.attest import dsse
from anonymizer.attest.dsse import Signed
from anonymizer.attest.predicate import PublicKey, Told, parse
from anonymizer.crypto import signing
from anonymizer.storage.layout import REVOCATIONS
from anonymizer.storage.path import Place

PREDICATE = "urn:anonymizer:predicate:revocation:v1"
ASKED = "Delete these pictures, and every copy of them and of what was made from them."


class Revoked(Told):
    """What is said of pictures that were taken back."""

    version: Literal[1]
    revoked: str
    publisher: PublicKey
    asked: str


def make(revoked: Mapping[str, str], signer: CryptoSigner) -> Signed:
    """A statement about pictures (output id -> SHA-256) that must not be used any more."""
    told = {
        "version": 1,
        "revoked": datetime.now(UTC).date().isoformat(),
        "publisher": signing.public_text(signer.public_key),
        "asked": ASKED,
    }
    return dsse.make(PREDICATE, revoked, told, signer)


def read(folder: Place) -> list[Signed]:
    """All revocations in a public half, none where there is no list. ValueError where one is damaged or not signed by
    whom it names."""
    if not (folder / REVOCATIONS).exists():
        return []
    found = dsse.read((folder / REVOCATIONS).read(), PREDICATE)
    for signed in found:
        if not signed.is_signed_by(signing.public_key(publisher_of(signed))):
            raise ValueError("holds a revocation that is not signed by its publisher")
    return found


def publisher_of(signed: Signed) -> str:
    """The public key of whoever revoked. ValueError where it is no revocation."""
    return parse(Revoked, signed.predicate).publisher
