"""Releases over time: whoever was published keeps one picture, whatever becomes of settings and names meanwhile."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anonymizer.attest import statement
from anonymizer.attest.verify import check_public
from anonymizer.config import AuditConfig, RestrictedConfig, RunConfig, SourceConfig
from anonymizer.crypto import signing
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import (
    ConfigError,
    CustodianKeyError,
    GateError,
    IntegrityError,
    OutputError,
    UsageError,
)
from anonymizer.records import Scores
from anonymizer.release import audit_files, audit_sample, event_log, history, preflight, publish, retention
from anonymizer.release.audit_sample import AuditSample
from anonymizer.release.history import Difference
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release
from flows.cli import main
from flows.jobs import audit as audit_job
from flows.jobs import models
from flows.jobs import release as release_job
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.interruptions import POINTS, Stop, stop_at
from tests.support.releases import (
    GARBAGE,
    HEX,
    KEY,
    PlainScorer,
    begin,
    encoded,
    folder_of,
    follow,
    listing,
    manifest,
    one_shard,
    outputs,
    people,
    picture,
    public_images,
    rows,
    run,
    settings,
    summarize,
    tree,
    write_restricted_report,
)

SCORES = ("clip_similarity", "lpips")
OTHER: dict[str, Any] = {"boomerang": {"level": 0.7, "sampler": "ddpm", "steps": 3}}


class Retrained(IdealGaussian):
    """Another model, whose pictures are others."""

    def __init__(self) -> None:
        super().__init__(mean=0.5)
        self.digest = "f" * 64


class Half(PlainScorer):
    """Scores by one measure only."""

    names: Mapping[str, str] = {"clip_similarity": "plain-similarity"}

    def score_one(self, original: torch.Tensor, output: torch.Tensor) -> Scores:
        return Scores(clip_similarity=super().score_one(original, output).clip_similarity)


def row_of(release: Release, record_id: str) -> dict[str, Any]:
    (row,) = (row for row in rows(release) if row["record_id"] == record_id)
    return row


@pytest.fixture(scope="module", autouse=True)
def publisher() -> Iterator[None]:
    """Only a signed release can be followed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ANONYMIZER_SIGNING_KEY", signing.generate_key_pair().private_bytes.decode())
        yield


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return people(tmp_path / "in", 5)


@pytest.fixture
def january(tmp_path: Path, source: Path) -> Release:
    return run(settings(source, tmp_path / "january"))


# -- one original, one picture ----------------------------------------------------------------------------------------


def test_unchanged_originals_keep_image_id_and_level_under_any_settings(
    tmp_path: Path, source: Path, january: Release
) -> None:
    folder_of(source, {"new.png": picture(9)})
    february = run(follow(january, source, tmp_path / "february", **OTHER), Retrained())
    assert {name: outputs(february)[name] for name in outputs(january)} == outputs(january)
    for name in outputs(january):
        was, now = row_of(january, name), row_of(february, name)
        assert now["kept"] and not was["kept"] and now["attempts"] == 0
        mine = {"kept", "attempts", "shard", "started", "seconds", *SCORES}
        assert {k: v for k, v in now.items() if k not in mine} == {k: v for k, v in was.items() if k not in mine}
        assert [now[name] for name in SCORES] == pytest.approx([was[name] for name in SCORES], abs=0.01)
    fresh = row_of(february, "new.png")
    assert (fresh["level"], fresh["sampler"], fresh["model_digest"], fresh["kept"]) == (0.7, "ddpm", "f" * 64, False)
    assert sorted(manifest(february)["level"].to_pylist()) == [0.4] * 5 + [0.7]


def test_nothing_is_sampled_for_reused_images(tmp_path: Path, source: Path, january: Release) -> None:
    model = IdealGaussian()
    run(follow(january, source, tmp_path / "february", **OTHER), model)
    assert model.calls == []


def test_vanished_originals_are_left_out(tmp_path: Path, source: Path, january: Release) -> None:
    (source / "a/person 0.png").unlink()
    february = run(follow(january, source, tmp_path / "february"))
    assert outputs(february) == {name: one for name, one in outputs(january).items() if name != "a/person 0.png"}
    gone = outputs(january)["a/person 0.png"]
    for data in tree(february.root.path).values():
        assert gone[1] not in data and gone[0].encode() not in data


def test_an_original_with_a_new_name_keeps_its_picture_under_a_new_id(
    tmp_path: Path, source: Path, january: Release
) -> None:
    (source / "a/person 0.png").rename(source / "renamed.png")
    february = run(follow(january, source, tmp_path / "february", **OTHER))
    was, now = outputs(january)["a/person 0.png"], outputs(february)["renamed.png"]
    assert now[1] == was[1] and now[0] != was[0]


def test_an_original_that_was_changed_gets_another_picture_and_id(
    tmp_path: Path, source: Path, january: Release
) -> None:
    (source / "a/person 0.png").write_bytes(picture(77))
    february = run(follow(january, source, tmp_path / "february"))
    was, now = outputs(january)["a/person 0.png"], outputs(february)["a/person 0.png"]
    assert now[0] != was[0] and now[1] != was[1]


def test_copies_of_an_original_all_get_its_one_picture(tmp_path: Path, source: Path, january: Release) -> None:
    folder_of(source, {"copy.png": picture(0), "another.png": picture(0)})
    february = run(follow(january, source, tmp_path / "february", **OTHER))
    one = outputs(january)["a/person 0.png"][1]
    assert [outputs(february)[name][1] for name in ("a/person 0.png", "copy.png", "another.png")] == [one] * 3
    assert len({outputs(february)[name][0] for name in ("a/person 0.png", "copy.png", "another.png")}) == 3
    march = run(follow(february, source, tmp_path / "march", **OTHER))
    assert outputs(march) == outputs(february)


def test_what_was_never_published_is_sampled_again(tmp_path: Path) -> None:
    black = encoded(torch.zeros(8, 8, 3, dtype=torch.uint8).numpy())
    source = folder_of(people(tmp_path / "in", 2), {"black.png": black, "large.png": picture(7, (30, 30))})

    class NotBlack(PlainScorer):
        def score_one(self, original: torch.Tensor, output: torch.Tensor) -> Scores:
            return Scores() if float(original.max()) < -0.9 else super().score_one(original, output)

    small = {"limits": {"max_pixels": 100}}
    january = run(settings(source, tmp_path / "january", source=small), scorer=NotBlack())
    ended = {row["record_id"]: row["reason"] for row in rows(january) if row["reason"]}
    assert ended == {"black.png": "not_scored", "large.png": "too_many_pixels"}
    february = run(follow(january, source, tmp_path / "february", **OTHER))
    assert {name: row_of(february, name)["level"] for name in ended} == {"black.png": 0.7, "large.png": 0.7}
    assert summarize(february).released == 4


MONTH = st.tuples(st.sets(st.integers(0, 4), min_size=1), st.sampled_from([0.4, 0.7]))


@hypothesis_settings(max_examples=8, deadline=None)
@given(st.lists(MONTH, min_size=2, max_size=4))
def test_no_original_has_two_outputs_over_any_months(
    tmp_path_factory: pytest.TempPathFactory, months: list[tuple[set[int], float]]
) -> None:
    root = tmp_path_factory.mktemp("months")
    pictures: dict[int, set[bytes]] = {}
    before: list[str] = []
    for number, (who, level) in enumerate(months):
        source = folder_of(root / f"in {number}", {f"{month_name(number, i)}.png": picture(i) for i in who})
        config = settings(source, root / f"{number}", *before, boomerang={"level": level})
        release = run(config)
        assert len(outputs(release)) == len(who)
        for i in who:
            pictures.setdefault(i, set()).add(outputs(release)[f"{month_name(number, i)}.png"][1])
        before = [f"previous={release.root}"]
    assert all(len(found) == 1 for found in pictures.values())


def month_name(number: int, who: int) -> str:
    """People change their names every other month."""
    return f"{who}" if number % 2 else f"person {who}"


# -- the gate of today ------------------------------------------------------------------------------------------------


def closest(release: Release) -> tuple[str, float]:
    """Who came closest by LPIPS, and a bound that holds back nobody else."""
    near, second = sorted((row["lpips"], row["record_id"]) for row in rows(release))[:2]
    return near[1], (near[0] + second[0]) / 2


def test_what_breaks_the_policy_of_today_is_held_back_and_not_drawn_again(
    tmp_path: Path, source: Path, january: Release
) -> None:
    who, bound = closest(january)
    model = IdealGaussian()
    policy = {"scores": {"lpips": {"min": bound}}, "escalate": [0.9]}
    february = run(follow(january, source, tmp_path / "february", policy=policy), model)
    row = row_of(february, who)
    assert (row["status"], row["reason"], row["kept"], model.calls) == ("quarantined", "too_close", True, [])
    assert tree(february.quarantine.path) == {f"{row['output_id']}.png": outputs(january)[who][1]}
    assert outputs(february) == {name: one for name, one in outputs(january).items() if name != who}

    milder = {"policy": {"weaker_than_previous": "more pictures are needed"}}
    march = run(follow(february, source, tmp_path / "march", **OTHER, **milder), model)  # and other settings
    assert outputs(march) == outputs(january) and model.calls == []


def test_a_score_that_is_asked_for_now_and_was_not_made_then_is_measured(tmp_path: Path, source: Path) -> None:
    january = run(settings(source, tmp_path / "january", metrics={"lpips": "none"}), scorer=Half())
    folder_of(source, {"new.png": picture(9)})
    february = run(follow(january, source, tmp_path / "february"))
    assert {row["reason"] for row in rows(february)} == {None}
    assert all(row["lpips"] > 0.01 for row in rows(february)) and len(rows(february)) == 6


class Later(PlainScorer):
    """Another idea of likeness, under the same name."""

    def score_one(self, original: torch.Tensor, output: torch.Tensor) -> Scores:
        return Scores(clip_similarity=0.5, lpips=0.25 if float(original[0, 0, 0]) > 0 else 0.75)


def test_scores_of_reused_images_are_measured_and_not_read(tmp_path: Path, source: Path, january: Release) -> None:
    policy = {"scores": {"lpips": {"min": 0.5}}}
    february = run(follow(january, source, tmp_path / "february", policy=policy), scorer=Later())
    assert {row["lpips"] for row in rows(february)} <= {0.25, 0.75}
    ends = {row["record_id"]: row["reason"] for row in rows(february)}
    assert set(ends.values()) == {None, "too_close"} and all(row["kept"] for row in rows(february))
    assert ends == {row["record_id"]: "too_close" if row["lpips"] < 0.5 else None for row in rows(february)}


FITS = [
    ({"fit": fit}, {"size": size, "image": image})
    for fit, size, image in [
        ("crop", "model", "png"), ("crop", "original", "webp"), ("pad", "model", "jpeg"), ("pad", "original", "png"),
        ("tiles", "model", "png"), ("tiles", "original", "png"),
    ]
]  # fmt: skip


@pytest.mark.parametrize(("fit", "output"), FITS)
def test_reused_images_are_scored_like_new_ones_in_any_fit_and_size(tmp_path: Path, fit: Any, output: Any) -> None:
    source = folder_of(tmp_path / "in", {"a.png": picture(1, (30, 22)), "b.png": picture(2, (21, 40))})
    january = run(settings(source, tmp_path / "january", source=fit, output=output))
    february = run(follow(january, source, tmp_path / "february", source=fit, output=output, **OTHER), Retrained())
    assert outputs(february) == outputs(january) and all(row["kept"] for row in rows(february))
    for name in outputs(january):
        was, now = row_of(january, name), row_of(february, name)
        assert [now[score] for score in SCORES] == pytest.approx([was[score] for score in SCORES], abs=0.06)


def test_reused_images_are_checked_by_the_models_own_safety_checker(
    tmp_path: Path, source: Path, january: Release
) -> None:
    class Prudish(IdealGaussian):
        def flag_unsafe(self, images: torch.Tensor) -> list[bool]:
            return [True] * len(images)

    folder_of(source, {"new.png": picture(9)})
    config = follow(january, source, tmp_path / "february")
    with pytest.raises(GateError, match=r"6 were quarantined and 0 failed \(6 unsafe\)"):
        run(config, Prudish())


def test_an_original_that_is_too_large_by_now_is_not_released(tmp_path: Path, source: Path, january: Release) -> None:
    """It cannot be compared with its picture."""
    folder_of(source, {"new.png": picture(9, (5, 5))})
    february = run(follow(january, source, tmp_path / "february", source={"limits": {"max_pixels": 30}}))
    assert Counter(row["reason"] for row in rows(february)) == {"too_many_pixels": 5, None: 1}


@pytest.mark.parametrize("damage", ["an original", "gone", "cut off"])
def test_a_staged_image_that_was_changed_is_not_released(
    tmp_path: Path, source: Path, january: Release, damage: str
) -> None:
    config = follow(january, source, tmp_path / "february")
    february = begin(config)
    folder = Path(february.staging.path) / history.STAGED_FOLDER
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != history.STAGED_MARKER]
    assert len(files) == 5
    for file in files:
        data = {"an original": picture(0), "gone": b"", "cut off": file.read_bytes()[:-1]}[damage]
        file.write_bytes(data) if data else file.unlink()
    with pytest.raises(IntegrityError, match=r"remove restricted/staging/published and run the same command again"):
        one_shard(config, 0)
    shutil.rmtree(folder)
    assert outputs(run(config)) == outputs(january)


def test_images_are_staged_once(tmp_path: Path, source: Path, january: Release) -> None:
    config = follow(january, source, tmp_path / "february")
    february = begin(config)
    (january.public / "images").remove()
    history.stage_images(february)  # all of them are there
    for shard in range(3):
        one_shard(config, shard)
    assert all(row["kept"] for row in rows(february))


def test_a_score_without_a_named_model_is_not_carried_forward(tmp_path: Path, source: Path, january: Release) -> None:
    folder_of(source, {"new.png": picture(9)})
    february = run(follow(january, source, tmp_path / "february", metrics={"lpips": "none"}), scorer=Half())
    assert {row["lpips"] for row in rows(february)} == {None}
    assert [name for name in manifest(february).column_names if "lpips" in name] == []
    assert len(outputs(february)) == 6


# -- layouts, places, chains ------------------------------------------------------------------------------------------

FORMS = ["folder", "webdataset", "parquet"]


@pytest.mark.parametrize("then", FORMS)
@pytest.mark.parametrize("now", FORMS)
def test_pictures_go_on_from_any_layout_to_any_other(tmp_path: Path, source: Path, then: str, now: str) -> None:
    january = run(settings(source, tmp_path / "january", output={"format": then}))
    folder_of(source, {"new.png": picture(9)})
    february = run(follow(january, source, tmp_path / "february", output={"format": now}, **OTHER))
    assert {name: one for name, one in outputs(february).items() if name != "new.png"} == outputs(january)


def test_an_original_that_was_away_for_a_month_gets_its_earlier_image(
    tmp_path: Path, source: Path, january: Release
) -> None:
    away = source / "a/person 0.png"
    data = away.read_bytes()
    away.unlink()
    february = run(follow(january, source, tmp_path / "february"))
    march = run(follow(february, source, tmp_path / "march"))
    away.write_bytes(data)
    april = run(follow(march, source, tmp_path / "april", **OTHER), Retrained())
    assert outputs(april) == outputs(january)
    assert [one.root.name for one in history.predecessors(april)] == ["march", "february", "january"]
    assert history.compare_with_previous(follow(march, source, tmp_path / "april"), april) == Difference(4, 1, 0)


def test_a_release_of_the_past_that_is_not_at_hand_any_more_is_passed_over(
    tmp_path: Path, source: Path, january: Release
) -> None:
    february = run(follow(january, source, tmp_path / "february", **OTHER))
    shutil.rmtree(january.root.path)
    march = run(follow(february, source, tmp_path / "march"))
    assert outputs(march) == outputs(february)


@pytest.mark.parametrize("spelling", ["{}/", "file://{}", "relative"])
def test_the_previous_release_may_be_spelled_as_one_likes(
    tmp_path: Path, source: Path, january: Release, spelling: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    uri = "january" if spelling == "relative" else spelling.format(january.root.path)
    config = follow(uri, source, tmp_path / "february", **OTHER)
    february = run(config)
    assert outputs(february) == outputs(january)
    assert history.compare_with_previous(config, february) == Difference(5, 0, 0)
    monkeypatch.chdir("/")
    march = run(follow(february, source, tmp_path / "march", **OTHER))
    assert [one.root.path for one in history.predecessors(march)] == [february.root.path, january.root.path]


def test_releases_follow_each_other_on_an_object_store(tmp_path: Path, source: Path, store: Any) -> None:
    january = run(settings(source, "memory://bucket/january/"))
    folder_of(source, {"new.png": picture(9)})
    config = follow("memory://bucket/january/", source, "memory://bucket/february", **OTHER)
    february = run(config)
    assert {name: one for name, one in outputs(february).items() if name != "new.png"} == outputs(january)
    assert history.compare_with_previous(config, february) == Difference(5, 1, 0)
    local = run(follow("memory://bucket/february", source, tmp_path / "march"))
    assert outputs(local) == outputs(february)


# -- what is refused --------------------------------------------------------------------------------------------------


def refusal(config: RunConfig, kind: type[UsageError] = ConfigError, **how: Any) -> str:
    """The one line that is said, before anything is written."""
    before = tree(config.output.uri)
    with pytest.raises(kind) as caught:
        run(config, **how)
    assert tree(config.output.uri) == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_another_key_or_none_is_refused(tmp_path: Path, source: Path, january: Release) -> None:
    config = follow(january, source, tmp_path / "february")
    for key in (CustodianKey(b"another key of another process!!"), CustodianKey(KEY.secret, is_persistent=False)):
        line = refusal(config, CustodianKeyError, key=key)
        assert line.startswith("ANONYMIZER_KEY: not the key that previous ") and line.endswith("set it")


def test_a_release_that_was_made_without_a_key_cannot_be_followed(tmp_path: Path, source: Path) -> None:
    january = run(settings(source, tmp_path / "january"), key=CustodianKey(KEY.secret, is_persistent=False))
    assert "not the key" in refusal(follow(january, source, tmp_path / "february"), CustodianKeyError)


def test_what_is_not_published_or_not_whole_is_refused(tmp_path: Path, source: Path, january: Release) -> None:
    def says(before: Release | str) -> str:
        return refusal(follow(before, source, tmp_path / "february"))

    assert "has no restricted half" in says(str(tmp_path / "nowhere"))
    unfinished = begin(settings(source, tmp_path / "unfinished"))
    assert "is not published" in says(unfinished)
    one_shard(settings(source, tmp_path / "unfinished"), 0)
    assert "is not published" in says(unfinished)
    shutil.copytree(january.public.path, tmp_path / "handed out" / "public")
    assert "has no restricted half" in says(str(tmp_path / "handed out"))


def test_a_release_that_was_purged_or_erased_is_refused(tmp_path: Path, source: Path, january: Release) -> None:
    since = retention.retention_start(january)
    assert since is not None
    retention.purge(january, RestrictedConfig(record_days=0), since)
    assert "records were purged" in refusal(follow(january, source, tmp_path / "february"))
    january.plan.remove()
    assert "has no restricted half" in refusal(follow(january, source, tmp_path / "february"))
    event_log.record(january, event_log.DESTROYED)
    assert "was erased: name the release that took its place" in refusal(follow(january, source, tmp_path / "february"))


@pytest.mark.parametrize("spelling", ["{}", "{}/", "{}/../january", "{}/public/february"])
def test_a_release_does_not_follow_itself_or_lie_in_the_one_before(
    source: Path, january: Release, spelling: str
) -> None:
    config = follow(january, source, spelling.format(january.root.path))
    assert "is the output itself, or holds it" in refusal(config)


@pytest.mark.parametrize("other", [{"image": "jpeg"}, {"size": "original"}, {"image": "webp", "quality": 80}])
def test_another_kind_of_file_is_refused(tmp_path: Path, source: Path, january: Release, other: Any) -> None:
    line = refusal(follow(january, source, tmp_path / "february", output=other))
    assert line.startswith(f"output.{next(iter(other))}: previous ") and "files of one release are of one kind" in line


def test_another_model_for_a_score_is_refused_even_if_it_was_not_made_in_between(
    tmp_path: Path, source: Path, january: Release
) -> None:
    february = run(follow(january, source, tmp_path / "february", metrics={"lpips": "none"}), scorer=Half())

    class Newer(PlainScorer):
        names: Mapping[str, str] = {"clip_similarity": "plain-similarity", "lpips": "newer"}

    for before in (january, february):
        config = follow(before, source, tmp_path / "march")
        with pytest.raises(ConfigError, match=r"^metrics: .* has lpips by plain-distance, not newer: use that$"):
            preflight.check_previous(config, KEY, Newer.names)


# -- stopped and damaged ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Release]:
    """A release with pictures that are kept, held back, new and none; and its settings."""
    folder = tmp_path_factory.mktemp("undisturbed")
    january = run(settings(people(folder / "in", 5), folder / "january"))
    folder_of(folder / "in", {"new.png": picture(9), "bad.png": GARBAGE})
    policy = {"scores": {"lpips": {"min": closest(january)[1]}}}
    config = follow(january, folder / "in", folder / "whole", policy=policy)
    return config, run(config)


@pytest.mark.parametrize("point", POINTS)
def test_an_interrupted_run_with_reused_images_is_finished_with_the_same(
    tmp_path: Path, undisturbed: tuple[RunConfig, Release], point: str
) -> None:
    config, whole = undisturbed
    output = config.output.model_copy(update={"uri": str(tmp_path / "february")})
    config = config.model_copy(update={"output": output})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stop):
        stop_at(patch, *POINTS[point])
        run(config)
    february = run(config)
    assert public_images(february)[0] == public_images(whole)[0] and len(public_images(whole)[0]) == 5
    assert public_images(february)[1].equals(public_images(whole)[1])
    assert tree(february.quarantine.path) == tree(whole.quarantine.path)
    assert {p.name for p in february.restricted.children()} == {p.name for p in whole.restricted.children()}


def test_a_damaged_reused_image_stops_the_run_until_it_is_restored(
    tmp_path: Path, source: Path, january: Release
) -> None:
    file = next(Path(january.public.path).rglob("*.png"))
    data = file.read_bytes()
    config = follow(january, source, tmp_path / "february")
    for damage in (lambda: file.write_bytes(picture(1)), file.unlink):
        damage()
        with pytest.raises(ConfigError, match=r"does not verify \((pictures|strays)\): see `anonymizer verify`"):
            run(config)
        assert not Release.at(config.output.uri).public.exists()
    file.write_bytes(data)
    assert outputs(run(config)) == outputs(january)


def test_a_picture_that_was_put_into_an_earlier_release_is_not_signed_with_a_later_one(
    tmp_path: Path, source: Path, january: Release
) -> None:
    """Whoever can write to the old release must not get an original out by way of the new one."""
    row = next(row for row in rows(january) if row["status"] == "released")
    shown = pq.read_table(january.manifest.path)
    at = shown["output_id"].to_pylist().index(row["output_id"])
    original = (source / row["record_id"]).read_bytes()
    (Path(january.public.path) / shown["file"][at].as_py()).write_bytes(original)
    digest = hashlib.sha256(original).hexdigest()
    digests = [digest if i == at else old for i, old in enumerate(shown["sha256"].to_pylist())]
    column = shown.column_names.index("sha256")
    pq.write_table(shown.set_column(column, "sha256", pa.array(digests)), january.manifest.path)
    with pytest.raises(ConfigError, match=r"does not verify \(digests\)"):
        run(follow(january, source, tmp_path / "february"))


def test_a_release_whose_predecessor_was_erased_meanwhile_is_not_published(
    tmp_path: Path, source: Path, january: Release
) -> None:
    """What was taken back may be among what it keeps."""
    ada = signing.generate_key_pair()
    policy = {"approvals": 1, "approvers": {"ada": signing.format_public_key(ada.public_key)}}
    february = run(follow(january, source, tmp_path / "february", policy=policy))
    for place in (january.plan, january.public):
        place.remove()
    with pytest.raises(ConfigError, match="was erased meanwhile"):
        publish.approve(february, ada)
    assert not february.public.exists()


def test_earlier_releases_that_are_not_at_hand_are_counted(tmp_path: Path, source: Path, january: Release) -> None:
    config = follow(run(follow(january, source, tmp_path / "february")), source, tmp_path / "march")
    assert history.count_missing(config) == 0
    shutil.move(january.root.path, tmp_path / "archive")
    assert history.count_missing(config) == 1


def test_a_ledger_that_was_changed_is_not_followed(tmp_path: Path, source: Path, january: Release) -> None:
    path = january.shard_ledger(0).path
    table = pq.read_table(path)
    scores = pa.array([9.0] * len(table), pa.float32())
    changed = table.set_column(table.column_names.index("lpips"), "lpips", scores)
    pq.write_table(changed.replace_schema_metadata(table.schema.metadata), path)
    with pytest.raises(ConfigError, match=r"does not verify \(ledger\)"):
        run(follow(january, source, tmp_path / "february"))


def test_a_damaged_list_of_releases_or_of_the_erased_is_an_error(
    tmp_path: Path, source: Path, january: Release
) -> None:
    config = follow(january, source, tmp_path / "february")
    release = begin(config)
    for place in release.inherited:
        data = place.read() if place.exists() else None
        place.write(b"no such thing")
        with pytest.raises(IntegrityError, match=f"restricted/{place.name}: is not what was there when the plan"):
            one_shard(config, 0)
        place.remove()
        if data is not None:
            with pytest.raises(IntegrityError, match=f"restricted/{place.name}: is not what was there when the plan"):
                one_shard(config, 0)
            place.write(data)
    one_shard(config, 0)


# -- what is said of it -----------------------------------------------------------------------------------------------


def test_the_difference_counts_every_picture_once(tmp_path: Path, source: Path, january: Release) -> None:
    (source / "a/person 0.png").unlink()
    (source / "b/person 1.png").write_bytes(picture(77))
    (source / "a/person 2.png").rename(source / "renamed.png")
    folder_of(source, {"new.png": picture(9), "copy.png": picture(3), "bad.png": GARBAGE})
    config = follow(january, source, tmp_path / "february")
    february = run(config)
    found = history.compare_with_previous(config, february)
    assert found == Difference(kept=3, new=3, left_out=2)
    assert str(found) == "3 kept, 3 new, 2 left out"
    assert found.kept + found.left_out == len(outputs(january)) and found.kept + found.new == len(outputs(february))
    assert history.compare_with_previous(settings(source, tmp_path / "january"), january) is None


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv("COLUMNS", "200")
    for module in (models, release_job):
        monkeypatch.setattr(module, "backbone_of", lambda model: IdealGaussian())
    monkeypatch.setattr(release_job, "scorer_of", lambda metrics, device: PlainScorer())
    sets = ["boomerang.level=0.4", "boomerang.steps=2", "run.shard_size=2", "run.batch_size=2"]
    options = [word for one in sets for word in ("--set", one)]
    return lambda *words: CliRunner().invoke(main, [*map(str, words), *options])


def test_a_run_prints_the_difference(tmp_path: Path, source: Path, january: Release, cli: Any) -> None:
    folder_of(source, {"new.png": picture(9)})
    config = follow(january, source, tmp_path / "february")
    february = run(config)
    write_restricted_report(february, config)
    words = ["run", "--source", source, "--output", february.root, "--set", f"previous={january.root}"]
    done = cli(*words)
    assert done.exit_code == 0 and "against the previous release  5 kept, 1 new, 0 left out" in done.stdout
    assert json.loads(cli(*words, "--json").stdout)["against_previous"] == {"kept": 5, "new": 1, "left_out": 0}


def test_a_plan_refuses_what_a_run_would_refuse(tmp_path: Path, source: Path, january: Release, cli: Any) -> None:
    words = ["--source", source, "--output", tmp_path / "february", "--set", f"previous={tmp_path / 'nowhere'}"]
    done = cli("plan", *words)
    assert (done.exit_code, done.stderr.count("\n")) == (2, 1) and "has no restricted half" in done.stderr
    assert not (tmp_path / "february").exists()


def test_the_report_shows_the_difference_and_the_public_half_does_not(
    tmp_path: Path, source: Path, january: Release
) -> None:
    (source / "a/person 0.png").unlink()
    folder_of(source, {"new.png": picture(9)})
    config = follow(january, source, tmp_path / "february")
    february = run(config)
    write_restricted_report(february, config)
    page = february.report.read().decode()
    assert "Against the previous release" in page
    for what, count in (("kept", 4), ("new", 1), ("left out", 1)):
        assert f'<tr><td>{what}</td><td class="number">{count}</td></tr>' in page
    for name, data in tree(february.public.path).items():
        assert b"left out" not in data and str(tmp_path).encode() not in data, name
    single = settings(source, january.root.path)
    write_restricted_report(january, single)
    assert "Against the previous release" not in january.report.read().decode()


def test_a_release_with_reused_images_verifies(tmp_path: Path, source: Path, january: Release) -> None:
    _, bound = closest(january)
    config = follow(january, source, tmp_path / "february", policy={"scores": {"lpips": {"min": bound}}}, **OTHER)
    february = run(config)
    found = [*check_public(february.public), *check_restricted(february, config, KEY)]
    assert [finding for finding in found if finding.result == "fail"] == []
    assert {"ledger", "materials", "quarantine", "modes", "pictures"} <= {finding.check for finding in found}


def test_what_was_published_is_looked_up_once_for_all_shards(
    tmp_path: Path, source: Path, january: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = follow(january, source, tmp_path / "february")
    begin(config)
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    for module in (models, release_job):
        monkeypatch.setattr(module, "backbone_of", lambda model: IdealGaussian())
    monkeypatch.setattr(release_job, "scorer_of", lambda metrics, device: PlainScorer())
    release_job.load_previous.cache_clear()
    loads: list[Release] = []
    original = history.load
    monkeypatch.setattr(history, "load", lambda release: (loads.append(release), original(release))[1])
    assert [release_job.run_shard(config, shard, lambda done: None).released for shard in range(3)] == [2, 2, 1]
    assert len(loads) == 1
    assert all(row["kept"] for row in rows(Release.at(config.output.uri)))
    release_job.load_previous.cache_clear()


def test_only_what_is_needed_of_a_ledger_is_held(source: Path, january: Release, tmp_path: Path) -> None:
    february = begin(follow(january, source, tmp_path / "february"))
    ((_, found),) = history.load(february).releases
    assert len(found) == 5
    assert not {"record_id", "source_uri", "subject", "label", "caption", "carried"} & set(found.column_names)


@pytest.mark.skipif(os.name != "posix", reason="permissions are POSIX's")
def test_the_list_of_releases_is_readable_by_its_owner_only(tmp_path: Path, source: Path, january: Release) -> None:
    february = begin(follow(january, source, tmp_path / "february"))
    assert os.stat((february.predecessors).path).st_mode & 0o077 == 0


# -- the audit of several releases ------------------------------------------------------------------------------------


def shown(release: Release, source: Path | SourceConfig, *union: Release) -> AuditSample:
    config = source if isinstance(source, SourceConfig) else SourceConfig(uri=str(source))
    return audit_sample.draw_sample(release, config, 8, 100, np.random.default_rng(0), union)


def pairs(found: AuditSample) -> set[tuple[bytes, bytes]]:
    """Digests of the originals, each with the picture beside it."""
    return set(zip(found.originals.digests, found.encoded_outputs, strict=True))


def digests(*data: bytes) -> list[bytes]:
    return [hashlib.sha256(one).digest() for one in data]


def test_releases_that_follow_each_other_are_attacked_as_one_picture_of_each_original(
    tmp_path: Path, source: Path, january: Release
) -> None:
    (source / "a/person 0.png").unlink()
    folder_of(source, {"new.png": picture(9)})
    february = run(follow(january, source, tmp_path / "february", **OTHER))
    found = shown(february, source, january)
    assert (len(found), found.released, found.unread) == (5, 6, 1)  # whoever has left is counted, and not read
    assert pairs(found) == pairs(shown(february, source))
    (source / "a/person 0.png").write_bytes(picture(0))
    found = shown(february, source, january)
    assert (len(found), found.unread) == (6, 0)
    assert pairs(found) == pairs(shown(february, source)) | pairs(shown(january, source))
    assert all(place.read() == data for place, data in zip(found.output_paths, found.encoded_outputs, strict=True))


def test_several_images_of_one_original_are_all_paired_with_it(tmp_path: Path, source: Path, january: Release) -> None:
    again = run(settings(source, tmp_path / "again", **OTHER))  # without previous
    found = shown(again, source, january)
    assert len(found) == 10 and len({*found.originals.record_ids}) == 5
    assert pairs(found) == pairs(shown(again, source)) | pairs(shown(january, source))
    assert torch.equal(found.originals.images[0], found.originals.images[1])


def test_an_image_is_never_paired_with_another_original_of_the_same_name(tmp_path: Path) -> None:
    """Rows of a list without ids: whoever is taken out moves up all who follow."""
    folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(4)})
    source = listing(tmp_path / "in", [{"image": f"{i}.png"} for i in range(4)])
    january = run(settings(source, tmp_path / "january"))
    listing(tmp_path / "in", [{"image": f"{i}.png"} for i in (3, 1, 2)])
    february = run(settings(source, tmp_path / "february", **OTHER))
    config = SourceConfig(uri=str(source))
    found = shown(february, config, january)
    assert (len(found), found.unread) == (6, 1)
    then = {one["record_id"].rpartition("/")[2]: one["output_id"] for one in rows(january)}
    paired = dict(zip((row["output_id"] for row in found.ledger), found.originals.digests, strict=True))
    assert [paired[then[f"{i}"]] for i in (1, 2, 3)] == digests(picture(1), picture(2), picture(3))


@pytest.fixture
def audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Release, Release]:
    """Twelve people in January, and twenty in February."""
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setattr(audit_job, "backbone_of", lambda config: IdealGaussian())
    monkeypatch.setattr(audit_job, "scorer_of", lambda metrics, device: PlainScorer())
    source = people(tmp_path / "in", 12)
    january = run(settings(source, tmp_path / "january"))
    people(source, 20)
    (source / "a/person 0.png").unlink()
    return run(follow(january, source, tmp_path / "february", **OTHER)), january


def audit_of(release: Release, **more: Any) -> AuditConfig:
    given = {"release": str(release.root), "features": ["pixels"], "attacks": ["linkage", "leaks"]}
    return AuditConfig.model_validate(given | more)


def test_an_audit_of_the_union_says_how_many_it_attacked_and_lets_no_release_out(
    tmp_path: Path, audited: tuple[Release, Release]
) -> None:
    february, january = audited
    done = audit_job.run(audit_of(february, union=[str(january.root)]))
    assert (done.audited, done.released) == (19, 20)
    document = json.loads((february.audit / "audit.json").read())
    assert (document["union"], document["unread"]) == (1, 1)
    assert document["manifest"] == statement.file_digest(february.manifest)
    assert audit_files.read(february) is None, "a gate asks about this release alone"
    for data in (february.audit_summary.read(), *tree(february.public.path).values()):
        assert b"january" not in data
    figures = parquet.read(february.audit / "figures.parquet").to_pylist()
    assert {line["attack"] for line in figures} == {"linkage", "leaks"}
    audit_job.run(audit_of(february))
    assert json.loads((february.audit / "audit.json").read())["union"] == 0
    assert audit_files.read(february) is not None


def test_releases_that_cannot_be_attacked_together_are_refused(
    tmp_path: Path, audited: tuple[Release, Release]
) -> None:
    february, _ = audited
    source = people(tmp_path / "other", 2)
    other = run(settings(source, tmp_path / "other key"), key=CustodianKey(b"another key of another process!!"))
    unfinished = begin(settings(source, tmp_path / "unfinished"))
    for one, says in ((other, "was made with another key"), (unfinished, "is not published")):
        for work in (audit_job.check, audit_job.run):
            with pytest.raises(OutputError, match=rf"^union '.*': {says}.*: .*leave it out$"):
                work(audit_of(february, union=[str(one.root)]))
    with pytest.raises(OutputError, match="it is not a release"):
        audit_job.check(audit_of(february, union=[str(tmp_path / "nowhere")]))
