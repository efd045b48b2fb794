"""The commands `anonymizer keys` and `approve`: files are private, secrets are never printed."""

from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization

from anonymizer.crypto import signing
from flows.cli import main
from tests.support.releases import people, run, settings
from tests.support.signing_keys import ADA, EVE, PUBLISHER, VARIABLE, pem, public_key


@pytest.mark.parametrize("kind", ["signing", "age", "custodian"])
def test_key_files_are_private_and_never_printed(tmp_path: Path, kind: str) -> None:
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
        assert public_key(signing.signer_from_file(private)) == text and text in done.stdout.replace("\n", "")


@pytest.mark.parametrize("name", ["ada.key", "ada.pub"])
def test_a_key_is_never_replaced(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("the only one")
    done = CliRunner().invoke(main, ["keys", "ada", "--folder", str(tmp_path)])
    assert done.exit_code == 2 and "is there already" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "the only one"


@pytest.mark.parametrize("name", ["../ada", "a b", "", "a/b", "-a", "a.b"])
def test_a_name_that_is_no_file_name_is_refused(tmp_path: Path, name: str) -> None:
    done = CliRunner().invoke(main, ["keys", "--folder", str(tmp_path / "keys"), "--", name])
    assert done.exit_code == 2 and "NAME" in done.stderr and not (tmp_path / "keys").exists()


def test_two_keys_are_never_the_same(tmp_path: Path) -> None:
    for name in ("ada", "bob"):
        CliRunner().invoke(main, ["keys", name, "--folder", str(tmp_path)])
    assert (tmp_path / "ada.pub").read_text() != (tmp_path / "bob.pub").read_text()


def test_the_key_of_an_approver_is_never_printed_or_stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))
    policy = {"approvals": 1, "approvers": {"ada": public_key(ADA)}}
    waiting = run(settings(people(tmp_path / "in", 2), tmp_path / "out", policy=policy))
    for name, signer in (("eve", EVE), ("ada", ADA)):
        (tmp_path / f"{name}.key").write_text(pem(signer))
    printed, trust = "", ("--trust", public_key(PUBLISHER))
    for key, code in ((tmp_path / "eve.key", 2), (tmp_path / "missing.key", 2), (tmp_path / "ada.key", 0)):
        done = CliRunner().invoke(main, ["approve", str(tmp_path / "out"), "--key", str(key), *trust])
        assert done.exit_code == code, done.output
        printed += done.stdout + done.stderr
    assert waiting.is_published
    for signer in (PUBLISHER, ADA, EVE):
        assert pem(signer).splitlines()[1] not in printed
    stored = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    for signer in (PUBLISHER, ADA):
        raw = serialization.load_pem_private_key(signer.private_bytes, None).private_bytes_raw()  # type: ignore[union-attr]
        for spelled in (pem(signer).splitlines()[1].encode(), raw, raw.hex().encode(), base64.b64encode(raw)):
            assert spelled not in stored
