"""Three monthly releases with additions, withdrawals and an erasure in between, by the commands that people type."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from anonymizer.attest import revocation
from anonymizer.crypto import signing
from anonymizer.storage.layout import Release
from flows.cli import main
from tests.support.releases import HEX, folder_of, outputs, picture, rows, tree, verification_failures

PUBLISHER = signing.generate_key_pair()
KINDS = ("START", "COMPLETE")
Command = Callable[..., Any]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, prefect_home: Path) -> Command:
    """Run a command; what it printed as JSON."""
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", PUBLISHER.private_bytes.decode())

    def run(*words: Any) -> Any:
        done = CliRunner().invoke(main, [*map(str, words), "--json"])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return run


@pytest.fixture
def release(tmp_path: Path, tiny_model: Path, command: Command) -> Command:
    """Make the release of a month from what lies in ``in/``; its place, and what was printed."""

    def run(month: str, *more: str) -> tuple[Release, Any]:
        sets = ["source.subject=folder", "metrics.clip=none", "metrics.lpips=none", "boomerang.steps=2", *more]
        options = [word for one in [*sets, "run.shard_size=4"] for word in ("--set", one)]
        place = tmp_path / month
        options += ["--set", f"lineage.to={tmp_path / 'lineage.jsonl'}"]
        words = ["run", "--source", tmp_path / "in", "--output", place, "--model", tiny_model, *options]
        return Release.at(str(place)), command(*words)

    return run


def person(i: int) -> str:
    return f"Person_{i:02d}/photo.png"


def pictures(release: Release) -> dict[int, bytes]:
    """Of each person in a release the one picture."""
    found = {int(name.split("/")[0].split("_")[1]): data for name, (_, data) in outputs(release).items()}
    assert len(found) == len(outputs(release))
    return found


def test_three_months_with_additions_withdrawals_and_an_erasure(
    tmp_path: Path, release: Command, command: Command
) -> None:
    source = folder_of(tmp_path / "in", {person(i): picture(i) for i in range(10)})
    january, counts = release("january")
    assert (counts["read"], counts["released"]) == (10, 10) and "against_previous" not in counts

    for i in (0, 1):
        (source / person(i)).unlink()
    folder_of(source, {person(i): picture(i) for i in (10, 11, 12)})
    february, counts = release("february", f"previous={january.root}", "boomerang.level=0.7")
    assert (counts["read"], counts["released"]) == (11, 11)
    assert counts["against_previous"] == {"kept": 8, "new": 3, "left_out": 2}
    before = pictures(february)

    withdrawn = tmp_path / "withdrawn.txt"
    withdrawn.write_text("subject:Person_02\nsubject:Person_10\n")
    typo = tmp_path / "typo.txt"
    typo.write_text("subject:Person_99\n")
    refused = CliRunner().invoke(
        main, ["erase", str(february.root), "--records", str(typo), "--output", f"{tmp_path}/x"]
    )
    assert (refused.exit_code, refused.stdout, refused.stderr.count("\n")) == (2, "", 1) and "line 1" in refused.stderr
    told = command("erase", february.root, "--records", withdrawn, "--output", tmp_path / "february b")
    again = Release.at(str(tmp_path / "february b"))
    assert (told["erased"], told["revoked"], told["released"], told["published"]) == (2, 2, 9, True)
    cautions = "; ".join(told["cautions"])
    assert "copies that were handed out before cannot be called back" in cautions and str(january.root) in cautions
    assert set(tree(tmp_path / "february")) == {"restricted/events.jsonl"}

    assert command("run", again.config.path)["read"] == 9  # complete: nothing to do

    (source / person(3)).unlink()  # and Person_02, who was erased, is still in the source
    (source / person(10)).unlink()
    (source / person(4)).rename(source / "Person_04" / "renamed.png")
    folder_of(source, {person(0): picture(0), person(13): picture(13)})  # one comes back after a month
    march, counts = release("march", f"previous={again.root}", "boomerang.level=0.9")
    assert (counts["read"], counts["released"], counts["failed"]) == (11, 10, 1)
    assert counts["reasons"] == {"withdrawn": 1}
    assert counts["against_previous"] == {"kept": 8, "new": 2, "left_out": 1}

    for one in (january, again, march):
        checked = command("verify", one.root, "--rescore", 0)
        assert checked["passed"], checked
        assert verification_failures(one) == []
    assert set(pictures(january)) == {*range(10)}
    assert set(pictures(again)) == {3, 4, 5, 6, 7, 8, 9, 11, 12}
    assert set(pictures(march)) == {0, 4, 5, 6, 7, 8, 9, 11, 12, 13}
    ever: dict[int, set[bytes]] = {}
    for of in (pictures(january), before, pictures(again), pictures(march)):
        for i, data in of.items():
            ever.setdefault(i, set()).add(data)
    assert len(ever) == 14 and all(len(found) == 1 for found in ever.values())

    for one in (again, march):
        (signed,) = revocation.read(one.public)
        assert signed.is_signed_by(PUBLISHER.public_key) and len(signed.digests) == 2
    for data in tree(again.root.path).values():
        assert b"Person_02" not in data and b"Person_10" not in data
    assert {row["reason"] for row in rows(march) if "Person_02" in row["record_id"]} == {"withdrawn"}

    audit = ["--set", "features=[pixels]", "--set", "attacks=[linkage]", "--union", again.root, "--union", january.root]
    done = command("audit", march.root, *audit)
    assert (done["audited"], done["released"]) == (11, 13)  # two of them have left, and their originals with them
    told = [json.loads(line) for line in (tmp_path / "lineage.jsonl").read_text().splitlines()]
    jobs = [(one["job"]["name"], one["eventType"]) for one in told]
    assert jobs == [(job, kind) for job in ("release", "release", "erase", "release", "audit") for kind in KINDS]
    status = command("status", march.root)
    assert (status["read"], status["planned"], status["public"], status["retention"]) == (11, 11, True, {})
