"""Mark folders of images that were made from originals for other purposes than release, and refuse marked folders."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Literal

from anonymizer.errors import AnonymizerError, OutputError, SourceError
from anonymizer.records import Entry
from anonymizer.storage.path import StoragePath

Purpose = Literal["augmentation", "enhancement"]
MARKER_FILE = "purpose.json"  # in the folder of everything that one job writes


def marker_text(purpose: Purpose) -> str:
    """Return the value of ``purpose`` in the marker file and in the metadata of a manifest."""
    return f"{purpose}, not anonymised"


def write_marker(folder: StoragePath, purpose: Purpose) -> None:
    """Mark a folder; to be called before anything else is written into it."""
    (folder / MARKER_FILE).write_uncommitted(json.dumps({"purpose": marker_text(purpose)}).encode())


def refuse_marked_source(setting: str, uri: str) -> None:
    """Raise SourceError if the ``uri`` of a setting is marked, or lies in a marked folder."""
    _refuse_marked(setting, uri, SourceError, "give the originals")


def refuse_marked_output(setting: str, uri: str) -> None:
    """Raise OutputError if the ``uri`` of a setting is marked, or lies in a marked folder."""
    _refuse_marked(setting, uri, OutputError, "no place for a release: choose another folder")


def refuse_marked_entries(setting: str, entries: Iterable[Entry]) -> Iterator[Entry]:
    """Yield the entries of a source. SourceError, without a path, for the first that lies in a marked folder."""
    checked: set[str] = set()
    last = ""
    for entry in entries:
        folder = entry.uri.rpartition("/")[0]
        if entry.problem is None and folder != last and _is_marked(folder, checked):
            raise SourceError(
                f"{setting}: lists pictures that `augment` or `enhance` made, not anonymised: give the originals"
            )
        last = folder
        yield entry


def _is_marked(folder: str, checked: set[str]) -> bool:
    """Return whether a folder or one above it is marked; each is looked up once, since a store takes a request."""
    if folder.startswith(("http://", "https://")):  # nothing is ever written there
        return False
    try:
        for path in with_parents(StoragePath.from_uri(folder)):
            if str(path) in checked:  # and all above it
                return False
            checked.add(str(path))
            if (path / MARKER_FILE).exists():
                return True
    except Exception:  # if a store cannot be asked, its records fail one by one
        return False
    return False


def _refuse_marked(setting: str, uri: str, error: type[AnonymizerError], hint: str) -> None:
    path = StoragePath.from_uri(uri)
    for folder in with_parents(path):
        try:
            is_marked = (folder / MARKER_FILE).exists()
        except OutputError as problem:
            if folder.path == path.path:
                raise error(f"{setting} {uri!r}: {str(problem).partition(': ')[2]}") from None
            return  # a store need not give access to the folders above
        if is_marked:
            raise error(
                f"{setting} {uri!r}: lies in or holds what was made by `augment` or `enhance`, not anonymised: {hint}"
            )


def with_parents(path: StoragePath) -> Iterator[StoragePath]:
    """Yield the path and all folders above it, after resolving links."""
    if path.is_local:
        path = replace(path, path=os.path.realpath(path.path))
    yield path
    while path.path and not path.is_bucket and (parent := path.fs._parent(path.path)) != path.path:
        path = replace(path, path=parent)  # in an archive, the topmost is ""
        yield path
