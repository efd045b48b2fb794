"""What lies in a public half: its files, and what has no business there."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

from anonymizer.storage.path import StoragePath


@dataclass(frozen=True)
class Inventory:
    """Names of plain files and of empty folders; and a line on each link, pipe, device, and folder that is closed.

    Nothing else than a plain file is ever opened: a link may lead out of the release, and a pipe has no end.
    """

    files: frozenset[str]
    empty_folders: frozenset[str]
    irregular: Sequence[str]


def take_inventory(folder: StoragePath) -> Inventory:
    """Everything below a folder, no link being followed; nothing where there is no such folder."""
    if not folder.is_local:
        return Inventory(frozenset(folder.list_files() if folder.exists() else ()), frozenset(), [])
    files: set[str] = set()
    empty: set[str] = set()
    odd: list[str] = []
    waiting = [""]
    while waiting:
        inside = waiting.pop()
        try:
            with os.scandir(os.path.join(folder.path, inside)) as found:
                entries = list(found)
        except OSError:
            odd.append(f"{inside or 'folder'}: cannot be listed")
            continue
        if not entries:
            empty.add(inside)
        for entry in entries:
            name = f"{inside}/{entry.name}".lstrip("/")
            if entry.is_dir(follow_symlinks=False):
                waiting.append(name)
            elif entry.is_file(follow_symlinks=False):
                files.add(name)
            else:
                odd.append(f"{name}: {'is a link' if entry.is_symlink() else 'is no file'}")
    return Inventory(frozenset(files), frozenset(empty), sorted(odd))


@contextmanager
def open_file(folder: StoragePath, name: str) -> Iterator[IO[bytes]]:
    """A file of the listing, to be read; on a disk without fsspec, which takes longer than a small file itself."""
    place = folder / name
    with open(place.path, "rb") if place.is_local else place.fs.open(place.path, "rb") as file:
        yield file
