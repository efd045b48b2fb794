"""The statement about a release: the tools of DSSE and in-toto accept it, and its model knows every field."""

from __future__ import annotations

import base64
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import SSlibKey

from anonymizer.attest import dsse, statement
from anonymizer.attest.predicate import ReleasePredicate, parse
from anonymizer.release import publish
from anonymizer.release.plan import read_config
from anonymizer.storage.layout import STATEMENT, Release
from anonymizer.storage.path import StoragePath
from tests.support.releases import people, run, settings
from tests.support.signed_release import failed_checks, read_predicate, sign_again
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


def test_the_whole_policy_is_signed(release: Release) -> None:
    signed = publish.read_statement(release)
    assert signed.predicate["policy"] == read_config(release).policy.model_dump(mode="json")
    assert statement.parse_predicate(signed).policy == read_config(release).policy
    assert signed.predicate["gate"]["weaker"] == []


def version_1(predicate: dict[str, Any]) -> None:
    """Make a predicate what versions before this one wrote."""
    predicate["version"] = 1
    del predicate["policy"], predicate["sizes"], predicate["gate"]["weaker"], predicate["materials"]["sealed"]
    del predicate["release"]


def test_a_statement_of_the_first_version_verifies(release: Release, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(release.public.path, tmp_path / "public"))
    predicate = read_predicate(folder)
    version_1(predicate)
    path = StoragePath.from_uri(str(folder))
    subjects = statement.subject_digests(path)
    made = dsse.build(statement.PREDICATE_TYPES[1], subjects, predicate, PUBLISHER).with_signature(ADA)
    (folder / STATEMENT).write_bytes(dsse.dumps([made]))
    assert failed_checks(folder) == set()
    assert statement.parse_predicate(statement.read(path)).policy is None


CHANGES = {  # of a predicate that is signed again -> the check that fails
    "another version than its type": (lambda p: p.update(version=1), "statement"),
    "a first version by another name": (version_1, "statement"),
    "no policy": (lambda p: p.pop("policy"), "statement"),
    "no sizes": (lambda p: p.pop("sizes"), "statement"),
    "no size of a file": (lambda p: p["sizes"].pop("README.md"), "statement"),
    "a size of a file that is not signed": (lambda p: p["sizes"].update({"x": 1}), "statement"),
    "another size of a document": (lambda p: p["sizes"].update({"README.md": 1}), "digests"),
    "a policy with an unknown rule": (lambda p: p["policy"].update(kindness=1), "statement"),
    "another number of approvals": (lambda p: p["policy"].update(approvals=0), "gate"),
    "other approvers": (lambda p: p["policy"].update(approvers={"ada": public_key(EVE)}), "gate"),
    "a rule that was not asked": (lambda p: p["policy"].update(max_failed=0.1), "gate"),
    "a rule that is not in the policy": (
        lambda p: p["gate"]["rules"].append({"rule": "max_failed", "bound": "none", "result": "pass"}),
        "gate",
    ),
    "a waiver that is not in the policy": (
        lambda p: p["gate"]["waivers"].append({"rule": "x", "who": "y", "why": "z", "until": "2999-01-01"}),
        "gate",
    ),
    "weaker without a reason": (lambda p: p["gate"]["weaker"].append("approvals: 2 before, 1 now"), "gate"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_statement_that_contradicts_its_policy_fails(release: Release, tmp_path: Path, change: str) -> None:
    folder = Path(shutil.copytree(release.public.path, tmp_path / "public"))
    do, check = CHANGES[change]
    sign_again(folder, do, by=[PUBLISHER, ADA])
    assert failed_checks(folder) == {check}
