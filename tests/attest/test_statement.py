"""Keys and signed statements: nothing secret is shown, one spelling is accepted, and others' tools agree."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519, rsa
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from anonymizer.attest import dsse, statement
from anonymizer.attest import predicate as said
from anonymizer.crypto import signing
from anonymizer.errors import ConfigError, SigningKeyError
from anonymizer.release import publish
from anonymizer.storage.layout import Release
from flows.cli import main
from tests.support.releases import people, run, settings

VARIABLE = "ANONYMIZER_SIGNING_KEY"
PUBLISHER, ADA, EVE = (signing.generate_key_pair() for _ in range(3))
KIND = "urn:anonymizer:predicate:test:v1"
DIGEST = "ab" * 32


def public(signer: CryptoSigner) -> str:
    return signing.format_public_key(signer.public_key)


def pem(signer: CryptoSigner) -> str:
    return signer.private_bytes.decode()


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release that was signed by its publisher and one who approved it."""
    root = tmp_path_factory.mktemp("release")
    policy = {"approvals": 1, "approvers": {"ada": public(ADA)}}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(VARIABLE, pem(PUBLISHER))
        made = run(settings(people(root / "in", 3), root / "out", policy=policy))
    assert publish.approve(made, ADA).is_published
    return made


# -- others' tools -----------------------------------------------------------------------------------------------------


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
    told = json.loads(release.statement.read())
    assert set(told) == {"payload", "payloadType", "signatures"}
    message = pae(told["payloadType"], base64.b64decode(told["payload"], validate=True))
    by_id = {key.keyid: key for key in (PUBLISHER.public_key, ADA.public_key)}
    assert [signature["keyid"] for signature in told["signatures"]] == sorted(by_id)
    for signature in told["signatures"]:
        raw = bytes.fromhex(by_id[signature["keyid"]].keyval["public"])
        key = ed25519.Ed25519PublicKey.from_public_bytes(raw)
        key.verify(base64.b64decode(signature["sig"], validate=True), message)
        with pytest.raises(InvalidSignature):
            key.verify(base64.b64decode(signature["sig"]), message + b" ")


def test_the_payload_is_a_statement_to_the_in_toto_library(release: Release) -> None:
    told = json.loads(release.statement.read())
    assert told["payloadType"] == "application/vnd.in-toto+json"
    parsed = json_format.Parse(base64.b64decode(told["payload"]), statement_pb2.Statement())
    found = Statement.copy_from_pb(parsed)
    found.validate()
    assert found.pb.predicate_type == statement.PREDICATE_TYPE
    subjects = {subject.name: subject.digest["sha256"] for subject in found.pb.subject}
    assert subjects == {name: statement.file_digest(release.public / name) for name in subjects}
    assert {"manifest.parquet", "README.md", "report.html", "croissant.json"} <= set(subjects)
    assert found.pb.predicate["publisher"] == public(PUBLISHER)


def test_decisions_are_statements_too(release: Release) -> None:
    for line in release.decision_log.read().splitlines():
        found = Envelope.from_dict(json.loads(line))
        assert found.verify([PUBLISHER.public_key], 1)
        Statement.copy_from_pb(json_format.Parse(found.payload, statement_pb2.Statement())).validate()


def test_what_a_statement_says_is_what_the_model_of_it_knows(release: Release) -> None:
    found = statement.read(release.public)
    assert said.parse(said.ReleasePredicate, found.predicate).model_dump(mode="json") == found.predicate


# -- envelopes ---------------------------------------------------------------------------------------------------------

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
predicates = st.dictionaries(texts, st.none() | st.integers() | texts | st.lists(texts, max_size=3), max_size=4)


@given(st.dictionaries(texts, st.just(DIGEST), max_size=3), predicates, st.booleans(), st.integers(1, 3))
def test_what_is_written_is_read_and_written_again(
    digests: dict[str, str], predicate: dict[str, Any], is_signed: bool, count: int
) -> None:
    made = dsse.build(KIND, digests, predicate, PUBLISHER if is_signed else None)
    data = dsse.dumps([made] * count)
    found = dsse.loads(data, KIND)
    assert len(found) == count and dsse.dumps(found) == data
    assert (found[0].digests, found[0].predicate) == (digests, predicate)
    assert found[0].is_signed_by(PUBLISHER.public_key) == is_signed
    assert not found[0].is_signed_by(EVE.public_key)


@given(st.binary(max_size=80))
def test_bytes_that_are_no_envelope_are_one_line(data: bytes) -> None:
    if data:
        with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
            dsse.loads(data, KIND)


@pytest.mark.parametrize(
    "line",
    [
        b"{}", b"[]", b"null", b'""', b'{"payload":"","payloadType":"","signatures":[]}',
        b'{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[]}', b"[" * 10_000,
    ],
)  # fmt: skip
def test_json_that_is_no_envelope_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="damaged, or no statement"):
        dsse.loads(line + b"\n", KIND)


def test_a_statement_of_another_kind_is_refused() -> None:
    data = dsse.dumps([dsse.build(KIND, {"a": DIGEST}, {}, PUBLISHER)])
    with pytest.raises(ValueError, match="another kind of statement than urn:other"):
        dsse.loads(data, "urn:other")


@pytest.mark.parametrize("digest", ["AB" * 32, "ab" * 31, "ab" * 33, "xy" * 32, 5, None, ""])
def test_a_digest_in_another_spelling_is_refused(digest: Any) -> None:
    with pytest.raises(ValueError, match="damaged"):
        dsse.loads(dsse.dumps([dsse.build(KIND, {"a": digest}, {}, PUBLISHER)]), KIND)


def test_a_name_that_is_no_text_is_refused() -> None:
    data = dsse.dumps([dsse.build(KIND, {"\ud800": DIGEST}, {}, PUBLISHER)])
    with pytest.raises(ValueError, match="damaged"):
        dsse.loads(data, KIND)


def test_signing_again_replaces_a_signature_and_leaves_the_first_statement_alone() -> None:
    made = dsse.build(KIND, {"a": DIGEST}, {"x": 1}, PUBLISHER)
    more = made.with_signature(ADA).with_signature(ADA)
    assert made.key_ids == {PUBLISHER.public_key.keyid}
    assert more.key_ids == {PUBLISHER.public_key.keyid, ADA.public_key.keyid}
    assert more.is_signed_by(ADA.public_key) and more.is_signed_by(PUBLISHER.public_key)


# -- keys --------------------------------------------------------------------------------------------------------------


def test_a_public_key_is_written_in_one_way() -> None:
    raw = bytes.fromhex(PUBLISHER.public_key.keyval["public"])
    assert public(PUBLISHER) == "ed25519:" + base64.b64encode(raw).decode()
    found = signing.parse_public_key(public(PUBLISHER))
    assert (found.keyid, found.keyval) == (PUBLISHER.public_key.keyid, PUBLISHER.public_key.keyval)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.removeprefix("ed25519:"),
        lambda text: text.replace("ed25519:", "ED25519:"),
        lambda text: text + "\n",
        lambda text: " " + text,
        lambda text: text.rstrip("="),
        lambda text: text + "=",
        lambda text: text[:20],
        lambda text: "ed25519:" + base64.b64encode(bytes(31)).decode(),
        lambda text: "ed25519:" + base64.b64encode(bytes(33)).decode(),
        lambda text: text[:-2] + chr(ord(text[-2]) + 1) + "=",  # bits that base64 has no use for
        lambda text: "ed25519:" + "é" * 44,
        lambda text: "",
    ],
)
def test_a_public_key_in_any_other_spelling_is_refused(change: Any) -> None:
    text = "ed25519:" + base64.b64encode(bytes(range(32))).decode()
    signing.parse_public_key(text)
    with pytest.raises(ValueError):
        signing.parse_public_key(change(text))


def test_a_private_key_is_taken_from_the_environment_as_text_in_one_line_or_by_the_name_of_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ada.key").write_text(pem(ADA))
    for value in (pem(ADA), pem(ADA).replace("\n", "\\n"), f"\n{pem(ADA)}\n", str(tmp_path / "ada.key")):
        monkeypatch.setenv(VARIABLE, value)
        found = signing.signer_from_env(VARIABLE)
        assert found is not None and public(found) == public(ADA)
    for nothing in ("", "  \n"):
        monkeypatch.setenv(VARIABLE, nothing)
        assert signing.signer_from_env(VARIABLE) is None
    monkeypatch.delenv(VARIABLE)
    assert signing.signer_from_env(VARIABLE) is None


def rsa_key() -> str:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return private_pem(key, serialization.NoEncryption())


def private_pem(key: Any, encryption: Any) -> str:
    form = serialization.PrivateFormat.PKCS8
    text: bytes = key.private_bytes(serialization.Encoding.PEM, form, encryption)
    return text.decode()


WRONG = {
    "a secret that is no key": lambda: "correct horse battery staple",
    "a key of another kind": rsa_key,
    "a key with a password": lambda: private_pem(
        ed25519.Ed25519PrivateKey.generate(), serialization.BestAvailableEncryption(b"secret")
    ),
    "a public key": lambda: public(ADA),
    "half a key": lambda: pem(ADA)[:60],
    "a damaged key": lambda: pem(ADA).replace("M", "N"),
    "a long secret": lambda: "x" * 10_000,
    "hex": lambda: "deadbeef" * 8,
}


@pytest.mark.parametrize("what", WRONG)
@pytest.mark.parametrize("place", ["variable", "file", "file in variable"])
def test_what_is_no_private_key_is_one_line_that_does_not_repeat_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str, place: str
) -> None:
    value = WRONG[what]()
    (tmp_path / "a.key").write_text(value)
    monkeypatch.setenv(VARIABLE, value if place == "variable" else str(tmp_path / "a.key"))
    with pytest.raises(SigningKeyError) as caught:
        signing.signer_from_file(tmp_path / "a.key") if place == "file" else signing.signer_from_env(VARIABLE)
    text = str(caught.value)
    assert text.startswith("--key: " if place == "file" else f"{VARIABLE}: ") and "anonymizer keys" in text
    assert "\n" not in text and not [part for part in value.split() if len(part) > 6 and part in text]
    assert caught.value.__context__ is None or caught.value.__suppress_context__


def test_a_file_that_is_not_there_or_a_folder_is_one_line(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.key", tmp_path, Path("a\0b")):
        with pytest.raises(SigningKeyError, match="no such file, or it cannot be read"):
            signing.signer_from_file(path)


@pytest.mark.parametrize("kind", ["signing", "age", "custodian"])
def test_keys_are_made_for_their_owner_alone_and_the_secret_is_never_shown(tmp_path: Path, kind: str) -> None:
    before = os.umask(0)
    try:
        done = CliRunner().invoke(main, ["keys", "ada", "--folder", str(tmp_path / "keys"), "--kind", kind])
    finally:
        os.umask(before)
    assert done.exit_code == 0, done.output
    private = tmp_path / "keys" / "ada.key"
    if os.name == "posix":
        assert stat.S_IMODE(private.stat().st_mode) == 0o600
    secrets = [line for line in private.read_text().splitlines() if line and "-----" not in line]
    assert secrets and not [secret for secret in secrets if secret in done.stdout + done.stderr]
    assert (tmp_path / "keys" / "ada.pub").exists() == (kind != "custodian")
    if kind == "signing":
        text = (tmp_path / "keys" / "ada.pub").read_text().strip()
        assert public(signing.signer_from_file(private)) == text and text in done.stdout.replace("\n", "")


@pytest.mark.parametrize("there", ["ada.key", "ada.pub"])
def test_a_key_is_never_replaced(tmp_path: Path, there: str) -> None:
    (tmp_path / there).write_text("the only one")
    done = CliRunner().invoke(main, ["keys", "ada", "--folder", str(tmp_path)])
    assert done.exit_code == 2 and "is there already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [there]
    assert (tmp_path / there).read_text() == "the only one"


@pytest.mark.parametrize("name", ["../ada", "a b", "", "a/b", "-a", "a.b"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    done = CliRunner().invoke(main, ["keys", "--folder", str(tmp_path / "keys"), "--", name])
    assert done.exit_code == 2 and "NAME" in done.stderr and not (tmp_path / "keys").exists()


def test_two_keys_are_never_the_same(tmp_path: Path) -> None:
    for name in ("ada", "bob"):
        CliRunner().invoke(main, ["keys", name, "--folder", str(tmp_path)])
    assert (tmp_path / "ada.pub").read_text() != (tmp_path / "bob.pub").read_text()


def test_the_secret_of_who_approves_is_never_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))
    policy = {"approvals": 1, "approvers": {"ada": public(ADA)}}
    waiting = run(settings(people(tmp_path / "in", 2), tmp_path / "out", policy=policy))
    for name, signer in (("eve", EVE), ("ada", ADA)):
        (tmp_path / f"{name}.key").write_text(pem(signer))
    shown = ""
    for key, code in ((tmp_path / "eve.key", 2), (tmp_path / "missing.key", 2), (tmp_path / "ada.key", 0)):
        done = CliRunner().invoke(main, ["approve", str(tmp_path / "out"), "--key", str(key)])
        assert done.exit_code == code, done.output
        shown += done.stdout + done.stderr
    assert waiting.is_published
    for signer in (PUBLISHER, ADA, EVE):
        assert pem(signer).splitlines()[1] not in shown
    kept = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    for signer in (PUBLISHER, ADA):
        raw = serialization.load_pem_private_key(signer.private_bytes, None).private_bytes_raw()  # type: ignore[union-attr]
        for spelled in (pem(signer).splitlines()[1].encode(), raw, raw.hex().encode(), base64.b64encode(raw)):
            assert spelled not in kept


def test_publishers_cannot_approve_with_their_own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))
    policy = {"approvals": 1, "approvers": {"ada": public(ADA), "me": public(PUBLISHER)}}
    waiting = run(settings(people(tmp_path / "in", 2), tmp_path / "out", policy=policy))
    assert not waiting.is_published
    with pytest.raises(SigningKeyError, match="the publisher's own"):
        publish.approve(waiting, PUBLISHER)
    assert publish.approve(waiting, ADA).approved_by == ("ada",) and waiting.is_published


def test_approvals_that_only_the_publisher_could_give_are_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))
    approvers = {"ada": public(ADA), "me": public(PUBLISHER)}
    publish.check_signing_key(settings("in", "out", policy={"approvals": 1, "approvers": approvers}))
    with pytest.raises(ConfigError, match=r"policy\.approvals: 2 asked for, and 1 approvers are other than"):
        publish.check_signing_key(settings("in", "out", policy={"approvals": 2, "approvers": approvers}))
