"""File modes on a disk: the restricted half is for its owner only, the public half follows the umask."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from anonymizer.errors import OutputError
from anonymizer.records import Scores
from anonymizer.storage import run_lock
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from tests.support.releases import Unscored, folder_of, picture, plain, run, settings

pytestmark = pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(folder: Path) -> tuple[set[int], set[int]]:
    """Modes of all folders, this one included, and of all files."""
    paths = [folder, *folder.rglob("*")]
    result = [{stat.S_IMODE(p.stat().st_mode) for p in paths if p.is_dir() == kind} for kind in (True, False)]
    return result[0], result[1]


def release_of(tmp_path: Path, kind: str = "folder") -> Path:
    """A release with a picture in quarantine and one that failed; its folder."""
    files = {f"{i}.png": picture(i) for i in range(4)} | {"black.png": plain(0), "bad.png": b"no picture"}
    source = folder_of(tmp_path / "in", files)
    out = tmp_path / "new" / "out"
    run(settings(source, out, output={"format": kind}), scorer=Unscored(Scores()))
    return out


@pytest.mark.parametrize("mask", [0, 0o022, 0o077])
@pytest.mark.parametrize("kind", ["folder", "webdataset", "parquet"])
def test_the_restricted_half_is_private_and_the_public_half_follows_the_umask(
    tmp_path: Path, mask: int, kind: str
) -> None:
    with umask(mask):
        out = release_of(tmp_path, kind)
    assert list((out / "restricted" / "quarantine").iterdir())
    assert modes(out / "restricted") == ({0o700}, {0o600})
    assert modes(out / "public") == ({0o777 & ~mask}, {0o666 & ~mask})
    assert stat.S_IMODE(out.stat().st_mode) == 0o777 & ~mask
    assert stat.S_IMODE(out.parent.stat().st_mode) == 0o777 & ~mask


@pytest.mark.parametrize("how", ["write", "write_uncommitted", "create"])
def test_each_write_creates_private_files_and_folders_below_a_private_root_only(tmp_path: Path, how: str) -> None:
    with umask(0):
        folder = (StoragePath.from_uri(str(tmp_path)) / "out" / "restricted").as_private()
        getattr(folder / "a" / "b" / "file", how)(b"data")
        getattr(StoragePath.from_uri(str(tmp_path)) / "out" / "public" / "a" / "file", how)(b"data")
    assert modes(tmp_path / "out" / "restricted") == ({0o700}, {0o600})
    assert modes(tmp_path / "out" / "public") == ({0o777}, {0o666})
    assert stat.S_IMODE((tmp_path / "out").stat().st_mode) == 0o777
    assert [child.read() for child in (folder / "a" / "b").children()] == [b"data"]


def test_children_of_a_private_folder_are_private(tmp_path: Path) -> None:
    with umask(0):
        folder = StoragePath.from_uri(str(tmp_path / "restricted")).as_private()
        (folder / "a" / "file").write_uncommitted(b"data")
        for child in folder.children():
            (child / "more" / "file").write_uncommitted(b"data")
    assert modes(tmp_path / "restricted") == ({0o700}, {0o600})


def test_a_private_folder_is_private_from_its_private_root_on(tmp_path: Path) -> None:
    with umask(0):
        (Release.at(str(tmp_path / "one")).restricted / "deep" / "er").make_private_folder()
        StoragePath.from_uri(str(tmp_path / "two" / "calibration")).make_private_folder()
    assert modes(tmp_path / "one" / "restricted") == ({0o700}, set())
    assert stat.S_IMODE((tmp_path / "two").stat().st_mode) == 0o777
    assert modes(tmp_path / "two" / "calibration") == ({0o700}, set())


def test_an_unnormalised_path_is_private(tmp_path: Path) -> None:
    with umask(0):
        (Release.at(f"{tmp_path}//x/.//out/").restricted / "errors" / "plan.txt").write_uncommitted(b"data")
    assert modes(tmp_path / "x" / "out" / "restricted") == ({0o700}, {0o600})


def test_shorter_content_replaces_longer_content(tmp_path: Path) -> None:
    folder = StoragePath.from_uri(str(tmp_path / "restricted")).as_private() / "file"
    for how in ("write_uncommitted", "write"):
        getattr(folder, how)(b"longer than what follows")
        getattr(folder, how)(b"short")
        assert folder.read() == b"short"


def test_the_lock_of_a_run_and_details_of_errors_are_private(tmp_path: Path) -> None:
    config = settings(tmp_path / "in", tmp_path / "new" / "out")
    with umask(0), run_lock.exclusive_run(config.output.uri):
        (Release.at(config.output.uri).restricted / "errors" / "plan.txt").write_uncommitted(b"Traceback")
        assert (tmp_path / "new" / "out" / "restricted" / ".lock").exists()
        assert modes(tmp_path / "new" / "out" / "restricted") == ({0o700}, {0o600})
    assert stat.S_IMODE((tmp_path / "new" / "out").stat().st_mode) == 0o777


@pytest.mark.parametrize("how", ["write", "write_uncommitted", "create", "make_private_folder"])
def test_a_full_disk_is_one_line_without_the_files_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    def full(path: object, *args: object, **rest: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    folder = StoragePath.from_uri(str(tmp_path)).as_private() / "secret id.png"
    with monkeypatch.context() as patch, pytest.raises(OutputError) as caught:
        patch.setattr(os, "mkdir" if how == "make_private_folder" else "open", full)
        getattr(folder, how)(*([] if how == "make_private_folder" else [b"data"]))
    assert str(caught.value).startswith("output.uri: cannot be written (No space left on device)")
    assert "secret" not in str(caught.value)
    assert not list(tmp_path.iterdir())
