"""Nothing is signed that was not assembled: whoever can write to a candidate gets no signature for it."""

from __future__ import annotations

import base64
import hashlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from anonymizer import report
from anonymizer.errors import AnonymizerError, GateError
from anonymizer.release import publish
from anonymizer.release.plan import resolve_config
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.storage.layout import Release
from flows.cli import main
from tests.support.releases import (
    KEY,
    finished_ledger,
    folder_of,
    listing,
    picture,
    run,
    settings,
    tree,
)
from tests.support.signed_release import sign_again
from tests.support.signing_keys import ADA, BOB, EVE, PUBLISHER, VARIABLE, pem, public_key

ORIGINAL = picture(0)


@pytest.fixture(autouse=True)
def publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))


def change_manifest(folder: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.read_table(folder / "manifest.parquet")
    pq.write_table(change(table), folder / "manifest.parquet")


def with_value(name: str, value: Any) -> Callable[[Path], None]:
    def change(table: pa.Table) -> pa.Table:
        column = [value, *table[name].to_pylist()[1:]]
        at = table.column_names.index(name)
        return table.set_column(at, table.schema.field(name), pa.array(column, table.schema.field(name).type))

    return lambda folder: change_manifest(folder, change)


def put_original(folder: Path) -> None:
    """In the place of an output, with nothing else changed."""
    next(folder.rglob("*.png")).write_bytes(ORIGINAL)


def put_original_and_say_so(folder: Path) -> None:
    """And the manifest with it."""
    row = pq.read_table(folder / "manifest.parquet").to_pylist()[0]
    (folder / row["file"]).write_bytes(ORIGINAL)
    with_value("sha256", hashlib.sha256(ORIGINAL).hexdigest())(folder)
    with_value("bytes", len(ORIGINAL))(folder)


def plant(name: str, data: bytes) -> Callable[[Path], None]:
    def do(folder: Path) -> None:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)

    return do


def swap_two(folder: Path) -> None:
    one, other = sorted(folder.rglob("*.png"))[:2]
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)


TAMPERS: dict[str, Callable[[Path], None]] = {
    "an original for an output": put_original,
    "an original for an output, and its digest in the manifest": put_original_and_say_so,
    "another label": with_value("label", "Jane Doe"),
    "another value of a carried column": with_value("age", 99),
    "another level": with_value("level", 0.9),
    "a caption": with_value("caption", base64.b64encode(ORIGINAL).decode()),
    "a row less": lambda folder: change_manifest(folder, lambda table: table.slice(1)),
    "a column more": lambda folder: change_manifest(
        folder, lambda table: table.append_column("note", pa.array(["x"] * len(table)))
    ),
    "metadata in the manifest": lambda folder: change_manifest(
        folder, lambda table: table.replace_schema_metadata({"note": base64.b64encode(ORIGINAL)})
    ),
    "a file more": plant("note.txt", b"whatever"),
    "a picture more": plant("images/ab/original.png", ORIGINAL),
    "a part more": plant("data/part-00000.tar", ORIGINAL),
    "a picture less": lambda folder: next(folder.rglob("*.png")).unlink(),
    "two pictures swapped": swap_two,
    "a link": lambda folder: (folder / "link").symlink_to("/etc/passwd"),
}
DOCUMENTS = {  # what is written anew by whoever signs
    "another card": plant("README.md", b"whatever"),
    "another report": plant("report.html", ORIGINAL),
    "another Croissant file": plant("croissant.json", b"{}"),
    "other metadata": plant("metadata.jsonl", b"{}\n"),
    "an audit": plant("audit.json", b"{}"),
    "revocations": plant("revocations.intoto.jsonl", b"{}\n"),
}


def held_back(root: Path) -> tuple[Any, Any, Release]:
    """A candidate that waits: settings that hold it back, settings that let it out, and the release."""
    folder_of(root / "in", {f"{i}.png": picture(i) for i in range(3)})
    source = listing(root / "in", [{"image": f"{i}.png", "age": i, "kind": "a"} for i in range(3)])
    read = {"carry": ["age"], "label": "kind"}
    waiver = {"rule": "min_released", "who": "Ada", "why": "pilot", "until": "2999-01-01"}
    before = settings(source, root / "out", source=read, policy={"min_released": 9})
    after = settings(source, root / "out", source=read, policy={"min_released": 9, "waivers": [waiver]})
    with pytest.raises(GateError):
        run(before)
    return before, after, Release.at(str(root / "out"), KEY)


def is_signed(release: Release) -> bool:
    """Whether there is any statement with a signature, wherever it lies."""
    return any(b'"sig"' in data for name, data in tree(release.root.path).items() if "release.intoto" in name)


@pytest.mark.parametrize("tamper", TAMPERS)
def test_what_was_changed_in_a_candidate_that_waits_is_not_signed(tmp_path: Path, tamper: str) -> None:
    _, after, release = held_back(tmp_path)
    TAMPERS[tamper](Path(release.candidate.path))
    with pytest.raises(AnonymizerError) as caught:
        run(after)
    assert "\n" not in str(caught.value)
    assert not is_signed(release) and not release.public.exists()


@pytest.mark.parametrize("tamper", TAMPERS | DOCUMENTS)
def test_what_is_changed_while_it_is_signed_is_not_signed(tmp_path: Path, tamper: str) -> None:
    _, after, release = held_back(tmp_path)

    def write_documents(*args: Any) -> Any:
        written = report.write_public(*args)
        (TAMPERS | DOCUMENTS)[tamper](Path(release.candidate.path))
        return written

    with finished_ledger(release, after) as finished, pytest.raises(AnonymizerError):
        publish.decide_and_publish(release, after, KEY, finished, write_documents)
    assert not is_signed(release) and not release.public.exists()


@pytest.mark.parametrize("tamper", DOCUMENTS)
def test_what_is_written_anew_by_whoever_signs_may_be_anything_before(tmp_path: Path, tamper: str) -> None:
    _, after, release = held_back(tmp_path)
    DOCUMENTS[tamper](Path(release.candidate.path))
    assert run(after).is_published and is_signed(release)
    assert not any(data in (b"whatever", ORIGINAL, b"{}") for data in tree(release.public.path).values())


def test_no_page_shows_a_picture_that_the_manifest_does_not_name(tmp_path: Path) -> None:
    """The contact sheet is embedded in the report, which is signed."""
    _, after, release = held_back(tmp_path)
    files = {path: path.read_bytes() for path in Path(release.candidate.path).rglob("*.png")}

    def write_documents(*args: Any) -> Any:
        for path in files:
            path.write_bytes(ORIGINAL)
        written = report.write_public(*args)
        for path, data in files.items():
            path.write_bytes(data)
        return written

    with finished_ledger(release, after) as finished:
        publish.decide_and_publish(release, after, KEY, finished, write_documents)
    page = (release.public / "report.html").read()
    assert base64.b64encode(ORIGINAL) not in page and b"data:image" not in page


def test_a_candidate_that_was_left_alone_is_signed(tmp_path: Path) -> None:
    _, after, release = held_back(tmp_path)
    assert run(after).is_published and is_signed(release)


def test_the_approved_statement_of_another_release_is_not_taken_up(tmp_path: Path) -> None:
    """Two releases that are equal to the byte but for their plans; one is approved."""
    source = folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(3)})
    policy = {"approvals": 1, "approvers": {"ada": public_key(ADA)}}
    approved = run(settings(source, tmp_path / "a", policy=policy))
    assert publish.approve(approved, ADA).is_published
    config = settings(source, tmp_path / "b", policy=policy)
    waiting = run(config)
    assert waiting.manifest.read() == approved.manifest.read()

    def swap() -> None:
        shutil.rmtree(waiting.candidate.path)
        shutil.copytree(approved.public.path, waiting.candidate.path)

    swap()
    assert not run(config).is_published  # signed anew, and without an approval
    assert publish.read_status(waiting).approved_by == ()
    swap()
    with pytest.raises(AnonymizerError, match="was signed for another release"):
        publish.approve(Release.at(str(waiting.root)), ADA)  # without the custodian's key
    shutil.copy(approved.decision_log.path, waiting.decision_log.path)
    with pytest.raises(AnonymizerError, match="was decided on at another address"):
        publish.approve(Release.at(str(waiting.root)), ADA)
    assert not waiting.is_published


@pytest.mark.parametrize("name", ["label", "age", "caption", "level", "sampler", "lpips_bin"])
def test_a_manifest_that_says_other_things_than_the_ledger_does_not_verify(tmp_path: Path, name: str) -> None:
    """Even if its own publisher signed it."""
    _, after, release = held_back(tmp_path)
    run(after)
    folder = Path(release.public.path)
    assert not [f for f in check_restricted(release, resolve_config(release), KEY) if f.result == "fail"]
    with_value(name, {"age": 99, "level": 0.9}.get(name, "x"))(folder)
    sign_again(folder, by=[PUBLISHER])
    failed = {f.check for f in check_restricted(release, resolve_config(release), KEY) if f.result == "fail"}
    assert "ledger" in failed


@pytest.mark.parametrize(
    "how", ["before the approvals", "without a statement", "of another release", "of another publisher"]
)
def test_a_public_half_that_was_put_there_is_not_taken_for_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    source = folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(3)})
    policy = {"approvals": 2, "approvers": {"ada": public_key(ADA), "bob": public_key(BOB)}}
    config = settings(source, tmp_path / "out", policy=policy)
    release = run(config)
    other = settings(source, tmp_path / "other")
    monkeypatch.setenv(VARIABLE, pem(EVE if how == "of another publisher" else PUBLISHER))
    if how == "before the approvals":
        shutil.move(release.candidate.path, release.public.path)
    elif how == "without a statement":
        Path(release.public.path).mkdir()
        (Path(release.public.path) / "manifest.parquet").write_bytes(release.manifest.read())
    else:
        shutil.copytree(run(other).public.path, release.public.path)
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))
    refused = pytest.raises(AnonymizerError, match=r"public/ (was not published by this release|is not signed by)")
    with finished_ledger(release, config) as finished, refused:
        publish.decide_and_publish(release, config, KEY, finished, report.write_public)
    shown = CliRunner().invoke(main, ["status", str(release.root)])
    assert "NOT published by this release" in shown.stdout
