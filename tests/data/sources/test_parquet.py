"""Parquet files: rows are records; rows that change after planning are noticed."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anonymizer.records import Reason
from tests.support.sources import DROP_REST, ROW_CHANGES, open_uri, problems, read_all, source_error, tar, write_files

TABLE: dict[str, Any] = {
    "image": [b"one", b"two", None, b"", b"five"],
    "label": [0, 1, 1, 0, None],
    "text": ["a", None, "c", "d", "e"],
    "age": [1, 2, 3, 4, 5],
    "split": ["train", "test", "test", "train", "test"],
    "name": ["p", "q", "r", "q", None],
}


def test_parquet_rows_of_bytes_or_of_hugging_faces_struct_are_records(tmp_path: Path) -> None:
    pq.write_table(pa.table(TABLE), tmp_path / "plain.parquet")
    struct = [None if b is None else {"bytes": b, "path": "secret.jpg"} for b in TABLE["image"]]
    pq.write_table(pa.table(TABLE | {"image": struct}), tmp_path / "struct.parquet", row_group_size=2)
    for name in ("plain.parquet", "struct.parquet"):
        records = read_all(tmp_path / name, label="label", caption="text", carry=["age"], drop=["split", "name"])
        assert problems(records) == {f"{name}/2": Reason.EMPTY, f"{name}/3": Reason.EMPTY}
        first, last = records[f"{name}/0"], records[f"{name}/4"]
        assert (first.data, first.label, first.caption, first.columns) == (b"one", "0", "a", {"age": 1})
        assert (last.data, last.label, last.caption, last.columns) == (b"five", None, "e", {"age": 5})
        assert (read_all(tmp_path / name, **DROP_REST)[f"{name}/0"]).columns == {}


def test_rows_are_chosen_by_where_and_named_by_id(tmp_path: Path) -> None:
    pq.write_table(pa.table(TABLE), tmp_path / "t.parquet")
    records = read_all(tmp_path, where={"split": "test"}, id="name", drop=["label", "text", "age"])
    assert problems(records) == {"r": Reason.EMPTY, "t.parquet/4": Reason.BAD_METADATA}
    records = read_all(tmp_path, id="name", where={"age": "4"}, **DROP_REST)
    assert list(records) == ["q"]
    assert problems(read_all(tmp_path, id="name", **DROP_REST))["q%#2"] is Reason.DUPLICATE_ID
    assert "none of its 5 rows matches source.where" in source_error(tmp_path, where={"split": "none"}, **DROP_REST)


def test_any_rows_can_be_read_in_any_order(tmp_path: Path, memory: Any) -> None:
    for part in range(2):
        table = pa.table({"image": [b"%d/%d" % (part, n) for n in range(100)]})
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=30)
        memory.put_file(str(tmp_path / f"{part}.parquet"), f"/set/{part}.parquet")
    for uri in (tmp_path, "memory://set"):
        entries = list(open_uri(uri).entries())
        for chosen in (entries[25:135:7], entries[::-9], [entries[150], entries[3], entries[3]]):
            wanted = [entry.record_id.replace(".parquet", "").encode() for entry in chosen]
            assert [record.data for record in open_uri(uri).read(chosen)] == wanted


def test_class_labels_of_hugging_face_have_their_names(tmp_path: Path) -> None:
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = pa.table({"image": [b"1", b"2"], "label": [1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "t.parquet")
    assert [record.label for record in read_all(tmp_path, label="label").values()] == ["dog", "cat"]


def test_values_that_are_carried_are_plain(tmp_path: Path) -> None:
    import datetime
    from decimal import Decimal

    columns = {"when": datetime.datetime(2024, 5, 6), "much": Decimal("1.50"), "yes": True, "big": 2**63, "no": 0.5}
    arrays = {key: pa.array([value], pa.uint64() if key == "big" else None) for key, value in columns.items()}
    pq.write_table(pa.table({"image": [b"1"]} | arrays), tmp_path / "t.parquet")
    (record,) = read_all(tmp_path, carry=list(columns), label="yes").values()
    assert record.label == "true"
    assert dict(record.columns) == {
        "when": "2024-05-06T00:00:00", "much": "1.50", "yes": True, "big": str(2**63), "no": 0.5,
    }  # fmt: skip


def test_parquet_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(TABLE | {"list": [[1]] * 5}), path)
    message = source_error(path, image="imag")
    assert message == "source.image: no column 'imag' among the 7 of 't.parquet': did you mean 'image'?"
    assert source_error(path, label="x") == "source.label: no column 'x' among the 7 of 't.parquet': check its spelling"
    assert "source.where: no column 'x'" in source_error(path, where={"x": "1"})
    assert "holds list" in source_error(path, carry=["list"])
    assert "holds string, not pictures" in source_error(path, image="text")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), path)
    assert "no rows in it" in source_error(path)
    for broken in (b"", b"PAR1", b"no parquet" * 100, path.read_bytes()[:-9]):
        path.write_bytes(broken)
        assert "not a Parquet file, or is damaged" in source_error(path)


def test_a_damaged_parquet_page_costs_its_row_group_only(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pictures = [os.urandom(5000) for _ in range(200)]
    pq.write_table(pa.table({"image": pictures}), path, row_group_size=50, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data[start : start + 200] = bytes(200)
    path.write_bytes(data)
    entries = list(open_uri(path).entries())
    found = list(open_uri(path).read(entries))
    assert [record.data for record in found] == pictures[:100] + [b""] * 50 + pictures[150:]
    assert all(record.problem is Reason.UNREADABLE for record in found[100:150])


def test_a_parquet_file_that_shrinks_after_planning_fails_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [b"1", b"2", b"3"], "name": [1, 2, 3]}), path)
    entries, named = list(open_uri(path, **DROP_REST).entries()), list(open_uri(path, id="name").entries())
    pq.write_table(pa.table({"image": [b"1"], "name": [1]}), path)
    assert [record.problem for record in open_uri(path, **DROP_REST).read(entries)] == [Reason.CHANGED] * 3
    found = [record.problem for record in open_uri(path, id="name").read(named)]
    assert found == [None, Reason.CHANGED, Reason.CHANGED]
    path.with_name("other.parquet").write_bytes(path.read_bytes())
    path.unlink()
    assert [record.problem for record in open_uri(tmp_path, **DROP_REST).read(entries)] == [Reason.UNREADABLE] * 3


def people(rows: list[tuple[str, str]], **more: list[Any]) -> pa.Table:
    return pa.table({"image": [b"%s" % who.encode() for who, _ in rows], "who": [w for w, _ in rows]} | more)


@pytest.mark.parametrize("change", ROW_CHANGES)
@pytest.mark.parametrize("options", [{"drop": ["who"]}, {"id": "who"}])
def test_rows_that_move_in_a_parquet_file_after_planning_fail(
    tmp_path: Path, memory: Any, change: str, options: dict[str, Any]
) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(people([("one", "a"), ("two", "b"), ("six", "c")]), path)
    memory.put_file(str(path), "/set/t.parquet")
    entries = {uri: list(open_uri(uri, **options).entries()) for uri in (path, "memory://set")}
    pq.write_table(people(ROW_CHANGES[change]), path)
    memory.put_file(str(path), "/set/t.parquet")
    for uri, planned in entries.items():
        found = list(open_uri(uri, **options).read(planned))
        assert [record.entry for record in found] == planned
        if "id" in options:  # a row at its old position is recognised by its id
            assert all(r.problem is Reason.CHANGED or r.data.decode() == r.entry.record_id for r in found)
            assert Reason.CHANGED in [record.problem for record in found]
        else:
            assert [record.problem for record in found] == [Reason.CHANGED] * 3


def test_a_row_that_no_longer_matches_where_fails(tmp_path: Path) -> None:
    path, rows = tmp_path / "t.parquet", [("one", ""), ("two", "")]
    pq.write_table(people(rows, consent=["yes", "yes"]), path)
    options: dict[str, Any] = {"id": "who", "where": {"consent": "yes"}}
    entries = list(open_uri(path, **options).entries())
    pq.write_table(people(rows, consent=["yes", "no"]), path)
    assert [record.problem for record in open_uri(path, **options).read(entries)] == [None, Reason.CHANGED]


def test_a_parquet_file_that_loses_its_columns_after_planning_fails_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(people([("one", "a")]), path)
    entries = list(open_uri(path, id="who").entries())
    for table in (pa.table({"who": ["one"]}), pa.table({"image": [b"one"]}), pa.table({"image": ["x"], "who": ["x"]})):
        pq.write_table(table, path)
        assert [record.problem for record in open_uri(path, id="who").read(entries)] == [Reason.CHANGED]


def test_a_copied_parquet_file_is_recognised_by_its_ids(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(people([("one", "a")]), path)
    entries = list(open_uri(path, id="who").entries())
    os.utime(path, (1, 1))
    assert [record.data for record in open_uri(path, id="who").read(entries)] == [b"one"]


def test_memory_stays_flat_while_parquet_is_read(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.parquet"
        pq.write_table(pa.table({"image": [os.urandom(20_000) for _ in range(rows)]}), path, row_group_size=100)
        entries = list(open_uri(path).entries())
        before, most = pa.total_allocated_bytes(), 0
        for _ in open_uri(path).read(entries):
            most = max(most, pa.total_allocated_bytes() - before)
        return most

    assert peak(1000) < 1.1 * peak(200)


def paths_table(paths: list[str | None], data: list[bytes | None]) -> pa.Table:
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": one, "path": path} for one, path in zip(data, paths, strict=True)]
    return pa.table({"image": pa.array(rows, kind)})


def test_a_path_counts_where_a_row_has_no_bytes(tmp_path: Path) -> None:
    """As ``datasets`` writes pictures that it did not embed; the path is read inside the source's folder only."""
    write_files(tmp_path / "in", **{"a.png": b"a", "sub__b.png": b"b"})
    secret = write_files(tmp_path / "out", c=b"secret") / "c"
    (tmp_path / "in" / "link.png").symlink_to(secret)
    paths = ["a.png", "sub/b.png", "a.png", None, "none.png", "../out/c", str(secret), f"file://{secret}", "link.png"]
    paths += ["https://one.example/x.png", ""]
    data = [None, None, b"embedded", None, None, None, None, None, None, None, None]
    path = tmp_path / "in" / "t.parquet"
    pq.write_table(paths_table(paths, data), path, row_group_size=3)
    out = Reason.OUTSIDE_SOURCE
    expected = [b"a", b"b", b"embedded", Reason.EMPTY, Reason.UNREADABLE, out, out, out, out, out, Reason.EMPTY]
    assert [record.problem or record.data for record in read_all(path).values()] == expected
    expected[6:8] = [b"secret"] * 2
    found = [record.problem or record.data for record in read_all(path, allow=[str(tmp_path / "out")]).values()]
    assert found == expected
    places = {field.name: field.location for field in open_uri(path).fields() if "source.allow" in field.treatment}
    assert places == {
        "relative paths out of the folder": "1 row",
        "other folders of this machine": "2 rows",
        "https://one.example": "1 row",
    }
    assert problems(read_all(path, limits={"max_bytes": 1}))["t.parquet/2"] is Reason.TOO_MANY_BYTES


def test_a_column_of_paths_alone_is_read(tmp_path: Path) -> None:
    """Whose bytes have no type at all, as pandas writes them."""
    write_files(tmp_path, **{"a.png": b"a"})
    table = pa.table({"image": pa.array([{"bytes": None, "path": "a.png"}, {"bytes": None, "path": "../x"}])})
    pq.write_table(table, tmp_path / "t.parquet")
    records = read_all(tmp_path / "t.parquet").values()
    assert [record.problem or record.data for record in records] == [b"a", Reason.OUTSIDE_SOURCE]
    assert [field.name for field in open_uri(tmp_path / "t.parquet").fields()][-1] == "relative paths out of the folder"


def test_an_embedded_picture_is_read_whatever_its_path(tmp_path: Path) -> None:
    pq.write_table(paths_table(["/etc/passwd", None], [b"one", b"two"]), tmp_path / "t.parquet")
    assert [record.data for record in read_all(tmp_path).values()] == [b"one", b"two"]
    assert not any("source.allow" in field.treatment for field in open_uri(tmp_path).fields())


def class_table(numbers: list[int | None]) -> pa.Table:
    features = {"who": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = pa.table({"image": [b"x"] * len(numbers), "who": pa.array(numbers, pa.int64())})
    return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


@pytest.mark.parametrize("column", ["label", "caption", "carry", "restricted", "subject"])
def test_minus_one_is_no_class(tmp_path: Path, column: str) -> None:
    pq.write_table(class_table([1, -1, None]), tmp_path / "t.parquet")
    value = ["who"] if column in ("carry", "restricted") else "who"
    records = list(read_all(tmp_path, **{column: value}).values())
    name = {"carry": "columns"}.get(column, column)
    found = [one["who"] if isinstance(one, dict) else one for one in (getattr(record, name) for record in records)]
    assert found[0] in ("dog", "1", 1) and found[1:] == [None, None]
    assert [record.problem for record in records[1:]] == [Reason.NO_SUBJECT if column == "subject" else None] * 2


def test_a_number_without_a_class_fails_its_record(tmp_path: Path) -> None:
    pq.write_table(class_table([0, 2, -2]), tmp_path / "t.parquet")
    for column in ("label", "subject"):
        found = [record.problem for record in read_all(tmp_path, **{column: "who"}).values()]
        assert found == [None, Reason.BAD_METADATA, Reason.BAD_METADATA]


def test_minus_one_without_class_names_is_a_number(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": [b"x"], "who": [-1]}), tmp_path / "t.parquet")
    assert [record.label for record in read_all(tmp_path, label="who").values()] == ["-1"]


@pytest.mark.parametrize("form", ["parquet", "jsonl", "tar"])
def test_nan_is_null_in_every_format(tmp_path: Path, form: str) -> None:
    """As tables of numbers spell a value that is missing."""
    names = ("label", "caption", "dose", "note", "who")
    rows = [dict.fromkeys(names, 1.5), dict.fromkeys(names, float("nan"))]
    write_files(tmp_path, **{"a.png": b"x"})
    path = tmp_path / f"t.{form}"
    if form == "parquet":
        pq.write_table(pa.table({"image": [b"x", b"x"], **{n: [row[n] for row in rows] for n in names}}), path)
    elif form == "jsonl":
        path.write_text("".join(json.dumps({"image": "a.png"} | row) + "\n" for row in rows))
    else:
        path.write_bytes(tar(*(m for n, row in enumerate(rows) for m in (
            (f"{n}.png", b"x"), (f"{n}.json", json.dumps(row).encode())))))  # fmt: skip
    options: dict[str, Any] = {"label": "label", "caption": "caption", "carry": ["dose"], "restricted": ["note"]}
    one, two = read_all(path, **options, drop=["who"]).values()
    assert (one.label, one.caption, one.columns, one.restricted) == ("1.5", "1.5", {"dose": 1.5}, {"note": 1.5})
    assert (two.label, two.caption, two.columns, two.restricted) == (None, None, {"dose": None}, {"note": None})
    assert two.problem is None
    assert [record.problem for record in read_all(path, subject="who", **DROP_REST).values()] == [
        None,
        Reason.NO_SUBJECT,
    ]
