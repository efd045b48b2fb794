"""Ed25519 key pairs: generated, and read from a file or an environment variable."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from securesystemslib.signer import CryptoSigner, SSlibKey

from anonymizer.crypto.custodian_key import is_pattern
from anonymizer.errors import SigningKeyError

PUBLIC_KEY_PREFIX = "ed25519:"
KEY_HINT = "make one with `anonymizer keys NAME`"

# RFC 8032: the field's prime, and the y of the eight points of small order. For such a public key valid signatures can
# be forged without any private key, and OpenSSL accepts them.
FIELD_PRIME = 2**255 - 19
ORDER_8_Y = 0x05FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
SMALL_ORDER_Y = {0, 1, FIELD_PRIME - 1, ORDER_8_Y, FIELD_PRIME - ORDER_8_Y}


def generate_key_pair() -> CryptoSigner:
    """Return a new key pair, whose ``private_bytes`` are its private half (PKCS 8, PEM)."""
    return CryptoSigner.generate_ed25519()


def format_public_key(key: SSlibKey) -> str:
    """Return a public key as settings and statements write it: ``ed25519:BASE64``."""
    return PUBLIC_KEY_PREFIX + base64.b64encode(bytes.fromhex(key.keyval["public"])).decode()


def parse_public_key(text: str) -> SSlibKey:
    """Return the key that ``format_public_key`` wrote. ValueError for anything else, and for a key of small order."""
    raw = base64.b64decode(text.removeprefix(PUBLIC_KEY_PREFIX), validate=True)
    y = int.from_bytes(raw, "little") % 2**255  # without the sign of x
    if y >= FIELD_PRIME or y in SMALL_ORDER_Y:
        raise ValueError("a public key that anybody can sign for")
    key: SSlibKey = SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(raw))
    if format_public_key(key) != text:
        raise ValueError("not a public key in its one spelling")
    return key


def read_public_keys(texts: Sequence[str], name: str) -> list[str]:
    """Return public keys as given, or from their files. Raises SigningKeyError for anything else.

    ``name`` is that of the setting in the message. What is no public key may be a private one, and is not repeated.
    """
    keys = []
    for text in texts:
        try:
            key = text if text.startswith(PUBLIC_KEY_PREFIX) else Path(text).read_text(encoding="utf-8").strip()
            parse_public_key(key)
        except (ValueError, OSError):
            raise SigningKeyError(f"{name}: no public key, and no file of one: see `anonymizer keys`") from None
        keys.append(key)
    return keys


def signer_from_env(variable: str) -> CryptoSigner | None:
    """Return the private key in an environment variable, which holds it (PEM) or names its file; None if it is unset.

    SigningKeyError, without the value, if it is no private key.
    """
    value = os.environ.get(variable, "").strip()
    if not value:
        return None
    if value.startswith("-----BEGIN"):
        return _parse_pem(value.replace("\\n", "\n").encode(), variable)
    return signer_from_file(Path(value), variable)


def signer_from_file(file: Path, name: str = "--key") -> CryptoSigner:
    """Return the private key in a file (PEM). SigningKeyError, which names ``name``, if there is none."""
    try:
        data = file.read_bytes()
    except (OSError, ValueError):  # the path is not repeated, since it may be the key itself
        raise SigningKeyError(f"{name}: no such file, or it cannot be read: {KEY_HINT}") from None
    return _parse_pem(data, name)


def _parse_pem(pem: bytes, name: str) -> CryptoSigner:
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None  # type: ignore[assignment]
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyError(f"{name}: holds no Ed25519 private key without a password (PEM): {KEY_HINT}")
    if is_pattern(key.private_bytes_raw()):
        raise SigningKeyError(f"{name}: repeats itself, so that it can be guessed: {KEY_HINT}")
    return CryptoSigner(key)
