"""Checks of source, output and previous release before any long work; nothing is written."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path

from anonymizer import config as configuration
from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.data import usage_marker
from anonymizer.data.sources import open_source
from anonymizer.data.sources.files import IGNORED_NAMES
from anonymizer.errors import ConfigError, CustodianKeyError, OutputError
from anonymizer.release import event_log, history, plan, succession
from anonymizer.release.history import list_weaker_rules, predecessors
from anonymizer.release.ledger import Ledger
from anonymizer.release.trust import refuse_untrusted
from anonymizer.schema import read_metric_models
from anonymizer.storage import filesystem
from anonymizer.storage.layout import REVOCATIONS, Release
from anonymizer.storage.path import StoragePath

SHARED_SETTINGS = ("output.image", "output.quality", "output.size")  # the same for all files of a release
RELEASE_MARKERS = ("restricted/plan.json", "release.intoto.jsonl")  # in a release, and in a public half by itself
# Left in restricted/ by a run that was interrupted while planning.
PLANNING_FILES = {".lock", "plan", "features", "errors", "config.yaml", "erased.parquet", "before.json", REVOCATIONS}


def check(config: RunConfig) -> None:
    """Raise SourceError if there is nothing to read, OutputError if the release cannot be written to its output."""
    if config.boomerang.k > 1 and config.previous is not None:
        raise ConfigError("previous: groups are not carried over from release to release yet: leave it out")
    usage_marker.refuse_marked_source("source.uri", config.source.uri)
    next(iter(open_source(config.source).entries()), None)
    check_output(config)


def check_output(config: RunConfig) -> None:
    """Raise OutputError if the release cannot be written to its output; the source is not read."""
    usage_marker.refuse_marked_output("output.uri", config.output.uri)
    source, output = StoragePath.from_uri(config.source.uri), StoragePath.from_uri(config.output.uri)
    name = f"output.uri {config.output.uri!r}"
    if output.is_inside(source) and source.is_inside(output):
        raise OutputError(f"{name}: is the source: choose a folder outside of it")
    if output.is_inside(source):
        raise OutputError(f"{name}: lies inside the source: outputs would become inputs: choose a folder outside of it")
    if source.is_inside(output):
        raise OutputError(f"{name}: holds the source: originals would lie in the release: choose another folder")
    release = Release.at(config.output.uri)
    if not release.root.is_local and set(release.root.path) & set("*?["):  # a pattern, whose matches would be removed
        raise OutputError(f"{name}: holds a pattern (*, ? or [): write the name out")
    _check_writable(name, release.root)
    if links := [path.name for path in release.restricted.children() if path.is_link]:
        raise OutputError(f"{name}: restricted/{links[0]} is a link: what is written there would lie elsewhere")
    if release.plan.exists():
        if release.is_published and not release.ledger.exists():
            raise OutputError(f"{name}: its records were purged, nothing can be redone: choose another")
    elif any([*_unexpected(release.root, {"restricted"}), *_unexpected(release.restricted, PLANNING_FILES)]):
        raise OutputError(f"{name}: is not empty and no release that was begun here: choose another folder")


def check_previous(config: RunConfig, key: CustodianKey, metric_models: Mapping[str, str]) -> None:
    """Raise ConfigError or CustodianKeyError unless a run with these settings may follow ``previous``.

    ``metric_models`` names the model behind each score of the run.
    """
    if config.previous is None:
        return
    before, name = Release.at(config.previous), f"previous {config.previous!r}"
    for problem in _unusable(config, before):
        raise ConfigError(f"{name}: {problem}")
    if key.check_value is None or key.check_value != plan.read(before).key_check:
        raise CustodianKeyError(
            f"{config.key_env}: not the key that {name} was made with: without it no original is known again: set it"
        )
    succession.refuse_pending(config.previous, config.output.uri, key, replaces=False)
    before = Release(before.root, key)
    refuse_untrusted(before, config, key, name)
    refuse_other_address(config, before, name)
    earlier = plan.read_config(before)
    for setting in SHARED_SETTINGS:
        value, now = configuration.get_setting(earlier, setting), configuration.get_setting(config, setting)
        if value != now:
            raise ConfigError(f"{setting}: {name} has {value!r}, not {now!r}: files of one release are of one kind")
    older_releases = predecessors(before)
    for older in older_releases:
        refuse_untrusted(older, config, key, "previous: a release before it")
    for older in (before, *older_releases):
        models = next((read_metric_models(table.schema) for _, table in Ledger.open(older).scan(("status",))), {})
        for score in sorted(models.keys() & metric_models.keys()):
            if models[score] != metric_models[score]:
                raise ConfigError(
                    f"metrics: {name} has {score} by {models[score]}, not {metric_models[score]}: use that"
                )
    if not list_weaker_rules(config) and config.policy.weaker_than_previous is not None:
        raise ConfigError(f"policy.weaker_than_previous: nothing is weaker than in {name}: leave it out")


def refuse_other_address(config: RunConfig, before: Release, name: str) -> None:
    """Raise ConfigError for a release that was made for another address, unless the settings pin its statement.

    An attacker who can write there could put an older, validly signed release in the place of a newer one.
    """
    digest, address = history.statement_digest_at(str(config.previous)), plan.read(before).output
    if config.previous_statement not in (None, digest):
        raise ConfigError(f"previous_statement: {name} has another statement ({digest}): restore what was pinned")
    if config.previous_statement is None and str(Release.at(address).root) != str(before.root):
        raise ConfigError(
            f"{name}: was made for another address, {address!r}: name that one; if it was moved or copied on purpose, "
            f"pin it with previous_statement={digest} (or `erase --statement`)"
        )


def _unusable(config: RunConfig, before: Release) -> Iterator[str]:
    """Yield why a release cannot be the previous one of any run with these settings."""
    if StoragePath.from_uri(config.output.uri).is_inside(before.root):
        yield "is the output itself, or holds it: each release has a place of its own"
    if not before.plan.exists():
        yield (
            "was erased: name the release that took its place"
            if event_log.is_erased(before)
            else "has no restricted half: name the release with both halves"
        )
    if not before.is_published:
        yield "is not published: finish it first, or name the one before it"
    if not before.ledger.exists():
        yield (
            "its records were purged (restricted.record_days), and without them no original is known again: name a "
            "release whose records are still there"
        )
    if max(config.boomerang.k, plan.read_config(before).boomerang.k if before.plan.exists() else 1) > 1:
        yield "has groups, or this run makes some (boomerang.k): this version makes none that follow a release"
    if config.model.has_record_condition:
        yield (
            "its pictures would go on to show what the model was told of a record then: leave out model.condition and "
            "columns in model.prompt, or begin anew without previous"
        )


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
