"""What was made for another purpose than to release it is neither a source nor a place of a release."""

from __future__ import annotations

import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from anonymizer.data import usage_marker
from anonymizer.errors import OutputError, SourceError
from anonymizer.records import Entry
from anonymizer.release import plan, preflight
from anonymizer.storage.path import StoragePath
from tests.support.releases import begin, folder_of, listing, picture, rows, run, settings


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    folder = tmp_path / "augmented"
    (folder / "images").mkdir(parents=True)
    usage_marker.write_marker(StoragePath.from_uri(str(folder)), "augmentation")
    return folder


@pytest.mark.parametrize("below", ["", "images", "manifest.parquet"])
def test_no_release_takes_it_as_its_source(marked: Path, tmp_path: Path, below: str) -> None:
    with pytest.raises(SourceError, match=r"source\.uri .* not anonymised"):
        preflight.check(settings(str(marked / below), str(tmp_path / "out")))


def test_no_release_goes_there(marked: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"output\.uri .* not anonymised"):
        preflight.check_output(settings(str(tmp_path), str(marked / "release")))


def test_a_link_does_not_hide_it(marked: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(marked / "images")
    with pytest.raises(SourceError, match="not anonymised"):
        preflight.check(settings(str(tmp_path / "link"), str(tmp_path / "out")))


def test_a_marked_prefix_of_a_store_is_known(store: object) -> None:
    usage_marker.write_marker(StoragePath.from_uri("memory://bucket/augmented"), "enhancement")
    with pytest.raises(SourceError, match="not anonymised"):
        usage_marker.refuse_marked_source("source.uri", "memory://bucket/augmented/images")
    usage_marker.refuse_marked_source("source.uri", "memory://bucket")


def test_a_marked_folder_inside_the_source_or_behind_a_listing_is_found(tmp_path: Path, marked: Path) -> None:
    (marked / "images/a.png").write_bytes(picture(1))
    named = listing(tmp_path / "list", [{"image": str(marked / "images/a.png")}])
    above = settings(tmp_path, tmp_path.parent / "out", source={"format": "folder"})
    for config in (above, settings(named, tmp_path / "out", source={"allow": [str(tmp_path)]})):
        for listed in (plan.count_records, begin):
            with pytest.raises(SourceError, match="lists pictures that `augment` or `enhance` made") as caught:
                listed(config)
            assert "a.png" not in str(caught.value)


def test_a_marked_archive_is_no_source(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "augmented.zip", "w") as archive:
        archive.writestr("purpose.json", json.dumps({"purpose": usage_marker.marker_text("augmentation")}))
        archive.writestr("images/a.png", picture(1))
    with pytest.raises(SourceError, match="not anonymised"):
        usage_marker.refuse_marked_source("source.uri", f"zip://images::{tmp_path / 'augmented.zip'}")


@pytest.mark.parametrize("where", ["restricted/plan.json", "public/release.intoto.jsonl"])
def test_nothing_else_is_made_inside_a_release(tmp_path: Path, store: object, where: str) -> None:
    (tmp_path / "release" / where).parent.mkdir(parents=True)
    (tmp_path / "release" / where).write_text("{}")
    (tmp_path / "release/public").mkdir(exist_ok=True)
    (tmp_path / "link").symlink_to(tmp_path / "release/public")
    StoragePath.from_uri(f"memory://bucket/{where}").write_uncommitted(b"{}")
    for uri in (
        tmp_path / "link/augmented",
        tmp_path / "release/public/new/augmented",
        "memory://bucket/public/augmented",
    ):
        with pytest.raises(OutputError, match="lies inside a release"):
            preflight.check_private_folder("output.uri", str(uri), str(tmp_path / "in"))


def test_each_folder_of_a_store_is_asked_once(store: object, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    exists = StoragePath.exists
    monkeypatch.setattr(StoragePath, "exists", lambda self: asked.append(str(self)) or exists(self))
    entries = [Entry(f"{n}", f"memory://bucket/a/{n % 3}/{n}.png") for n in range(30)]
    assert list(usage_marker.refuse_marked_entries("source.uri", entries)) == entries
    assert len(asked) == len(set(asked)) < 10


def test_a_place_that_cannot_be_asked_fails_its_own_records_alone(tmp_path: Path) -> None:
    names = ["a.png", "nosuch://bucket/x/b.png", "https://127.0.0.1:9/x/c.png", "memory://bucket/none/d.png"]
    source = listing(folder_of(tmp_path / "in", {"a.png": picture(1)}), [{"image": name} for name in names])
    found = Counter((row["status"], row["reason"]) for row in rows(run(settings(source, tmp_path / "out"))))
    assert found[("released", None)] == 1
    assert sum(found.values()) == 4 and {status for status, _ in found} == {"released", "failed"}
