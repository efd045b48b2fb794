"""The command `anonymizer verify`: exit codes, JSON output, trusted keys."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from anonymizer.storage.layout import Release
from flows.cli import main
from tests.support.releases import (
    HEX,
)
from tests.support.signing_keys import ADA, EVE, PUBLISHER, public_key


def test_json_output_lists_failures_and_exits_with_1(public_half: Path) -> None:
    (public_half / "two\nlines").write_bytes(b"")
    done = CliRunner().invoke(main, ["verify", str(public_half), "--json"])
    document = json.loads(done.stdout)
    assert (done.exit_code, document["passed"]) == (1, False)
    assert [f["said"] for f in document["findings"] if f["result"] == "fail"] == ["two%0Alines: nothing speaks of it"]


def test_only_the_trusted_key_passes(public_half: Path, tmp_path: Path) -> None:
    (tmp_path / "publisher.pub").write_text(public_key(PUBLISHER) + "\n")
    for trust, code in [(str(tmp_path / "publisher.pub"), 0), (public_key(PUBLISHER), 0), (public_key(EVE), 1)]:
        assert CliRunner().invoke(main, ["verify", str(public_half), "--trust", trust]).exit_code == code


def test_a_private_key_given_as_trusted_is_not_repeated(public_half: Path, tmp_path: Path) -> None:
    (tmp_path / "ada.key").write_bytes(ADA.private_bytes)
    for given_key in (ADA.private_bytes.decode(), str(tmp_path / "ada.key")):
        done = CliRunner().invoke(main, ["verify", str(public_half), "--trust", given_key])
        assert done.exit_code == 2 and done.stderr.startswith("error: --trust: no public key")
        assert "PRIVATE" not in done.output and ADA.private_bytes.decode().splitlines()[1] not in done.output


def test_a_release_inside_a_public_half_is_not_verified_in_its_stead(signed_release: Release, tmp_path: Path) -> None:
    bad_one = Path(shutil.copytree(signed_release.public.path, tmp_path / "outer"))
    shutil.copytree(signed_release.public.path, bad_one / "public")
    assert CliRunner().invoke(main, ["verify", str(bad_one), "--json"]).exit_code == 1


@pytest.mark.parametrize("lost", ["plan.json", "config.yaml", "ledger", "events.jsonl"])
def test_a_restricted_half_without_one_of_its_files_fails(
    signed_release: Release, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    command = ["verify", str(signed_release.root), "--rescore", "0", "--json"]
    assert CliRunner().invoke(main, command).exit_code == 0
    (signed_release.restricted / lost).remove()
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1 and not json.loads(done.stdout)["passed"]


def test_nothing_heavy_is_loaded_to_verify_a_public_half(folder_half: Path) -> None:
    code = (
        "import sys; from flows.cli import main\n"
        "try: main(['verify', sys.argv[1]])\n"
        "except SystemExit as leave: assert not leave.code\n"
        "print('HEAVY', sorted({'torch', 'prefect', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(folder_half)], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("HEAVY []") and done.stderr == ""
