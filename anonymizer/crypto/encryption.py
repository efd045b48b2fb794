"""What shows an original, encrypted with age to those who may see it; whoever writes it needs no private key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pyrage

from anonymizer.errors import ConfigError, UsageError
from anonymizer.storage.layout import ENCRYPTED_SUFFIX

if TYPE_CHECKING:  # configurations are checked with this module, and have no need of file systems
    from anonymizer.storage.path import StoragePath

PRIVATE_KEY_PREFIX = "AGE-SECRET-KEY-"


class Encryptor:
    """Writes bytes as they are, or, where there are recipients, encrypted to every one of them under another name."""

    def __init__(self, recipients: Sequence[str]) -> None:
        self._keys = [_public_key(text) for text in recipients]

    def file_name(self, name: str) -> str:
        """What a file that would be called ``name`` is called."""
        return f"{name}{ENCRYPTED_SUFFIX}" if self._keys else name

    def write_uncommitted(self, place: StoragePath, data: bytes) -> None:
        """``Place.put``; takes away what lies there in the other form, from a run with other settings."""
        wanted, other = self._places(place)
        wanted.write_uncommitted(self._sealed(data))
        other.remove()

    def write(self, place: StoragePath, data: bytes) -> None:
        """``put``, but whole or not at all, as ``Place.write`` does."""
        wanted, other = self._places(place)
        wanted.write(self._sealed(data))
        other.remove()

    def _places(self, place: StoragePath) -> tuple[StoragePath, StoragePath]:
        sealed = replace(place, path=f"{place.path}{ENCRYPTED_SUFFIX}")
        return (sealed, place) if self._keys else (place, sealed)

    def _sealed(self, data: bytes) -> bytes:
        if not self._keys:
            return data
        sealed: bytes = pyrage.encrypt(data, self._keys)
        return sealed


def decrypt(data: bytes, identity_text: str) -> bytes:
    """What was encrypted, by an age identity file's text: private keys, a line each; lines with # are comments.

    UsageError if none of them opens it; it repeats nothing of the text.
    """
    lines = [line.strip() for line in identity_text.splitlines()]
    keys = [_private_key(line) for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UsageError(
            f"identity: holds no private key: give the {PRIVATE_KEY_PREFIX}1... line that `age-keygen` printed"
        )
    try:
        opened: bytes = pyrage.decrypt(data, keys)
    except pyrage.DecryptError:
        raise UsageError(
            "identity: does not open this file, which was encrypted to other recipients, is damaged, or is not of age: "
            "give the private key of one who is named in restricted.recipients"
        ) from None
    return opened


def _public_key(text: str) -> Any:
    if "SECRET-KEY" in text.upper():  # it is not repeated
        raise ConfigError("restricted.recipients: holds a private key: name the public one, and make a new pair")
    try:
        return pyrage.x25519.Recipient.from_str(text)
    except (pyrage.RecipientError, UnicodeError):
        raise ConfigError(
            f"restricted.recipients: {text[:80]!r} is no public key of age: give the age1... line that `age-keygen` "
            "prints"
        ) from None


def _private_key(line: str) -> Any:
    try:
        return pyrage.x25519.Identity.from_str(line)
    except (pyrage.IdentityError, UnicodeError):
        raise UsageError(
            f"identity: a line is no private key: lines are {PRIVATE_KEY_PREFIX}1..., as `age-keygen` prints them, or "
            "comments"
        ) from None
