"""in-toto statements in DSSE envelopes, one to a line: signed by one or more, and spelled in one way only."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
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
    """A statement about files, and the envelope that it came in. Nothing about the signatures has been checked yet.

    ``digests``: name -> SHA-256 of each subject.
    """

    digests: Mapping[str, str]
    predicate: Mapping[str, Any]
    envelope: Envelope

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of what is signed, by which other statements and events speak of this one."""
        return hashlib.sha256(self.envelope.payload).hexdigest()

    @property
    def key_ids(self) -> set[str]:
        """Whose signatures there are, as they say."""
        return set(self.envelope.signatures)

    def is_signed_by(self, key: SSlibKey) -> bool:
        signature = self.envelope.signatures.get(key.keyid)
        if signature is None:
            return False
        try:
            key.verify_signature(signature, self.envelope.pae())
        except UnverifiedSignatureError:
            return False
        return True

    def with_signature(self, signer: CryptoSigner) -> SignedStatement:
        """The same statement with one more signature."""
        more = Envelope(self.envelope.payload, self.envelope.payload_type, dict(self.envelope.signatures))
        more.sign(signer)
        return replace(self, envelope=more)


def build(
    predicate_type: str, digests: Mapping[str, str], predicate: Mapping[str, Any], signer: CryptoSigner | None
) -> SignedStatement:
    """A statement about files (name -> SHA-256), signed, or without a signature where there is no signer."""
    payload = _dump_payload(predicate_type, digests, predicate)
    made = SignedStatement(digests, predicate, Envelope(payload, PAYLOAD_TYPE, {}))
    return made.with_signature(signer) if signer else made


def dumps(signed: Iterable[SignedStatement]) -> bytes:
    """One line for each; signatures in the order of their keys' ids."""
    return b"".join(_dump_line(one.envelope) + b"\n" for one in signed)


def loads(data: bytes, predicate_type: str) -> list[SignedStatement]:
    """What ``write`` wrote. ValueError for anything else, be it another spelling of the same: it cannot be trusted."""
    if not data:
        return []
    if not data.endswith(b"\n"):
        raise ValueError("is cut off: its last line has no end")
    return [_load_line(line, predicate_type) for line in data[:-1].split(b"\n")]


def _load_line(line: bytes, predicate_type: str) -> SignedStatement:
    try:
        envelope = Envelope.from_dict(json.loads(line))
        told = json.loads(envelope.payload)
        kinds = (envelope.payload_type, told["_type"], told["predicateType"])
        digests = {
            _checked_name(subject["name"]): _checked_digest(subject["digest"]["sha256"]) for subject in told["subject"]
        }
        payload = _dump_payload(told["predicateType"], digests, told["predicate"])
        as_written = (_dump_line(envelope), payload) == (line, envelope.payload)
    except Exception:  # hostile bytes raise anything at all
        raise ValueError("is damaged, or no statement in a DSSE envelope") from None
    if kinds != (PAYLOAD_TYPE, STATEMENT_TYPE, predicate_type):
        raise ValueError(f"is another kind of statement than {predicate_type}")
    if not as_written:
        raise ValueError("is not spelled as it was written")
    return SignedStatement(digests, told["predicate"], envelope)


def _checked_name(name: str) -> str:
    name.encode()  # half a surrogate pair, as JSON can spell it, is no name
    return name


def _checked_digest(digest: str) -> str:
    if not SHA256_HEX.fullmatch(digest):
        raise ValueError("no SHA-256 in its one spelling")
    return digest


def _dump_payload(predicate_type: str, digests: Mapping[str, str], predicate: Mapping[str, Any]) -> bytes:
    statement = {
        "_type": STATEMENT_TYPE,
        "subject": [{"name": name, "digest": {"sha256": digest}} for name, digest in sorted(digests.items())],
        "predicateType": predicate_type,
        "predicate": predicate,
    }
    return _canonical_json(statement)


def _dump_line(envelope: Envelope) -> bytes:
    signatures = [
        {"keyid": key_id, "sig": base64.b64encode(bytes.fromhex(signature.signature)).decode()}
        for key_id, signature in sorted(envelope.signatures.items())
    ]
    payload = base64.b64encode(envelope.payload).decode()
    return _canonical_json({"payload": payload, "payloadType": envelope.payload_type, "signatures": signatures})


def _canonical_json(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
