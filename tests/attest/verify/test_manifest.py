"""Changed rows and unexpected columns of a manifest are found, even in one that is signed again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.attest import statement
from anonymizer.attest.verify.manifest import SUFFIXES
from anonymizer.data import image_codec as codec
from anonymizer.schema import LEDGER_SCHEMA, MANIFEST_TYPES, PRIVATE_COLUMNS
from anonymizer.storage.layout import MANIFEST
from anonymizer.storage.path import StoragePath
from tests.support.signed_release import (
    FUZZ,
    check,
    failed_checks,
    read_manifest,
    read_predicate,
    sign_again,
    with_column,
    with_sizes,
    write_manifest,
    write_statement,
)

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
def test_changed_rows_are_found(public_half: Path, what: str) -> None:
    write_manifest(public_half, ROWS[what][0](read_manifest(public_half)))
    assert failed_checks(public_half) == {"digests"}


@pytest.mark.parametrize("what", ROWS)
def test_changed_rows_are_found_in_a_manifest_that_is_signed_again(folder_half: Path, what: str) -> None:
    change, expected = ROWS[what]
    write_manifest(folder_half, change(read_manifest(folder_half)))
    sign_again(folder_half)
    assert failed_checks(folder_half) >= expected


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
@pytest.mark.parametrize("what", ROWS)
def test_changed_rows_of_parts_are_found_in_a_manifest_that_is_signed_again(
    signed_releases: Mapping[str, Path], tmp_path: Path, layout: str, what: str
) -> None:
    public_half = Path(shutil.copytree(signed_releases[layout] / "public", tmp_path / "public"))
    write_manifest(public_half, ROWS[what][0](read_manifest(public_half)))
    sign_again(public_half)
    assert failed_checks(public_half)


def test_the_merkle_root_covers_the_rows(folder_half: Path) -> None:
    table = read_manifest(folder_half)
    write_manifest(folder_half, with_column(table, "caption", ["another", *table["caption"].to_pylist()[1:]]))
    sign_again(
        folder_half,
        lambda predicate: predicate["manifest"].update(
            merkle_root=read_predicate(folder_half)["manifest"]["merkle_root"]
        ),
    )
    assert failed_checks(folder_half) == {"merkle", "metadata"}


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
def test_unexpected_columns_are_found_in_a_manifest_that_is_signed_again(folder_half: Path, what: str) -> None:
    change, predicate = COLUMNS[what]
    write_manifest(folder_half, change(read_manifest(folder_half)))
    if what == "two of one name":  # of which no statement can be made with our own tools
        place = StoragePath.from_uri(str(folder_half))
        digests = {**statement.read(place).digests, MANIFEST: statement.file_digest(place / MANIFEST)}
        write_statement(folder_half, with_sizes(folder_half, read_predicate(folder_half)), digests)
    else:
        sign_again(folder_half)
    found = [finding for finding in check(folder_half) if finding.result == "fail" and predicate in finding.message]
    assert [finding.check for finding in found] == ["schema"]


def test_every_column_of_the_ledger_is_private_or_known_to_the_manifest() -> None:
    public_ones = {*MANIFEST_TYPES, "clip_similarity", "lpips"}
    assert set(LEDGER_SCHEMA.names) <= public_ones | PRIVATE_COLUMNS
    assert not PRIVATE_COLUMNS & public_ones


@FUZZ
@given(data=st.binary(max_size=200))
def test_random_bytes_as_signed_manifest_are_found(folder_half: Path, data: bytes) -> None:
    signed = statement.read(StoragePath.from_uri(str(folder_half)))
    (folder_half / MANIFEST).write_bytes(data)
    digest = statement.file_digest(StoragePath.from_uri(str(folder_half)) / MANIFEST)
    predicate = with_sizes(folder_half, signed.predicate)
    write_statement(folder_half, predicate, {**signed.digests, MANIFEST: digest})
    assert failed_checks(folder_half) == {"schema"}


@FUZZ
@given(st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_a_signed_damaged_manifest_never_raises(folder_half: Path, at: float, other: int) -> None:
    signed, before = statement.read(StoragePath.from_uri(str(folder_half))), (folder_half / MANIFEST).read_bytes()
    data = bytearray(before)
    data[int(at * len(data))] ^= other
    (folder_half / MANIFEST).write_bytes(data)
    digest = statement.file_digest(StoragePath.from_uri(str(folder_half)) / MANIFEST)
    predicate = with_sizes(folder_half, signed.predicate)
    write_statement(folder_half, predicate, {**signed.digests, MANIFEST: digest})
    check(folder_half)
    (folder_half / MANIFEST).write_bytes(before)


def test_suffixes_are_those_of_the_codec() -> None:
    """The names are listed twice, so that verification needs no codec."""
    assert SUFFIXES == codec.SUFFIXES
