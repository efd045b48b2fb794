"""What is said about source and output before any long work; nothing is written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from anonymizer.config import RunConfig
from anonymizer.data import usage_marker
from anonymizer.data.sources import IGNORED_NAMES, open_source
from anonymizer.errors import OutputError
from anonymizer.storage import filesystem
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath

RELEASE_MARKERS = (
    "restricted/plan.json",
    "release.intoto.jsonl",
)  # the latter in a public half that was handed out alone
PLANNING_FILES = {
    ".lock",
    "plan",
    "errors",
    "config.yaml",
}  # what a run that was stopped while planning leaves in restricted/


def check(config: RunConfig) -> None:
    """SourceError if there is nothing to read, OutputError if the release cannot go where it is meant to."""
    usage_marker.refuse_marked_source("source.uri", config.source.uri)
    next(iter(open_source(config.source).entries()), None)
    _check_disjoint(config, StoragePath.from_uri(config.source.uri), StoragePath.from_uri(config.output.uri))
    check_output(config)


def check_output(config: RunConfig) -> None:
    """OutputError if the release cannot go where it is meant to, wherever its source lies."""
    release = Release.at(config.output.uri)
    usage_marker.refuse_marked_output("output.uri", config.output.uri)
    _check_path(config, release.root)
    if not release.plan.exists():
        _check_unused(config, release)
    elif release.is_published and not release.ledger.exists():
        raise OutputError(
            f"output.uri {config.output.uri!r}: its records were purged, nothing can be redone: choose another"
        )


def check_private_folder(key: str, uri: str, source: str) -> None:
    """OutputError if ``uri``, which setting ``key`` names, cannot take files that are not to be handed out."""
    place, name = StoragePath.from_uri(uri), f"{key} {uri!r}"
    if place.is_inside(StoragePath.from_uri(source)):
        raise OutputError(f"{name}: lies inside the source: what is written would become input: choose another")
    for folder in usage_marker.with_parents(place):
        if any((folder / of_release).exists() for of_release in RELEASE_MARKERS):
            raise OutputError(f"{name}: lies inside a release: choose a folder outside of it")
    if place.is_local and place.exists() and not _is_failed_attempt(Path(place.path)):
        raise OutputError(f"{name}: is there already: name a new folder")
    _check_writable(name, place)


def _is_failed_attempt(folder: Path) -> bool:
    """Private, and empty but for errors: what was begun there failed."""
    return folder.is_dir() and not folder.stat().st_mode & 0o077 and {p.name for p in folder.iterdir()} <= {"errors"}


def _check_disjoint(config: RunConfig, source: StoragePath, output: StoragePath) -> None:
    name = f"output.uri {config.output.uri!r}"
    if output.is_inside(source) and source.is_inside(output):
        raise OutputError(f"{name}: is the source: choose a folder outside of it")
    if output.is_inside(source):
        raise OutputError(f"{name}: lies inside the source: outputs would become inputs: choose a folder outside of it")
    if source.is_inside(output):
        raise OutputError(f"{name}: holds the source: originals would lie in the release: choose another folder")


def _check_path(config: RunConfig, root: StoragePath) -> None:
    if not root.is_local and set(root.path) & set("*?["):  # read as a pattern, and what it fits would be removed
        raise OutputError(f"output.uri {config.output.uri!r}: holds a pattern (*, ? or [): write the name out")
    _check_writable(f"output.uri {config.output.uri!r}", root)


def _check_writable(name: str, root: StoragePath) -> None:
    if not root.is_local:
        _probe_store(name, root)
        return
    path = Path(root.path)
    nearest = next(folder for folder in (path, *path.parents) if os.path.lexists(folder))
    if not nearest.is_dir():
        what = "is a file" if nearest == path else f"{str(nearest)!r} is a file"
        raise OutputError(f"{name}: {what}: name a folder")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise OutputError(f"{name}: cannot be written: check the permissions of {str(nearest)!r}")


def list_cautions(config: RunConfig) -> list[str]:
    """What should be known of the place of the output."""
    root, found = StoragePath.from_uri(config.output.uri), []
    if not root.is_local and not _probe_store(f"output.uri {config.output.uri!r}", root):
        found.append(
            "output.uri: this store ignores conditions on what it is given to write, so that two runs, or two people "
            "at work on one release, may undo what the other did: let one at a time work there"
        )
    if filesystem.is_versioned(root.fs, root.path):
        found.append(
            "output.uri: the bucket keeps old versions, and with them what `erase` and `purge` remove: have a "
            "lifecycle rule delete them"
        )
    return found


def _probe_store(name: str, root: StoragePath) -> bool:
    """OutputError unless a store lets us write, read and delete there; whether it keeps to conditions."""
    probe = root / f".probe-{secrets.token_hex(4)}.tmp"
    try:
        probe.create(b"probe")
        kept = probe.has_conditional_writes() and probe.read() == b"probe"
        probe.remove()
    except OutputError as error:
        raise OutputError(f"{name}: {str(error).partition(': ')[2]}") from None
    return kept


def _check_unused(config: RunConfig, release: Release) -> None:
    """An output that is not a release must be empty, apart from what a run leaves that was stopped while planning."""
    others = [*_unexpected_names(release.root, {"restricted"}), *_unexpected_names(release.restricted, PLANNING_FILES)]
    if others:
        raise OutputError(
            f"output.uri {config.output.uri!r}: is not empty and no release that was begun here: choose another folder"
        )


def _unexpected_names(folder: StoragePath, known: set[str]) -> Iterator[str]:
    for child in folder.children():
        if child.name not in known | IGNORED_NAMES and not child.name.endswith(".tmp"):
            yield child.name
