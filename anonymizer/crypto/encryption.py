"""Encrypt files that show an original to age recipients; writing them needs no private key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pyrage

from anonymizer.errors import ConfigError, UsageError
from anonymizer.storage.layout import ENCRYPTED_SUFFIX
from anonymizer.storage.path import StoragePath

PRIVATE_KEY_PREFIX = "AGE-SECRET-KEY-"


class Encryptor:
    """Write files encrypted to all recipients, with another name; without recipients, write them as they are."""

    def __init__(self, recipients: Sequence[str]) -> None:
        self._keys = [_parse_recipient(text) for text in recipients]

    def file_name(self, name: str) -> str:
        """Return the name under which a file called ``name`` is written."""
        return f"{name}{ENCRYPTED_SUFFIX}" if self._keys else name

    def write(self, path: StoragePath, data: bytes) -> None:
        """Write a file atomically, and delete its other form, which a run with other settings may have left."""
        target, other = self._paths(path)
        target.write(self._encrypt(data))
        other.remove()

    def write_uncommitted(self, path: StoragePath, data: bytes) -> None:
        """Write a file as ``write`` does, but with ``StoragePath.write_uncommitted``."""
        target, other = self._paths(path)
        target.write_uncommitted(self._encrypt(data))
        other.remove()

    def _paths(self, path: StoragePath) -> tuple[StoragePath, StoragePath]:
        encrypted = replace(path, path=f"{path.path}{ENCRYPTED_SUFFIX}")
        return (encrypted, path) if self._keys else (path, encrypted)

    def _encrypt(self, data: bytes) -> bytes:
        return bytes(pyrage.encrypt(data, self._keys)) if self._keys else data


def decrypt(data: bytes, identity_text: str) -> bytes:
    """Return the plain bytes of an encrypted file.

    ``identity_text`` is an age identity file: private keys, one a line, and comments with #. UsageError, which repeats
    nothing of it, if no key decrypts the data.
    """
    lines = [line.strip() for line in identity_text.splitlines()]
    keys = [_parse_identity(line) for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UsageError(
            f"identity: holds no private key: give the {PRIVATE_KEY_PREFIX}1... line that `age-keygen` printed"
        )
    try:
        return bytes(pyrage.decrypt(data, keys))
    except pyrage.DecryptError:
        raise UsageError(
            "identity: does not open this file, which was encrypted to other recipients, is damaged, or is not of age: "
            "give the private key of one who is named in restricted.recipients"
        ) from None


def _parse_recipient(text: str) -> Any:
    if "SECRET-KEY" in text.upper():  # not repeated
        raise ConfigError("restricted.recipients: holds a private key: name the public one, and make a new pair")
    try:
        return pyrage.x25519.Recipient.from_str(text)
    except (pyrage.RecipientError, UnicodeError):
        raise ConfigError(
            f"restricted.recipients: {text[:80]!r} is no public key of age: give the age1... line that `age-keygen` "
            "prints"
        ) from None


def _parse_identity(line: str) -> Any:
    try:
        return pyrage.x25519.Identity.from_str(line)
    except (pyrage.IdentityError, UnicodeError):
        raise UsageError(
            f"identity: a line is no private key: lines are {PRIVATE_KEY_PREFIX}1..., as `age-keygen` prints them, or "
            "comments"
        ) from None
