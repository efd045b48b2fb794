"""The statement about a release: the tools of DSSE and in-toto accept it, and its model knows every field."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from anonymizer.attest import statement
from anonymizer.attest.predicate import ReleasePredicate, parse
from anonymizer.release import publish
from anonymizer.storage.layout import Release
from tests.support.releases import people, run, settings
from tests.support.signing_keys import ADA, EVE, PUBLISHER, VARIABLE, pem, public_key


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release signed by its publisher and one approver."""
    root = tmp_path_factory.mktemp("release")
    policy = {"approvals": 1, "approvers": {"ada": public_key(ADA)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, pem(PUBLISHER))
        made = run(settings(people(root / "in", 3), root / "out", policy=policy))
    assert publish.approve(made, ADA).is_published
    return made


def test_the_statement_verifies_with_a_stock_dsse_library(release: Release) -> None:
    (line,) = release.statement.read().splitlines()
    found = Envelope.from_dict(json.loads(line))
    keys = [SSlibKey.from_dict(key.keyid, key.to_dict()) for key in (PUBLISHER.public_key, ADA.public_key)]
    assert set(found.verify(keys, 2)) == {key.keyid for key in keys}
    with pytest.raises(VerificationError):
        found.verify([keys[0], EVE.public_key], 2)
    found.payload += b" "
    with pytest.raises(VerificationError):
        found.verify(keys, 1)


def pae(kind: str, payload: bytes) -> bytes:
    """Pre-authentication encoding, as version 1 of the DSSE protocol spells it."""
    return b" ".join([b"DSSEv1", str(len(kind)).encode(), kind.encode(), str(len(payload)).encode(), payload])


def test_the_statement_verifies_by_hand_as_the_specification_says(release: Release) -> None:
    envelope = json.loads(release.statement.read())
    assert set(envelope) == {"payload", "payloadType", "signatures"}
    message = pae(envelope["payloadType"], base64.b64decode(envelope["payload"], validate=True))
    by_id = {key.keyid: key for key in (PUBLISHER.public_key, ADA.public_key)}
    assert [signature["keyid"] for signature in envelope["signatures"]] == sorted(by_id)
    for signature in envelope["signatures"]:
        raw = bytes.fromhex(by_id[signature["keyid"]].keyval["public"])
        key = ed25519.Ed25519PublicKey.from_public_bytes(raw)
        key.verify(base64.b64decode(signature["sig"], validate=True), message)
        with pytest.raises(InvalidSignature):
            key.verify(base64.b64decode(signature["sig"]), message + b" ")


def test_the_payload_is_a_statement_to_the_in_toto_library(release: Release) -> None:
    envelope = json.loads(release.statement.read())
    assert envelope["payloadType"] == "application/vnd.in-toto+json"
    parsed = json_format.Parse(base64.b64decode(envelope["payload"]), statement_pb2.Statement())
    found = Statement.copy_from_pb(parsed)
    found.validate()
    assert found.pb.predicate_type == statement.PREDICATE_TYPE
    subjects = {subject.name: subject.digest["sha256"] for subject in found.pb.subject}
    assert subjects == {name: statement.file_digest(release.public / name) for name in subjects}
    assert {"manifest.parquet", "README.md", "report.html", "croissant.json"} <= set(subjects)
    assert found.pb.predicate["publisher"] == public_key(PUBLISHER)


def test_decisions_are_statements_too(release: Release) -> None:
    for line in release.decision_log.read().splitlines():
        found = Envelope.from_dict(json.loads(line))
        assert found.verify([PUBLISHER.public_key], 1)
        Statement.copy_from_pb(json_format.Parse(found.payload, statement_pb2.Statement())).validate()


def test_the_predicate_model_knows_every_field(release: Release) -> None:
    found = statement.read(release.public)
    assert parse(ReleasePredicate, found.predicate).model_dump(mode="json") == found.predicate
