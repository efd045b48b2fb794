"""Whatever was done to a release is found, on its public half alone; and nothing that a stranger wrote raises."""

from __future__ import annotations

import base64
import copy
import dataclasses
import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner

from anonymizer import config as configuration
from anonymizer.attest import dsse, merkle, revocation, statement, verify
from anonymizer.attest.verify import Finding
from anonymizer.attest.verify.findings import MAX_LENGTH
from anonymizer.attest.verify.manifest import SUFFIXES
from anonymizer.boomerang import Boomerang
from anonymizer.crypto import signing
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.data import image_codec as codec
from anonymizer.data.sinks.parquet import IMAGE_TYPE
from anonymizer.records import Scores
from anonymizer.release import event_log, ledger, publish
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.schema import MANIFEST_TYPES, PRIVATE_COLUMNS
from anonymizer.storage import parquet
from anonymizer.storage.layout import MANIFEST, REVOCATIONS, STATEMENT, Release
from anonymizer.storage.path import StoragePath
from flows.cli import main
from flows.jobs import replay as replay_job
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import (
    HEX,
    KEY,
    PlainScorer,
    Unscored,
    encoded,
    folder_of,
    listing,
    people,
    picture,
    plain,
    run,
    settings,
)

PUBLISHER, ADA, BOB, EVE = (signing.generate_key_pair() for _ in range(4))
ALL = (PUBLISHER, ADA, BOB)
LAYOUTS = ["folder", "webdataset", "parquet"]
Change = Callable[[dict[str, Any]], object]


def public(signer: CryptoSigner) -> str:
    return signing.format_public_key(signer.public_key)


def publish_one(root: Path, layout: str) -> Path:
    """A release with labels, captions and a carried column, a picture held back and one that failed; its root."""
    files = {f"{i}.png": picture(i) for i in range(6)} | {"black.png": plain(0), "bad.png": b"no picture"}
    folder_of(root / "in", files)
    rows = [{"path": name, "who": f"{'ab'[i % 2]}", "says": f"picture {i}", "age": i} for i, name in enumerate(files)]
    source = {"format": "listing", "image": "path", "label": "who", "caption": "says", "carry": ["age"]}
    approvers = {"ada": public(ADA), "bob": public(BOB)}
    config = settings(
        listing(root / "in", rows), root / "out", source=source, output={"format": layout},
        policy={"approvals": 2, "approvers": approvers, "max_failed": 0.5},
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANONYMIZER_SIGNING_KEY", PUBLISHER.private_bytes.decode())
        release = run(config, scorer=Unscored(Scores()))
    for signer in (ADA, BOB):
        publish.approve(release, signer)
    return root / "out"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    return {layout: publish_one(tmp_path_factory.mktemp(layout), layout) for layout in LAYOUTS}


@pytest.fixture(params=LAYOUTS)
def folder(request: pytest.FixtureRequest, published: Mapping[str, Path], tmp_path: Path) -> Path:
    """The public half of a release in each of the layouts, to be tampered with."""
    return Path(shutil.copytree(published[request.param] / "public", tmp_path / "public"))


@pytest.fixture
def images(published: Mapping[str, Path], tmp_path: Path) -> Path:
    """A public half whose pictures are files."""
    return Path(shutil.copytree(published["folder"] / "public", tmp_path / "public"))


@pytest.fixture
def whole(published: Mapping[str, Path], tmp_path: Path) -> Release:
    """Both halves of a release."""
    return Release.at(str(shutil.copytree(published["folder"], tmp_path / "both")))


def check(folder: Path, trust: Sequence[str] = ()) -> list[Finding]:
    found = list(verify.check_public(StoragePath.from_uri(str(folder)), trust))
    assert all(
        len(f.message.splitlines()) == 1 and f.message.isprintable() and len(f.message) <= MAX_LENGTH + 1 for f in found
    )
    return found


def failing(found: Sequence[Finding]) -> set[str]:
    return {finding.check for finding in found if finding.result == "fail"}


def bad(folder: Path) -> set[str]:
    """Names of the checks that find fault with a public half."""
    return failing(check(folder))


def is_found(folder: Path) -> bool:
    return any(finding.result == "fail" for finding in verify.check_public(StoragePath.from_uri(str(folder))))


def said_by(folder: Path) -> dict[str, Any]:
    return copy.deepcopy(dict(statement.read(StoragePath.from_uri(str(folder))).predicate))


def sign_anew(
    folder: Path,
    change: Change = lambda said: None,
    digests: Change = lambda digests: None,
    by: Sequence[CryptoSigner] = ALL,
) -> None:
    """The statement about what lies there now, changed, and signed by all who had signed it, or by others."""
    place = StoragePath.from_uri(str(folder))
    said, manifest = said_by(folder), parquet.read(place / MANIFEST)
    said["manifest"] |= {
        "rows": len(manifest),
        "columns": manifest.column_names,
        "merkle_root": merkle.root(merkle.encode_rows(manifest)).hex(),
    }
    subjects = statement.subject_digests(place)
    change(said)
    digests(subjects)
    write_statement(folder, said, subjects, by)


def write_statement(
    folder: Path, said: Any, subjects: Mapping[str, str], by: Sequence[CryptoSigner] = ALL
) -> dsse.SignedStatement:
    made = dsse.build(statement.PREDICATE_TYPE, subjects, said, None)
    for signer in by:
        made = made.with_signature(signer)
    (folder / STATEMENT).write_bytes(dsse.dumps([made]))
    return made


def manifest_of(folder: Path) -> pa.Table:
    return parquet.read(StoragePath.from_uri(str(folder)) / MANIFEST)


def write_manifest(folder: Path, table: pa.Table) -> None:
    (folder / MANIFEST).write_bytes(parquet.to_bytes(table))


def with_column(table: pa.Table, name: str, values: Any) -> pa.Table:
    """The table with the values in the place of a column, or at its end."""
    at = table.schema.get_field_index(name)
    if at < 0:
        return table.append_column(name, values)
    field = table.schema.field(name)
    return table.set_column(at, field, pa.array(values, field.type) if isinstance(values, list) else values)


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def pictures(folder: Path) -> list[Path]:
    return [path for path in files(folder) if path.parent.name != "public"]


@contextmanager
def flipped(file: Path, position: int, bit: int) -> Iterator[None]:
    """A file with one bit turned over."""

    def flip() -> None:
        with open(file, "r+b", buffering=0) as raw:
            raw.seek(position)
            (byte,) = raw.read(1)
            raw.seek(position)
            raw.write(bytes([byte ^ 1 << bit]))

    flip()
    try:
        yield
    finally:
        flip()


# -- nothing was done to it --------------------------------------------------------------------------------------------


def test_an_untouched_release_passes_every_check(folder: Path) -> None:
    found = check(folder, [public(PUBLISHER)])
    assert {finding.result for finding in found} == {"pass"}
    assert [finding.check for finding in found] == [
        "signature", "approvals", "gate", "digests", "schema", "counts", "names", "merkle", "strays", "pictures",
    ]  # fmt: skip
    assert "ada, bob (2 required)" in {finding.message for finding in found}


def test_signing_the_same_anew_changes_nothing(folder: Path) -> None:
    before = (folder / STATEMENT).read_bytes()
    sign_anew(folder)
    assert (folder / STATEMENT).read_bytes() == before


@pytest.mark.parametrize("image", ["jpeg", "webp"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_of_picture_passes(tmp_path: Path, image: str, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", PUBLISHER.private_bytes.decode())
    source = folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(3)})
    run(settings(source, tmp_path / "out", output={"format": layout, "image": image}))
    assert bad(tmp_path / "out" / "public") == set()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_release_of_nothing_passes(tmp_path: Path, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", PUBLISHER.private_bytes.decode())
    source = folder_of(tmp_path / "in", {"bad.png": b"no picture"})
    run(settings(source, tmp_path / "out", output={"format": layout}))
    assert bad(tmp_path / "out" / "public") == set()


def test_a_release_that_nobody_signed_is_said_to_be_answered_for_by_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ANONYMIZER_SIGNING_KEY", raising=False)
    run(settings(folder_of(tmp_path / "in", {"1.png": picture(1)}), tmp_path / "out"))
    (one,) = [finding for finding in check(tmp_path / "out" / "public") if finding.result == "fail"]
    assert one.check == "signature" and "nobody answers for this release" in one.message


def test_it_can_be_verified_where_it_lies_in_an_object_store(folder: Path) -> None:
    fs = StoragePath.from_uri("memory://handout").fs
    fs.put(str(folder), "/handout", recursive=True)
    try:
        assert failing(list(verify.check_public(StoragePath.from_uri("memory://handout")))) == set()
        fs.pipe_file("/handout/more.txt", b"more")
        assert failing(list(verify.check_public(StoragePath.from_uri("memory://handout")))) == {"strays"}
    finally:
        fs.rm("/handout", recursive=True)


# -- one bit -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_flipped_bit_anywhere_is_found(published: Mapping[str, Path], layout: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(published[layout] / "public", Path(scratch) / "public"))
        there = files(folder)

        @hypothesis_settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), database=None)
        @given(st.sampled_from(there), st.floats(0, 1, exclude_max=True), st.integers(0, 7))
        def flip(file: Path, at: float, bit: int) -> None:
            with flipped(file, int(at * file.stat().st_size), bit):
                assert is_found(folder)

        flip()
        assert not is_found(folder)


def test_one_flipped_bit_in_each_file_is_found(folder: Path) -> None:
    for file in files(folder):
        for position in (0, file.stat().st_size // 2, file.stat().st_size - 1):
            with flipped(file, position, 0):
                assert is_found(folder), file.name


def test_a_flipped_bit_in_any_byte_of_the_statement_is_found(images: Path) -> None:
    file = images / STATEMENT
    for position in range(file.stat().st_size):
        with flipped(file, position, position % 8):
            assert is_found(images), position


@pytest.mark.slow
def test_every_flipped_bit_of_the_statement_and_any_byte_of_the_manifest_is_found(images: Path) -> None:
    for name, bits in ((STATEMENT, range(8)), (MANIFEST, range(1))):
        for position in range((images / name).stat().st_size):
            for bit in bits:
                with flipped(images / name, position, bit):
                    assert is_found(images), (name, position, bit)


# -- files -------------------------------------------------------------------------------------------------------------


def test_every_file_that_is_removed_is_missed(folder: Path) -> None:
    for file in files(folder):
        data = file.read_bytes()
        file.unlink()
        assert bad(folder) <= {"statement", "digests", "pictures", "strays"} and bad(folder), file.name
        file.write_bytes(data)


def test_every_file_that_is_cut_off_or_empty_is_found(folder: Path) -> None:
    for file in files(folder):
        data = file.read_bytes()
        for part in (data[:-1], data[: len(data) // 2], b"", data + b"\0"):
            file.write_bytes(part)
            assert is_found(folder), file.name
        file.write_bytes(data)


@pytest.mark.parametrize("name", ["more.txt", "images/more.png", "data/part-99999.tar", "data/part-00000.parquet.bak"])
def test_a_file_that_is_added_is_found(folder: Path, name: str) -> None:
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(picture(1))
    (one,) = [finding for finding in check(folder) if finding.result == "fail"]
    assert (one.check, one.message) == ("strays", f"{name}: nothing speaks of it")


def test_every_file_that_is_renamed_is_found(folder: Path) -> None:
    for file in files(folder):
        other = file.with_name("0" + file.name)
        file.rename(other)
        assert bad(folder), file.name
        other.rename(file)


def test_any_two_files_that_are_swapped_are_found(folder: Path) -> None:
    there = files(folder)
    for one, other in combinations(there, 2):
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
        assert bad(folder), (one.name, other.name)
        one.write_bytes(first)
        other.write_bytes(second)


def test_two_bytes_that_are_swapped_between_pictures_are_found(images: Path) -> None:
    one, other = pictures(images)[:2]
    first, second = bytearray(one.read_bytes()), bytearray(other.read_bytes())
    at = next(i for i in range(60, len(first)) if first[i] != second[i])
    first[at], second[at] = second[at], first[at]
    one.write_bytes(first)
    other.write_bytes(second)
    assert [f.message.rpartition(": ")[2] for f in check(images) if f.result == "fail"] == [
        "is not what was signed"
    ] * 2


@pytest.mark.skipif(os.name != "posix", reason="links and pipes are POSIX's")
def test_a_link_is_never_followed_even_to_the_very_same_bytes(folder: Path, tmp_path: Path) -> None:
    for file in files(folder):
        elsewhere = tmp_path / "elsewhere"
        file.rename(elsewhere)
        file.symlink_to(elsewhere)
        assert bad(folder) & {"statement", "strays", "digests"}, file.name
        file.unlink()
        elsewhere.rename(file)


@pytest.mark.skipif(os.name != "posix", reason="links and pipes are POSIX's")
def test_links_pipes_and_empty_folders_are_found_and_not_opened(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_bytes(b"secret")
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "lost").symlink_to(tmp_path / "nowhere")
    os.mkfifo(folder / "pipe")
    (folder / "empty").mkdir()
    assert {f.message for f in check(folder) if f.result == "fail"} == {
        "link: is a link", "lost: is a link", "pipe: is no file", "empty: is an empty folder",
    }  # fmt: skip
    (folder / STATEMENT).unlink()
    os.mkfifo(folder / STATEMENT)
    assert bad(folder) == {"statement"}


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX")
@pytest.mark.parametrize("name", [b"a\x1b[2Jb", b"two\nlines", b"\xff\xfe", "\u202egnp.exe".encode(), b"x" * 250])
def test_a_file_name_cannot_steer_a_terminal_or_break_a_line(folder: Path, name: bytes) -> None:
    with open(os.path.join(os.fsencode(folder), name), "wb"):
        pass
    assert bad(folder) == {"strays"}  # and each line is one, and printable


# -- rows --------------------------------------------------------------------------------------------------------------


def of_rows(change: Callable[[pa.Table], pa.Table]) -> Callable[[Path], None]:
    return lambda folder: write_manifest(folder, change(manifest_of(folder)))


ROWS: Mapping[str, tuple[Callable[[pa.Table], pa.Table], set[str]]] = {
    "added": (lambda t: pa.concat_tables([t, with_column(t.slice(0, 1), "output_id", ["f" * 32])]), {"counts"}),
    "removed": (lambda t: t.slice(1), {"counts", "strays"}),
    "duplicated": (lambda t: pa.concat_tables([t.slice(0, 1), t]), {"counts"}),
    "reordered": (lambda t: t.take(list(reversed(range(len(t))))), {"counts"}),
    "changed": (lambda t: with_column(t, "sha256", ["0" * 64, *t["sha256"].to_pylist()[1:]]), {"pictures"}),
    "resized": (lambda t: with_column(t, "width", [9] * len(t)), {"pictures"}),
    "of another kind": (lambda t: with_column(t, "format", ["eps"] * len(t)), {"names", "pictures"}),
    "of another picture": (
        lambda t: with_column(t, "output_id", ["0" * 32, *t["output_id"].to_pylist()[1:]]), {"names"},
    ),
    "somewhere else": (lambda t: with_column(t, "file", ["../../etc/passwd"] * len(t)), {"names", "pictures"}),
}  # fmt: skip


@pytest.mark.parametrize("what", ROWS)
def test_rows_that_are_changed_are_found(folder: Path, what: str) -> None:
    write_manifest(folder, ROWS[what][0](manifest_of(folder)))
    assert bad(folder) == {"digests"}


@pytest.mark.parametrize("what", ROWS)
def test_rows_that_are_changed_and_signed_anew_are_found(images: Path, what: str) -> None:
    change, expected = ROWS[what]
    write_manifest(images, change(manifest_of(images)))
    sign_anew(images)
    assert bad(images) >= expected


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
@pytest.mark.parametrize("what", ROWS)
def test_rows_of_parts_that_are_changed_and_signed_anew_are_found(
    published: Mapping[str, Path], tmp_path: Path, layout: str, what: str
) -> None:
    folder = Path(shutil.copytree(published[layout] / "public", tmp_path / "public"))
    write_manifest(folder, ROWS[what][0](manifest_of(folder)))
    sign_anew(folder)
    assert bad(folder)


def test_the_merkle_root_stands_for_the_rows_whatever_the_file_says(images: Path) -> None:
    table = manifest_of(images)
    write_manifest(images, with_column(table, "caption", ["another", *table["caption"].to_pylist()[1:]]))
    sign_anew(images, lambda said: said["manifest"].update(merkle_root=said_by(images)["manifest"]["merkle_root"]))
    assert bad(images) == {"merkle"}


COLUMNS: Mapping[str, tuple[Callable[[pa.Table], pa.Table], str]] = {
    **{
        name: (lambda t, name=name: with_column(t, name, pa.array(["x"] * len(t))), f"has private columns: {name}")
        for name in sorted(PRIVATE_COLUMNS)
    },
    "exact scores": (
        lambda t: with_column(t, "lpips", pa.array([0.5] * len(t), pa.float32())), "scores that it was not meant to",
    ),
    "bytes": (lambda t: with_column(t, "thumbnail", pa.array([b"x"] * len(t))), "thumbnail is binary"),
    "nested": (lambda t: with_column(t, "more", pa.array([{"a": 1}] * len(t))), "more is struct"),
    "one missing": (lambda t: t.drop_columns(["sha256"]), "has no sha256"),
    "two of one name": (lambda t: t.append_column("sha256", t["sha256"]), "is no Parquet file that can be read"),
    "of another type": (lambda t: t.set_column(4, "bytes", t["bytes"].cast(pa.string())), "bytes is string"),
    "with gaps": (lambda t: with_column(t, "file", pa.array([None] * len(t), pa.string())), "file is missing in some"),
    "with metadata": (lambda t: t.replace_schema_metadata({"source": "/home/ada"}), "holds more than its rows"),
}  # fmt: skip


@pytest.mark.parametrize("what", COLUMNS)
def test_columns_that_should_not_be_there_are_found_though_all_was_signed_anew(images: Path, what: str) -> None:
    change, said = COLUMNS[what]
    write_manifest(images, change(manifest_of(images)))
    if what == "two of one name":  # of which no statement can be made with our own tools
        place = StoragePath.from_uri(str(images))
        digests = {**statement.read(place).digests, MANIFEST: statement.file_digest(place / MANIFEST)}
        write_statement(images, said_by(images), digests)
    else:
        sign_anew(images)
    found = [finding for finding in check(images) if finding.result == "fail" and said in finding.message]
    assert [finding.check for finding in found] == ["schema"]


def test_every_column_of_the_ledger_is_private_or_known_to_the_manifest() -> None:
    public_ones = {*MANIFEST_TYPES, "clip_similarity", "lpips"}
    assert {field.name for field in dataclasses.fields(ledger.LedgerRow)} <= public_ones | PRIVATE_COLUMNS
    assert not PRIVATE_COLUMNS & public_ones


# -- the statement -----------------------------------------------------------------------------------------------------


def spelled(change: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """The envelope with its JSON changed, and spelled as it was."""

    def apply(data: bytes) -> bytes:
        told = json.loads(data)
        change(told)
        return json.dumps(told, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    return apply


def backwards(data: bytes | str) -> bytes:
    """JSON with its keys in another order."""
    return json.dumps(dict(reversed(json.loads(data).items())), separators=(",", ":")).encode()


def also_signed(told: dict[str, Any]) -> None:
    told["signatures"].append(dict(told["signatures"][0], keyid="f" * 64))


def without_padding(told: dict[str, Any]) -> None:
    told["payload"] = told["payload"].rstrip("=") + "===="


def for_addresses(told: dict[str, Any]) -> None:
    for signature in told["signatures"]:
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
    "other order": lambda data: backwards(data) + b"\n",
    "a key twice": lambda data: data.replace(b'{"payload"', b'{"payload":"","payload"', 1),
    "payload type twice": lambda data: data.replace(b'"payloadType"', b'"payloadType":"x","payloadType"', 1),
    "a signature's key twice": lambda data: data.replace(b'"keyid"', b'"keyid":"","keyid"', 1),
    "more keys": spelled(lambda told: told.update(note="x")),
    "more keys in a signature": spelled(lambda told: told["signatures"][0].update(note="x")),
    "other base64": spelled(lambda told: told.update(payload=told["payload"][:4] + "\n" + told["payload"][4:])),
    "base64 for addresses": spelled(for_addresses),
    "base64 with more padding": spelled(without_padding),
    "other payload type": spelled(lambda told: told.update(payloadType="application/json")),
    "no signature": spelled(lambda told: told.update(signatures=[])),
    "a signature twice": spelled(lambda told: told["signatures"].append(dict(told["signatures"][0]))),
    "signatures in another order": spelled(lambda told: told["signatures"].reverse()),
    "unknown key": spelled(also_signed),
    "deep": lambda data: b"[" * 100_000,
    "a long number": lambda data: b"1" * 100_000 + b"\n",
    "a byte order mark": lambda data: b"\xef\xbb\xbf" + data,
    "UTF-16": lambda data: data.decode().encode("utf-16"),
}


@pytest.mark.parametrize("how", SPELLINGS)
def test_an_envelope_in_any_other_spelling_is_found(images: Path, how: str) -> None:
    before = (images / STATEMENT).read_bytes()
    after = SPELLINGS[how](before)
    assert after != before
    (images / STATEMENT).write_bytes(after)
    assert bad(images) <= {"statement", "signature", "approvals"} and bad(images)


@pytest.mark.parametrize("how", ["white space", "a key twice", "one more", "another order"])
def test_a_payload_in_any_other_spelling_is_found_though_it_is_signed(images: Path, how: str) -> None:
    payload = json.loads((images / STATEMENT).read_bytes())["payload"]
    told = base64.b64decode(payload).decode()
    other = {
        "white space": told.replace(":", ": "),
        "a key twice": told.replace('"predicateType"', '"predicateType":"x","predicateType"'),
        "one more": told.replace('"predicateType"', '"note":"x","predicateType"'),
        "another order": backwards(told).decode(),
    }[how]
    made = dsse.SignedStatement({}, {}, Envelope(other.encode(), dsse.PAYLOAD_TYPE, {}))
    for signer in ALL:
        made = made.with_signature(signer)
    (images / STATEMENT).write_bytes(dsse.dumps([made]))
    assert bad(images) == {"statement"}


@pytest.mark.parametrize("missing", range(3))
def test_a_signature_that_is_stripped_is_missed(images: Path, missing: int) -> None:
    sign_anew(images, by=[signer for i, signer in enumerate(ALL) if i != missing])
    assert bad(images) == ({"signature"} if missing == 0 else {"approvals"})


@pytest.mark.parametrize("forger", range(3))
def test_a_signature_by_a_wrong_key_under_the_name_of_another_is_found(images: Path, forger: int) -> None:
    signed = statement.read(StoragePath.from_uri(str(images)))
    forged = signed.with_signature(EVE).envelope.signatures[EVE.public_key.keyid].signature
    signed.envelope.signatures[ALL[forger].public_key.keyid].signature = forged
    (images / STATEMENT).write_bytes(dsse.dumps([signed]))
    assert bad(images) == ({"signature"} if forger == 0 else {"approvals"})


def test_one_more_signature_by_a_key_that_is_not_listed_is_found(images: Path) -> None:
    sign_anew(images, by=[*ALL, EVE])
    assert bad(images) == {"approvals"}


def test_one_approver_under_two_names_is_found(images: Path) -> None:
    both = {"ada": public(ADA), "bob": public(ADA)}
    sign_anew(images, lambda said: said["approvals"].update(approvers=both), by=[PUBLISHER, ADA])
    assert bad(images) == {"statement"}


def test_publishers_cannot_approve_what_they_publish(images: Path) -> None:
    both = {"ada": public(ADA), "me": public(PUBLISHER)}
    sign_anew(images, lambda said: said["approvals"].update(approvers=both), by=[PUBLISHER, ADA])
    (one,) = [finding for finding in check(images) if finding.result == "fail"]
    assert (one.check, one.message) == ("approvals", "1 of 2 that are required (ada)")


def test_a_changed_statement_that_only_its_publisher_signs_anew_has_lost_its_approvals(images: Path) -> None:
    sign_anew(images, lambda said: said.update(created="2026-01-01"), by=[PUBLISHER])
    assert bad(images) == {"approvals"}


def test_a_changed_statement_that_its_approvers_sign_and_its_publisher_does_not_is_found(images: Path) -> None:
    sign_anew(images, lambda said: said.update(created="2026-01-01"), by=[ADA, BOB])
    assert bad(images) == {"signature"}


def test_a_forged_publisher_is_found_with_trust_and_only_noted_without(images: Path) -> None:
    approvers = {"ada": public(BOB), "bob": public(EVE)}
    forger = signing.generate_key_pair()

    def forge(said: dict[str, Any]) -> None:
        said.update(publisher=public(forger))
        said["approvals"].update(approvers=approvers)

    sign_anew(images, forge, by=[forger, BOB, EVE])
    assert failing(check(images, [public(PUBLISHER)])) == {"signature"}
    found = check(images)
    assert failing(found) == set()
    (note,) = [finding for finding in found if finding.result == "note"]
    assert note.check == "signature" and "compare that key with the publisher's" in note.message
    assert f"by {public(forger)}" in {finding.message for finding in found}


@pytest.mark.parametrize(
    ("change", "check_name"),
    [
        (lambda said: said["gate"].update(result="fail"), "gate"),
        (lambda said: said["gate"]["rules"][0].update(result="fail"), "gate"),
        (lambda said: said["gate"]["rules"][0].update(result="waived"), "gate"),
        (lambda said: said["counts"].update(released=5), "counts"),
        (lambda said: said["counts"].update(failed=0), "counts"),
        (lambda said: said["manifest"].update(rows=5), "counts"),
        (lambda said: said["manifest"]["columns"].pop(), "schema"),
        (lambda said: said["manifest"].update(public_scores="none"), "schema"),
        (lambda said: said["manifest"].update(merkle_root="0" * 64), "merkle"),
        (lambda said: said["approvals"].update(required=3), "approvals"),
    ],
)
def test_a_statement_that_says_what_is_not_so_is_found(images: Path, change: Change, check_name: str) -> None:
    sign_anew(images, change)
    assert bad(images) == {check_name}


def test_a_waiver_is_noted_with_who_and_why(images: Path) -> None:
    def waive(said: dict[str, Any]) -> None:
        (rule,) = said["gate"]["rules"]
        rule.update(result="waived")
        said["gate"]["waivers"].append({"rule": "max_failed", "who": "Ada", "why": "pilot", "until": "2027-01-01"})

    sign_anew(images, waive)
    assert "max_failed was waived by Ada until 2027-01-01: pilot" in {f.message for f in check(images)}
    assert bad(images) == set()


def test_a_manifest_that_was_not_signed_is_not_believed(images: Path) -> None:
    sign_anew(images, digests=lambda digests: digests.pop(MANIFEST))
    assert bad(images) == {"digests"}


def test_a_name_that_leads_out_of_the_release_is_not_followed(images: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    digest = statement.file_digest(StoragePath.from_uri(str(tmp_path / "secret")))
    for name in ("../secret", str(tmp_path / "secret"), "images/../../secret"):
        sign_anew(images, digests=lambda digests, name=name: digests.update({name: digest}))
        assert {f.message for f in check(images) if f.result == "fail"} == {f"{name}: is missing"}


# -- what was taken back -----------------------------------------------------------------------------------------------


def revoke(folder: Path, revoked: Mapping[str, str], signer: CryptoSigner = PUBLISHER) -> None:
    (folder / REVOCATIONS).write_bytes(dsse.dumps([revocation.build(revoked, signer)]))
    sign_anew(folder)


def test_a_revoked_picture_that_is_back_is_found_by_its_id_and_by_its_bytes(folder: Path) -> None:
    row = manifest_of(folder).slice(2, 1).to_pylist()[0]
    revoke(folder, {"0" * 32: "0" * 64})
    assert bad(folder) == set()
    for back in ({row["output_id"]: "0" * 64}, {"0" * 32: row["sha256"]}):
        revoke(folder, back)
        assert bad(folder) == {"revocations"}


def test_a_revocation_that_is_changed_or_signed_by_nobody_is_found(images: Path) -> None:
    revoke(images, {"0" * 32: "0" * 64})
    file = images / REVOCATIONS
    with flipped(file, 100, 1):
        assert bad(images) == {"digests"}
        sign_anew(images)
        assert bad(images) == {"revocations"}
    told = json.loads(file.read_bytes())
    file.write_bytes(json.dumps(told | {"signatures": []}, sort_keys=True, separators=(",", ":")).encode() + b"\n")
    sign_anew(images)
    assert bad(images) == {"revocations"}


def test_a_revocation_by_another_key_is_noted(images: Path) -> None:
    revoke(images, {"0" * 32: "0" * 64}, EVE)
    notes = [finding for finding in check(images, [public(PUBLISHER)]) if finding.result == "note"]
    assert [note.check for note in notes] == ["revocations"]
    assert bad(images) == set()


# -- what the publisher smuggles in ------------------------------------------------------------------------------------


def replace_picture(folder: Path, data: bytes, **more: Any) -> None:
    """Another first picture in a release whose pictures are files, all digests and signatures being made anew."""
    table = manifest_of(folder)
    first = table.slice(0, 1).to_pylist()[0]
    (folder / first["file"]).write_bytes(data)
    for name, value in ({"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)} | more).items():
        table = with_column(table, name, pa.array([value, *table[name].to_pylist()[1:]], table.schema.field(name).type))
    write_manifest(folder, table)
    sign_anew(folder)


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def with_text() -> PngInfo:
    info = PngInfo()
    info.add_text("Author", "Ada")
    return info


def with_place() -> Image.Exif:
    exif = Image.Exif()
    exif[0x8825] = {1: "N"}
    return exif


GREY = Image.fromarray(np.full((8, 8, 3), 99, dtype=np.uint8))
SMUGGLED = {
    "text": (saved(GREY, pnginfo=with_text()), "carries text"),
    "where it was taken": (saved(GREY, exif=with_place()), "carries exif, gps"),
    "bytes at its end": (saved(GREY) + b"original.png", "carries trailing data"),
    "transparency": (saved(GREY.convert("RGBA")), "holds more than one opaque picture"),
    "a second frame": (
        saved(GREY, save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]), "holds more than one opaque",
    ),
    "another size": (saved(GREY.resize((9, 8))), "has another size"),
    "another kind": (saved(GREY, "JPEG"), "does not decode"),
    "a cut one": (saved(GREY)[:60], "carries unreadable"),
}  # fmt: skip


@pytest.mark.parametrize("what", SMUGGLED)
def test_what_a_picture_carries_is_found_though_all_was_signed_anew(images: Path, what: str) -> None:
    data, said = SMUGGLED[what]
    replace_picture(images, data)
    (one,) = [finding for finding in check(images) if finding.result == "fail"]
    assert one.check == "pictures" and said in one.message


def test_a_plain_picture_that_is_signed_anew_passes(images: Path) -> None:
    replace_picture(images, encoded(np.full((8, 8, 3), 99, dtype=np.uint8)))
    assert bad(images) == set()


def members(data: bytes) -> list[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [(member, tar.extractfile(member).read()) for member in tar]  # type: ignore[union-attr]


def tar_of(found: Sequence[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.TarFile(fileobj=file, mode="w", format=form) as tar:
        for member, data in found:
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


def named(found: list[tuple[tarfile.TarInfo, bytes]], **values: Any) -> list[tuple[tarfile.TarInfo, bytes]]:
    for name, value in values.items():
        setattr(found[0][0], name, value)
    return found


def told_more(found: list[tuple[tarfile.TarInfo, bytes]], **more: Any) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [
        (m, json.dumps(json.loads(data) | more).encode() if m.name.endswith(".json") else data) for m, data in found
    ]


def retold(found: list[tuple[tarfile.TarInfo, bytes]], suffix: str) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [(m, b"secret" if m.name.endswith(suffix) else data) for m, data in found]


TARS: Mapping[str, Callable[[bytes], bytes]] = {
    "a member": lambda data: tar_of([*members(data), (tarfile.TarInfo("more.txt"), b"more")]),
    "a member of one of the pictures": lambda data: tar_of(
        [*members(data), (tarfile.TarInfo(members(data)[0][0].name[:32] + ".exif"), b"more")]
    ),
    "a member twice": lambda data: tar_of([*members(data), members(data)[0]]),
    "a column": lambda data: tar_of(told_more(members(data), source_hmac="ab" * 32)),
    "another label": lambda data: tar_of(told_more(members(data), label="ada")),
    "another caption": lambda data: tar_of(retold(members(data), ".txt")),
    "an owner": lambda data: tar_of(named(members(data), uname="ada")),
    "a time": lambda data: tar_of(named(members(data), mtime=1)),
    "a comment": lambda data: tar_of(named(members(data), pax_headers={"comment": "ada"}), tarfile.PAX_FORMAT),
    "a link": lambda data: tar_of(named(members(data), type=tarfile.SYMTYPE, linkname="/etc/passwd")),
    "bytes after its end": lambda data: data + b"more",
    "zeros and bytes after its end": lambda data: data + b"\0" * 10240 + tar_of(members(data)),
    "bytes between members": lambda data: (
        data[: 512 + members(data)[0][0].size] + b"x" + data[512 + members(data)[0][0].size + 1 :]
    ),
    "no end": lambda data: data[:512],
    "no tar": lambda data: b"\1" * 10240,
    "nothing": lambda data: b"",
}


@pytest.mark.parametrize("what", TARS)
def test_what_a_tar_holds_besides_is_found_though_all_was_signed_anew(
    published: Mapping[str, Path], tmp_path: Path, what: str
) -> None:
    folder = Path(shutil.copytree(published["webdataset"] / "public", tmp_path / "public"))
    part = folder / "data" / "part-00000.tar"
    before = part.read_bytes()
    part.write_bytes(tar_of(members(before)))
    assert part.read_bytes() == before, "what is changed must be all that is"
    part.write_bytes(TARS[what](before))
    sign_anew(folder)
    assert bad(folder) == {"pictures"}


def an_image(table: pa.Table, **more: Any) -> pa.Table:
    """The table with its pictures' structs changed."""
    values = [row | {k: v(row) if callable(v) else v for k, v in more.items()} for row in table["image"].to_pylist()]
    kind = pa.array(values).type if set(more) - {"bytes", "path"} else IMAGE_TYPE
    return table.set_column(1, pa.field("image", kind), pa.array(values, kind))


PARTS: Mapping[str, Callable[[pa.Table], pa.Table]] = {
    "a column": lambda t: t.append_column("source_hmac", pa.array(["ab" * 32] * len(t))),
    "a column less": lambda t: t.drop_columns(["age"]),
    "columns in another order": lambda t: t.select(list(reversed(t.column_names))),
    "a field": lambda t: an_image(t, source="x"),
    "other paths": lambda t: an_image(t, path="ada/passport.png"),
    "no picture": lambda t: an_image(t, bytes=None),
    "more in a picture": lambda t: an_image(t, bytes=lambda row: row["bytes"] + b"more"),
    "other ids": lambda t: with_column(t, "output_id", ["0" * 32] * len(t)),
    "other labels": lambda t: with_column(t, "label", ["ada"] * len(t)),
    "other captions": lambda t: with_column(t, "caption", ["ada"] * len(t)),
    "metadata": lambda t: t.replace_schema_metadata({"source": "ada"}),
    "a row": lambda t: pa.concat_tables([t, t.slice(0, 1)]),
    "a row less": lambda t: t.slice(1),
    "rows in another order": lambda t: t.take(list(reversed(range(len(t))))),
}


@pytest.mark.parametrize("what", PARTS)
def test_what_a_parquet_part_holds_besides_is_found_though_all_was_signed_anew(
    published: Mapping[str, Path], tmp_path: Path, what: str
) -> None:
    folder = Path(shutil.copytree(published["parquet"] / "public", tmp_path / "public"))
    part = folder / "data" / "part-00000.parquet"
    table = pq.read_table(part)
    pq.write_table(table, part)
    sign_anew(folder)
    assert bad(folder) == set(), "what is changed must be all that is"
    pq.write_table(PARTS[what](table), part)
    sign_anew(folder)
    assert bad(folder) == {"pictures"}


# -- garbage -----------------------------------------------------------------------------------------------------------

many = hypothesis_settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    database=None,
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)


@many
@given(data=st.binary(max_size=200))
def test_random_bytes_in_the_place_of_the_statement_are_one_line(images: Path, data: bytes) -> None:
    (images / STATEMENT).write_bytes(data)
    assert bad(images) == {"statement"}


@many
@given(data=st.binary(max_size=200))
def test_random_bytes_in_the_place_of_the_manifest_are_found_though_they_were_signed(images: Path, data: bytes) -> None:
    signed = statement.read(StoragePath.from_uri(str(images)))
    (images / MANIFEST).write_bytes(data)
    digest = statement.file_digest(StoragePath.from_uri(str(images)) / MANIFEST)
    write_statement(images, signed.predicate, {**signed.digests, MANIFEST: digest})
    assert bad(images) == {"schema"}


@many
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_damaged_manifest_never_raises_though_it_was_signed(images: Path, at: float, other: int) -> None:
    signed, before = statement.read(StoragePath.from_uri(str(images))), (images / MANIFEST).read_bytes()
    data = bytearray(before)
    data[int(at * len(data))] ^= other
    (images / MANIFEST).write_bytes(data)
    digest = statement.file_digest(StoragePath.from_uri(str(images)) / MANIFEST)
    write_statement(images, signed.predicate, {**signed.digests, MANIFEST: digest})
    check(images)
    (images / MANIFEST).write_bytes(before)


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_a_damaged_part_never_raises_though_it_was_signed(published: Mapping[str, Path], layout: str) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(shutil.copytree(published[layout] / "public", Path(scratch) / "public"))
        (part,) = pictures(folder)
        signed, before = statement.read(StoragePath.from_uri(str(folder))), part.read_bytes()
        name = str(part.relative_to(folder))

        @many
        @given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
        def damage(at: float, other: int) -> None:
            data = bytearray(before)
            data[int(at * len(data))] ^= other
            part.write_bytes(data)
            digest = statement.file_digest(StoragePath.from_uri(str(part)))
            write_statement(folder, signed.predicate, {**signed.digests, name: digest})
            assert bad(folder) <= {"pictures"}

        damage()


def places(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where something stands in a predicate."""
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inside:
        if path[:1] != ("audit",):
            yield (*path, key)
            yield from places(value, (*path, key))


def at(tree: Any, path: Sequence[Any]) -> Any:
    for key in path:
        tree = tree[key]
    return tree


def test_a_statement_with_anything_missing_or_more_is_found_though_it_is_signed(images: Path) -> None:
    signed, said = statement.read(StoragePath.from_uri(str(images))), said_by(images)
    everywhere = [path for path in places(said) if isinstance(path[-1], str)]
    assert len(everywhere) > 50
    named_freely = {("code", "libraries"), ("approvals", "approvers")}
    for path in everywhere:
        other = copy.deepcopy(said)
        del at(other, path[:-1])[path[-1]]
        write_statement(images, other, signed.digests)
        expected = {"approvals"} if path[:-1] == ("approvals", "approvers") else {"statement"}
        assert bad(images) == (set() if path[:-1] == ("code", "libraries") else expected), path
    for path in {path[:-1] for path in everywhere} - named_freely:
        other = copy.deepcopy(said)
        at(other, path)["note"] = "home/ada/1.png"
        write_statement(images, other, signed.digests)
        assert bad(images) == {"statement"}, path


@many
@given(data=st.data())
def test_a_statement_with_anything_else_in_any_place_never_raises(images: Path, data: st.DataObject) -> None:
    signed, said = statement.read(StoragePath.from_uri(str(images))), said_by(images)
    before = (images / STATEMENT).read_bytes()
    path = data.draw(st.sampled_from(list(places(said))))
    at(said, path[:-1])[path[-1]] = data.draw(JSON)
    write_statement(images, said, signed.digests)
    check(images)
    (images / STATEMENT).write_bytes(before)


@many
@given(said=JSON)
def test_a_statement_that_says_anything_at_all_never_raises(images: Path, said: Any) -> None:
    signed, before = statement.read(StoragePath.from_uri(str(images))), (images / STATEMENT).read_bytes()
    write_statement(images, said, signed.digests)
    assert bad(images) == {"statement"}
    (images / STATEMENT).write_bytes(before)


@many
@given(names=st.dictionaries(st.text(), st.sampled_from(["0" * 64, "", "0" * 63 + "G", "0" * 65]), min_size=1))
def test_subjects_of_any_name_never_raise(images: Path, names: dict[str, str]) -> None:
    signed, before = statement.read(StoragePath.from_uri(str(images))), (images / STATEMENT).read_bytes()
    write_statement(images, signed.predicate, {**signed.digests, **names})
    assert bad(images)
    (images / STATEMENT).write_bytes(before)


# -- both halves -------------------------------------------------------------------------------------------------------


def both(release: Release, key: CustodianKey = KEY) -> list[Finding]:
    text = release.config.read().decode()
    config = configuration.build(configuration.parse(text, "config.yaml"))
    found = list(check_restricted(release, config, key))
    assert all(len(f.message.splitlines()) == 1 and f.message.isprintable() for f in found)
    return found


def test_both_halves_of_an_untouched_release_agree(whole: Release) -> None:
    found = both(whole)
    assert [(f.check, f.result) for f in found] == [
        (name, "pass") for name in ("modes", "events", "decision", "ledger", "materials", "settings", "quarantine")
    ]
    assert "8 read, 6 released, 1 quarantined, 1 failed, and no other" in {finding.message for finding in found}


def change_shard(release: Release, change: Callable[[pa.Table], pa.Table], shard: int = 0) -> None:
    table = parquet.read(release.shard_ledger(shard))
    release.shard_ledger(shard).write(parquet.to_bytes(change(table)))


def swap_shards(release: Release) -> None:
    first, second = release.shard_ledger(0).read(), release.shard_ledger(1).read()
    release.shard_ledger(0).write(second)
    release.shard_ledger(1).write(first)


def other_log(release: Release) -> None:
    release.event_log.remove()
    for _ in range(20):
        event_log.record(release, "planned", records=8)


def opened(release: Release) -> None:
    os.chmod(release.shard_ledger(0).path, 0o644)


def held_back(release: Release) -> StoragePath:
    (place,) = release.quarantine.children()
    return place


RESTRICTED: Mapping[str, tuple[Callable[[Release], object], set[str]]] = {
    "a row less": (lambda r: change_shard(r, lambda t: t.slice(1)), {"ledger"}),
    "a row twice": (lambda r: change_shard(r, lambda t: pa.concat_tables([t, t.slice(0, 1)])), {"ledger"}),
    "another score": (lambda r: change_shard(r, lambda t: with_column(t, "lpips", [0.5] * len(t))), {"ledger"}),
    "another digest": (lambda r: change_shard(r, lambda t: with_column(t, "sha256", ["0" * 64] * len(t))), {"ledger"}),
    "other originals": (
        lambda r: change_shard(r, lambda t: with_column(t, "source_hmac", ["0" * 64] * len(t))),
        {"ledger", "materials"},
    ),
    "other columns": (lambda r: change_shard(r, lambda t: t.drop_columns(["kept"])), {"ledger"}),
    "shards swapped": (swap_shards, {"ledger"}),
    "a shard missing": (lambda r: r.shard_ledger(1).remove(), {"ledger"}),
    "a shard of garbage": (lambda r: r.shard_ledger(1).write(b"garbage"), {"ledger"}),
    "no ledger": (lambda r: r.ledger.remove(), {"ledger"}),
    "garbage on what was purged": (lambda r: (r.ledger.remove(), r.purged.write(b"records")), {"ledger"}),
    "a plan of garbage": (lambda r: r.plan.write(b"[]"), {"ledger"}),
    "a plan of other types": (
        lambda r: r.plan.write(json.dumps(json.loads(r.plan.read()) | {"shards": "many"}).encode()), {"ledger"},
    ),
    "entries of garbage": (lambda r: r.shard_plan(0).write(b"{"), {"ledger"}),
    "the log of another release": (other_log, {"events", "ledger"}),
    "no log": (lambda r: r.event_log.remove(), {"events", "ledger"}),
    "a log that is cut": (
        lambda r: r.event_log.write(b"".join(r.event_log.read().splitlines(keepends=True)[:2])), {"events", "ledger"},
    ),
    "a log with a line changed": (
        lambda r: r.event_log.write(r.event_log.read().replace(b'"records": 8', b'"records": 9')), {"events", "ledger"},
    ),
    "open to others": (opened, {"modes"}),
    "a strange file in quarantine": (lambda r: (r.quarantine / "more.png").write_uncommitted(b"more"), {"quarantine"}),
    "quarantine emptied": (lambda r: held_back(r).remove(), {"quarantine"}),
    "another file in quarantine": (lambda r: held_back(r).write_uncommitted(b"other"), {"quarantine"}),
    "another statement": (lambda r: r.statement.write(b"{}"), {"ledger"}),
}  # fmt: skip


@pytest.mark.parametrize("what", RESTRICTED)
def test_what_is_done_to_the_restricted_half_is_found(whole: Release, what: str) -> None:
    change, expected = RESTRICTED[what]
    change(whole)
    assert failing(both(whole)) == expected


def test_a_wrong_key_of_the_custodian_is_told_from_none_at_all(whole: Release) -> None:
    wrong, none = CustodianKey(bytes(range(1, 33))), CustodianKey(bytes(range(32)), is_persistent=False)
    assert failing(both(whole, wrong)) == {"materials"}
    assert [(f.check, f.result) for f in both(whole, none) if f.result != "pass"] == [("materials", "note")]


def test_records_that_were_purged_are_not_missed(whole: Release) -> None:
    whole.ledger.remove()
    whole.purged.write(json.dumps({"records": "2026-12-01"}).encode())
    assert failing(both(whole)) == {"ledger"}, "anybody can write that file: the log must say so too"
    event_log.record(whole, "purged", what="records", places=1)
    assert [(f.check, f.result) for f in both(whole) if f.result != "pass"] == [("ledger", "note")]


@pytest.mark.parametrize("change", ["missing", "another policy", "garbage", "not signed"])
def test_a_decision_that_is_not_the_publishers_is_told(whole: Release, change: str) -> None:
    (last,) = dsse.loads(whole.decision_log.read(), publish.DECISION_PREDICATE)
    if change == "missing":
        whole.decision_log.remove()
    elif change == "garbage":
        whole.decision_log.write(b"garbage")
    elif change == "not signed":
        bare = dsse.build(publish.DECISION_PREDICATE, last.digests, last.predicate, None)
        whole.decision_log.write(dsse.dumps([bare]))
    else:
        text = whole.config.read().decode()
        whole.config.write(re.sub(r"min_released: \d+", "min_released: 7", text).encode())
        assert text != whole.config.read().decode()
    assert failing(both(whole)) == {"decision"}


def test_a_picture_that_was_changed_and_signed_anew_is_none_of_the_ledgers(whole: Release) -> None:
    replace_picture(Path(whole.public.path), saved(GREY))
    assert bad(Path(whole.public.path)) == set()
    assert {f.message for f in both(whole) if f.result == "fail"} == {
        "the last decision does not let this release out",
        "1 pictures are not those that the ledger speaks of",
    }


class Strange(PlainScorer):
    """Scores other than those of the run."""

    def score_one(self, original: Any, output: Any) -> Scores:
        return Scores(clip_similarity=-5.0, lpips=5.0)


@pytest.fixture
def at_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Release:
    """A release whose originals, model and key are at hand."""
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", PUBLISHER.private_bytes.decode())
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setattr(replay_job, "backbone_of", lambda model: IdealGaussian())
    monkeypatch.setattr(replay_job, "scorer_of", lambda metrics, device: PlainScorer())
    return run(settings(people(tmp_path / "in", 5), tmp_path / "out"))


def again(release: Release) -> dict[str, tuple[str, str]]:
    """What is said of scores and pictures that are made again; one line on each."""
    found = list(replay_job.verify_release(release, rescore=4, replay=3))
    assert len([f for f in found if f.check == "replay"]) <= 1
    return {f.check: (f.result, f.message) for f in found if f.check in ("scores", "replay", "originals", "ledger")}


def test_scores_are_measured_and_pictures_drawn_again_to_the_byte(at_hand: Release) -> None:
    found = again(at_hand)
    assert found["scores"] == ("pass", "4 measured again, within 0.02 of the ledger")
    assert found["replay"] == ("pass", "3 drawn again to the byte")


def test_other_scores_and_other_pictures_are_told(at_hand: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay_job, "scorer_of", lambda metrics, device: Strange())
    original = Boomerang.sample
    monkeypatch.setattr(Boomerang, "sample", lambda *args, **more: -original(*args, **more))
    found = again(at_hand)
    assert found["scores"] == ("fail", "4 of 4 scores are not those in the ledger (beyond 0.02)")
    assert found["replay"] == ("fail", "3 of 3 pictures come out otherwise")


def test_what_is_not_at_hand_is_said(at_hand: Release, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ANONYMIZER_KEY")
    assert again(at_hand)["replay"][0] == "fail", "what was asked for was not done"
    monkeypatch.setattr(replay_job, "backbone_of", lambda model: Another())
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    assert again(at_hand)["replay"] == (
        "note",
        "3 were drawn with another model or other settings, for an earlier release",
    )
    shutil.rmtree(tmp_path / "in")
    assert again(at_hand)["originals"] == ("fail", "are gone: nothing was measured or drawn again")


class Another(IdealGaussian):
    def __init__(self) -> None:
        super().__init__()
        self.digest = "0" * 64


def test_nothing_is_made_again_of_a_ledger_that_does_not_hold(at_hand: Release) -> None:
    at_hand.shard_ledger(0).write(b"garbage")
    assert set(again(at_hand)) == {"ledger"}


# -- the command -------------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_wrong_in_json_and_leaves_with_1(folder: Path) -> None:
    (folder / "two\nlines").write_bytes(b"")
    done = CliRunner().invoke(main, ["verify", str(folder), "--json"])
    told = json.loads(done.stdout)
    assert (done.exit_code, told["passed"]) == (1, False)
    assert [f["said"] for f in told["findings"] if f["result"] == "fail"] == ["two%0Alines: nothing speaks of it"]


def test_the_command_leaves_with_0_and_believes_only_the_key_that_it_is_given(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "publisher.pub").write_text(public(PUBLISHER) + "\n")
    for trust, code in [(str(tmp_path / "publisher.pub"), 0), (public(PUBLISHER), 0), (public(EVE), 1)]:
        assert CliRunner().invoke(main, ["verify", str(folder), "--trust", trust]).exit_code == code


def test_a_private_key_that_is_given_to_be_trusted_is_not_repeated(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "ada.key").write_bytes(ADA.private_bytes)
    for given_key in (ADA.private_bytes.decode(), str(tmp_path / "ada.key")):
        done = CliRunner().invoke(main, ["verify", str(folder), "--trust", given_key])
        assert done.exit_code == 2 and done.stderr.startswith("error: --trust: no public key")
        assert "PRIVATE" not in done.output and ADA.private_bytes.decode().splitlines()[1] not in done.output


def test_a_whole_release_that_lies_in_a_public_half_is_not_taken_for_it(whole: Release, tmp_path: Path) -> None:
    bad_one = Path(shutil.copytree(whole.public.path, tmp_path / "outer"))
    shutil.copytree(whole.public.path, bad_one / "public")
    assert CliRunner().invoke(main, ["verify", str(bad_one), "--json"]).exit_code == 1


@pytest.mark.parametrize("lost", ["plan.json", "config.yaml", "ledger", "events.jsonl"])
def test_a_restricted_half_that_has_lost_a_file_does_not_pass(
    whole: Release, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    command = ["verify", str(whole.root), "--rescore", "0", "--json"]
    assert CliRunner().invoke(main, command).exit_code == 0
    (whole.restricted / lost).remove()
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 1 and not json.loads(done.stdout)["passed"]


def test_nothing_heavy_is_loaded_to_verify_a_public_half(images: Path) -> None:
    code = (
        "import sys; from flows.cli import main\n"
        "try: main(['verify', sys.argv[1]])\n"
        "except SystemExit as leave: assert not leave.code\n"
        "print('HEAVY', sorted({'torch', 'prefect', 'diffusers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(images)], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("HEAVY []") and done.stderr == ""


def test_pictures_are_called_as_they_are_written() -> None:
    """The names stand in two places, so that verifying does without what writing needs."""
    assert SUFFIXES == codec.SUFFIXES
