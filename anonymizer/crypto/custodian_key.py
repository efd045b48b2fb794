"""The custodian's key, and what is derived from it: output ids, keyed digests, noise keys.

Nothing derived can be traced back without the key. A run without a key draws one for the process and discards it: then
nobody, the custodian included, can replay the run or link an id to a source.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cache

from anonymizer.errors import CustodianKeyError
from anonymizer.records import normalize_record_id, normalize_subject
from anonymizer.storage.layout import SealKey


@dataclass(frozen=True)
class CustodianKey:
    """A secret of 16 bytes or more; ``is_persistent`` is false for a key that is discarded with the process."""

    secret: bytes = field(repr=False)
    is_persistent: bool = True

    def derive(self, purpose: str, *parts: bytes) -> bytes:
        """Return the HMAC-SHA256 (32 bytes) of length-prefixed parts, in a domain of its own for each purpose."""
        return self._derive(purpose, parts)

    def _derive(self, purpose: str, parts: Iterable[bytes]) -> bytes:
        mac = hmac.new(self.secret, b"anonymizer/1/" + purpose.encode(), hashlib.sha256)
        for part in parts:
            mac.update(len(part).to_bytes(8, "big") + part)
        return mac.digest()

    def output_id(self, record_id: str, data_hmac: str, fingerprint: str) -> str:
        """Return the public id of a record's output: 32 hex digits, unrelated to source order.

        Other bytes under the same name, or other settings, give another id: ids of two releases are equal only if the
        outputs are.
        """
        return self.derive("output-id", record_id.encode(), data_hmac.encode(), fingerprint.encode())[:16].hex()

    def source_hmac(self, data: bytes) -> str:
        """Return a keyed digest of an original's bytes (64 hex digits); a bare hash would be a membership oracle."""
        return keyed_source_digest(self, hashlib.sha256(data).digest())

    def subject_hmac(self, subject: str) -> str:
        """Return a keyed digest (64 hex digits) of a person's name in the source, in its one spelling."""
        return self.derive("subject", normalize_subject(subject).encode()).hex()

    def record_hmac(self, record_id: str) -> str:
        """Return a keyed digest (64 hex digits) of a record's id, in its one spelling."""
        return self.derive("record", normalize_record_id(record_id).encode()).hex()

    def erasure_digests(self, record_id: str, source_hmac: str | None, subject: str | None) -> set[str]:
        """Return the keyed digests under which a record may have been erased: of its id, its bytes and its person.

        Earlier versions listed people as the source spelled them; those lists hold as well.
        """
        digests = {self.record_hmac(record_id)}
        if source_hmac is not None:
            digests.add(source_hmac)
        if subject is not None:
            digests |= {self.subject_hmac(subject), self.derive("subject", subject.encode()).hex()}
        return digests

    def materials_hmac(self, data_hmacs: Iterable[str]) -> str:
        """Return one keyed digest (64 hex digits) of all originals of a release, given sorted."""
        return self._derive("materials", (digest.encode() for digest in data_hmacs)).hex()

    def noise_key(self, data_hmac: str, fingerprint: str) -> bytes:
        """Return the 128-bit key of an original's noise.

        It depends on the original's bytes, so that copies get one output instead of several that add up; and on the
        fingerprint, since noise that is used at two levels could be cancelled with both outputs.
        """
        return self.derive("noise", data_hmac.encode(), fingerprint.encode())[:16]

    def group_id(self, data_hmacs: Iterable[str], fingerprint: str) -> str:
        """Return the id of a group (32 hex digits), which depends on all of its originals and on the settings."""
        digests = (digest.encode() for digest in sorted(data_hmacs))
        return self.derive("group-id", fingerprint.encode(), *digests)[:16].hex()

    def group_hmac(self, group: str, data_hmacs: Iterable[str], number: int) -> str:
        """Return a keyed digest (64 hex digits) of what output ``number`` of a group is drawn from, for noise and id.

        It depends on every original in the mean: noise that two means share could be cancelled with both outputs.
        """
        digests = (digest.encode() for digest in sorted(data_hmacs))
        return self.derive("group", group.encode(), number.to_bytes(8, "big"), *digests).hex()

    def deal(self, group: str, data_hmacs: Iterable[str]) -> list[str]:
        """Return the originals of a group, by their digests, in the order in which outputs are dealt to them."""
        return sorted(data_hmacs, key=lambda digest: self.derive("deal", group.encode(), digest.encode()))

    @property
    def check_value(self) -> str | None:
        """16 hex digits that differ between persistent keys and reveal nothing of them; None for a fresh key."""
        return self.derive("check")[:8].hex() if self.is_persistent else None


def keyed_source_digest(key: SealKey, sha256: bytes) -> str:
    """Return the keyed digest (64 hex digits) of an original by the SHA-256 of its bytes."""
    return key.derive("source", sha256).hex()


def load_key(name: str) -> CustodianKey:
    """Return the key in an environment variable (hex, 32 digits or more), or else this process's own fresh key.

    Raises CustodianKeyError, without the value, for anything else, and for a key that is a pattern.
    """
    text = os.environ.get(name, "").strip()
    if not text:
        return _fresh_key()
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) < 16 or is_pattern(secret):  # the value is not repeated
        raise CustodianKeyError(
            f"{name}: not a key: give 32 or more random hex digits, for example from `openssl rand -hex 32`"
        )
    return CustodianKey(secret)


def is_pattern(secret: bytes) -> bool:
    """Return whether a secret repeats a shorter one, or has at most half as many different bytes as it could have.

    Fewer than one in 10^9 random secrets of 16 bytes or more do. One that passes may still be poor: only its maker
    knows whether it was drawn at random.
    """
    if len(set(secret)) <= min(len(secret), 32) // 2:
        return True
    return any(secret[period:] == secret[:-period] for period in range(1, len(secret) // 2 + 1))


@cache
def _fresh_key() -> CustodianKey:
    return CustodianKey(secrets.token_bytes(32), is_persistent=False)
