"""What a verifier knows from elsewhere: the publisher's key, the approvers' keys, and what was revoked since."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.attest import dsse, merkle, revocation, statement
from anonymizer.attest.verify import files, inventory, public
from anonymizer.crypto import signing
from anonymizer.storage.layout import MANIFEST, REVOCATIONS, STATEMENT, Release
from anonymizer.storage.path import StoragePath
from flows import api
from flows.cli import main
from tests.support.signed_release import (
    FUZZ,
    check,
    failed_checks,
    failures,
    read_manifest,
    read_predicate,
    revoke,
    set_approvals,
    sign_again,
    with_column,
    write_manifest,
)
from tests.support.signing_keys import ADA, BOB, EVE, PUBLISHER, public_key

SPARSE = 2**40  # bytes of a file that takes no room on the disk, and hours to read
ADA_KEY, BOB_KEY, EVE_KEY, PUBLISHER_KEY = map(public_key, (ADA, BOB, EVE, PUBLISHER))


def verify(*words: str) -> tuple[int, list[dict[str, str]]]:
    done = CliRunner().invoke(main, ["verify", *words, "--json"])
    return done.exit_code, json.loads(done.stdout)["findings"] if done.exit_code < 2 else []


# -- an untrusted key -------------------------------------------------------------------------------------------------


@contextmanager
def nothing_is_read_but_the_statement() -> Iterator[None]:
    """Fail where a file of a release is opened or listed, or a payload parsed."""

    def refuse(*arguments: Any, **settings: Any) -> Any:
        raise AssertionError(f"was read: {arguments}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statement, "loads", refuse)
        patch.setattr(public, "take_inventory", refuse)
        patch.setattr(inventory, "open_file", refuse)
        yield


STATEMENTS = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda payload, kind, by: dsse.dumps([dsse.build(kind, {"x": "0" * 64}, payload, by)]),
        st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
        st.sampled_from([*statement.PREDICATE_TYPES.values(), "other"]),
        st.sampled_from([EVE, ADA, None]),
    ),
)


@FUZZ
@given(data=STATEMENTS)
def test_of_a_statement_by_no_trusted_key_nothing_but_the_envelope_is_parsed(folder_half: Path, data: bytes) -> None:
    (folder_half / STATEMENT).write_bytes(data)
    with nothing_is_read_but_the_statement():
        (one,) = check(folder_half, [PUBLISHER_KEY])
    assert (one.check, one.result) == ("signature", "fail") and "nothing else was read" in one.message


def test_a_trusted_key_that_only_approved_does_not_make_the_publisher_trusted(folder_half: Path) -> None:
    (one,) = check(folder_half, [ADA_KEY])
    assert (one.check, one.result) == ("signature", "fail") and "names another publisher" in one.message


def test_a_trusted_key_over_another_payload_is_no_signature(folder_half: Path) -> None:
    signed = statement.read(StoragePath.from_uri(str(folder_half)))
    other = dsse.build(signed.predicate_type, signed.digests, {**signed.predicate, "created": "2026-01-01"}, EVE)
    other.envelope.signatures[PUBLISHER.public_key.keyid] = signed.envelope.signatures[PUBLISHER.public_key.keyid]
    (folder_half / STATEMENT).write_bytes(dsse.dumps([other]))
    with nothing_is_read_but_the_statement():
        assert failures(check(folder_half, [PUBLISHER_KEY])) == {"signature"}


def test_the_restricted_half_of_an_untrusted_release_is_not_read(
    signed_release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(api, "_verify_whole", lambda *arguments: pytest.fail("was read"))
    before = signed_release.event_log.read()
    code, found = verify(str(signed_release.root), "--trust", EVE_KEY)
    assert code == 1 and [finding["check"] for finding in found] == ["signature"]
    assert signed_release.event_log.read() == before


# -- approvers --------------------------------------------------------------------------------------------------------


def approvers_file(folder: Path, keys: Mapping[str, str]) -> str:
    (folder / "approvers.yaml").write_text(yaml.safe_dump(dict(keys)))
    return str(folder / "approvers.yaml")


def invent_officers(folder: Path) -> None:
    """Two officers whom the publisher made up, with keys of the publisher's own making."""
    first, second = signing.generate_key_pair(), signing.generate_key_pair()
    approvers = {"ada": public_key(first), "bob": public_key(second)}
    sign_again(
        folder, lambda predicate: set_approvals(predicate, approvers=approvers), by=[PUBLISHER, first, second]
    )  # fmt: skip


def test_invented_approvers_are_noted_and_with_pinned_keys_found(folder_half: Path, tmp_path: Path) -> None:
    invent_officers(folder_half)
    code, found = verify(str(folder_half), "--trust", PUBLISHER_KEY)
    notes = [finding["said"] for finding in found if finding["result"] == "note"]
    assert code == 0 and notes == ["only the publisher says whose keys these are: give those you know with --approvers"]
    pinned = approvers_file(tmp_path, {"ada": ADA_KEY, "bob": BOB_KEY})
    code, found = verify(str(folder_half), "--trust", PUBLISHER_KEY, "--approvers", pinned)
    assert code == 1
    assert [finding["said"] for finding in found if finding["result"] == "fail"] == [
        "signed with keys that --approvers does not name so: ada, bob", "0 of 2 that are required (none)",
    ]  # fmt: skip


NAMES, KEYS = st.sampled_from(["ada", "bob", "eve", "Ada"]), st.sampled_from([ADA_KEY, BOB_KEY, EVE_KEY])


@FUZZ
@given(pinned=st.dictionaries(NAMES, KEYS, max_size=4), required=st.integers(0, 2))
def test_an_approval_counts_by_name_and_key_only(folder_half: Path, pinned: dict[str, str], required: int) -> None:
    sign_again(folder_half, lambda predicate: set_approvals(predicate, required=required))
    is_known = [pinned.get("ada") == ADA_KEY, pinned.get("bob") == BOB_KEY]
    assert failed_checks(folder_half) == set()
    assert failures(check(folder_half, approvers=pinned)) == (set() if all(is_known) else {"approvals"})


def test_who_names_approvers_expects_an_approval(folder_half: Path) -> None:
    sign_again(folder_half, lambda predicate: set_approvals(predicate, required=0), by=[PUBLISHER])
    assert failed_checks(folder_half) == set()
    assert failures(check(folder_half, approvers={"ada": ADA_KEY})) == {"approvals"}


@pytest.mark.parametrize(
    "text",
    ["", "ada", "[ada]", "ada: [x]", "ada: secret", "{", "ada: ed25519:AAAA", "a: !!python/name:os.system ''",
     f"ada: {ADA_KEY}\nbob: {ADA_KEY}\n", "&a [*a]", PUBLISHER.private_bytes.decode(), "\0"],
)  # fmt: skip
def test_a_file_of_approvers_that_is_none_is_one_line(folder_half: Path, tmp_path: Path, text: str) -> None:
    (tmp_path / "approvers.yaml").write_text(text)
    for file in (tmp_path / "approvers.yaml", tmp_path / "missing.yaml"):
        done = CliRunner().invoke(main, ["verify", str(folder_half), "--approvers", str(file)])
        assert done.exit_code == 2 and done.output.startswith("error: --approvers: no YAML file with a public key of")
        assert len(done.output.splitlines()) == 1 and "secret" not in done.output and "PRIVATE" not in done.output


# -- revocations ------------------------------------------------------------------------------------------------------


def later_list(folder: Path, revoked: Mapping[str, str], signer: Any = PUBLISHER) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / REVOCATIONS).write_bytes(dsse.dumps([revocation.build(revoked, signer)]))
    return folder / REVOCATIONS


@pytest.mark.parametrize("where", ["{}", "{}/..", "public half"])
def test_a_release_whose_pictures_were_revoked_since_does_not_verify(
    public_half: Path, tmp_path: Path, where: str
) -> None:
    row = read_manifest(public_half).slice(1, 1).to_pylist()[0]
    for revoked, code in (
        ({"0" * 32: "0" * 64}, 0), ({row["output_id"]: "0" * 64}, 1), ({"0" * 32: row["sha256"]}, 1),
    ):  # fmt: skip
        folder = tmp_path / "later" / "public" if where == "public half" else tmp_path / "later"
        folder.parent.mkdir(exist_ok=True)
        file = later_list(folder, revoked)
        uri = str(tmp_path / "later") if where == "public half" else os.path.normpath(where.format(file))
        assert verify(str(public_half))[0] == 0  # it does not know of it
        found_code, found = verify(str(public_half), "--trust", PUBLISHER_KEY, "--revocations", uri)
        assert found_code == code
        failed = [finding for finding in found if finding["result"] == "fail"]
        assert [finding["check"] for finding in failed] == ["revocations"] * code
        assert all("1 pictures are here that were revoked" in finding["said"] for finding in failed)


def test_a_list_by_a_key_that_is_not_the_publishers_is_not_taken_for_one(folder_half: Path, tmp_path: Path) -> None:
    file = str(later_list(tmp_path / "later", {"0" * 32: "0" * 64}, EVE))
    assert verify(str(folder_half), "--revocations", file)[0] == 1
    assert verify(str(folder_half), "--trust", PUBLISHER_KEY, "--revocations", file)[0] == 1
    both = ("--trust", PUBLISHER_KEY, "--trust", EVE_KEY)  # a publisher who has another key by now
    assert verify(str(folder_half), *both, "--revocations", file)[0] == 0


@pytest.mark.parametrize("data", [b"", b"no list", b"{}\n", None])
def test_a_list_of_revocations_that_is_none_is_one_line(folder_half: Path, tmp_path: Path, data: bytes | None) -> None:
    file = tmp_path / "later.jsonl"
    if data is not None:
        file.write_bytes(data)
    done = CliRunner().invoke(main, ["verify", str(folder_half), "--revocations", str(file)])
    assert done.exit_code == 2 and done.output.startswith(f"error: --revocations {str(file)!r}: ")
    assert len(done.output.splitlines()) == 1


# -- nothing beyond what was signed -----------------------------------------------------------------------------------


def test_a_document_of_another_size_is_not_read(folder_half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    revoke(folder_half, {"0" * 32: "0" * 64})
    documents = [folder_half / name for name in read_predicate(folder_half)["sizes"]]
    assert {MANIFEST, REVOCATIONS, "README.md"} <= {file.name for file in documents}
    file_digest = statement.file_digest
    for file in documents:

        def refuse(path: StoragePath, file: Path = file) -> str:
            assert path.name != file.name, "was read"
            return file_digest(path)

        before = file.read_bytes()
        os.truncate(file, SPARSE)
        with monkeypatch.context() as patch:
            patch.setattr(statement, "file_digest", refuse)
            found = check(folder_half)
        assert f"{file.name}: has another size than was signed, and was not read" in {f.message for f in found}
        assert failures(found) == {"digests"}
        file.write_bytes(before)
    assert failed_checks(folder_half) == set()


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_a_part_of_another_size_is_not_read(
    signed_releases: Mapping[str, Path], tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = Path(shutil.copytree(signed_releases[layout] / "public", tmp_path / "public"))
    (part,) = (half / "data").iterdir()
    os.truncate(part, SPARSE)
    monkeypatch.setattr(files, "read_part", lambda *arguments: pytest.fail("was read"))
    found = check(half)
    assert failures(found) == {"pictures"}
    assert f"data/{part.name}: has another size than was signed, and was not read" in {f.message for f in found}


def test_a_statement_that_is_too_large_is_not_read(folder_half: Path) -> None:
    os.truncate(folder_half / STATEMENT, SPARSE)
    for trust in ([], [PUBLISHER_KEY]):
        (one,) = check(folder_half, trust)
        assert (one.check, one.result) == ("statement", "fail") and "is larger than 67,108,864 bytes" in one.message


def test_a_manifest_of_more_rows_than_were_signed_is_not_read(
    folder_half: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = read_manifest(folder_half)
    write_manifest(folder_half, pa.concat_tables([table, table]))
    rows = len(table)
    sign_again(folder_half, lambda predicate: predicate["manifest"].update(rows=rows))
    monkeypatch.setattr(public.manifest_checks, "structure_errors", lambda manifest: pytest.fail("was read"))
    (one,) = [finding for finding in check(folder_half) if finding.result == "fail"]
    assert (one.check, one.message) == ("counts", f"{MANIFEST}: has {2 * rows} rows, and {rows} were signed")


@pytest.mark.slow
def test_rows_that_their_file_cannot_hold_are_not_read(folder_half: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = read_manifest(folder_half)
    bomb = table.slice(0, 1).take([0] * 2_000_000)  # some bytes, as it is packed
    write_manifest(folder_half, bomb)
    assert (folder_half / MANIFEST).stat().st_size < 2_000_000
    predicate = read_predicate(folder_half)
    monkeypatch.setattr(merkle, "root", lambda leaves: b"")
    sign_again(folder_half, lambda new: new["manifest"].update(predicate["manifest"], rows=len(bomb)))
    monkeypatch.setattr(public.manifest_checks, "structure_errors", lambda manifest: pytest.fail("was read"))
    (one,) = [finding for finding in check(folder_half) if finding.result == "fail"]
    assert one.check == "counts" and "which cannot hold so many" in one.message


def test_a_folder_with_far_more_files_than_were_signed_is_not_listed_to_its_end(folder_half: Path) -> None:
    for i in range(3):
        (folder_half / f"more-{i}").mkdir()
        for j in range(public.MAX_STRAYS):
            (folder_half / f"more-{i}" / str(j)).touch()
    found = check(folder_half)
    assert "folder: holds far more files than were signed" in {f.message for f in found if f.check == "strays"}
    listed = inventory.take_inventory(StoragePath.from_uri(str(folder_half)), 100)
    assert len(listed.files) <= 2 * (100 + 1)


def test_a_member_of_a_tar_is_not_read_beyond_its_signed_size(
    signed_releases: Mapping[str, Path], tmp_path: Path
) -> None:
    half = Path(shutil.copytree(signed_releases["webdataset"] / "public", tmp_path / "public"))
    table = read_manifest(half)
    write_manifest(half, with_column(table, "bytes", [1, *table["bytes"].to_pylist()[1:]]))
    sign_again(half)
    assert failed_checks(half) == {"pictures"}
