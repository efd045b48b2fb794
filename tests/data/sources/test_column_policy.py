"""Each column has a setting or the run stops; restricted columns stay in the ledger."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from anonymizer.data.sources import sample_evenly, sample_metadata, webdataset
from anonymizer.errors import SourceError
from anonymizer.records import Entry, Reason, Record
from anonymizer.release import preflight
from tests.support.releases import folder_of, listing, manifest, picture, rows, run
from tests.support.releases import settings as run_settings
from tests.support.sources import open_uri

ROWS = [{"image": "a.png", "age": 5, "sex": "f"}, {"image": "b.png", "age": 6, "sex": "m"}]


def read_records(uri: object, **options: Any) -> list[Record]:
    """Return the records, listed by one source and read by another, as the shards of a run do."""
    return list(open_uri(uri, **options).read(list(open_uri(uri, **options).entries())))


def listing_error(uri: object, **options: Any) -> str:
    """Return the error before the first entry, which ``fields`` raises too."""
    with pytest.raises(SourceError) as caught:
        next(iter(open_uri(uri, **options).entries()))
    with pytest.raises(SourceError) as again:
        open_uri(uri, **options).fields()
    assert str(again.value) == str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def reading_error(uri: object, **options: Any) -> str:
    """Return the error while records are listed and read."""
    with pytest.raises(SourceError) as caught:
        read_records(uri, **options)
    return str(caught.value)


def treatments(uri: object, **options: Any) -> dict[str, str]:
    return {field.name: field.treatment for field in open_uri(uri, **options).fields()}


def as_jsonl(root: Path, items: Sequence[Mapping[str, Any]] = ROWS) -> Path:
    folder_of(root, {str(item["image"]): b"picture" for item in items if "image" in item})
    return listing(root, items)


def as_csv(root: Path, delimiter: str = ",") -> Path:
    as_jsonl(root)
    lines = [delimiter.join(ROWS[0]), *(delimiter.join(map(str, row.values())) for row in ROWS)]
    path = root / ("list.csv" if delimiter == "," else "list.tsv")
    path.write_text("\n".join(lines))
    return path


def as_parquet(root: Path) -> Path:
    root.mkdir(exist_ok=True)
    items = [row | {"image": {"bytes": b"picture", "path": "secret.png"}} for row in ROWS]
    table = pa.Table.from_pylist(items).replace_schema_metadata({"huggingface": "{}"})
    pq.write_table(table, root / "a.parquet")
    return root / "a.parquet"


def tar(path: Path, *members: tuple[str, bytes]) -> Path:
    path.parent.mkdir(exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def side(**values: Any) -> bytes:
    return json.dumps(values).encode()


def as_tar(root: Path) -> Path:
    members = [
        (f"p/{n}.{ext}", b)
        for n, row in enumerate(ROWS)
        for ext, b in (("png", b"x"), ("json", side(age=row["age"], sex=row["sex"])))
    ]
    return tar(root / "a.tar", *members)


FORMATS = [as_jsonl, as_csv, lambda root: as_csv(root, "\t"), as_parquet, as_tar]
every_format = pytest.mark.parametrize("make", FORMATS, ids=["jsonl", "csv", "tsv", "parquet", "tar"])
Make = Callable[[Path], Path]


# -- errors -------------------------------------------------------------------------------------------------


@every_format
def test_an_unclassified_column_stops_the_run(tmp_path: Path, make: Make) -> None:
    path = make(tmp_path / "in")
    assert listing_error(path, carry=["sex"]) == (
        "source: columns that nobody has classified, 'age': name each in source.carry, source.drop or "
        "source.restricted (drop: ['*'] drops all others)"
    )
    assert "classified, 'age', 'sex': name" in listing_error(path)
    for options in ({"drop": ["age", "sex"]}, {"restricted": ["age"], "drop": ["*"]}, {"drop": ["*"]}):
        assert [record.problem for record in read_records(path, **options)] == [None, None]
    for setting in ("label", "caption", "subject"):
        assert "'age': name" in listing_error(path, **{setting: "sex"})
        assert [record.problem for record in read_records(path, carry=["age"], **{setting: "sex"})] == [None, None]


@every_format
def test_a_run_is_refused_before_anything_is_written(tmp_path: Path, make: Make) -> None:
    path = make(tmp_path / "in")
    with pytest.raises(SourceError, match="nobody has classified, 'sex'"):
        preflight.check(run_settings(path, tmp_path / "out", source={"carry": ["age"]}))
    assert not (tmp_path / "out").exists()
    preflight.check(run_settings(path, tmp_path / "out", source={"carry": ["age"], "drop": ["sex"]}))


def test_columns_that_name_or_choose_rows_are_classified(tmp_path: Path) -> None:
    for path in (as_jsonl(tmp_path), as_parquet(tmp_path)):
        assert [r.entry.record_id for r in read_records(path, id="age", where={"sex": "m"})] == ["6"]


def test_an_unknown_column_in_the_last_file_or_row_stops_the_run_too(tmp_path: Path) -> None:
    as_parquet(tmp_path / "pq")
    pq.write_table(pa.table({"image": [b"x"], "age": [1], "sex": ["f"], "city": ["x"]}), tmp_path / "pq/z.parquet")
    assert "classified, 'city': name" in listing_error(tmp_path / "pq", drop=["age", "sex"])
    path = as_jsonl(tmp_path / "in", [*ROWS, {"image": "a.png"}, {"image": "a.png", "city": "x"}])
    assert "classified, 'city': name" in listing_error(path, drop=["age", "sex"])
    assert "classified, 'city': name" in listing_error(path, drop=["age"], where={"sex": "m"}), (
        "rows that are left out too"
    )


def test_an_error_names_ten_columns_at_most_and_is_one_visible_line(tmp_path: Path) -> None:
    names = [f"column {n}" for n in range(11)] + ["a\nb", "\ud800", "x" * 5000]
    path = as_jsonl(tmp_path, [{"image": "a"} | dict.fromkeys(names)])
    assert "'column 9' and 4 more: name" in listing_error(path)
    message = listing_error(path, drop=names[:11])
    assert message.isprintable() and message.encode() and len(message) < 300
    assert "'a%0Ab', '%ED%A0%80', 'xxx" in message
    (tmp_path / "index.csv").write_text(",image\n0,a\n")  # as pandas writes an index
    assert "classified, '': name" in listing_error(tmp_path / "index.csv")
    assert [r.problem for r in read_records(tmp_path / "index.csv", drop=[""])] == [None]


def test_settings_that_contradict_each_other_are_one_line(tmp_path: Path) -> None:
    for path in (as_jsonl(tmp_path), as_tar(tmp_path)):
        for options in (
            {"carry": ["age"], "drop": ["age"]},
            {"carry": ["age"], "restricted": ["age"]},
            {"label": "age", "restricted": ["age"]},
            {"caption": "age", "drop": ["age"]},
            {"subject": "age", "drop": ["age"]},
            {"restricted": ["age"], "drop": ["age"]},
        ):
            assert "column 'age' is named in source." in listing_error(path, **options)
        assert "'*' works in source.drop only" in listing_error(path, carry=["*"])
    path = tmp_path / "list.jsonl"
    assert "source.drop: column 'image' is named in source.image too" in listing_error(path, drop=["image"])
    assert "source.drop: column 'sex' is named in source.id too" in listing_error(path, id="sex", drop=["sex"])
    for options in ({"label": "age"}, {"id": "age"}, {"carry": ["age"]}, {"restricted": ["age"]}):
        records = read_records(path, subject="age", drop=["sex"], **options)
        assert [record.subject for record in records] == ["5", "6"]


def test_a_column_that_is_restricted_or_names_people_must_be_there(tmp_path: Path) -> None:
    for path in (as_csv(tmp_path), as_parquet(tmp_path)):
        for options in ({"restricted": ["agee"]}, {"subject": "agee"}):
            (setting,) = options
            assert f"source.{setting}: no column 'agee'" in reading_error(path, drop=["age", "sex"], **options)
        assert [r.problem for r in read_records(path, drop=["age", "sex", "gone"])] == [None, None], (
            "none has to be dropped"
        )


def test_a_folder_has_no_columns_to_classify(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.png": b"x"})
    for options in ({"drop": ["x"]}, {"restricted": ["x"]}, {"carry": ["x"]}, {"subject": "x"}):
        assert "a folder has no columns" in reading_error(tmp_path, **options)
    assert [record.problem for record in read_records(tmp_path, drop=["*"])] == [None]


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=4), st.sampled_from("cdrx"), max_size=6))
def test_a_column_is_where_its_setting_puts_it_or_the_run_stops(
    tmp_path_factory: pytest.TempPathFactory, put: Any
) -> None:
    put = {name: where for name, where in put.items() if name not in ("*", "file", "image")}
    root = tmp_path_factory.mktemp("wild")
    (root / "p").write_bytes(b"x")
    path = listing(root, [{"image": "p"} | {name: name for name in put}])
    asked = {key: [name for name in put if put[name] == key[0]] for key in ("carry", "drop", "restricted")}
    try:
        (record,) = read_records(path, **asked)
    except SourceError as error:
        assert "x" in put.values() and "nobody has classified" in str(error)
    else:
        assert "x" not in put.values()
        assert dict(record.columns) == {name: name for name in asked["carry"]}
        assert dict(record.restricted) == {name: name for name in asked["restricted"]}


# -- ledger ---------------------------------------------------------------------------------------


@every_format
def test_restricted_columns_and_subjects_are_read_with_carried_ones(tmp_path: Path, make: Make) -> None:
    records = read_records(make(tmp_path / "in"), restricted=["age"], subject="sex")
    assert [record.subject for record in records] == ["f", "m"]
    assert [str(record.restricted["age"]) for record in records] == ["5", "6"]
    assert all(record.columns == {} and record.label is None for record in records)


def test_the_folder_is_the_subject_if_configured(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", {"Ada/1.png": b"x", "Bo/50%/2.png": b"x", "3.png": b"x"})
    found = {record.entry.record_id: record for record in read_records(tmp_path / "in", subject="folder")}
    assert {name: record.subject for name, record in found.items()} == {
        "Ada/1.png": "Ada", "Bo/50%25/2.png": "Bo/50%", "3.png": None,
    }  # fmt: skip
    assert {record.label for record in found.values()} == {None}
    path = tar(tmp_path / "a.tar", ("Ada/1.png", b"x"), ("Bo/2.png", b"x"))
    assert [(r.subject, r.label) for r in read_records(path, subject="folder")] == [("Ada", None), ("Bo", None)]
    assert [(r.subject, r.label) for r in read_records(path, label="folder")] == [(None, "Ada"), (None, "Bo")]


def test_a_failed_record_has_its_subject(tmp_path: Path) -> None:
    """Its row names a file, from which the subject can be erased too."""
    items = [{"image": "a.png", "who": "Ada"}, {"image": "none.png", "who": "Bo"}, {"image": "../x", "who": "Cy"}]
    folder_of(tmp_path, {"a.png": b"xx"})
    found = read_records(listing(tmp_path, items), subject="who", limits={"max_bytes": 1})
    assert [(r.problem, r.subject) for r in found] == [
        (Reason.TOO_MANY_BYTES, "Ada"), (Reason.UNREADABLE, "Bo"), (Reason.OUTSIDE_SOURCE, "Cy"),
    ]  # fmt: skip
    pq.write_table(pa.table({"image": [b"", b"x"], "who": ["Ada", "Bo"]}), tmp_path / "a.parquet")
    found = read_records(tmp_path / "a.parquet", subject="who")
    assert [(r.problem, r.subject) for r in found] == [(Reason.EMPTY, "Ada"), (None, "Bo")]


def test_a_subject_that_cannot_be_read_fails_its_record(tmp_path: Path) -> None:
    folder_of(tmp_path, {"a.png": b"x"})
    items = [{"image": "a.png", "who": who} for who in ("Ada", ["Bo"], "\ud800", 7, None)]
    found = [(r.problem, r.subject) for r in read_records(listing(tmp_path, items), subject="who")]
    bad = Reason.BAD_METADATA
    assert found == [(None, "Ada"), (bad, None), (bad, None), (None, "7"), (Reason.NO_SUBJECT, None)]


def test_a_subject_that_is_a_class_has_its_name(tmp_path: Path) -> None:
    features = {"who": {"names": ["Ada", "Bo"], "_type": "ClassLabel"}}
    table = pa.table({"image": [b"1", b"2"], "who": [1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "t.parquet")
    found = read_records(tmp_path, subject="who", label="who")
    assert [(record.subject, record.label) for record in found] == [("Bo", "Bo"), ("Ada", "Ada")]


def test_a_parquet_row_whose_subject_changed_fails(tmp_path: Path) -> None:
    path, options = tmp_path / "t.parquet", {"id": "id", "subject": "who"}
    pq.write_table(pa.table({"image": [b"x"], "id": [1], "who": ["Ada"]}), path)
    entries = list(open_uri(path, **options).entries())
    pq.write_table(pa.table({"image": [b"x"], "id": [1], "who": ["Bo"]}), path)
    assert [record.problem for record in open_uri(path, **options).read(entries)] == [Reason.CHANGED]


def test_restricted_columns_are_in_the_ledger_and_not_in_the_public_half(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", {f"{n}.png": picture(n) for n in range(3)})
    items = [{"image": f"{n}.png", "id": f"r{n}", "who": f"Zx{n}", "city": f"Qy{n}", "age": n} for n in range(3)]
    asked = {"id": "id", "subject": "who", "restricted": ["city"], "carry": ["age"]}
    release = run(run_settings(listing(tmp_path / "in", items), tmp_path / "out", source=asked))
    kept = {row["record_id"]: (row["subject"], json.loads(row["restricted"])) for row in rows(release)}
    assert kept == {f"r{n}": (f"Zx{n}", {"city": f"Qy{n}"}) for n in range(3)}
    table = manifest(release)
    assert sorted(table["age"].to_pylist()) == [0, 1, 2] and not {"city", "who"} & set(table.column_names)
    for file in (tmp_path / "out/public").rglob("*"):
        assert not file.is_file() or not any(mark in file.read_bytes() for mark in (b"Zx1", b"Qy1"))


# -- tars -------------------------------------------------------------------------------------------------------------


def test_other_members_of_a_key_are_columns(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", ("1.png", b"x"), ("1.CLS", b"7"), ("1.txt", b"words"), ("1.seg.json", b"{}"))
    assert "classified, 'cls', 'txt', 'seg.json': name" in listing_error(path)
    (record,) = read_records(path, label="label", caption="caption", drop=["seg.json"])
    assert (record.label, record.caption) == ("7", "words")
    (record,) = read_records(path, label="cls", restricted=["txt"], drop=["seg.json"])
    assert (record.label, dict(record.restricted)) == ("7", {"txt": "words"})
    assert "classified, 'txt', 'seg.json'" in listing_error(path, label="label")


def test_a_dropped_member_is_no_label(tmp_path: Path) -> None:
    path = tar(
        tmp_path / "a.tar",
        ("1.png", b"x"),
        ("1.cls", b"Ada"),
        ("2.png", b"x"),
        ("2.cls", b"Bo"),
        ("2.json", side(label="ok")),
    )
    for options in ({"drop": ["cls"]}, {"restricted": ["cls"]}):
        one, two = read_records(path, label="label", **options)
        assert (one.label, one.problem, two.label) == (None, Reason.BAD_METADATA, "ok")  # nothing else holds a label


def test_keys_of_json_members_are_columns_by_any_name(tmp_path: Path) -> None:
    """Names that stand for something else, in other formats or as an extension, are no excuse."""
    path = tar(tmp_path / "a.tar", ("a/1.png", b"x"), ("a/1.json", side(image="p", id=1, folder="f", cls=2, png=3)))
    message = listing_error(path, label="folder", subject="folder")
    assert "classified, 'image', 'id', 'folder', 'cls', 'png': name" in message
    assert "'cls'" in listing_error(path, label="label", drop=["image", "id", "folder", "png"])
    (record,) = read_records(path, label="folder", drop=["json"])
    assert record.label == "a"
    (record,) = read_records(path, carry=["id"], drop=["json"])
    assert record.columns == {"id": 1}
    for setting in ("carry", "restricted"):
        assert f"source.{setting}: 'json' is a whole member" in listing_error(path, **{setting: ["json"]})


def test_a_late_json_key_fails_its_record_and_a_late_extension_stops_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset, "PROBED_SAMPLES", 2)
    members = [(f"{n}.{ext}", data) for n in range(3) for ext, data in (("png", b"x"), ("json", side(age=n)))]
    path = tar(tmp_path / "a.tar", *members, ("3.json", side(name="Ada")), ("3.png", b"x"))
    for options in ({"carry": ["age"]}, {"drop": ["age"]}):
        assert [record.problem for record in read_records(path, **options)] == [None, None, None, Reason.UNCLASSIFIED]
    assert [record.problem for record in read_records(path, drop=["*"])] == [None] * 4
    path = tar(tmp_path / "b.tar", *members, ("3.png", b"x"), ("3.name", b"Ada"))
    assert next(iter(open_uri(path, carry=["age"]).entries()))
    assert "classified, 'name': name" in reading_error(path, carry=["age"])


def test_members_added_to_a_tar_after_planning_are_not_read(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", ("1.json", side(age=5)), ("1.png", b"x"))
    entries = list(open_uri(path, carry=["age"]).entries())
    for member in (("1.json", side(who=5)), ("1.who", side(age=5))):
        tar(path, member, ("1.png", b"x"))
        assert [record.problem for record in open_uri(path, carry=["age"]).read(entries)] == [Reason.UNCLASSIFIED]


def test_an_image_with_a_dropped_extension_is_left_out(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", ("1.seg.png", b"mask"), ("1.png", b"photo"))
    assert [record.data for record in read_records(path, drop=["seg.png"])] == [b"photo"]
    assert treatments(path, drop=["seg.png"])["seg.png"] == "dropped"
    assert [record.data for record in read_records(path, image="seg.png")] == [b"mask"]
    assert "named in source.image too" in listing_error(path, image="seg.png", drop=["seg.png"])


def test_damaged_archives_do_not_hide_the_columns_of_others(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.tar").write_bytes(b"no tar at all" * 100)
    tar(tmp_path / "in/b.tar", ("1.json", b"{"), ("1.png", b"x"), ("2.png", b"x"), ("2.json", side(who=1)))
    assert "classified, 'who': name" in listing_error(tmp_path / "in")


def test_rows_of_a_file_with_a_new_column_after_planning_fail(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [b"x"], "id": [1]}), path)
    entries = list(open_uri(path, id="id").entries())
    pq.write_table(pa.table({"image": [b"x"], "id": [1], "who": ["Ada"]}), path)
    assert [record.problem for record in open_uri(path, id="id").read(entries)] == [Reason.CHANGED]


# -- treatments ---------------------------------------------------------------------------------------------

FILE = {"file name, path, size and time": "restricted (ledger)"}


def test_every_column_is_listed_with_its_treatment(tmp_path: Path) -> None:
    items = [dict.fromkeys(("id", "who", "words", "age", "city", "split", "x", "y"), "v") | {"image": "a.png"}]
    asked = {"id": "id", "label": "who", "caption": "words", "carry": ["age"], "restricted": ["city"], "subject": "who",
             "where": {"split": "v"}, "drop": ["*"]}  # fmt: skip
    assert treatments(as_jsonl(tmp_path, items), **asked) == FILE | {
        "image": "the picture",
        "id": "the record's id (ledger)",
        "who": "label (published) and subject (ledger)",
        "words": "caption (published)",
        "age": "carried (published)",
        "city": "restricted (ledger)",
        "split": "chooses records (not kept)",
        "x": "dropped",
        "y": "dropped",
    }


def test_attributes_other_than_columns_are_listed(tmp_path: Path) -> None:
    found = treatments(as_parquet(tmp_path), carry=["age"], drop=["sex"])
    columns = {"image": "the picture", "age": "carried (published)", "sex": "dropped"}
    assert found == FILE | columns | {"image.path": "dropped", "huggingface": "dropped"}
    members = [("a/1.png", b"x"), ("a/1.cls", b"7"), ("a/1.json", side(age=1, who=2)), ("a/1", b"?")]
    found = treatments(
        tar(tmp_path / "a.tar", *members), label="cls", subject="folder", restricted=["who"], drop=["age"]
    )
    assert found == FILE | {
        "owner, time and attributes": "dropped",
        "folder": "subject (ledger)",
        "png": "the picture",
        "cls": "label (published)",
        "(no name)": "dropped",
        "age": "dropped",
        "who": "restricted (ledger)",
    }
    folder_of(tmp_path / "in", {"a/1.png": b"x"})
    assert treatments(tmp_path / "in") == FILE
    assert treatments(tmp_path / "in", label="folder", subject="folder") == FILE | {
        "folder": "label (published) and subject (ledger)"
    }


def photo(n: int, **extra: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), n, dtype=np.uint8)).save(file, "JPEG", **extra)
    return file.getvalue()


def test_metadata_inside_pictures_is_counted_and_dropped(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x010E] = "Ada"
    files = {f"{n}.jpg": photo(n, comment="hello", **({"exif": exif} if n < 2 else {})) for n in range(5)}
    folder_of(tmp_path, files | {"bare.jpg": photo(9), "broken.jpg": photo(9)[:50], "notes.txt": b"no picture"})
    found = {field.name: (field.location, field.treatment) for field in sample_metadata(open_uri(tmp_path))}
    afresh = "dropped: pictures are encoded afresh from pixels"
    assert found.pop("exif of pictures") == (
        "2 of 6 pictures",
        "dropped, after its orientation is applied: pictures are encoded afresh from pixels",
    )
    assert found == {
        "comment of pictures": ("5 of 6 pictures", afresh),
        "other metadata of pictures": ("0 of 6 pictures", afresh),
    }


@given(st.integers(0, 300), st.integers(1, 40))
def test_sampled_images_are_spread_over_the_source(count: int, most: int) -> None:
    numbers = [int(entry.record_id) for entry in sample_evenly((Entry(str(n), "") for n in range(count)), most)]
    assert min(count, most) / 2 <= len(numbers) <= most
    steps = {b - a for a, b in pairwise(numbers)}
    assert len(steps) <= 1 and (not count or numbers[0] == 0)
    assert not steps or count - numbers[-1] <= steps.pop(), "to the end"
