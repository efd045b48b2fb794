"""Seals: a keyed digest inside a file, by which the holder of the custodian's key knows what was written with it.

An attacker who can write to the restricted half and has no key cannot forge a file. A seal is bound to a context, the
place and the role of its file: a file that is moved, or copied from another release, does not pass.
"""

from __future__ import annotations

import re

from anonymizer.errors import IntegrityError
from anonymizer.storage.layout import SealKey

PREFIX = "hmac-sha256:"
PLACEHOLDER = PREFIX + "0" * 64  # stands where the seal will be; the last of its kind in a file counts
EARLIER_VERSION_HINT = "restore it; a release of an earlier version is sealed by `anonymizer verify --seal`"
SEAL = re.compile(rb"hmac-sha256:[0-9a-f]{64}")


def is_sealed(data: bytes) -> bool:
    """Return whether a file has a seal; ``check`` verifies it."""
    matches = SEAL.findall(data)
    return bool(matches) and matches[-1] != PLACEHOLDER.encode()


def apply(data: bytes, key: SealKey | None, context: str) -> bytes:
    """Return a file with its last ``PLACEHOLDER`` filled in; unchanged without a key that others will have later."""
    if key is None or not key.is_persistent:
        return data
    begin = data.rindex(PLACEHOLDER.encode())
    return data[:begin] + _compute(data, key, context) + data[begin + len(PLACEHOLDER) :]


def check(data: bytes, key: SealKey | None, context: str, name: str, hint: str = "restore it") -> None:
    """Raise IntegrityError unless a file was sealed with this key for this context; the error names it as ``name``.

    Without a key nothing is checked: what is read then is for display only. The same for a fresh key, with which
    nothing was sealed.
    """
    if key is None or not key.is_persistent:
        return
    if not is_sealed(data):
        raise IntegrityError(f"{name}: has no seal by the custodian's key: {hint}")
    *_, match = SEAL.finditer(data)
    begin, end = match.span()
    blank = data[:begin] + PLACEHOLDER.encode() + data[end:]
    if data[begin:end] != _compute(blank, key, context):
        raise IntegrityError(f"{name}: is not what was written with the custodian's key: {hint}")


def _compute(blank: bytes, key: SealKey, context: str) -> bytes:
    return PREFIX.encode() + key.derive("seal", context.encode(), blank).hex().encode()
