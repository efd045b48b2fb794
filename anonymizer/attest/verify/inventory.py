"""Inventory of a public half: its files, and entries that no release has."""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from itertools import islice
from typing import cast

from anonymizer.storage.layout import STATEMENT
from anonymizer.storage.path import StoragePath

MAX_STATEMENT_BYTES = 2**26  # a release of a million parts has one of some hundred bytes for each


@dataclass(frozen=True)
class Inventory:
    """Names of plain files and of empty folders, and a line on each link, pipe, device and unreadable folder.

    Only plain files are ever opened: a link may lead out of the release, and a pipe may never end.
    """

    files: frozenset[str]
    empty_folders: frozenset[str]
    irregular: Sequence[str]
    wrong_sizes: frozenset[str] = frozenset()  # of other sizes than were signed; they are not read


def read_statement(folder: StoragePath) -> bytes:
    """Return the statement of a public half.

    Raises FileNotFoundError unless it is a plain file, ValueError if it is too large.
    """
    path = folder / STATEMENT
    if not (stat.S_ISREG(os.lstat(path.path).st_mode) if path.is_local else path.exists()):
        raise FileNotFoundError
    return read_bounded(path, MAX_STATEMENT_BYTES)


def read_bounded(path: StoragePath, max_bytes: int) -> bytes:
    """Return the content of a file. Raises ValueError if it is larger."""
    with path.fs.open(path.path, "rb") as file:
        data: bytes = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ValueError(f"is larger than {max_bytes:,} bytes")
    return data


def take_inventory(folder: StoragePath, max_files: int) -> Inventory:
    """List everything below a folder without following links; empty if there is no such folder.

    Of a folder that holds more than ``max_files`` no more are listed.
    """
    if not folder.is_local:
        return Inventory(frozenset(folder.list_files() if folder.exists() else ()), frozenset(), [])
    files: set[str] = set()
    empty_folders: set[str] = set()
    irregular: list[str] = []
    pending = [""]
    while pending:
        if len(files) + len(irregular) + len(empty_folders) > max_files:
            irregular.append("folder: holds far more files than were signed")
            break
        parent = pending.pop()
        try:
            with os.scandir(os.path.join(folder.path, parent)) as scan:
                entries = list(islice(scan, max_files + 1))
        except OSError:
            irregular.append(f"{parent or 'folder'}: cannot be listed")
            continue
        if not entries:
            empty_folders.add(parent)
        for entry in entries:
            name = f"{parent}/{entry.name}".lstrip("/")
            if entry.is_dir(follow_symlinks=False):
                pending.append(name)
            elif entry.is_file(follow_symlinks=False):
                files.add(name)
            else:
                irregular.append(f"{name}: {'is a link' if entry.is_symlink() else 'is no file'}")
    return Inventory(frozenset(files), frozenset(empty_folders), sorted(irregular))


def open_file(folder: StoragePath, name: str) -> BufferedReader:
    """Open a file for reading; a local one without fsspec, whose overhead exceeds the time to read a small file."""
    path = folder / name
    if path.is_local:
        return open(path.path, "rb")
    return cast(BufferedReader, path.fs.open(path.path, "rb"))
