"""The external sort equals a sort in memory, and leaves nothing on the disk."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from anonymizer.attest.verify import check_public
from anonymizer.release import assemble
from anonymizer.release.plan import resolve_config
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.storage import external_sort, parquet
from anonymizer.storage.external_sort import ExternalSort
from anonymizer.storage.layout import Release
from tests.support.releases import GARBAGE, KEY, folder_of, listing, manifest, picture, run, settings, tree


def tables(count: int, size: int = 7, keys: Any = lambda: secrets.token_hex(16)) -> list[pa.Table]:
    return [
        pa.table({"key": pa.array([keys() for _ in range(size)], pa.string()), "n": range(at * size, (at + 1) * size)})
        for at in range(count)
    ]


@pytest.mark.parametrize("piece", [5, 50, 10_000])
def test_rows_are_sorted_in_memory_and_in_files(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(external_sort, "PARTITION_ROWS", piece)
    parts = tables(60)
    expected = pa.concat_tables(parts).sort_by("key")
    with ExternalSort(parts, "key", 420) as rows:
        sorted_rows = list(rows.tables())
        assert pa.concat_tables(sorted_rows).equals(expected) and len(rows) == 420
        assert list(rows.keys()) == expected["key"].to_pylist()  # asked for again
        assert len(sorted_rows) == min(external_sort.MAX_PARTITIONS, -(-420 // piece))


def test_sorts_of_the_same_expected_length_share_their_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_sort, "PARTITION_ROWS", 50)
    many = tables(60)
    few = [many[3].slice(2, 2)]  # which never needs a file
    with ExternalSort(many, "key", 420) as one, ExternalSort(few, "key", 420) as other:
        pairs = list(zip(one.tables(), other.tables(), strict=True))
    assert sum(len(b) for _, b in pairs) == 2
    assert all(set(b["key"].to_pylist()) <= set(a["key"].to_pylist()) for a, b in pairs)


def test_missing_and_equal_keys_lose_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_sort, "PARTITION_ROWS", 10)
    odd = iter([None, "", "~", "ffff", "0000", None, *["8000"] * 100])
    with ExternalSort(tables(10, 10, lambda: next(odd)), "key", 100) as rows:
        sorted_rows = pa.concat_tables(rows.tables())
    assert sorted(sorted_rows["n"].to_pylist()) == list(range(100))
    keys = sorted_rows["key"].to_pylist()
    assert keys[-2:] == [None, None] and keys[:-2] == sorted(keys[:-2])


def test_temporary_files_have_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_sort, "PARTITION_ROWS", 10)
    with ExternalSort(tables(10), "key", 70, str(tmp_path)) as rows:
        assert os.listdir(tmp_path) == []
        assert sum(map(len, rows.tables())) == 70
    with pytest.raises(ValueError, match="closed"):
        list(rows.tables())


def test_an_error_in_the_input_leaves_no_file_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_sort, "PARTITION_ROWS", 10)

    def broken() -> Iterator[pa.Table]:
        yield from tables(10)
        raise RuntimeError("damaged")

    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    with pytest.raises(RuntimeError):
        ExternalSort(broken(), "key", 70, str(tmp_path))
    assert not before or len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_a_release_sorted_in_partitions_equals_one_sorted_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    items = [{"file": f"{n}.png", "label": "ab"[n % 2], "age": n if n % 3 else n + 0.5} for n in range(17)]
    folder_of(tmp_path / "in", {item["file"]: GARBAGE if n == 4 else picture(n) for n, item in enumerate(items)})
    source = listing(tmp_path / "in", items)

    def make_release(name: str) -> Release:
        source_settings = {"image": "file", "label": "label", "carry": ["age"]}
        return run(settings(source, tmp_path / name, source=source_settings, output={"format": kind}))

    whole = make_release("whole")
    for module, name, value in (
        (external_sort, "PARTITION_ROWS", 3),
        (assemble, "BATCH_ROWS", 2),
        (parquet, "ROW_GROUP_ROWS", 5),
        (parquet, "BATCH_ROWS", 3),
    ):
        monkeypatch.setattr(module, name, value)
    pieces = make_release("pieces")
    assert manifest(pieces).equals(manifest(whole)) and len(manifest(whole)) == 16
    assert manifest(whole).schema.field("age").type == pa.float64()
    documents = {"release.intoto.jsonl", "manifest.parquet", "README.md", "report.html", "croissant.json"}
    pictures = [{n: data for n, data in tree(one.public.path).items() if n not in documents} for one in (pieces, whole)]
    assert pictures[0] == pictures[1] and pictures[0]
    for one in (pieces, whole):
        sorted_rows = [*check_public(one.public), *check_restricted(one, resolve_config(one), KEY)]
        assert {f.check for f in sorted_rows if f.result == "fail"} == {"signature"}  # nobody signed
