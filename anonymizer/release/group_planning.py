"""Division of a source's records into groups, and of the groups into shards, none of which a group leaves."""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from itertools import islice
from typing import IO, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from anonymizer.backbones import Backbone
from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import ConfigError
from anonymizer.grouping.features import Embedder, open_extractor
from anonymizer.grouping.groups import Grouping, group_records
from anonymizer.records import Entry
from anonymizer.release import history, plan
from anonymizer.release.feature_cache import FeatureCache
from anonymizer.release.group_survey import NO_PERSON, Survey, Surveyor
from anonymizer.release.history import EMPTY_HISTORY
from anonymizer.release.ledger import scratch_folder
from anonymizer.storage.external_sort import ExternalSort
from anonymizer.storage.layout import Release
from anonymizer.storage.prefetch import chunked

SPOOL_ROWS = 4096


@dataclass(frozen=True)
class GroupCounts:
    """Counts of the groups of a release, without anything of a record.

    ``records``: all of the source; ``left_over``: those without a group that could be in one, and copies of an original
    that is in one. ``unusable``: those that cannot be read or decoded, or were erased; None, and counted as left over,
    where a plan that was written does not tell. ``small_strata``: combinations of values of the columns in ``by`` that
    fewer than ``k`` records have.
    """

    k: int
    outputs: str
    by: tuple[str, ...]
    records: int
    shards: int
    groups: int
    largest: int
    left_over: int
    unusable: int | None = None
    small_strata: int | None = None

    @property
    def images(self) -> int:
        """How many pictures the groups give."""
        return self.groups if self.outputs == "one" else self.records - self.left_over - (self.unusable or 0)

    @property
    def share_left_over(self) -> float:
        return self.left_over / self.records if self.records else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return all counts, with the number of images and the share that is left over."""
        return asdict(self) | {"images": self.images, "share_left_over": self.share_left_over}


def divide(
    config: RunConfig, backbone: Backbone, key: CustodianKey, release: Release, entries: Iterator[Entry],
    clip: Embedder | None = None, progress: Callable[[int], None] = lambda done: None,
) -> Iterator[list[Entry]]:  # fmt: skip
    """Yield the entries of each shard: all members of a group in one, each in the source's order.

    Shards of groups hold up to ``run.shard_size`` records, or one larger group. What was erased from earlier releases
    has no group. Raises ConfigError where more are left over than the policy allows, before any shard.
    """
    if config.boomerang.k == 1:
        yield from plan.divide_in_order(config, backbone, key, release, entries)
        return
    extract = open_extractor(config, backbone, clip)
    fingerprint = config.fingerprint(backbone.digest)
    source = config.source
    depends_on = [backbone.digest, extract.name, source.fit, source.limits.model_dump()]  # not on k or the level
    cache = FeatureCache.open(release, config.restricted, f"features/{json.dumps(depends_on)}")
    surveyor = Surveyor(config, backbone, key, extract, history.load(release), cache)
    with tempfile.TemporaryFile("w+", dir=scratch_folder(release), encoding="utf-8") as spool:
        survey = surveyor.survey(_spool_entries(entries, spool), progress)
        grouping = group_survey(config, key, fingerprint, survey)
        refuse_left_over(config, count_groups(config, survey, grouping))
        shards = assign_shards(survey, grouping, config.run.shard_size)
        name_of = _name_groups(survey, grouping, key, fingerprint)
        spool.seek(0)
        with ExternalSort(_tables(spool, shards), "place", survey.records, scratch_folder(release)) as ordered:
            sorted_entries = _read_entries(ordered, name_of)
            for size in np.bincount(shards).tolist():
                yield list(islice(sorted_entries, size))
    release.features.remove()


def preview(
    config: RunConfig, backbone: Backbone, key: CustodianKey, clip: Embedder | None,
    progress: Callable[[int], None] = lambda done: None,
) -> GroupCounts:  # fmt: skip
    """Return the counts of the groups that a run would form; reads every picture and writes nothing.

    Raises ConfigError as ``divide`` does.
    """
    extract = open_extractor(config, backbone, clip)
    survey = Surveyor(config, backbone, key, extract, EMPTY_HISTORY).survey(plan.list_entries(config), progress)
    grouping = group_survey(config, key, config.fingerprint(backbone.digest), survey)
    counts = count_groups(config, survey, grouping)
    refuse_left_over(config, counts)
    return counts


def group_survey(config: RunConfig, key: CustodianKey, fingerprint: str, survey: Survey) -> Grouping:
    """Return the groups of the records in a survey; the same for the same originals, settings and key."""
    rng = np.random.default_rng(int.from_bytes(key.derive("grouping", fingerprint.encode()), "big"))
    has_people = bool(len(survey.people)) and int(survey.people[0]) != NO_PERSON
    return group_records(
        survey.features, survey.digests, config.boomerang.k, rng, strata=survey.strata,
        tags=survey.people[:, None] if has_people else None, merge=config.groups.leftover == "merge",
    )  # fmt: skip


def count_groups(config: RunConfig, survey: Survey, grouping: Grouping) -> GroupCounts:
    """Return the counts of a grouping."""
    sizes = np.bincount(grouping.numbers[grouping.numbers >= 0])
    strata = np.unique(survey.strata, return_counts=True)[1]
    return GroupCounts(
        **_settings(config), records=survey.records, groups=len(sizes), largest=int(sizes.max(initial=0)),
        shards=int(assign_shards(survey, grouping, config.run.shard_size).max(initial=-1)) + 1,
        left_over=survey.records - survey.unusable - int(sizes.sum()), unusable=survey.unusable,
        small_strata=int((strata < config.boomerang.k).sum()),
    )  # fmt: skip


def count_planned(config: RunConfig, release: Release) -> GroupCounts:
    """Return the counts of the groups of a plan that was written."""
    sizes, the_plan = Counter[str](), plan.read(release)
    for shard in range(the_plan.shards):
        sizes.update(entry.group for entry in plan.read_entries(release, the_plan, shard) if entry.group is not None)
    return GroupCounts(
        **_settings(config), records=the_plan.records, groups=len(sizes), largest=max(sizes.values(), default=0),
        shards=the_plan.shards, left_over=the_plan.records - sizes.total(),
    )  # fmt: skip


def _settings(config: RunConfig) -> dict[str, Any]:
    groups = config.groups
    return {"k": config.boomerang.k, "outputs": groups.outputs, "by": groups.columns(config.source)}


def refuse_left_over(config: RunConfig, counts: GroupCounts) -> None:
    """Raise ConfigError where no group can be formed, or more is left over than the policy allows without a waiver."""
    share, rule = f"{counts.left_over:,} of {counts.records:,} records", "groups.max_leftover"
    step = "choose a smaller boomerang.k or fewer columns in groups.by"
    if not counts.groups:
        raise ConfigError(f"boomerang.k: {counts.k}, and no group can be formed ({share} are left over): {step}")
    maximum = config.policy.groups.max_leftover
    if maximum is not None and counts.share_left_over > maximum and not config.policy.waives(rule):
        raise ConfigError(f"policy.{rule}: at most {maximum:g} of all, and {share} have no group: {step}")


def assign_shards(survey: Survey, grouping: Grouping, shard_size: int) -> npt.NDArray[np.int64]:
    """Return the shard of each record of the source (records,); groups come first, in the order of their records.

    A shard is begun where the next group does not fit. Records without a group fill what follows.
    """
    shards = np.full(survey.records, -1, np.int64)
    groups = sorted((survey.positions[group] for group in grouping.groups), key=lambda places: int(places.min()))
    shard = held = 0
    for places in groups:
        if held and held + len(places) > shard_size:
            shard, held = shard + 1, 0
        shards[places] = shard
        held += len(places)
    rest = np.flatnonzero(shards < 0)
    shards[rest] = shard + (np.arange(len(rest)) + min(held, shard_size)) // shard_size
    return shards


def _name_groups(
    survey: Survey, grouping: Grouping, key: CustodianKey, fingerprint: str
) -> Callable[[int], str | None]:
    """Return a function that gives the id of the group of a record by its place in the source; None without one."""
    names = [
        key.group_id((digest.decode() for digest in survey.digests[group].tolist()), fingerprint)
        for group in grouping.groups
    ]
    numbers = np.full(survey.records, -1, np.int32)
    numbers[survey.positions] = grouping.numbers
    return lambda place: names[numbers[place]] if numbers[place] >= 0 else None


def _spool_entries(entries: Iterable[Entry], spool: IO[str]) -> Iterator[Entry]:
    """Yield entries, and write each to a file: a source that is listed twice may have changed in between."""
    for entry in entries:
        spool.write(json.dumps(plan.entry_to_json(entry)) + "\n")
        yield entry


def _tables(spool: IO[str], shards: npt.NDArray[np.int64]) -> Iterator[pa.Table]:
    """Yield the entries of a file with their place in the plan, as keys that are spread as ``ExternalSort`` expects."""
    places = np.empty(len(shards), np.int64)
    places[np.argsort(shards, kind="stable")] = np.arange(len(shards))
    for rows in chunked(enumerate(spool), SPOOL_ROWS):
        keys = [f"{int(places[position]) * 2**32 // len(shards):08x}" for position, _ in rows]
        positions = pa.array([position for position, _ in rows], pa.int64())
        yield pa.table({"place": keys, "position": positions, "entry": [text for _, text in rows]})


def _read_entries(ordered: ExternalSort, name_of: Callable[[int], str | None]) -> Iterator[Entry]:
    for table in ordered.tables():
        for row in table.to_pylist():
            entry = plan.entry_from_json(json.loads(row["entry"]))
            yield replace(entry, group=name_of(row["position"]))
