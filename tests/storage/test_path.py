"""Paths on an object store over its real protocol: atomic and conditional writes, listings, removal."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from anonymizer.errors import OutputError
from anonymizer.storage.path import StoragePath
from tests.support.object_store import (
    BUCKET,
    delete_nothing,
    reach,
    together,
    unreliable,
)


def test_only_one_of_several_concurrent_creations_succeeds(bucket: str) -> None:
    created = together(lambda number: (StoragePath.from_uri(bucket) / "first").create(b"%d" % number), 8)
    assert sum(created) == 1
    assert (StoragePath.from_uri(bucket) / "first").read() == b"%d" % created.index(True)


def test_compare_and_swap_replaces_only_the_version_that_was_read(bucket: str) -> None:
    path = StoragePath.from_uri(bucket) / "file"
    assert path.read_with_version() == (b"", None)
    assert path.compare_and_swap(b"one", None) and not path.compare_and_swap(b"two", None)
    _, version = path.read_with_version()
    assert path.compare_and_swap(b"two", version) and not path.compare_and_swap(b"three", version)
    assert path.read() == b"two"


def test_writes_of_other_processes_are_visible_at_once(bucket: str, server: str) -> None:
    folder = StoragePath.from_uri(bucket)
    (folder / "a").write_uncommitted(b"a")
    assert not (folder / "b").exists() and folder.list_files() == ["a"] and [c.name for c in folder.children()] == ["a"]
    write = f"(StoragePath.from_uri({bucket!r}) / 'b').write_uncommitted(b'b')"
    script = f"from anonymizer.storage.path import StoragePath; {write}"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (folder / "b").exists() and folder.list_files() == ["a", "b"]
    assert [child.name for child in folder.children()] == ["a", "b"]


def test_a_large_object_is_uploaded_in_parts_that_are_all_completed(bucket: str) -> None:
    path, data = (
        StoragePath.from_uri(bucket) / "large",
        os.urandom(2**20) * 101,
    )  # the store's client splits at 100 MiB
    assert path.create(data) and not path.create(b"other")
    assert path.read() == data
    assert "-" in path.fs.info(path.path)["ETag"]  # which tells how many parts there were
    assert not path.fs.list_multipart_uploads(BUCKET)


def test_a_removal_that_leaves_objects_is_an_error(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers to a list of deletions as a whole, and its client does not look at the answer for each."""
    folder = StoragePath.from_uri(bucket)
    for name in ("a", "b/c"):
        (folder / name).write_uncommitted(b"x")
    monkeypatch.setattr(type(folder.fs), "_bulk_delete", delete_nothing)
    with pytest.raises(OutputError, match=r"could not be deleted: check that the credentials may delete"):
        folder.remove()
    monkeypatch.undo()


def test_a_lost_response_is_not_taken_for_a_concurrent_write(
    bucket: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client puts again, and is told that something lies there: what it has put itself."""
    with unreliable(server, every=3) as proxy:
        proxy.faults = ("lost",)
        reach(monkeypatch, proxy.url)
        for number in range(6):
            path = StoragePath.from_uri(bucket) / f"file {number}"
            assert path.create(b"mine") and not path.create(b"other")
            assert path.compare_and_swap(b"mine again", path.read_with_version()[1])
        assert proxy.failed > 6
