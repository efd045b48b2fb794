"""A mark on what was made of originals for another purpose than to release it, and the refusal to take it for that."""

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
MARKER_FILE = "purpose.json"  # in the folder that everything of one job lies in


def marker_text(purpose: Purpose) -> str:
    """What stands in the mark, and in the metadata of a manifest, under ``purpose``."""
    return f"{purpose}, not anonymised"


def write_marker(folder: StoragePath, purpose: Purpose) -> None:
    """Before anything else is written there."""
    (folder / MARKER_FILE).write_uncommitted(json.dumps({"purpose": marker_text(purpose)}).encode())


def refuse_marked_source(setting: str, uri: str) -> None:
    """SourceError if ``uri``, which ``setting`` names, lies in a marked folder or holds one at its top."""
    _refuse_marked(setting, uri, SourceError, "give the originals")


def refuse_marked_output(setting: str, uri: str) -> None:
    """OutputError if ``uri``, which ``setting`` names, lies in a marked folder or holds one at its top."""
    _refuse_marked(setting, uri, OutputError, "no place for a release: choose another folder")


def refuse_marked_entries(setting: str, entries: Iterable[Entry]) -> Iterator[Entry]:
    """``entries`` of a source, while none of them lies in a marked folder.

    SourceError for the first that does; it names no place, since that is a record's.
    """
    known: set[str] = set()
    last = ""
    for entry in entries:
        folder = entry.uri.rpartition("/")[0]
        if entry.problem is None and folder != last and _is_marked(folder, known):
            raise SourceError(
                f"{setting}: lists pictures that `augment` or `enhance` made, not anonymised: give the originals"
            )
        last = folder
        yield entry


def _is_marked(folder: str, known: set[str]) -> bool:
    """Whether a folder, or one that it lies in, is marked; those that are ``known`` are not asked again."""
    if folder.startswith(("http://", "https://")):  # where none can have been written
        return False
    try:
        for place in with_parents(StoragePath.from_uri(folder)):
            if str(place) in known:  # and so is all above it: on a store, each question is a request
                return False
            known.add(str(place))
            if (place / MARKER_FILE).exists():
                return True
    except Exception:  # a store that cannot be asked cannot be read either: its records fail one by one
        return False
    return False


def _refuse_marked(setting: str, uri: str, error: type[AnonymizerError], why: str) -> None:
    place = StoragePath.from_uri(uri)
    for folder in with_parents(place):
        try:
            marked = (folder / MARKER_FILE).exists()
        except OutputError as problem:  # a store that cannot be asked, or not about what lies above
            if folder.path == place.path:
                raise error(f"{setting} {uri!r}: {str(problem).partition(': ')[2]}") from None
            return
        if marked:
            raise error(
                f"{setting} {uri!r}: lies in or holds what was made by `augment` or `enhance`, not anonymised: {why}"
            )


def with_parents(place: StoragePath) -> Iterator[StoragePath]:
    """The place and all that it lies in, whatever link leads there."""
    if place.is_local:
        place = replace(place, path=os.path.realpath(place.path))
    yield place
    while place.path and not place.is_bucket and (above := place.fs._parent(place.path)) != place.path:
        place = replace(place, path=above)  # in an archive, the topmost is ""
        yield place
