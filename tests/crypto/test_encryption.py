"""Encryption at rest: files of the restricted half are decrypted with a private key only."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pyrage
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer.crypto.encryption import Encryptor, decrypt
from anonymizer.errors import ConfigError, UsageError
from anonymizer.storage.path import StoragePath
from flows.cli.governance import unseal_file

PLAIN = b"an original: \x00\xff" + b"pixels " * 1000
IDENTITY = pyrage.x25519.Identity.generate()
OTHER = pyrage.x25519.Identity.generate()
NOT_DECRYPTABLE = "identity: does not open this file"


def public(*identities: pyrage.x25519.Identity) -> tuple[str, ...]:
    return tuple(str(identity.to_public()) for identity in identities)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refused(data: bytes, identity_text: str) -> str:
    with pytest.raises(UsageError) as caught:
        decrypt(data, identity_text)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def encrypted(data: bytes = PLAIN) -> bytes:
    return pyrage.encrypt(data, [IDENTITY.to_public()])


# -- writing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["write_uncommitted", "write"])
@pytest.mark.parametrize("holder", [IDENTITY, OTHER])
def test_each_recipient_can_decrypt(tmp_path: Path, how: str, holder: pyrage.x25519.Identity) -> None:
    encryptor = Encryptor(public(IDENTITY, OTHER))
    getattr(encryptor, how)(StoragePath.from_uri(str(tmp_path)) / "quarantine" / "1.png", PLAIN)
    assert names(tmp_path / "quarantine") == {encryptor.file_name("1.png")} == {"1.png.age"}
    data = (tmp_path / "quarantine" / "1.png.age").read_bytes()
    assert pyrage.decrypt(data, [holder]) == PLAIN
    assert decrypt(data, str(holder)) == PLAIN


def test_ciphertext_hides_the_plain_text_and_never_repeats(tmp_path: Path) -> None:
    encryptor, path = Encryptor(public(IDENTITY)), StoragePath.from_uri(str(tmp_path / "file"))
    written = []
    for _ in range(2):
        encryptor.write_uncommitted(path, PLAIN)
        written.append((tmp_path / "file.age").read_bytes())
        assert b"pixels" not in written[-1] and b"original" not in written[-1]
    assert written[0] != written[1]


@pytest.mark.parametrize("how", ["write_uncommitted", "write"])
def test_without_recipients_bytes_are_written_as_they_are(tmp_path: Path, how: str) -> None:
    encryptor = Encryptor(())
    getattr(encryptor, how)(StoragePath.from_uri(str(tmp_path)) / "report.html", PLAIN)
    assert names(tmp_path) == {encryptor.file_name("report.html")} == {"report.html"}
    assert (tmp_path / "report.html").read_bytes() == PLAIN


@pytest.mark.parametrize("how", ["write_uncommitted", "write"])
def test_the_other_form_of_a_file_is_deleted(tmp_path: Path, how: str) -> None:
    path = StoragePath.from_uri(str(tmp_path)) / "report.html"
    for encryptor, name in [(Encryptor(()), "report.html"), (Encryptor(public(IDENTITY)), "report.html.age")] * 2:
        getattr(encryptor, how)(path, PLAIN)
        assert names(tmp_path) == {name}


def test_encrypted_files_have_the_modes_of_plain_ones(tmp_path: Path) -> None:
    Encryptor(public(IDENTITY)).write_uncommitted(
        StoragePath.from_uri(str(tmp_path / "restricted")).as_private() / "a" / "1.png", PLAIN
    )
    assert stat.S_IMODE((tmp_path / "restricted/a/1.png.age").stat().st_mode) == 0o600


@pytest.mark.parametrize(
    "text",
    ["", "alice", public(IDENTITY)[0][:-1], public(IDENTITY)[0] + "q", "age1\ud800"],
    ids=["empty", "a name", "cut", "longer", "no UTF-8"],
)
def test_a_recipient_that_is_no_key_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match=r"^restricted\.recipients: .* is no public key of age: give") as caught:
        Encryptor((*public(OTHER), text))
    assert repr(text) in str(caught.value)


@pytest.mark.parametrize(
    "text", [str(IDENTITY), str(IDENTITY).lower(), f" {IDENTITY}"], ids=["as it is", "lower case", "after a space"]
)
def test_a_private_key_among_the_recipients_is_refused_and_not_repeated(text: str) -> None:
    with pytest.raises(ConfigError, match=r"restricted\.recipients: holds a private key") as caught:
        Encryptor((text,))
    assert str(IDENTITY)[20:40].lower() not in str(caught.value).lower()


# -- opening ----------------------------------------------------------------------------------------------------------


def test_an_identity_file_of_age_decrypts() -> None:
    text = f"# created: 2026-11-25T16:00:00Z\n# public key: {public(IDENTITY)[0]}\n{IDENTITY}\n\n"
    assert decrypt(encrypted(), text) == PLAIN
    assert decrypt(encrypted(), f"{OTHER}\r\n{IDENTITY}") == PLAIN


def test_another_identity_is_one_line() -> None:
    assert NOT_DECRYPTABLE in refused(encrypted(), str(OTHER))


@pytest.mark.parametrize(
    "text",
    ["", "\n# a comment\n", public(IDENTITY)[0], "s3cret", str(IDENTITY)[:-1], "\udcff"],
    ids=["empty", "a comment", "public", "a word", "cut", "no UTF-8"],
)
def test_a_malformed_identity_is_one_line_and_not_repeated(text: str) -> None:
    told = refused(encrypted(), text)
    assert told.startswith("identity: ") and "AGE-SECRET-KEY-1..." in told
    assert "s3cret" not in told and str(IDENTITY)[20:40] not in told


@settings(max_examples=100)
@given(st.integers(0, 999), st.integers(1, 255))
def test_a_file_that_was_changed_or_cut_anywhere_is_refused(where: int, change: int) -> None:
    whole = bytearray(encrypted(b"short"))  # of another length each time
    at = len(whole) * where // 1000
    assert NOT_DECRYPTABLE in refused(bytes(whole[:at]), str(IDENTITY))
    whole[at] ^= change
    assert NOT_DECRYPTABLE in refused(bytes(whole), str(IDENTITY))


@settings(max_examples=50)
@given(st.binary())
def test_data_that_is_not_of_age_is_refused(data: bytes) -> None:
    assert NOT_DECRYPTABLE in refused(data, str(IDENTITY))


@pytest.mark.skipif(shutil.which("age") is None, reason="the tool is not installed")
def test_the_age_tool_decrypts(tmp_path: Path) -> None:
    Encryptor(public(IDENTITY)).write_uncommitted(StoragePath.from_uri(str(tmp_path / "file")), PLAIN)
    (tmp_path / "key").write_text(f"{IDENTITY}\n")
    command = ["age", "--decrypt", "--identity", tmp_path / "key", tmp_path / "file.age"]
    assert subprocess.run(command, capture_output=True, check=True).stdout == PLAIN


# -- the command ------------------------------------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "1.png.age"
    path.write_bytes(encrypted())
    return path


@pytest.mark.parametrize("kept_in", ["a file", "an environment variable"])
def test_unseal_writes_a_private_file(
    tmp_path: Path, file: Path, kept_in: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if kept_in == "a file":
        name = str(tmp_path / "key.txt")
        Path(name).write_text(f"# mine\n{IDENTITY}\n")
    else:
        monkeypatch.setenv(name := "MY_IDENTITY", str(IDENTITY))
    before = os.umask(0)
    try:
        unseal_file(str(file), name, str(tmp_path / "opened" / "1.png"))
    finally:
        os.umask(before)
    assert (tmp_path / "opened" / "1.png").read_bytes() == PLAIN
    assert stat.S_IMODE((tmp_path / "opened" / "1.png").stat().st_mode) == 0o600
    assert str(IDENTITY) not in "".join(capsys.readouterr())


def test_unseal_does_not_overwrite_a_file(tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_IDENTITY", str(IDENTITY))
    (tmp_path / "there").write_bytes(b"mine")
    with pytest.raises(UsageError, match="is there already: name a new file"):
        unseal_file(str(file), "MY_IDENTITY", str(tmp_path / "there"))
    assert (tmp_path / "there").read_bytes() == b"mine"


@pytest.mark.parametrize(
    "name, text",
    [
        (str(IDENTITY), "identity: holds the key itself"),
        ("NO_SUCH_NAME", "identity 'NO_SUCH_NAME': neither a file nor an environment variable"),
        ("FOLDER", "cannot be read (Is a directory)"),
        ("BINARY", "cannot be read (UnicodeDecodeError)"),
        ("x\0y", "cannot be read (ValueError)"),
    ],
    ids=["the key itself", "no such name", "a folder", "no text", "no name"],
)
def test_a_missing_identity_is_one_line(tmp_path: Path, file: Path, name: str, text: str) -> None:
    (tmp_path / "BINARY").write_bytes(b"\xff\xfe")
    name = str({"FOLDER": tmp_path, "BINARY": tmp_path / "BINARY"}.get(name, name))
    with pytest.raises(UsageError) as caught:
        unseal_file(str(file), name, str(tmp_path / "out"))
    assert text in str(caught.value) and "\n" not in str(caught.value)
    assert str(IDENTITY)[20:40] not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_file_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_IDENTITY", str(IDENTITY))
    with pytest.raises(UsageError, match=r"file '.*gone': cannot be read \(No such file or directory\)"):
        unseal_file(str(tmp_path / "gone"), "MY_IDENTITY", str(tmp_path / "out"))
