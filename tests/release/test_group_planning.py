"""Plans of groups: whole groups in one shard, alike where they must be, of different people, found again and erased."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as run_with
from hypothesis import strategies as st

from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import ConfigError
from anonymizer.grouping.groups import Grouping
from anonymizer.records import Entry, Plan
from anonymizer.release import group_planning, group_survey, history, plan
from anonymizer.release.group_planning import GroupCounts, assign_shards
from anonymizer.release.group_survey import Survey, Surveyor
from anonymizer.release.history import PublishedHistory
from anonymizer.storage.layout import Release
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import GARBAGE, KEY, encoded, folder_of, people, picture, settings


def write_plan(config: RunConfig, key: CustodianKey = KEY, **more: Any) -> tuple[Release, Plan]:
    release = Release.at(config.output.uri, key)

    def divide(*arguments: Any) -> Any:
        return group_planning.divide(*arguments, **more)

    return release, plan.write_or_resume(config, IdealGaussian(), key, release, history.carry_forward, divide=divide)


def shards_of(release: Release) -> list[list[Entry]]:
    the_plan = plan.read(release)
    return [plan.read_entries(release, the_plan, shard) for shard in range(the_plan.shards)]


def groups_of(release: Release) -> dict[str, set[str]]:
    groups: dict[str, set[str]] = {}
    for entries in shards_of(release):
        for entry in entries:
            if entry.group is not None:
                groups.setdefault(entry.group, set()).add(entry.record_id)
    return groups


def listing(root: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    """A table of pictures of their own, with further columns."""
    root.mkdir()
    lines = []
    for number, row in enumerate(rows):
        (root / f"{number}.png").write_bytes(picture(number))
        lines.append(json.dumps({"image": f"{number}.png", **row}))
    (root / "list.jsonl").write_text("\n".join(lines))
    return root / "list.jsonl"


def grey(value: int) -> bytes:
    return encoded(np.full((8, 8, 3), value, np.uint8))


# -- what a plan holds ------------------------------------------------------------------------------------------------


def test_groups_are_whole_within_one_shard_and_the_rest_follows(tmp_path: Path) -> None:
    source = people(tmp_path / "in", 23)
    folder_of(source, {"a/broken.png": GARBAGE})
    config = settings(source, tmp_path / "out", "boomerang.k=3", "run.shard_size=7")
    release, the_plan = write_plan(config)
    shards = shards_of(release)
    assert [len(entries) for entries in shards] == list(the_plan.shard_records) == [6, 6, 6, 6]
    assert (the_plan.records, the_plan.shards) == (24, 4)
    homes = [{entry.group for entry in entries if entry.group} for entries in shards]
    assert sum(map(len, homes)) == len(set().union(*homes)) == 7
    assert set(map(len, groups_of(release).values())) == {3}
    names = [entry.record_id for entries in shards for entry in entries]
    assert sorted(names) == sorted(entry.record_id for entry in plan.list_entries(config))
    for entries in shards:  # a table or an archive is read from its begin to its end
        assert [e.record_id for e in entries] == sorted(e.record_id for e in entries)
    assert plan.read(release) == the_plan
    assert not release.features.exists()


def test_near_pictures_are_grouped(tmp_path: Path) -> None:
    values = [10, 12, 14, 100, 102, 104, 200, 202, 204]
    source = folder_of(tmp_path / "in", {f"{value:03d}.png": grey(value) for value in values})
    release, _ = write_plan(settings(source, tmp_path / "out", "boomerang.k=3"))
    assert sorted(map(sorted, groups_of(release).values())) == [
        ["010.png", "012.png", "014.png"], ["100.png", "102.png", "104.png"], ["200.png", "202.png", "204.png"]
    ]  # fmt: skip


def test_a_plan_is_found_again_with_the_key_and_by_no_other(tmp_path: Path) -> None:
    source = people(tmp_path / "in", 40)
    first, _ = write_plan(settings(source, tmp_path / "one", "boomerang.k=4"))
    again, _ = write_plan(settings(source, tmp_path / "two", "boomerang.k=4"))
    other, _ = write_plan(settings(source, tmp_path / "three", "boomerang.k=4"), CustodianKey(bytes(range(1, 33))))
    assert groups_of(first) == groups_of(again)
    assert not set(groups_of(first)) & set(groups_of(other))
    assert set(map(frozenset, groups_of(first).values())) != set(map(frozenset, groups_of(other).values()))
    assert all(len(name) == 32 and int(name, 16) >= 0 for name in groups_of(first))


def test_names_and_order_of_the_source_change_no_group(tmp_path: Path) -> None:
    one = folder_of(tmp_path / "one", {f"{i:02d}.png": picture(i) for i in range(20)})
    two = folder_of(tmp_path / "two", {f"x/{99 - i}.png": picture(i) for i in range(20)})

    def originals(source: Path, name: str) -> set[frozenset[bytes]]:
        release, _ = write_plan(settings(source, tmp_path / name, "boomerang.k=3"))
        return {frozenset((source / r).read_bytes() for r in group) for group in groups_of(release).values()}

    assert originals(one, "out one") == originals(two, "out two")


def test_without_groups_a_plan_is_written_as_ever(tmp_path: Path) -> None:
    config = settings(people(tmp_path / "in", 5), tmp_path / "out")
    release, the_plan = write_plan(config)
    assert [[entry.group for entry in entries] for entries in shards_of(release)] == [[None] * 2, [None] * 2, [None]]
    assert "shard_records" not in json.loads(release.plan.read())
    assert the_plan.shard_records == ()


@run_with(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(2, 9), min_size=1, max_size=12), rest=st.integers(0, 12), shard_size=st.integers(1, 8),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_no_shard_is_larger_than_it_may_be_or_than_one_group(
    sizes: list[int], rest: int, shard_size: int, seed: int
) -> None:
    numbers = np.repeat([*range(len(sizes)), -1], [*sizes, rest]).astype(np.int32)
    numbers = np.random.default_rng(seed).permutation(numbers)
    count = len(numbers)
    empty = np.zeros(count, np.int64)
    survey = Survey(count, 0, np.arange(count), empty.astype("S64"), np.empty((count, 0), np.float16), empty, empty)
    shards = assign_shards(survey, Grouping(numbers), shard_size)
    assert set(shards) == set(range(int(shards.max()) + 1))
    for shard, held in Counter(shards.tolist()).items():
        own = set(numbers[shards == shard]) - {-1}
        assert held <= shard_size or len(own) == 1
    for group in range(len(sizes)):
        assert len(set(shards[numbers == group])) == 1


# -- who is grouped with whom -----------------------------------------------------------------------------------------


def test_columns_of_groups_are_equal_within_each_and_a_missing_value_is_one_of_its_own(tmp_path: Path) -> None:
    rows = [{"site": (["x", "y", None])[i % 3], "who": f"p{i}"} for i in range(15)]
    config = settings(
        listing(tmp_path / "in", rows), tmp_path / "out", "boomerang.k=2", "source.restricted=[site,who]",
        "groups.by=[site]",
    )  # fmt: skip
    release, _ = write_plan(config)
    groups = groups_of(release)
    assert len(groups) == 6
    for members in groups.values():
        assert len({int(name.rpartition("/")[2]) % 3 for name in members}) == 1


def test_members_are_different_people_however_they_are_spelt(tmp_path: Path) -> None:
    names = ["Ada", "ADA ", "ada", "Ben", "ben", "Cleo"]
    rows = [{"who": name} for name in names]
    config = settings(
        listing(tmp_path / "in", rows), tmp_path / "out", "boomerang.k=3", "source.subject=who",
    )  # fmt: skip
    release, _ = write_plan(config)
    ((_, members),) = groups_of(release).items()
    assert len({names[int(name.rpartition("/")[2])].strip().lower() for name in members}) == 3


def test_of_copies_one_is_grouped(tmp_path: Path) -> None:
    source = folder_of(tmp_path / "in", {f"{i}.png": picture(i % 4) for i in range(8)})
    release, _ = write_plan(settings(source, tmp_path / "out", "boomerang.k=2"))
    members = [name for group in groups_of(release).values() for name in group]
    assert len(members) == len({(source / name).read_bytes() for name in members}) == 4


def test_what_was_erased_or_cannot_be_decoded_or_generalised_has_no_group(tmp_path: Path) -> None:
    rows = [{"age": 30 + i, "who": f"p{i}"} for i in range(7)] + [{"age": "old", "who": "p7"}]
    path = listing(tmp_path / "in", rows)
    (tmp_path / "in" / "6.png").write_bytes(GARBAGE)
    config = settings(
        path,
        tmp_path / "out",
        "boomerang.k=2",
        "source.subject=who",
        "source.carry=[age]",
        "groups.generalise.age=range",
    )
    erased = PublishedHistory(erased=frozenset({KEY.subject_hmac("P5"), KEY.source_hmac(picture(4))}))
    extract = group_planning.open_extractor(config, IdealGaussian(), None)
    survey = Surveyor(config, IdealGaussian(), KEY, extract, erased).survey(plan.list_entries(config))
    assert list(survey.positions) == [0, 1, 2, 3]
    assert (survey.records, survey.unusable) == (8, 4)


def test_those_left_over_are_merged_where_settings_say_so(tmp_path: Path) -> None:
    source = people(tmp_path / "in", 11)
    config = settings(source, tmp_path / "out", "boomerang.k=3", "groups.leftover=merge")
    release, _ = write_plan(config)
    assert sorted(len(group) for group in groups_of(release).values()) in ([3, 3, 5], [3, 4, 4])


# -- counts, and what is refused --------------------------------------------------------------------------------------


def test_a_preview_counts_what_the_plan_then_holds_and_writes_nothing(tmp_path: Path) -> None:
    source = people(tmp_path / "in", 23)
    folder_of(source, {"a/broken.png": GARBAGE, "b/copy.png": picture(3), "c/rare.png": picture(50)})
    config = settings(source, tmp_path / "out", "boomerang.k=3", "run.shard_size=7", "source.label=folder")
    counts = group_planning.preview(config, IdealGaussian(), KEY, None)
    assert not (tmp_path / "out").exists()
    assert counts == GroupCounts(
        k=3, outputs="one", by=("label",), records=26, shards=5, groups=7, largest=3, left_over=4, unusable=1,
        small_strata=1,
    )  # fmt: skip
    assert (counts.images, replace(counts, outputs="each").images) == (7, 21)
    release, the_plan = write_plan(config)
    planned = group_planning.count_planned(config, release)
    assert planned == replace(counts, left_over=5, unusable=None, small_strata=None)
    assert the_plan.shards == counts.shards


def test_more_left_over_than_the_policy_allows_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    config = settings(people(tmp_path / "in", 8), tmp_path / "out", "boomerang.k=3", "policy.groups.max_leftover=0.2")
    message = r"policy\.groups\.max_leftover: at most 0\.2 of all, and 2 of 8 records have no group: choose a smaller"
    for attempt in (lambda: write_plan(config), lambda: group_planning.preview(config, IdealGaussian(), KEY, None)):
        with pytest.raises(ConfigError, match=message):
            attempt()
    assert not Release.at(config.output.uri).plan.exists()
    write_plan(settings(tmp_path / "in", tmp_path / "other", "boomerang.k=3", "policy.groups.max_leftover=0.25"))


def test_a_waiver_lets_the_gate_decide(tmp_path: Path) -> None:
    waiver = {"rule": "groups.max_leftover", "who": "Kim", "why": "a pilot", "until": "2099-01-01"}
    policy = {"groups": {"max_leftover": 0.0}, "waivers": [waiver]}
    write_plan(settings(people(tmp_path / "in", 8), tmp_path / "out", "boomerang.k=3", policy=policy))


def test_a_source_in_which_no_group_can_be_formed_is_refused(tmp_path: Path) -> None:
    config = settings(people(tmp_path / "in", 4), tmp_path / "out", "boomerang.k=5")
    with pytest.raises(ConfigError, match=r"boomerang\.k: 5, and no group can be formed \(4 of 4 records are left"):
        write_plan(config)


def test_records_that_count_as_people_are_cautioned_about(tmp_path: Path) -> None:
    source = people(tmp_path / "in", 6)

    def is_cautioned(*overrides: str) -> bool:
        config = settings(source, tmp_path / "out", *overrides)
        lines = plan.list_cautions(config, plan.build_plan(config, IdealGaussian(), KEY, 6))
        return any("every record counts as a person" in line for line in lines)

    assert is_cautioned("boomerang.k=2")
    assert not is_cautioned("boomerang.k=2", "source.subject=folder")
    assert is_cautioned("boomerang.k=2", "source.subject=folder", "groups.distinct=record")
    assert not is_cautioned()


def test_a_publisher_is_cautioned_that_nobody_can_be_erased_from_groups_and_that_releases_of_them_add_up(
    tmp_path: Path,
) -> None:
    source = people(tmp_path / "in", 6)

    def cautions(*overrides: str) -> str:
        config = settings(source, tmp_path / "out", *overrides)
        return " ".join(plan.list_cautions(config, plan.build_plan(config, IdealGaussian(), KEY, 6)))

    assert "nobody can be erased" in cautions("boomerang.k=2")
    assert "have the same ids" not in cautions("boomerang.k=2")  # with other people there, groups are others
    assert "nobody can be erased" not in cautions()


# -- an interrupted planning ------------------------------------------------------------------------------------------


class Counting(IdealGaussian):
    """A model whose encoder counts pictures, and fails once it has seen ``limit``."""

    def __init__(self, limit: int = 10**9) -> None:
        super().__init__()
        self.limit, self.seen = limit, 0

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        if self.seen + len(images) > self.limit:
            raise KeyboardInterrupt
        self.seen += len(images)
        return super().encode(images)


def plan_with(model: IdealGaussian, config: RunConfig, key: CustodianKey = KEY) -> Release:
    release = Release.at(config.output.uri, key)
    plan.write_or_resume(config, model, key, release, history.carry_forward, divide=group_planning.divide)
    return release


@pytest.fixture
def interrupted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """A planning that ended after two of three chunks."""
    monkeypatch.setattr(group_survey, "CHUNK_RECORDS", 4)
    config = settings(people(tmp_path / "in", 12), tmp_path / "out", "boomerang.k=3", "groups.features=latent")
    with pytest.raises(KeyboardInterrupt):
        plan_with(Counting(8), config)
    return config


def test_an_interrupted_planning_goes_on_where_it_was(tmp_path: Path, interrupted: RunConfig) -> None:
    model, whole = Counting(), settings(tmp_path / "in", tmp_path / "whole", "boomerang.k=3", "groups.features=latent")
    release = plan_with(model, interrupted)
    assert model.seen == 4
    assert groups_of(release) == groups_of(plan_with(Counting(), whole))
    assert not release.features.exists()


def test_another_k_is_tried_without_looking_at_the_pictures_again(tmp_path: Path, interrupted: RunConfig) -> None:
    model = Counting()
    plan_with(model, settings(tmp_path / "in", tmp_path / "out", "boomerang.k=2", "groups.features=latent"))
    assert model.seen == 4


@pytest.mark.parametrize("damage", ["garbage", "another place", "another key", "another setting"])
def test_kept_features_that_are_not_this_runs_own_are_computed_anew(
    tmp_path: Path, interrupted: RunConfig, damage: str
) -> None:
    folder = Path(Release.at(interrupted.output.uri).features.path)
    first, second = sorted(folder.iterdir())
    model, config, key = Counting(), interrupted, KEY
    if damage == "garbage":
        first.write_bytes(GARBAGE)
    elif damage == "another place":
        first.write_bytes(second.read_bytes())
    elif damage == "another key":
        key = CustodianKey(bytes(range(7, 39)))
    else:
        config = settings(
            tmp_path / "in", tmp_path / "out", "boomerang.k=3", "groups.features=latent", "source.fit=pad"
        )
    plan_with(model, config, key)
    assert model.seen == (8 if damage in ("garbage", "another place") else 12)


@pytest.mark.parametrize("kept", ["recipients", "no key"])
def test_nothing_is_kept_that_could_not_be_read_again_or_would_lie_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: str
) -> None:
    monkeypatch.setattr(group_survey, "CHUNK_RECORDS", 4)
    recipient = "age1ql3z7hjy54pw3hyww5ayyfg7zqgvc7w3j2elw8zmrj2kg5sfn9aqmcac8p"
    sets = [f"restricted.recipients=[{recipient}]"] if kept == "recipients" else []
    config = settings(people(tmp_path / "in", 12), tmp_path / "out", "boomerang.k=3", "groups.features=latent", *sets)
    key = KEY if kept == "recipients" else CustodianKey(KEY.secret, is_persistent=False)
    with pytest.raises(KeyboardInterrupt):
        plan_with(Counting(8), config, key)
    assert not Release.at(config.output.uri).features.exists()
