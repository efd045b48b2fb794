"""Files that are missing, added, changed, swapped or no plain files are found."""

from __future__ import annotations

import os
from itertools import combinations
from pathlib import Path

import pytest

from anonymizer.storage.layout import STATEMENT
from tests.support.releases import (
    picture,
)
from tests.support.signed_release import (
    check,
    failed_checks,
    has_failure,
    list_files,
    list_images,
)


def test_every_removed_file_is_found(public_half: Path) -> None:
    for file in list_files(public_half):
        data = file.read_bytes()
        file.unlink()
        assert failed_checks(public_half) <= {"statement", "digests", "pictures", "strays"} and failed_checks(
            public_half
        ), file.name
        file.write_bytes(data)


def test_every_truncated_or_extended_file_is_found(public_half: Path) -> None:
    for file in list_files(public_half):
        data = file.read_bytes()
        for part in (data[:-1], data[: len(data) // 2], b"", data + b"\0"):
            file.write_bytes(part)
            assert has_failure(public_half), file.name
        file.write_bytes(data)


@pytest.mark.parametrize("name", ["more.txt", "images/more.png", "data/part-99999.tar", "data/part-00000.parquet.bak"])
def test_an_added_file_is_found(public_half: Path, name: str) -> None:
    (public_half / name).parent.mkdir(exist_ok=True)
    (public_half / name).write_bytes(picture(1))
    (one,) = [finding for finding in check(public_half) if finding.result == "fail"]
    assert (one.check, one.message) == ("strays", f"{name}: nothing speaks of it")


def test_every_renamed_file_is_found(public_half: Path) -> None:
    for file in list_files(public_half):
        other = file.with_name("0" + file.name)
        file.rename(other)
        assert failed_checks(public_half), file.name
        other.rename(file)


def test_any_two_swapped_files_are_found(public_half: Path) -> None:
    there = list_files(public_half)
    for one, other in combinations(there, 2):
        first, second = one.read_bytes(), other.read_bytes()
        one.write_bytes(second)
        other.write_bytes(first)
        assert failed_checks(public_half), (one.name, other.name)
        one.write_bytes(first)
        other.write_bytes(second)


def test_two_bytes_swapped_between_images_are_found(folder_half: Path) -> None:
    one, other = list_images(folder_half)[:2]
    first, second = bytearray(one.read_bytes()), bytearray(other.read_bytes())
    at = next(i for i in range(60, len(first)) if first[i] != second[i])
    first[at], second[at] = second[at], first[at]
    one.write_bytes(first)
    other.write_bytes(second)
    assert [f.message.rpartition(": ")[2] for f in check(folder_half) if f.result == "fail"] == [
        "is not what was signed"
    ] * 2


@pytest.mark.skipif(os.name != "posix", reason="links and pipes are POSIX's")
def test_a_link_is_never_followed_even_to_the_very_same_bytes(public_half: Path, tmp_path: Path) -> None:
    for file in list_files(public_half):
        elsewhere = tmp_path / "elsewhere"
        file.rename(elsewhere)
        file.symlink_to(elsewhere)
        assert failed_checks(public_half) & {"statement", "strays", "digests"}, file.name
        file.unlink()
        elsewhere.rename(file)


@pytest.mark.skipif(os.name != "posix", reason="links and pipes are POSIX's")
def test_links_pipes_and_empty_folders_are_found_and_not_opened(public_half: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_bytes(b"secret")
    (public_half / "link").symlink_to(tmp_path / "secret")
    (public_half / "lost").symlink_to(tmp_path / "nowhere")
    os.mkfifo(public_half / "pipe")
    (public_half / "empty").mkdir()
    assert {f.message for f in check(public_half) if f.result == "fail"} == {
        "link: is a link", "lost: is a link", "pipe: is no file", "empty: is an empty folder",
    }  # fmt: skip
    (public_half / STATEMENT).unlink()
    os.mkfifo(public_half / STATEMENT)
    assert failed_checks(public_half) == {"statement"}


@pytest.mark.skipif(os.name != "posix", reason="names are bytes on POSIX")
@pytest.mark.parametrize("name", [b"a\x1b[2Jb", b"two\nlines", b"\xff\xfe", "\u202egnp.exe".encode(), b"x" * 250])
def test_a_file_name_cannot_steer_a_terminal_or_break_a_line(public_half: Path, name: bytes) -> None:
    with open(os.path.join(os.fsencode(public_half), name), "wb"):
        pass
    assert failed_checks(public_half) == {"strays"}  # and each line is one, and printable
