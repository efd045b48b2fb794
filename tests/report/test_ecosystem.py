"""Releases of every layout, read by tools of others: mlcroissant reads croissant.json, and datasets the folder."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from anonymizer.attest.verify.files import check_metadata
from anonymizer.data import released_images
from anonymizer.report import public
from anonymizer.schema import MANIFEST_MEANINGS
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from tests.support.releases import (
    folder_of,
    listing,
    manifest,
    people,
    picture,
    release_without_images,
    run,
    settings,
    verification_failures,
)

LAYOUTS = ("folder", "webdataset", "parquet")
# https://docs.mlcommons.org/croissant/docs/croissant-rai-spec.html
RAI = {
    *("dataCollection", "dataCollectionType", "dataCollectionMissingData", "dataCollectionRawData"),
    *("dataCollectionTimeframe", "dataPreprocessingProtocol", "dataImputationProtocol", "dataManipulationProtocol"),
    *("dataReleaseMaintenancePlan", "personalSensitiveInformation", "dataAnnotationProtocol", "dataAnnotationPlatform"),
    *("dataAnnotationAnalysis", "annotationsPerItem", "annotatorDemographics", "machineAnnotationTools"),
    *("dataSocialImpact", "dataBiases", "dataLimitations", "dataUseCases"),
}
every_layout = pytest.mark.parametrize("layout", LAYOUTS)
with_labels_or_without = pytest.mark.parametrize("labelled", [False, True])
pytestmark = [
    pytest.mark.filterwarnings("ignore:ConjunctiveGraph is deprecated"),
    pytest.mark.filterwarnings("ignore:The inplace keyword in DataFrame.reset_index"),
]


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("something wants the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def mlc(offline: None) -> Any:
    import mlcroissant
    from absl import logging

    # It keeps the stderr that it finds, which is pytest's, and closes it when a later test sets up logging.
    logging.get_absl_handler().python_handler.setStream(sys.__stderr__)
    return mlcroissant


@pytest.fixture
def datasets(offline: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    return datasets


def release_of(tmp_path: Path, layout: str, labelled: bool = False, count: int = 5) -> Release:
    label = ["source.label=folder"] if labelled else []
    return run(settings(people(tmp_path / "in", count), tmp_path / "out", f"output.format={layout}", *label))


def release_from_listing(tmp_path: Path, items: Sequence[Mapping[str, Any]], **source: Any) -> Release:
    """Return a release of a listing whose items have columns of any name."""
    folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(len(items))})
    rows = [{"file": f"{i}.png", **item} for i, item in enumerate(items)]
    source = {"uri": str(listing(tmp_path / "in", rows)), "image": "file", **source}
    return run(settings(tmp_path / "in", tmp_path / "out", source=source))


def croissant(release: Release) -> dict[str, Any]:
    document: dict[str, Any] = json.loads((release.public / "croissant.json").read())
    return document


def records(mlc: Any, release: Release) -> list[dict[str, Any]]:
    """Return the records that mlcroissant reads, in the manifest's order, with text decoded."""
    key = "pictures/output_id"
    found = sorted(mlc.Dataset(f"{release.public}/croissant.json").records("pictures"), key=lambda one: one[key])
    return [
        {name.removeprefix("pictures/"): v.decode() if isinstance(v, bytes) else v for name, v in one.items()}
        for one in found
    ]


def pixels(picture: Any) -> Any:
    with picture:
        return np.asarray(picture).tolist()


def read_images(release: Release) -> dict[str, Any]:
    """Return id -> pixels of each image in the public half."""
    found = released_images.read_images(release.public, manifest(release).to_pylist())
    return {row["output_id"]: pixels(Image.open(io.BytesIO(data))) for row, data in found}


@every_layout
@with_labels_or_without
def test_mlcroissant_misses_only_what_the_publisher_has_to_state(
    tmp_path: Path, mlc: Any, caplog: pytest.LogCaptureFixture, layout: str, labelled: bool
) -> None:
    release = release_of(tmp_path, layout, labelled)
    issues = mlc.Dataset(f"{release.public}/croissant.json").metadata.ctx.issues
    assert issues.errors == set()
    missed = {re.sub(r".*/(\w+)\" is recommended, but does not exist\.", r"\1", warning) for warning in issues.warnings}
    assert missed == {"license", "version", "citeAs"}
    assert "not standard" not in caplog.text


@every_layout
@with_labels_or_without
def test_records_are_the_rows_of_the_manifest_with_their_pictures(
    tmp_path: Path, mlc: Any, caplog: pytest.LogCaptureFixture, layout: str, labelled: bool
) -> None:
    release = release_of(tmp_path, layout, labelled)
    found = records(mlc, release)
    pictures = {one["output_id"]: pixels(one.pop("image")) for one in found if "image" in one}
    assert pictures == ({} if layout == "webdataset" else read_images(release))
    assert found == manifest(release).to_pylist()
    assert {one["label"] for one in found} == ({"a", "b"} if labelled else {None})
    assert "Could not match" not in caplog.text


def test_a_manifest_that_is_not_the_published_one_is_noticed(tmp_path: Path, mlc: Any) -> None:
    release = release_of(tmp_path, "folder")
    path = Path(release.manifest.path)
    file = next(one for one in croissant(release)["distribution"] if one["@id"] == path.name)
    data = path.read_bytes()
    assert file["sha256"] == hashlib.sha256(data).hexdigest() and file["contentSize"] == f"{len(data)} B"
    table = manifest(release)
    pq.write_table(table.set_column(table.column_names.index("caption"), "caption", pa.array(["x"] * len(table))), path)
    with pytest.raises(Exception, match="Download") as error:
        records(mlc, release)
    assert "not identical" in str(error.value.__cause__)


def test_columns_of_any_name_and_empty_values_come_through(tmp_path: Path, mlc: Any) -> None:
    names = ["a b/c:d é", 'name|`<b>"\\', "x%20y", "index", "content"]
    items = [{"about": f"cap {i}" if i else None, **{name: i or None for name in names}} for i in range(4)]
    release = release_from_listing(tmp_path, items, caption="about", carry=[*names])
    rows = manifest(release).to_pylist()
    assert {row["caption"] for row in rows} == {None, "cap 1", "cap 2", "cap 3"}
    for one, row in zip(records(mlc, release), rows, strict=True):
        assert {name: one[quote(name, safe="")] for name in row} == row
    assert [field["name"] for field in croissant(release)["recordSet"][0]["field"]] == [*rows[0], "image"]


def test_a_release_without_pictures_is_described_and_has_no_records(
    tmp_path: Path, mlc: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = release_without_images(tmp_path, monkeypatch)
    assert len(manifest(release)) == 0
    assert records(mlc, release) == []
    document = croissant(release)
    assert [one["@id"] for one in document["distribution"]] == ["manifest.parquet"]
    assert document["description"].startswith("No picture was released.")


def test_webp_files_are_named_and_their_rows_read(tmp_path: Path, mlc: Any) -> None:
    """mlcroissant decodes no WebP."""
    release = run(settings(people(tmp_path / "in"), tmp_path / "out", "output.image=webp"))
    assert croissant(release)["distribution"][1]["encodingFormat"] == "image/webp"
    assert records(mlc, release) == manifest(release).to_pylist()


@pytest.mark.parametrize("how", ["none", "binned", "exact"])
def test_croissant_speaks_the_vocabulary_and_explains_each_column(tmp_path: Path, how: str) -> None:
    release = run(settings(people(tmp_path / "in"), tmp_path / "out", f"output.public_scores={how}"))
    document = croissant(release)
    assert document["conformsTo"] == ["http://mlcommons.org/croissant/1.1", "http://mlcommons.org/croissant/RAI/1.0"]
    assert {key.removeprefix("rai:") for key in document if key.startswith("rai:")} <= RAI
    assert not {"license", "url", "creator", "version", "citeAs"} & set(document)
    assert (
        "A level is a setting, not a guarantee" in document["description"]
        and "publisher's to state" in document["description"]
    )
    for field in document["recordSet"][0]["field"][:-1]:
        assert field["description"] == MANIFEST_MEANINGS[field["name"]]


def test_croissant_names_copied_columns_as_possibly_personal(tmp_path: Path) -> None:
    release = release_of(tmp_path, "folder", labelled=True)
    document = croissant(release)
    assert "Copied from the source unchanged: label." in document["rai:dataAnnotationProtocol"][0]
    assert (
        document["rai:personalSensitiveInformation"][1]
        == "What was copied from the source may itself be personal: label."
    )


def test_the_same_run_in_another_place_is_described_in_the_same_words(tmp_path: Path) -> None:
    one, two = (croissant(release_of(tmp_path / name, "folder")) for name in ("one", "two"))
    assert one | {"datePublished": ""} == two | {"datePublished": ""}


@every_layout
@with_labels_or_without
def test_datasets_reads_pictures_and_labels(tmp_path: Path, datasets: Any, layout: str, labelled: bool) -> None:
    release = release_of(tmp_path, layout, labelled)
    found = datasets.load_dataset(release.public.path, split="train")
    rows = manifest(release).to_pylist()
    labels = [row["label"] for row in rows]
    if layout == "folder":  # the files' own order
        rows.sort(key=lambda row: str(row["file"]))
        labels = [row["label"] for row in rows]
        assert found.column_names == (["image", "label"] if labelled else ["image"])
        if labelled:
            names = found.features["label"].names
            assert (names, [names[number] for number in found["label"]]) == (["a", "b"], labels)
    elif layout == "webdataset":
        found = found.rename_column("png", "image")
        assert found["__key__"][:] == [row["output_id"] for row in rows]
        assert not labelled or [one["label"] for one in found["json"]] == labels
    else:
        assert found["label"][:] == labels
        assert found["output_id"][:] == [row["output_id"] for row in rows]
    pictures = read_images(release)
    assert [pixels(image) for image in found["image"]] == [pictures[row["output_id"]] for row in rows]


@every_layout
def test_two_releases_in_folders_of_one_name_are_not_mistaken(tmp_path: Path, datasets: Any, layout: str) -> None:
    """``datasets`` caches by the folder's name, which is always ``public``, and by the card's description."""
    one, two = release_of(tmp_path / "one", layout), release_of(tmp_path / "two", layout, count=3)
    loaded = [datasets.load_dataset(release.public.path, split="train") for release in (one, two, one)]
    assert [len(found) for found in loaded] == [5, 3, 5]


def test_no_label_is_passed_over(tmp_path: Path, datasets: Any) -> None:
    """``datasets`` takes folders that begin with a dot or two underscores for hidden ones."""
    labels = ["__x__", ".hid", "a/b ü", "plain"]
    release = release_from_listing(tmp_path, [{"who": label} for label in labels], label="who")
    found = datasets.load_dataset(release.public.path, split="train")
    assert len(found) == 4
    assert found.features["label"].names == sorted(quote(label, safe="") for label in labels)


@pytest.mark.parametrize("missing", [None, ""])
def test_folders_are_no_labels_where_a_picture_has_none(tmp_path: Path, datasets: Any, missing: str | None) -> None:
    release = release_from_listing(tmp_path, [{"who": "a"}, {"who": missing}, {"who": "b"}], label="who")
    found = datasets.load_dataset(release.public.path, split="train")
    assert (len(found), found.column_names) == (3, ["image"])


@pytest.mark.parametrize("layout", ["folder", "webdataset", "parquet"])
def test_the_code_on_the_card_loads_the_release(
    tmp_path: Path, mlc: Any, datasets: Any, monkeypatch: pytest.MonkeyPatch, layout: str
) -> None:
    release = release_of(tmp_path, layout)
    monkeypatch.chdir(release.public.path)
    card = (release.public / "README.md").read().decode()
    blocks = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    found: dict[str, Any] = {}
    for block in blocks:
        if "datasets" in block or "mlcroissant" in block:
            exec(block.replace("FOLDER", os.getcwd()), found)
    assert len(found["pictures"]) == 5
    loaded = list(found["records"])
    assert len(loaded) == 5
    assert ("pictures/image" in loaded[0]) == (layout != "webdataset") == ("with their pictures" in card)


CARRIED: list[dict[str, Any]] = [
    {"who": "a", "about": 'one, "quoted"\nline', "age": 31, "dose": 0.5, "ok": True, "zip": "01234", "note": None},
    {"who": "b", "about": None, "age": None, "dose": 2.0, "ok": False, "zip": "12345", "note": "ü"},
    {"who": None, "about": "three", "age": -7, "dose": None, "ok": None, "zip": "00000", "note": "x"},
]
NAMES = ["age", "dose", "ok", "zip", "note"]


@pytest.mark.parametrize("layout", ["folder", "parquet"])
def test_datasets_reads_carried_columns_with_their_types(tmp_path: Path, datasets: Any, layout: str) -> None:
    folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(len(CARRIED))})
    rows = [{"file": f"{i}.png", **item} for i, item in enumerate(CARRIED)]
    source = {"uri": str(listing(tmp_path / "in", rows)), "image": "file", "label": "who", "caption": "about"}
    config = settings(tmp_path / "in", tmp_path / "out", f"output.format={layout}", source=source | {"carry": NAMES})
    release = run(config)
    rows = manifest(release).to_pylist()
    dataset = datasets.load_dataset(release.public.path, split="train")
    found = {one["label"]: one for one in dataset}
    for row in rows:
        one = found[row["label"]]
        assert {key: one[key] for key in [*NAMES, "label", "caption"]} == {
            key: row[key] for key in [*NAMES, "label", "caption"]
        }
        assert pixels(one["image"]) == read_images(release)[row["output_id"]]
    kinds = {key: dataset.features[key].dtype for key in NAMES}
    assert kinds == {"age": "int64", "dose": "float64", "ok": "bool", "zip": "string", "note": "string"}
    assert [text for text in verification_failures(release) if "not signed" not in text] == []
    text = (release.public / "README.md").read().decode()
    assert ("in `metadata.jsonl`, which repeats these columns" in text) == (layout == "folder")


def test_numbers_of_a_csv_are_numbers_for_datasets(tmp_path: Path, datasets: Any) -> None:
    folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(2)})
    (tmp_path / "in" / "l.csv").write_text("file,age,zip\n0.png,31,01234\n1.png,,12345\n")
    source = {"uri": str(tmp_path / "in" / "l.csv"), "image": "file", "carry": ["age", "zip"]}
    release = run(settings(tmp_path / "in", tmp_path / "out", source=source))
    found = datasets.load_dataset(release.public.path, split="train")
    assert sorted(found["zip"]) == ["01234", "12345"] and {*found["age"]} == {31, None}
    assert found.features["age"].dtype == "int64"


def test_metadata_is_left_out_where_folders_say_all_and_never_names_files(tmp_path: Path, datasets: Any) -> None:
    labelled = release_of(tmp_path / "one", "folder", labelled=True)
    assert not (labelled.public / "metadata.jsonl").exists()
    items = [{"x_file_name": "/etc/passwd", "file_name": "../x", "file_names": "y", "age": i} for i in range(2)]
    release = release_from_listing(tmp_path / "two", items, carry=["x_file_name", "file_name", "file_names", "age"])
    found = datasets.load_dataset(release.public.path, split="train")
    assert found.column_names == ["image", "age"] and sorted(found["age"]) == [0, 1]


def test_a_planted_metadata_file_is_not_published(tmp_path: Path) -> None:
    """Somebody who can write to the candidate puts one there, for a layout that has none."""
    release = release_of(tmp_path, "parquet")
    planted = StoragePath.from_uri(str(tmp_path / "planted"))
    (planted / "metadata.jsonl").write(b'{"file_name": "secret"}\n')
    public.write_metadata(planted, manifest(release))
    assert not (planted / "metadata.jsonl").exists()


@pytest.mark.parametrize("change", [b'{"file_name": "x", "age": 1}\n', b"", None])
def test_metadata_that_does_not_repeat_the_manifest_is_found(tmp_path: Path, change: bytes | None) -> None:
    release = release_from_listing(tmp_path, [{"age": i} for i in range(3)], carry=["age"])
    path = release.public / "metadata.jsonl"
    lines = path.read().splitlines(keepends=True)
    assert [json.loads(line)["age"] for line in lines] == manifest(release)["age"].to_pylist()
    data = b"".join(reversed(lines)) if change is None else change
    digests = {"metadata.jsonl": hashlib.sha256(data).hexdigest()}
    assert [one.result for one in check_metadata(manifest(release), digests)] == ["fail"]
    path.write(data)
    assert any("metadata.jsonl" in text for text in verification_failures(release))
