"""in-toto statements in DSSE envelopes: one to a line, any number of signatures, one canonical spelling."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError
from securesystemslib.signer import CryptoSigner, SSlibKey

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
SHA256_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class SignedStatement:
    """A statement about files (name -> SHA-256) in its envelope, whose signatures have not been checked."""

    predicate_type: str
    digests: Mapping[str, str]
    predicate: Mapping[str, Any]
    envelope: Envelope

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the signed payload; other statements and events refer to this one by it."""
        return hashlib.sha256(self.envelope.payload).hexdigest()

    @property
    def key_ids(self) -> set[str]:
        """Ids of the keys that claim to have signed."""
        return set(self.envelope.signatures)

    def is_signed_by(self, key: SSlibKey) -> bool:
        """Return whether there is a valid signature of this key."""
        return _has_signature(self.envelope, key)

    def with_signature(self, signer: CryptoSigner) -> SignedStatement:
        """Return the same statement with one more signature."""
        envelope = Envelope(self.envelope.payload, self.envelope.payload_type, dict(self.envelope.signatures))
        envelope.sign(signer)
        return replace(self, envelope=envelope)


def build(
    predicate_type: str, digests: Mapping[str, str], predicate: Mapping[str, Any], signer: CryptoSigner | None
) -> SignedStatement:
    """Return a statement about files (name -> SHA-256), without a signature if there is no signer."""
    envelope = Envelope(_dump_payload(predicate_type, digests, predicate), PAYLOAD_TYPE, {})
    unsigned = SignedStatement(predicate_type, digests, predicate, envelope)
    return unsigned.with_signature(signer) if signer else unsigned


def dumps(statements: Iterable[SignedStatement]) -> bytes:
    """Return one line for each statement, its signatures ordered by key id."""
    return b"".join(_dump_line(statement.envelope) + b"\n" for statement in statements)


def loads(data: bytes, *predicate_types: str) -> list[SignedStatement]:
    """Return the statements of these types that ``dumps`` wrote. Raises ValueError for anything else.

    That includes another spelling.
    """
    if not data:
        return []
    if not data.endswith(b"\n"):
        raise ValueError("is cut off: its last line has no end")
    return [_load_line(line, predicate_types) for line in data[:-1].split(b"\n")]


def is_signed_by_any(data: bytes, keys: Iterable[SSlibKey]) -> bool:
    """Return whether one of these keys has signed the first statement. Nothing of it but its envelope is parsed."""
    try:
        envelope = Envelope.from_dict(json.loads(data.partition(b"\n")[0]))
    except Exception:  # hostile bytes can raise any error
        return False
    return any(_has_signature(envelope, key) for key in keys)


def _has_signature(envelope: Envelope, key: SSlibKey) -> bool:
    signature = envelope.signatures.get(key.keyid)
    if signature is None:
        return False
    try:
        key.verify_signature(signature, envelope.pae())
    except UnverifiedSignatureError:
        return False
    return True


def _load_line(line: bytes, predicate_types: Sequence[str]) -> SignedStatement:
    digests: dict[str, str] = {}
    try:
        envelope = Envelope.from_dict(json.loads(line))
        statement = json.loads(envelope.payload)
        for subject in statement["subject"]:
            name, digest = subject["name"], subject["digest"]["sha256"]
            name.encode()  # raises on half a surrogate pair, which JSON can spell
            if not SHA256_HEX.fullmatch(digest):
                raise ValueError
            digests[name] = digest
        types, predicate_type = (envelope.payload_type, statement["_type"]), statement["predicateType"]
        payload = _dump_payload(predicate_type, digests, statement["predicate"])
        is_canonical = (_dump_line(envelope), payload) == (line, envelope.payload)
    except Exception:  # hostile bytes can raise any error
        raise ValueError("is damaged, or no statement in a DSSE envelope") from None
    if types != (PAYLOAD_TYPE, STATEMENT_TYPE) or predicate_type not in predicate_types:
        raise ValueError(f"is another kind of statement than {' or '.join(predicate_types)}")
    if not is_canonical:
        raise ValueError("is not spelled as it was written")
    return SignedStatement(predicate_type, digests, statement["predicate"], envelope)


def _dump_payload(predicate_type: str, digests: Mapping[str, str], predicate: Mapping[str, Any]) -> bytes:
    return _canonical_json(
        {
            "_type": STATEMENT_TYPE,
            "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(digests.items())],
            "predicateType": predicate_type,
            "predicate": predicate,
        }
    )


def _dump_line(envelope: Envelope) -> bytes:
    signatures = [
        {"keyid": key_id, "sig": base64.b64encode(bytes.fromhex(signature.signature)).decode()}
        for key_id, signature in sorted(envelope.signatures.items())
    ]
    payload = base64.b64encode(envelope.payload).decode()
    return _canonical_json({"payload": payload, "payloadType": envelope.payload_type, "signatures": signatures})


def _canonical_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
