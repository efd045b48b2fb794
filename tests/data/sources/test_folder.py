"""Folders: each file is a record, links stay inside the source, changes after planning are noticed."""

from __future__ import annotations

import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

from anonymizer.data.sources.files import IGNORED_NAMES, to_printable
from anonymizer.records import Reason
from tests.support.sources import open_uri, problems, read_all, write_files


def test_a_folder_gives_each_file_in_a_stable_order_with_its_folder_as_label(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/x/1.jpg", "top.gif", "a/0.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    records = read_all(tmp_path, label="folder")
    assert {key: record.data.decode() for key, record in records.items()} == {key: key for key in records}
    assert list(records) == ["a/0.webp", "a/x/1.jpg", "b/2.png", "top.gif"]
    assert [record.label for record in records.values()] == ["a", "a/x", "b", None]
    assert all(record.label is None for record in read_all(tmp_path).values()), "a label is carried only when asked for"


def test_files_that_are_no_images_are_listed_and_system_files_are_not(tmp_path: Path) -> None:
    for name in ("notes.txt", ".hidden.png", "movie.mp4", "photo", "._photo.png", *IGNORED_NAMES):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "photo.png").write_bytes(b"x")
    assert sorted(read_all(tmp_path)) == [".hidden.png", "movie.mp4", "notes.txt", "photo"]


def test_names_with_newlines_and_invalid_utf8_are_read(tmp_path: Path) -> None:
    names = [b"new\nline.png", b"latin\xe9.png", b"50%.png", "föhn.png".encode(), b"a::b c'\".png", b"50%25.png"]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(name)
    records = read_all(tmp_path, label="folder")
    assert {record.data for record in records.values()} == set(names)
    assert set(records) == {"new%0Aline.png", "latin%E9.png", "50%25.png", "föhn.png", "a::b c'\".png", "50%2525.png"}
    for record in records.values():
        assert json.loads(json.dumps(record.entry.uri)) == record.entry.uri
        assert to_printable(record.entry.uri).isprintable() and to_printable(record.entry.uri).encode()


def test_a_folder_named_in_another_encoding_is_a_label_of_valid_text(tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9 100%")
    os.mkdir(folder)
    with open(os.path.join(folder, b"1.png"), "wb") as file:
        file.write(b"x")
    assert [record.label for record in read_all(tmp_path, label="folder").values()] == ["caf%E9 100%"]


def test_links_are_followed_inside_the_source_and_not_out_of_it(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", a__1=b"one")
    write_files(tmp_path / "out", secret=b"secret")
    (root / "file-in").symlink_to(root / "a" / "1")
    (root / "folder-in").symlink_to("a")
    (root / "file-out").symlink_to(tmp_path / "out" / "secret")
    (root / "folder-out").symlink_to("../out")
    (root / "a" / "circle").symlink_to("..")
    (root / "broken").symlink_to("nothing")
    os.mkfifo(root / "pipe")
    records = read_all(root)
    assert problems(records) == {
        "file-out": Reason.OUTSIDE_SOURCE,
        "folder-out": Reason.OUTSIDE_SOURCE,
        "broken": Reason.UNREADABLE,
        "pipe": Reason.UNREADABLE,
    }
    assert {key for key, record in records.items() if record.data == b"one"} == {"a/1", "file-in", "folder-in/1"}


def test_a_link_created_after_planning_is_not_followed_out_of_the_source(tmp_path: Path) -> None:
    root = write_files(tmp_path / "in", one=b"12345", folder__two=b"12345")
    write_files(tmp_path / "out", one=b"54321", two=b"54321")
    entries = list(open_uri(root).entries())
    (root / "one").unlink()
    (root / "one").symlink_to(tmp_path / "out" / "one")
    (root / "folder" / "two").unlink()
    (root / "folder").rmdir()
    (root / "folder").symlink_to(tmp_path / "out")
    assert [record.problem for record in open_uri(root).read(entries)] == [Reason.OUTSIDE_SOURCE] * 2


def test_files_that_vanish_or_change_after_planning_fail(tmp_path: Path) -> None:
    root = write_files(tmp_path, a=b"1", b=b"22", c=b"333", d=b"4444")
    entries = list(open_uri(root).entries())
    (root / "a").unlink()
    (root / "b").write_bytes(b"more")
    (root / "c").unlink()
    (root / "c").mkdir()
    found = [record.problem for record in open_uri(root).read(entries)]
    assert found == [Reason.UNREADABLE, Reason.CHANGED, Reason.UNREADABLE, None]


def test_a_file_over_the_limit_is_not_read_into_memory(tmp_path: Path) -> None:
    with open(tmp_path / "big.png", "wb") as file:
        file.truncate(2**33)  # sparse
    tracemalloc.start()
    records = read_all(tmp_path)
    assert problems(records) == {"big.png": Reason.TOO_MANY_BYTES}
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_folder_on_another_file_system_gives_the_same_records(memory: Any) -> None:
    for name in ("b/2.png", "a/1.png", ".DS_Store", "a/empty.png"):
        memory.pipe_file(f"/set/{name}", b"" if "empty" in name else name.encode())
    records = read_all("memory://set", label="folder")
    assert list(records) == ["a/1.png", "a/empty.png", "b/2.png"]
    assert records["a/1.png"].data == b"a/1.png" and records["a/1.png"].label == "a"
    assert records["a/1.png"].entry.uri.startswith("memory://")
    entries = list(open_uri("memory://set").entries())
    memory.rm("/set/a/1.png")
    memory.pipe_file("/set/b/2.png", b"longer than it was")
    assert [r.problem for r in open_uri("memory://set").read(entries)] == [Reason.UNREADABLE, None, Reason.CHANGED]
