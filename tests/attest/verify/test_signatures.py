"""Statements: other spellings, wrong signatures and false content are found, and no content raises."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.dsse import Envelope

from anonymizer.attest import dsse, statement
from anonymizer.crypto import signing
from anonymizer.storage.layout import MANIFEST, STATEMENT
from anonymizer.storage.path import StoragePath
from tests.support.signed_release import (
    ALL,
    FUZZ,
    JSON_VALUES,
    Change,
    check,
    failed_checks,
    failures,
    read_predicate,
    set_approvals,
    sign_again,
    write_statement,
)
from tests.support.signing_keys import ADA, BOB, EVE, PUBLISHER, public_key

THREE = {"ada": public_key(ADA), "bob": public_key(BOB), "eve": public_key(EVE)}


def respelled(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """Return a change of the envelope's JSON that keeps its spelling."""

    def apply(data: bytes) -> bytes:
        document = json.loads(data)
        change(document)
        return json.dumps(document, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    return apply


def reverse_keys(data: bytes | str) -> bytes:
    """Return JSON with its keys in reverse order."""
    return json.dumps(dict(reversed(json.loads(data).items())), separators=(",", ":")).encode()


def add_signature(document: dict[str, Any]) -> None:
    document["signatures"].append(dict(document["signatures"][0], keyid="f" * 64))


def add_padding(document: dict[str, Any]) -> None:
    document["payload"] = document["payload"].rstrip("=") + "===="


def use_urlsafe_base64(document: dict[str, Any]) -> None:
    for signature in document["signatures"]:
        signature["sig"] = signature["sig"].replace("+", "-").replace("/", "_")


SPELLINGS: Mapping[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "blank": lambda data: b"\n",
    "half": lambda data: data[: len(data) // 2],
    "without its end": lambda data: data.rstrip(b"\n"),
    "blank line": lambda data: data + b"\n",
    "blank line first": lambda data: b"\n" + data,
    "second line": lambda data: data + data,
    "carriage return": lambda data: data.replace(b"\n", b"\r\n"),
    "white space": lambda data: json.dumps(json.loads(data), sort_keys=True).encode() + b"\n",
    "other order": lambda data: reverse_keys(data) + b"\n",
    "a key twice": lambda data: data.replace(b'{"payload"', b'{"payload":"","payload"', 1),
    "payload type twice": lambda data: data.replace(b'"payloadType"', b'"payloadType":"x","payloadType"', 1),
    "a signature's key twice": lambda data: data.replace(b'"keyid"', b'"keyid":"","keyid"', 1),
    "more keys": respelled(lambda document: document.update(note="x")),
    "more keys in a signature": respelled(lambda document: document["signatures"][0].update(note="x")),
    "other base64": respelled(
        lambda document: document.update(payload=document["payload"][:4] + "\n" + document["payload"][4:])
    ),
    "base64 for addresses": respelled(use_urlsafe_base64),
    "base64 with more padding": respelled(add_padding),
    "other payload type": respelled(lambda document: document.update(payloadType="application/json")),
    "no signature": respelled(lambda document: document.update(signatures=[])),
    "a signature twice": respelled(lambda document: document["signatures"].append(dict(document["signatures"][0]))),
    "signatures in another order": respelled(lambda document: document["signatures"].reverse()),
    "unknown key": respelled(add_signature),
    "deep": lambda data: b"[" * 100_000,
    "a long number": lambda data: b"1" * 100_000 + b"\n",
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "UTF-16": lambda data: data.decode().encode("utf-16"),
}


@pytest.mark.parametrize("how", SPELLINGS)
def test_any_other_spelling_of_an_envelope_is_found(folder_half: Path, how: str) -> None:
    before = (folder_half / STATEMENT).read_bytes()
    after = SPELLINGS[how](before)
    assert after != before
    (folder_half / STATEMENT).write_bytes(after)
    assert failed_checks(folder_half) <= {"statement", "signature", "approvals"} and failed_checks(folder_half)


@pytest.mark.parametrize("how", ["white space", "a key twice", "one more", "another order"])
def test_any_other_spelling_of_a_signed_payload_is_found(folder_half: Path, how: str) -> None:
    payload = json.loads((folder_half / STATEMENT).read_bytes())["payload"]
    document = base64.b64decode(payload).decode()
    other = {
        "white space": document.replace(":", ": "),
        "a key twice": document.replace('"predicateType"', '"predicateType":"x","predicateType"'),
        "one more": document.replace('"predicateType"', '"note":"x","predicateType"'),
        "another order": reverse_keys(document).decode(),
    }[how]
    made = dsse.SignedStatement(statement.PREDICATE_TYPE, {}, {}, Envelope(other.encode(), dsse.PAYLOAD_TYPE, {}))
    for signer in ALL:
        made = made.with_signature(signer)
    (folder_half / STATEMENT).write_bytes(dsse.dumps([made]))
    assert failed_checks(folder_half) == {"statement"}


@pytest.mark.parametrize("missing", range(3))
def test_a_removed_signature_is_found(folder_half: Path, missing: int) -> None:
    sign_again(folder_half, by=[signer for i, signer in enumerate(ALL) if i != missing])
    assert failed_checks(folder_half) == ({"signature"} if missing == 0 else {"approvals"})


@pytest.mark.parametrize("forger", range(3))
def test_a_signature_under_the_id_of_another_key_is_found(folder_half: Path, forger: int) -> None:
    signed = statement.read(StoragePath.from_uri(str(folder_half)))
    forged = signed.with_signature(EVE).envelope.signatures[EVE.public_key.keyid].signature
    signed.envelope.signatures[ALL[forger].public_key.keyid].signature = forged
    (folder_half / STATEMENT).write_bytes(dsse.dumps([signed]))
    assert failed_checks(folder_half) == ({"signature"} if forger == 0 else {"approvals"})


def test_a_signature_by_an_unlisted_key_is_found(folder_half: Path) -> None:
    sign_again(folder_half, by=[*ALL, EVE])
    assert failed_checks(folder_half) == {"approvals"}


def test_one_approver_under_two_names_is_found(folder_half: Path) -> None:
    both = {"ada": public_key(ADA), "bob": public_key(ADA)}
    sign_again(folder_half, lambda predicate: predicate["approvals"].update(approvers=both), by=[PUBLISHER, ADA])
    assert failed_checks(folder_half) == {"statement"}


def test_publishers_cannot_approve_their_own_release(folder_half: Path) -> None:
    both = {"ada": public_key(ADA), "me": public_key(PUBLISHER)}
    sign_again(folder_half, lambda predicate: set_approvals(predicate, approvers=both), by=[PUBLISHER, ADA])
    (one,) = [finding for finding in check(folder_half) if finding.result == "fail"]
    assert (one.check, one.message) == ("approvals", "1 of 2 that are required (ada)")


def test_a_changed_statement_signed_by_its_publisher_loses_its_approvals(folder_half: Path) -> None:
    sign_again(folder_half, lambda predicate: predicate.update(created="2026-01-01"), by=[PUBLISHER])
    assert failed_checks(folder_half) == {"approvals"}


def test_a_changed_statement_signed_by_its_approvers_only_is_found(folder_half: Path) -> None:
    sign_again(folder_half, lambda predicate: predicate.update(created="2026-01-01"), by=[ADA, BOB])
    assert failed_checks(folder_half) == {"signature"}


def test_a_forged_publisher_is_found_with_trusted_keys_and_noted_without(folder_half: Path) -> None:
    approvers = {"ada": public_key(BOB), "bob": public_key(EVE)}
    forger = signing.generate_key_pair()

    def forge(predicate: dict[str, Any]) -> None:
        predicate.update(publisher=public_key(forger))
        set_approvals(predicate, approvers=approvers)

    sign_again(folder_half, forge, by=[forger, BOB, EVE])
    assert failures(check(folder_half, [public_key(PUBLISHER)])) == {"signature"}
    found = check(folder_half)
    assert failures(found) == set()
    notes = {finding.check: finding.message for finding in found if finding.result == "note"}
    assert "compare that key with the publisher's" in notes["signature"]
    assert f"by {public_key(forger)}" in {finding.message for finding in found}


@pytest.mark.parametrize(
    ("change", "check_name"),
    [
        (lambda predicate: predicate["gate"].update(result="fail"), "gate"),
        (lambda predicate: predicate["gate"]["rules"][0].update(result="fail"), "gate"),
        (lambda predicate: predicate["gate"]["rules"][0].update(result="waived"), "gate"),
        (lambda predicate: predicate["counts"].update(released=5), "counts"),
        (lambda predicate: predicate["counts"].update(failed=0), "counts"),
        (lambda predicate: predicate["manifest"].update(rows=5), "counts"),
        (lambda predicate: predicate["manifest"]["columns"].pop(), "schema"),
        (lambda predicate: predicate["manifest"].update(public_scores="none"), "schema"),
        (lambda predicate: predicate["manifest"].update(merkle_root="0" * 64), "merkle"),
        (lambda predicate: set_approvals(predicate, required=3, approvers=THREE), "approvals"),
    ],
)
def test_a_false_statement_is_found(folder_half: Path, change: Change, check_name: str) -> None:
    sign_again(folder_half, change)
    assert failed_checks(folder_half) == {check_name}


def test_a_waiver_is_noted_with_who_and_why(folder_half: Path) -> None:
    def waive(predicate: dict[str, Any]) -> None:
        (rule,) = predicate["gate"]["rules"]
        rule.update(result="waived")
        waiver = {"rule": "max_failed", "who": "Ada", "why": "pilot", "until": "2027-01-01"}
        predicate["gate"]["waivers"].append(waiver)
        predicate["policy"]["waivers"].append(waiver)

    sign_again(folder_half, waive)
    assert "max_failed was waived by Ada until 2027-01-01: pilot" in {f.message for f in check(folder_half)}
    assert failed_checks(folder_half) == set()


def test_an_unsigned_manifest_is_found(folder_half: Path) -> None:
    sign_again(folder_half, digests=lambda digests: digests.pop(MANIFEST))
    assert failed_checks(folder_half) == {"digests"}


def test_a_path_out_of_the_release_is_not_followed(folder_half: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    digest = statement.file_digest(StoragePath.from_uri(str(tmp_path / "secret")))
    for name in ("../secret", str(tmp_path / "secret"), "images/../../secret"):
        sign_again(folder_half, digests=lambda digests, name=name: digests.update({name: digest}))
        assert {f.message for f in check(folder_half) if f.result == "fail"} == {f"{name}: is missing"}


@FUZZ
@given(data=st.binary(max_size=200))
def test_random_bytes_as_statement_are_found(folder_half: Path, data: bytes) -> None:
    (folder_half / STATEMENT).write_bytes(data)
    assert failed_checks(folder_half) == {"statement"}


def iter_paths(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in a predicate."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inside:
        if path[:1] != ("audit",):
            yield (*path, key)
            yield from iter_paths(value, (*path, key))


def get_at(tree: Any, path: Sequence[Any]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


LATER_FIELDS = {  # which statements of earlier versions do not have
    ("gate", "weaker"), ("ceilings",), ("groups",), ("settings", "accept_deterministic"),
    ("counts", "waiting"), ("counts", "images"),
}  # fmt: skip


def test_a_signed_statement_with_a_missing_or_extra_field_is_found(folder_half: Path) -> None:
    signed, predicate = statement.read(StoragePath.from_uri(str(folder_half))), read_predicate(folder_half)
    everywhere = [path for path in iter_paths(predicate) if isinstance(path[-1], str)]
    assert len(everywhere) > 50
    named_freely = {("code", "libraries"), ("approvals", "approvers"), ("policy", "approvers")}
    for path in everywhere:
        other = copy.deepcopy(predicate)
        del get_at(other, path[:-1])[path[-1]]
        write_statement(folder_half, other, signed.digests)
        expected = {"approvals", "gate"} if path[:-1] == ("approvals", "approvers") else {"statement"}
        if path[:-1] == ("code", "libraries"):
            expected = set()
        if path[:1] == ("policy",) and len(path) > 1:  # settings with defaults, as in a configuration
            continue
        if path in LATER_FIELDS:
            continue
        assert failed_checks(folder_half) == expected, path
    for path in {path[:-1] for path in everywhere} - named_freely:
        other = copy.deepcopy(predicate)
        get_at(other, path)["note"] = "home/ada/1.png"
        write_statement(folder_half, other, signed.digests)
        assert failed_checks(folder_half) == {"statement"}, path


@FUZZ
@given(data=st.data())
def test_a_signed_statement_with_any_value_in_any_field_never_raises(folder_half: Path, data: st.DataObject) -> None:
    signed, predicate = statement.read(StoragePath.from_uri(str(folder_half))), read_predicate(folder_half)
    before = (folder_half / STATEMENT).read_bytes()
    path = data.draw(st.sampled_from(list(iter_paths(predicate))))
    get_at(predicate, path[:-1])[path[-1]] = data.draw(JSON_VALUES)
    write_statement(folder_half, predicate, signed.digests)
    check(folder_half)
    (folder_half / STATEMENT).write_bytes(before)


@FUZZ
@given(predicate=JSON_VALUES)
def test_any_signed_predicate_never_raises(folder_half: Path, predicate: Any) -> None:
    signed, before = statement.read(StoragePath.from_uri(str(folder_half))), (folder_half / STATEMENT).read_bytes()
    write_statement(folder_half, predicate, signed.digests)
    assert failed_checks(folder_half) == {"statement"}
    (folder_half / STATEMENT).write_bytes(before)


@FUZZ
@given(names=st.dictionaries(st.text(), st.sampled_from(["0" * 64, "", "0" * 63 + "G", "0" * 65]), min_size=1))
def test_subjects_of_any_name_never_raise(folder_half: Path, names: dict[str, str]) -> None:
    signed, before = statement.read(StoragePath.from_uri(str(folder_half))), (folder_half / STATEMENT).read_bytes()
    write_statement(folder_half, signed.predicate, {**signed.digests, **names})
    assert failed_checks(folder_half)
    (folder_half / STATEMENT).write_bytes(before)
