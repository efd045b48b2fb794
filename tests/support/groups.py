"""Releases of groups whose plans are made by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from anonymizer import report
from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.records import Entry
from anonymizer.release import assemble, plan, publish
from anonymizer.storage.layout import Release
from tests.support.releases import KEY, begin, finished_ledger, folder_of, one_shard, picture, settings


def group_id(name: str, key: CustodianKey = KEY) -> str:
    return key.derive("test group", name.encode())[:16].hex()


def group_settings(
    source: Path | str, output: Path | str, /, *overrides: str, k: int = 3, **sections: Any
) -> RunConfig:
    """Settings of groups of ``k`` in one shard."""
    tree: dict[str, Any] = {"boomerang": {"k": k}, "run": {"shard_size": 100}}
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    return settings(source, output, *overrides, **tree)


def photos(root: Path, count: int = 7) -> Path:
    return folder_of(root, {f"p{i}.png": picture(i) for i in range(count)})


def in_threes(entries: Sequence[Entry]) -> Mapping[str, str]:
    """Record id -> group: three by three in the order of the source; what is left over is in none."""
    whole = len(entries) // 3 * 3
    return {entry.record_id: f"group {i // 3}" for i, entry in enumerate(entries[:whole])}


def begin_grouped(
    config: RunConfig, assign: Callable[[Sequence[Entry]], Mapping[str, str]] = in_threes, backbone: Any = None
) -> Release:
    """Write the plan of a run, and put its records into groups (record id -> any name)."""
    release = begin(config, backbone)
    the_plan = plan.read(release)
    for shard in range(the_plan.shards):
        entries = plan.read_entries(release, the_plan, shard)
        names = assign(entries)
        entries = [replace(e, group=group_id(names[e.record_id]) if e.record_id in names else None) for e in entries]
        plan.write_entries(release, the_plan.id, shard, sorted(entries, key=lambda e: e.group or ""))
    return release


def run_grouped(
    config: RunConfig,
    assign: Callable[[Sequence[Entry]], Mapping[str, str]] = in_threes,
    backbone: Any = None,
    scorer: Any = None,
) -> Release:
    """A whole run of groups that were put together by hand."""
    release = begin_grouped(config, assign, backbone)
    for shard in range(plan.read(release).shards):
        one_shard(config, shard, backbone, scorer)
    finish_grouped(release, config)
    return release


def finish_grouped(release: Release, config: RunConfig) -> None:
    with finished_ledger(release, config) as finished:
        assemble.assemble(release, config, finished)
        publish.decide_and_publish(release, config, KEY, finished, report.write_public)
