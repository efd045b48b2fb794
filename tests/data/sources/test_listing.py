"""Listings: rows name images; malformed files are refused in one line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anonymizer.data.sources.files import to_printable
from anonymizer.records import Reason
from tests.support.sources import DROP_REST, ROW_CHANGES, open_uri, problems, read_all, source_error, write_files


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write_files(tmp_path, a=b"a-picture", sub__b=b"b-picture")


def test_rows_of_a_csv_name_images_in_its_folder(pictures: Path) -> None:
    (pictures / "list.csv").write_text(
        '\ufeffimage,sex,words,age\na,f,"two\nlines, and ""quotes""",5\n\nsub/b,m,,6\n', encoding="utf-8"
    )
    one, two = read_all(pictures / "list.csv", label="sex", caption="words", carry=["age"]).values()
    assert (one.entry.record_id, two.entry.record_id) == ("list.csv/0", "list.csv/1")
    assert (one.data, one.label, one.columns) == (b"a-picture", "f", {"age": 5})
    assert one.caption == 'two\nlines, and "quotes"'
    assert (two.data, two.label, two.caption, two.columns) == (b"b-picture", "m", None, {"age": 6})
    assert [r.data for r in read_all(pictures / "list.csv", where={"sex": "m"}, **DROP_REST).values()] == [b"b-picture"]


def test_rows_of_jsonl_and_tsv_work_alike(pictures: Path, memory: Any) -> None:
    (pictures / "list.jsonl").write_text('{"image": "a"}\n\n{"image": "sub/b", "id": 7, "ok": true}\n')
    records = read_all(pictures / "list.jsonl", id="id", carry=["ok"])
    assert problems(records) == {"list.jsonl/0": Reason.BAD_METADATA}
    assert (records["7"].data, records["7"].columns) == (b"b-picture", {"ok": True})
    (pictures / "list.tsv").write_text("image\tsex\na\tf, really\n")
    assert [record.label for record in read_all(pictures / "list.tsv", label="sex").values()] == ["f, really"]
    memory.pipe_file("/set/list.csv", b"image,c\nx.png,1\nmemory://elsewhere/y.png,2\n")
    memory.pipe_file("/set/x.png", b"x")
    memory.pipe_file("/elsewhere/y.png", b"y")
    records = read_all("memory://set/list.csv", carry=["c"], allow=["memory://elsewhere"])
    assert [(record.data, record.columns["c"]) for record in records.values()] == [(b"x", 1), (b"y", 2)]


def test_any_rows_of_a_listing_can_be_read_in_any_order(tmp_path: Path) -> None:
    for n in range(20):
        (tmp_path / f"{n}.png").write_bytes(b"%d" % n)
    (tmp_path / "l.csv").write_text("image,n\n" + "".join(f'{n}.png,"{n}\n"\n' for n in range(20)))
    entries = list(open_uri(tmp_path / "l.csv", carry=["n"]).entries())
    for chosen in (entries[3:15:4], entries[::-1], entries[9:11]):
        read = list(open_uri(tmp_path / "l.csv", carry=["n"]).read(chosen))
        assert [f"{record.columns['n']}".strip().encode() for record in read] == [record.data for record in read]


def test_a_listing_does_not_reach_out_of_its_folder(tmp_path: Path) -> None:
    outside = write_files(tmp_path / "out", c=b"c-picture")
    root = write_files(tmp_path / "in", a=b"a-picture")
    (root / "link").symlink_to(outside / "c")
    rows = [
        "../out/c",
        "a/../../out/c",
        "link",
        str(outside / "c"),
        (outside / "c").as_uri(),
        "zip://a::/x",
        "x://y",
        "no",
        "",
    ]
    (root / "l.jsonl").write_text("".join(json.dumps({"image": row}) + "\n" for row in rows))
    found = [record.problem or record.data for record in read_all(root / "l.jsonl").values()]
    out = Reason.OUTSIDE_SOURCE
    assert found == [out, out, out, out, out, out, out, Reason.UNREADABLE, Reason.EMPTY]


def test_a_listing_that_cannot_be_used_is_one_clear_line(pictures: Path) -> None:
    path = pictures / "l.csv"
    for text, message in {
        "": "has no header: its first line must name the columns",
        "image\n": "no rows in it",
        "file,age\na,1\n": "source.image: no column 'image' among the 2 of 'l.csv': name the column of the paths",
        "image,age\na,1\nb,2,3\n": "line 3 of 'l.csv' has 3 fields, not the 2 of the header",
        'image\n"a\n': "line 2 of 'l.csv': unexpected end of data",
        "image\n" + "a" * 200_000: "line 2 of 'l.csv': field larger than field limit",
    }.items():
        path.write_text(text)
        assert message in source_error(path, **DROP_REST)
    path.write_bytes(b"image\ncaf\xe9\n")
    assert "line 2 of 'l.csv' is not UTF-8" in source_error(path)
    (pictures / "l.jsonl").write_text('{"image": "a"}\n[1]\n')
    assert "line 2 of 'l.jsonl' is no JSON object" in source_error(pictures / "l.jsonl")
    (pictures / "l.jsonl").write_text('{"image": "a", "who": "Ada", "who": "Bo"}\n')
    assert "line 1 of 'l.jsonl' is no JSON object, or has a key twice" in source_error(pictures / "l.jsonl")
    (pictures / "l.jsonl").write_text('{"image": "a"}\n{"image": "a", "age": 3}\n')
    message = source_error(pictures / "l.jsonl", label="sex", **DROP_REST)
    assert "no column 'sex' among the 2 of 'l.jsonl': check its spelling" in message
    assert "a folder: name the CSV" in source_error(pictures, format="listing")


def test_a_listing_that_changes_after_planning_fails_its_rows(pictures: Path) -> None:
    (pictures / "l.csv").write_text("image,n\na,1\nsub/b,2\n")
    entries = list(open_uri(pictures / "l.csv", carry=["n"]).entries())
    (pictures / "l.csv").write_text("image,n\nsub/b,1\nsub/b,2\n")
    found = [record.problem for record in open_uri(pictures / "l.csv", carry=["n"]).read(entries)]
    assert found[0] is Reason.CHANGED


@pytest.mark.parametrize("change", ROW_CHANGES)
@pytest.mark.parametrize("options", [{"drop": ["who"]}, {"id": "who"}, {"carry": ["who"]}])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_rows_that_move_in_a_listing_after_planning_fail(
    tmp_path: Path, change: str, options: dict[str, Any], suffix: str
) -> None:
    def listing(rows: list[tuple[str, str]]) -> None:
        lines = [json.dumps({"who": who, "image": file}) for who, file in rows]
        lines = lines if suffix == "jsonl" else ["who,image", *(f"{who},{file}" for who, file in rows)]
        path.write_text("\n".join(lines))

    path = write_files(tmp_path, a=b"a", b=b"b", c=b"c", x=b"x") / f"l.{suffix}"
    listing([("one", "a"), ("two", "b"), ("six", "c")])
    entries = list(open_uri(path, **options).entries())
    listing(ROW_CHANGES[change])
    found = [record.problem or record.data for record in open_uri(path, **options).read(entries)]
    still = [b"c"] if change == "reordered" else [Reason.CHANGED]
    assert found == [Reason.CHANGED, Reason.CHANGED, *still]


def test_a_row_of_a_listing_that_is_cut_or_renamed_after_planning_fails(tmp_path: Path) -> None:
    path = write_files(tmp_path, a=b"a", b=b"b") / "l.csv"
    text = "sex,words,image\nmale,she,a\nfemale,he,b\n"
    asked: list[dict[str, Any]] = [{"id": "words"}, {"label": "sex"}, {"where": {"sex": "female"}}, {}]
    for options in (more | DROP_REST for more in asked):
        path.write_text(text)
        last = list(open_uri(path, **options).entries())[-1:]
        for now in (text.replace("male,she", "ma"), text.replace("sex,words", "words,sex"), "sex,image\nfemale,b\n"):
            path.write_text(now)
            assert [record.problem for record in open_uri(path, **options).read(last)] == [Reason.CHANGED]
        path.write_text(text)
        one = open_uri(path, **options)
        assert [record.data for record in one.read(last)] == [b"b"]
        path.write_text(text.replace("sex,words", "words,sex"))
        assert [record.problem for record in one.read(last)] == [Reason.CHANGED], "the header is read anew"


def test_rows_of_a_remote_listing_are_read_concurrently(memory: Any) -> None:
    rows = range(200)
    memory.pipe({f"/set/{n}.png": b"%d" % n for n in rows})
    memory.pipe_file("/set/l.csv", b"image,n\n" + b"".join(b'%d.png,"%d\n"\n' % (n, n) for n in rows))
    found = read_all("memory://set/l.csv", carry=["n"]).values()
    assert [(record.data, record.columns["n"]) for record in found] == [(b"%d" % n, f"{n}\n") for n in rows]


def test_a_listing_without_a_header_is_refused_without_quoting_its_data(pictures: Path) -> None:
    path = pictures / "l.csv"
    path.write_text("images/Abel.png,Abel,imag\nimages/b.png,Eve,x\n")
    for options in ({}, {"label": "label"}, {"id": "id"}):
        assert not any(word in source_error(path, **options) for word in ("Abel", "images"))


def test_an_unknown_column_among_very_many_is_a_short_line(pictures: Path) -> None:
    path = pictures / "l.csv"
    names = ["image", "labels", "label1", "label2", "label3", *(f"feature{n:06d}" for n in range(100_000))]
    path.write_text(",".join(names) + "\n" + ",".join("a" for _ in names) + "\n")
    message = source_error(path, label="label")
    assert "no column 'label' among the 100005 of 'l.csv': did you mean 'labels', 'label3', 'label2'?" in message
    assert len(message) < 200


def test_two_columns_of_one_name_are_refused_if_asked_for(pictures: Path) -> None:
    path = pictures / "l.csv"
    path.write_text("image,sex,sex,age\na,f,m,3\n")
    assert "source.label: 2 columns 'sex' in 'l.csv': rename all but one" in source_error(path, label="sex")
    for options in ({"carry": ["sex"]}, {"id": "sex"}, {"where": {"sex": "f"}}, {"image": "sex"}):
        assert "2 columns 'sex' in 'l.csv'" in source_error(path, **options)
    assert [record.data for record in read_all(path, carry=["age"], drop=["sex"]).values()] == [b"a-picture"]
    table = pa.Table.from_arrays([pa.array([b"1"]), pa.array(["f"]), pa.array(["m"])], ["image", "sex", "sex"])
    pq.write_table(table, pictures / "t.parquet")
    assert "source.label: 2 columns 'sex' in 't.parquet'" in source_error(pictures / "t.parquet", label="sex")
    assert [record.data for record in read_all(pictures / "t.parquet", drop=["sex"]).values()] == [b"1"]


@pytest.mark.parametrize("ids", [["a", "a", "a#2"], ["a#2", "a", "a"], ["a", "a", "a%#2", "a%2523"]])
def test_only_a_second_claim_to_an_id_is_a_duplicate(pictures: Path, ids: list[str]) -> None:
    path = pictures / "l.jsonl"
    path.write_text("".join(json.dumps({"image": "a", "id": own}) + "\n" for own in ids))
    records = read_all(path, id="id")
    assert problems(records) == {"a%#2": Reason.DUPLICATE_ID}
    assert {to_printable(own) for own in ids} <= set(records), "each record keeps its own id"
