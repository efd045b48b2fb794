"""Signing keys of a publisher, two approvers and an attacker."""

from __future__ import annotations

from securesystemslib.signer import CryptoSigner

from anonymizer.crypto import signing

VARIABLE = "ANONYMIZER_SIGNING_KEY"
PUBLISHER, ADA, BOB, EVE = (signing.generate_key_pair() for _ in range(4))


def public_key(signer: CryptoSigner) -> str:
    return signing.format_public_key(signer.public_key)


def pem(signer: CryptoSigner) -> str:
    return signer.private_bytes.decode()
