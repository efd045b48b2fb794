"""Released images as folders, tars and Parquet: readable by other tools, and the same bytes each time."""

from __future__ import annotations

import hashlib
import io
import json
import random
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer.config import OutputConfig, SourceConfig
from anonymizer.data.image_codec import decode, encode
from anonymizer.data.sinks import ImageLocation, ReleasedImage, base, open_sink
from anonymizer.data.sinks.folder import label_folder
from anonymizer.data.sources import open_source
from anonymizer.errors import OutputError

FORMATS = ["folder", "webdataset", "parquet"]


def pictures(count: int = 5, size: int = 100) -> Iterator[ReleasedImage]:
    chance = random.Random(0)
    for number in range(count):
        output_id = hashlib.sha256(b"%d" % number).hexdigest()[:32]
        columns = {"age": number or None, "yes": True, "word": f"w{number}"}
        yield ReleasedImage(output_id, chance.randbytes(size), ".png", str(number % 2), f"caption {number}", columns)


def written(form: str, rows: Iterator[ReleasedImage], fs: Any, folder: str, **options: Any) -> list[ImageLocation]:
    return list(open_sink(OutputConfig.model_validate({"uri": "x", "format": form}), **options).write(rows, fs, folder))


def files(fs: Any, folder: str) -> dict[str, bytes]:
    return {path.removeprefix(folder).lstrip("/"): fs.cat_file(path) for path in sorted(fs.find(folder))}


@pytest.mark.parametrize("form", FORMATS)
def test_each_image_is_where_its_location_is(form: str, memory: Any, tmp_path: Path) -> None:
    for fs, folder in ((memory, "/out"), (fsspec.filesystem("file"), str(tmp_path / "out"))):
        placed = written(form, pictures(), fs, folder)
        assert [p.output_id for p in placed] == [p.output_id for p in pictures()]
        for place, picture in zip(placed, pictures(), strict=True):
            data = fs.cat_file(f"{folder}/{place.file}")
            if form == "webdataset":
                with tarfile.open(fileobj=io.BytesIO(data)) as archive:
                    member = archive.extractfile(place.member or "")
                    assert member is not None
                    data = member.read()
            elif form == "parquet":
                row = pq.read_table(pa.BufferReader(data)).to_pylist()[int(place.member or 0)]
                assert (row["output_id"], row["label"], row["caption"]) == (
                    picture.output_id,
                    picture.label,
                    picture.caption,
                )
                assert {name: row[name] for name in picture.columns} == picture.columns
                data = row["image"]["bytes"]
            assert data == picture.data


@pytest.mark.parametrize("form", FORMATS)
def test_the_same_pictures_give_the_same_bytes(form: str, memory: Any) -> None:
    for folder in ("/one", "/two"):
        written(form, pictures(), memory, folder)
    assert files(memory, "/one") == files(memory, "/two")


@pytest.mark.parametrize("form", FORMATS)
def test_no_images_are_no_files_and_no_error(form: str, memory: Any) -> None:
    assert written(form, iter(()), memory, "/out") == []


def test_a_folder_is_grouped_by_label_or_else_by_id(memory: Any) -> None:
    rows = [
        ReleasedImage(f"{n:032x}", b"x", ".jpg", label) for n, label in enumerate(["a/b", "", None, "..", "é" * 80])
    ]
    found = [place.file for place in written("folder", iter(rows), memory, "/out")]
    assert found[:4] == [
        f"images/a%2Fb/{0:032x}.jpg",
        f"images/00/{1:032x}.jpg",
        f"images/00/{2:032x}.jpg",
        f"images/%2E%2E/{3:032x}.jpg",
    ]
    assert len(found[4].split("/")[1]) < 255


@settings(max_examples=60, deadline=None)
@given(st.text(min_size=1, max_size=100), st.text(min_size=1, max_size=100))
def test_any_label_is_the_name_of_one_folder_and_of_no_other_labels(one: str, other: str) -> None:
    one, other = (text.encode("utf-8", "replace").decode() for text in (one, other))
    name = label_folder(one)
    assert name not in (".", "..") and "/" not in name and "\0" not in name and 0 < len(name.encode()) < 255
    assert (name == label_folder(other)) == (one == other)


def test_tar_headers_hold_no_times_owners_or_names(memory: Any) -> None:
    written("webdataset", pictures(), memory, "/out")
    with tarfile.open(fileobj=io.BytesIO(memory.cat_file("/out/data/part-00000.tar"))) as archive:
        members = archive.getmembers()
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    assert all(m.pax_headers == {} for m in members)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # webdataset leaves its files open
def test_webdataset_reads_its_tars(tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    image = encode(pytest.importorskip("torch").zeros(3, 8, 8)).data
    rows = [
        ReleasedImage(f"{n:032x}", image, ".png", label, "words", {"age": n}) for n, label in enumerate(["3", "cat"])
    ]
    written("webdataset", iter(rows), fsspec.filesystem("file"), str(tmp_path))
    path = str(tmp_path / "data" / "part-00000.tar")
    one, two = webdataset.WebDataset(path, shardshuffle=False, empty_check=False).decode("rgb8")
    assert one["__key__"] == f"{0:032x}" and one["png"].shape == (8, 8, 3)
    assert (one["cls"], one["txt"], one["json"]) == (3, "words", {"age": 0, "label": "3"})
    assert "cls" not in two and two["json"] == {"age": 1, "label": "cat"}


def test_parquet_has_the_features_of_hugging_face(memory: Any) -> None:
    written("parquet", pictures(), memory, "/out")
    schema = pq.read_schema(pa.BufferReader(memory.cat_file("/out/data/part-00000.parquet")))
    features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"} and features["age"] == {"dtype": "int64", "_type": "Value"}
    assert str(schema.field("image").type) == "struct<bytes: binary, path: string>"


@pytest.mark.parametrize("form", ["webdataset", "parquet"])
def test_parts_are_cut_by_rows_and_by_bytes(form: str, memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anonymizer.data.sinks.parquet.GROUP_ROWS", 2)
    monkeypatch.setattr(base, "PART_ROWS", 4)
    parts = [place.file for place in written(form, pictures(10), memory, "/rows")]
    assert [parts.count(part) for part in sorted(set(parts))] == [4, 4, 2]
    monkeypatch.setattr(base, "PART_BYTES", 250)
    parts = [place.file for place in written(form, pictures(10), memory, "/bytes")]
    assert {parts.count(part) for part in parts} == {2}
    assert len(files(memory, "/bytes")) == 5


def test_all_parquet_parts_have_one_schema(memory: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "PART_ROWS", 2)
    monkeypatch.setattr("anonymizer.data.sinks.parquet.GROUP_ROWS", 1)
    rows = [ReleasedImage(str(n), b"x", ".png", None, None, {"age": n if n > 3 else None}) for n in range(6)]
    written("parquet", iter(rows), memory, "/inferred")
    written("parquet", iter(rows), memory, "/typed", columns={"age": pa.float64()})
    for folder, kind in (("/inferred", "int64"), ("/typed", "double")):
        schemas = [pq.read_schema(pa.BufferReader(data)) for data in files(memory, folder).values()]
        assert len(schemas) == 3 and all(schema == schemas[0] for schema in schemas)
        assert str(schemas[0].field("age").type) == kind


def test_values_that_do_not_agree_are_written_as_text_or_refused_by_name(memory: Any) -> None:
    rows = [ReleasedImage(str(n), b"x", ".png", columns={"age": age}) for n, age in enumerate([1, "two", None, True])]
    written("parquet", iter(rows), memory, "/out")
    table = pq.read_table(pa.BufferReader(memory.cat_file("/out/data/part-00000.parquet")))
    assert table["age"].to_pylist() == ["1", "two", None, "true"]
    with pytest.raises(OutputError, match="column 'age' is int64 at first"):
        written("parquet", iter(rows), memory, "/other", columns={"age": pa.int64()})


@pytest.mark.parametrize("form", FORMATS)
def test_an_output_that_cannot_be_written_is_one_clear_line_without_ids(form: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    with pytest.raises(OutputError, match="cannot be written") as caught:
        written(form, pictures(), fsspec.filesystem("file"), str(tmp_path / "file"))
    assert not any(picture.output_id in str(caught.value) for picture in pictures())


@pytest.mark.parametrize("form", FORMATS)
def test_memory_stays_flat_as_a_release_grows(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anonymizer.data.sinks.parquet.GROUP_BYTES", 2**20)

    def peak(count: int) -> int:
        tracemalloc.start()
        sink = open_sink(OutputConfig.model_validate({"uri": "x", "format": form}), {"age": pa.int64()})
        for _ in sink.write(pictures(count, 50_000), fsspec.filesystem("file"), str(tmp_path / str(count))):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    peak(2)
    assert peak(200) < peak(50) + 2**20


@pytest.mark.parametrize("form", FORMATS)
def test_a_source_reads_the_files_of_a_sink(form: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    image = encode(torch.rand(3, 8, 8) * 2 - 1).data
    rows = [ReleasedImage(f"{n:032x}", image, ".png", f"class {n % 2}", f"words {n}", {"age": n}) for n in range(4)]
    written(form, iter(rows), fsspec.filesystem("file"), str(tmp_path))
    options: dict[str, Any] = {"label": "folder"}
    if form != "folder":
        options = {"label": "label", "caption": "caption", "carry": ["age"], "drop": ["output_id"]}
    source = open_source(SourceConfig.model_validate({"uri": str(tmp_path), **options}))
    records = list(source.read(list(source.entries())))
    assert [record.data for record in records] == [image] * 4
    assert all(decode(record.data, 8).width == 8 for record in records)
    if form != "folder":
        found = [(record.label, record.caption, record.columns) for record in records]
        assert found == [(f"class {n % 2}", f"words {n}", {"age": n}) for n in range(4)]
