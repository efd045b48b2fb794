"""Ed25519 key pairs: made, read from a file or an environment variable, and never shown."""

from __future__ import annotations

import base64
import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey

from anonymizer.errors import SigningKeyError

PUBLIC_KEY_PREFIX = "ed25519:"
KEY_HINT = "make one with `anonymizer keys NAME`"


def generate_key_pair() -> CryptoSigner:
    """A new key pair. ``private_bytes`` of what comes back is its private half (PKCS 8, PEM)."""
    return CryptoSigner.generate_ed25519()


def format_public_key(key: SSlibKey) -> str:
    """``ed25519:BASE64``: a public key as settings and statements write it."""
    return PUBLIC_KEY_PREFIX + base64.b64encode(bytes.fromhex(key.keyval["public"])).decode()


def parse_public_key(text: str) -> SSlibKey:
    """The key that ``public_text`` wrote. ValueError for anything else."""
    raw = base64.b64decode(text.removeprefix(PUBLIC_KEY_PREFIX), validate=True)
    key: SSlibKey = SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(raw))
    if format_public_key(key) != text:
        raise ValueError("not a public key in its one spelling")
    return key


def signer_from_env(variable: str) -> CryptoSigner | None:
    """The private key in an environment variable, which holds it (PEM) or names its file; none where it is not set.

    SigningKeyError where what is there is no private key; its value is not repeated.
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        return None
    if value.startswith("-----BEGIN"):
        return _signer(value.replace("\\n", "\n").encode(), variable)
    return signer_from_file(Path(value), variable)


def signer_from_file(file: Path, name: str = "--key") -> CryptoSigner:
    """The private key in a file (PEM). SigningKeyError, which names ``name``, where there is none."""
    try:
        data = file.read_bytes()
    except (OSError, ValueError):  # what was meant to be a path may be the key itself: it is not repeated
        raise SigningKeyError(f"{name}: no such file, or it cannot be read: {KEY_HINT}") from None
    return _signer(data, name)


def _signer(pem: bytes, name: str) -> CryptoSigner:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None  # type: ignore[assignment]
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyError(f"{name}: holds no Ed25519 private key without a password (PEM): {KEY_HINT}")
    return CryptoSigner(key)
