"""Rows in order, however many, and where digests are: the same as in memory."""

from __future__ import annotations

import os
import random
import secrets
import subprocess
import sys
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
from anonymizer.storage.digest_index import DigestIndex
from anonymizer.storage.external_sort import ExternalSort
from anonymizer.storage.layout import Release
from tests.support.releases import GARBAGE, KEY, folder_of, listing, manifest, picture, run, settings, tree


def tables(count: int, size: int = 7, keys: Any = lambda: secrets.token_hex(16)) -> list[pa.Table]:
    return [
        pa.table({"key": pa.array([keys() for _ in range(size)], pa.string()), "n": range(at * size, (at + 1) * size)})
        for at in range(count)
    ]


@pytest.mark.parametrize("piece", [5, 50, 10_000])
def test_rows_come_in_order_whether_they_fit_into_memory_or_not(monkeypatch: pytest.MonkeyPatch, piece: int) -> None:
    monkeypatch.setattr(external_sort, "PARTITION_ROWS", piece)
    parts = tables(60)
    expected = pa.concat_tables(parts).sort_by("key")
    with ExternalSort(parts, "key", 420) as rows:
        found = list(rows.tables())
        assert pa.concat_tables(found).equals(expected) and len(rows) == 420
        assert list(rows.keys()) == expected["key"].to_pylist()  # asked for again
        assert len(found) == min(external_sort.MAX_PARTITIONS, -(-420 // piece))


def test_what_is_told_the_same_number_is_parted_at_the_same_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_sort, "PARTITION_ROWS", 50)
    many = tables(60)
    few = [many[3].slice(2, 2)]  # which never needs a file
    with ExternalSort(many, "key", 420) as one, ExternalSort(few, "key", 420) as other:
        pairs = list(zip(one.tables(), other.tables(), strict=True))
    assert sum(len(b) for _, b in pairs) == 2
    assert all(set(b["key"].to_pylist()) <= set(a["key"].to_pylist()) for a, b in pairs)


def test_keys_that_are_missing_or_alike_lose_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_sort, "PARTITION_ROWS", 10)
    odd = iter([None, "", "~", "ffff", "0000", None, *["8000"] * 100])
    with ExternalSort(tables(10, 10, lambda: next(odd)), "key", 100) as rows:
        found = pa.concat_tables(rows.tables())
    assert sorted(found["n"].to_pylist()) == list(range(100))
    keys = found["key"].to_pylist()
    assert keys[-2:] == [None, None] and keys[:-2] == sorted(keys[:-2])


def test_nothing_of_the_rows_has_a_name_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_sort, "PARTITION_ROWS", 10)
    with ExternalSort(tables(10), "key", 70, str(tmp_path)) as rows:
        assert os.listdir(tmp_path) == []
        assert sum(map(len, rows.tables())) == 70
    with pytest.raises(ValueError, match="closed"):
        list(rows.tables())


def test_an_error_while_rows_come_in_leaves_nothing_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(external_sort, "PARTITION_ROWS", 10)

    def broken() -> Iterator[pa.Table]:
        yield from tables(10)
        raise RuntimeError("damaged")

    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    with pytest.raises(RuntimeError):
        ExternalSort(broken(), "key", 70, str(tmp_path))
    assert not before or len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("kind", ["folder", "parquet", "webdataset"])
def test_a_release_in_pieces_is_the_release_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    items = [{"file": f"{n}.png", "label": "ab"[n % 2], "age": n if n % 3 else n + 0.5} for n in range(17)]
    folder_of(tmp_path / "in", {item["file"]: GARBAGE if n == 4 else picture(n) for n, item in enumerate(items)})
    source = listing(tmp_path / "in", items)

    def made(name: str) -> Release:
        kept = {"image": "file", "label": "label", "carry": ["age"]}
        return run(settings(source, tmp_path / name, source=kept, output={"format": kind}))

    whole = made("whole")
    for module, name, value in (
        (external_sort, "PARTITION_ROWS", 3),
        (assemble, "BATCH_ROWS", 2),
        (parquet, "ROW_GROUP_ROWS", 5),
        (parquet, "BATCH_ROWS", 3),
    ):
        monkeypatch.setattr(module, name, value)
    pieces = made("pieces")
    assert manifest(pieces).equals(manifest(whole)) and len(manifest(whole)) == 16
    assert manifest(whole).schema.field("age").type == pa.float64()
    papers = {"release.intoto.jsonl", "manifest.parquet", "README.md", "report.html", "croissant.json"}
    pictures = [{n: data for n, data in tree(one.public.path).items() if n not in papers} for one in (pieces, whole)]
    assert pictures[0] == pictures[1] and pictures[0]
    for one in (pieces, whole):
        found = [*check_public(one.public), *check_restricted(one, resolve_config(one), KEY)]
        assert {f.check for f in found if f.result == "fail"} == {"signature"}  # nobody signed


@pytest.mark.slow
def test_a_process_that_ends_right_after_it_read_a_table_ends_well(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    path.write_bytes(parquet.to_bytes(pa.table({"x": ["a"] * 300})))
    program = (
        "import sys, torch; from anonymizer.storage import parquet, path; P = path.StoragePath; "
        "parquet.read(P.from_uri(sys.argv[1])); list(parquet.open_table(P.from_uri(sys.argv[1])).to_batches(9))"
    )
    for _ in range(3):  # with pq.read_table, most ended with SIGABRT
        assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == 0


def test_a_lookup_finds_what_a_dictionary_finds() -> None:
    rng = random.Random(0)
    texts = [f"{rng.randrange(300):064x}" for _ in range(1000)]
    lookup = DigestIndex([texts[:300], [], texts[300:]])
    first = {text: texts.index(text) for text in texts}
    asked = [f"{n:064x}" for n in range(400)] + ["", "x", "f" * 65]
    assert lookup.first_positions(asked).tolist() == [first.get(text, -1) for text in asked]
    assert sorted(lookup.all_positions(texts[0]).tolist()) == [at for at, text in enumerate(texts) if text == texts[0]]
    assert lookup.unique_positions().tolist() == sorted(first.values())


def test_a_lookup_of_nothing_finds_nothing() -> None:
    lookup = DigestIndex([])
    assert (
        lookup.first_positions(["a"]).tolist() == [-1]
        and not len(lookup.unique_positions())
        and not len(lookup.all_positions("a"))
    )
