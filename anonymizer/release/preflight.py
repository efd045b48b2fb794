"""Checks of source and output before any long work; nothing is written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from anonymizer.config import RunConfig
from anonymizer.data import usage_marker
from anonymizer.data.sources import open_source
from anonymizer.data.sources.files import IGNORED_NAMES
from anonymizer.errors import OutputError
from anonymizer.storage import filesystem
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath

RELEASE_MARKERS = ("restricted/plan.json", "release.intoto.jsonl")  # in a release, and in a public half by itself
PLANNING_FILES = {".lock", "plan", "errors", "config.yaml"}  # left in restricted/ by a run interrupted while planning


def check(config: RunConfig) -> None:
    """Raise SourceError if there is nothing to read, OutputError if the release cannot be written to its output."""
    usage_marker.refuse_marked_source("source.uri", config.source.uri)
    next(iter(open_source(config.source).entries()), None)
    source, output = StoragePath.from_uri(config.source.uri), StoragePath.from_uri(config.output.uri)
    name = f"output.uri {config.output.uri!r}"
    if output.is_inside(source) and source.is_inside(output):
        raise OutputError(f"{name}: is the source: choose a folder outside of it")
    if output.is_inside(source):
        raise OutputError(f"{name}: lies inside the source: outputs would become inputs: choose a folder outside of it")
    if source.is_inside(output):
        raise OutputError(f"{name}: holds the source: originals would lie in the release: choose another folder")
    check_output(config)


def check_output(config: RunConfig) -> None:
    """Raise OutputError if the release cannot be written to its output, wherever its source is."""
    release, name = Release.at(config.output.uri), f"output.uri {config.output.uri!r}"
    usage_marker.refuse_marked_output("output.uri", config.output.uri)
    if not release.root.is_local and set(release.root.path) & set("*?["):  # a pattern, whose matches would be removed
        raise OutputError(f"{name}: holds a pattern (*, ? or [): write the name out")
    _check_writable(name, release.root)
    if release.plan.exists():
        if release.is_published and not release.ledger.exists():
            raise OutputError(f"{name}: its records were purged, nothing can be redone: choose another")
    elif any([*_unexpected(release.root, {"restricted"}), *_unexpected(release.restricted, PLANNING_FILES)]):
        raise OutputError(f"{name}: is not empty and no release that was begun here: choose another folder")


def check_private_folder(key: str, uri: str, source: str) -> None:
    """Raise OutputError if the folder that setting ``key`` names cannot take files that are not to be published."""
    path, name = StoragePath.from_uri(uri), f"{key} {uri!r}"
    if path.is_inside(StoragePath.from_uri(source)):
        raise OutputError(f"{name}: lies inside the source: what is written would become input: choose another")
    if any((folder / marker).exists() for folder in usage_marker.with_parents(path) for marker in RELEASE_MARKERS):
        raise OutputError(f"{name}: lies inside a release: choose a folder outside of it")
    if path.is_local and path.exists() and not _is_failed_attempt(Path(path.path)):
        raise OutputError(f"{name}: is there already: name a new folder")
    _check_writable(name, path)


def list_cautions(config: RunConfig) -> list[str]:
    """Return what should be known of where the output is stored."""
    root, cautions = StoragePath.from_uri(config.output.uri), []
    if not root.is_local and not _probe_store(f"output.uri {config.output.uri!r}", root):
        cautions.append(
            "output.uri: this store ignores conditions on what it is given to write, so that two runs, or two people "
            "at work on one release, may undo what the other did: let one at a time work there"
        )
    if filesystem.is_versioned(root.fs, root.path):
        cautions.append(
            "output.uri: the bucket keeps old versions, and with them what `erase` and `purge` remove: have a "
            "lifecycle rule delete them"
        )
    return cautions


def _is_failed_attempt(folder: Path) -> bool:
    """Return whether a folder is private and holds nothing but error reports."""
    return folder.is_dir() and not folder.stat().st_mode & 0o077 and {p.name for p in folder.iterdir()} <= {"errors"}


def _check_writable(name: str, root: StoragePath) -> None:
    if not root.is_local:
        _probe_store(name, root)
        return
    path = Path(root.path)
    nearest = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not nearest.is_dir():
        problem = "is a file" if nearest == path else f"{str(nearest)!r} is a file"
        raise OutputError(f"{name}: {problem}: name a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"{name}: cannot be written: check the permissions of {str(nearest)!r}")


def _probe_store(name: str, root: StoragePath) -> bool:
    """Write, read and delete an object; return whether conditional writes work. Raises OutputError if any fails."""
    probe = root / f".probe-{secrets.token_hex(4)}.tmp"
    try:
        probe.create(b"probe")
        is_conditional = probe.has_conditional_writes() and probe.read() == b"probe"
        probe.remove()
    except OutputError as error:
        raise OutputError(f"{name}: {str(error).partition(': ')[2]}") from None
    return is_conditional


def _unexpected(folder: StoragePath, expected: set[str]) -> Iterator[StoragePath]:
    """Yield what a folder holds besides expected and ignored names."""
    for path in folder.children():
        if path.name not in expected | IGNORED_NAMES and not path.name.endswith(".tmp"):
            yield path
