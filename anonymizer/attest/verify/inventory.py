"""Inventory of a public half: its files, and entries that no release has."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from io import BufferedReader
from typing import cast

from anonymizer.storage.path import StoragePath


@dataclass(frozen=True)
class Inventory:
    """Names of plain files and of empty folders, and a line on each link, pipe, device and unreadable folder.

    Only plain files are ever opened: a link may lead out of the release, and a pipe may never end.
    """

    files: frozenset[str]
    empty_folders: frozenset[str]
    irregular: Sequence[str]


def take_inventory(folder: StoragePath) -> Inventory:
    """List everything below a folder without following links; empty if there is no such folder."""
    if not folder.is_local:
        return Inventory(frozenset(folder.list_files() if folder.exists() else ()), frozenset(), [])
    files: set[str] = set()
    empty_folders: set[str] = set()
    irregular: list[str] = []
    pending = [""]
    while pending:
        parent = pending.pop()
        try:
            with os.scandir(os.path.join(folder.path, parent)) as scan:
                entries = list(scan)
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
