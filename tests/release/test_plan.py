"""Planning: what is said before any work, and what a run that was begun before may be taken up with."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from anonymizer.boomerang import Boomerang
from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import ConfigError, CustodianKeyError, IntegrityError, OutputError, SourceError, UsageError
from anonymizer.release import plan, preflight
from anonymizer.storage import run_lock
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import GARBAGE, HEX, KEY, begin, folder_of, people, public_images, run, settings, tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return people(tmp_path / "in", 5)


def refused(config: RunConfig, kind: type[UsageError] = OutputError) -> str:
    with pytest.raises(kind) as caught:
        preflight.check(config)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_plan_says_what_the_run_will_do(tmp_path: Path, source: Path) -> None:
    config, ideal = settings(source, tmp_path / "out", "boomerang.steps=20"), IdealGaussian()
    the_plan = plan.build_plan(config, ideal, KEY, 5)
    boomerang = Boomerang(ideal, config.boomerang.sampler, 20)
    assert (the_plan.records, the_plan.shards, the_plan.t_boom, the_plan.T) == (5, 3, 400, 1000)
    assert the_plan.steps == len(boomerang.grid(400)) - 1 == 20
    assert the_plan.log_snr == boomerang.log_snr(400)
    assert the_plan.key_check == KEY.check_value
    assert plan.count_records(config) == 5
    assert plan.estimate_seconds(config, ideal, the_plan) > 0
    assert not (tmp_path / "out").exists()


def test_a_plan_that_was_written_is_read_again(tmp_path: Path, source: Path) -> None:
    config = settings(source, tmp_path / "out")
    release = begin(config)
    result = plan.read(release)
    assert result == replace(plan.build_plan(config, IdealGaussian(), KEY, 5), id=result.id)
    ids = [entry.record_id for shard in range(3) for entry in plan.read_entries(release, plan.read(release), shard)]
    assert ids == ["a/person 0.png", "a/person 2.png", "a/person 4.png", "b/person 1.png", "b/person 3.png"]


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"records": 1}', b"\xff"])
def test_a_damaged_plan_is_one_line(tmp_path: Path, source: Path, data: bytes) -> None:
    release = begin(settings(source, tmp_path / "out"))
    Path(release.plan.path).write_bytes(data)
    with pytest.raises(IntegrityError, match=r"restricted/plan\.json is damaged"):
        plan.read(release)


def test_what_is_no_release_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"no restricted/plan\.json: it is not a release, or only its public half"):
        plan.read(Release.at(str(tmp_path)))


def test_a_local_models_path_is_not_what_a_manifest_prints(tmp_path: Path, source: Path) -> None:
    (tmp_path / "secret project" / "my-model").mkdir(parents=True)
    config = settings(source, tmp_path / "out", model={"id": str(tmp_path / "secret project" / "my-model")})
    assert plan.build_plan(config, IdealGaussian(), KEY, 5).model == "a local model"
    assert settings(source, tmp_path / "out").model.public_name == "bundled:faces-64"


@pytest.mark.parametrize("level", [0.0001, 0.001, 0.01, 0.03])
def test_a_level_that_would_release_the_originals_is_refused(tmp_path: Path, source: Path, level: float) -> None:
    """The lowest level that is named in the message is the lowest one that is taken."""
    config = settings(source, tmp_path / "out", boomerang={"level": level})
    with pytest.raises(ConfigError, match="would release the originals: choose") as caught:
        begin(config)
    assert not (tmp_path / "out").exists()
    lowest = float(str(caught.value).split("choose ")[1].split(" ")[0])
    boomerang = Boomerang(IdealGaussian())
    assert boomerang.log_snr(boomerang.t_boom(lowest)) <= 4 < boomerang.log_snr(boomerang.t_boom(lowest) - 1)
    plan.build_plan(settings(source, tmp_path / "out", boomerang={"level": lowest}), IdealGaussian(), KEY, 5)


@pytest.mark.parametrize("sampler", ["ddim", "dpm++", "unipc"])
def test_a_sampler_without_noise_on_its_way_back_needs_a_reason(tmp_path: Path, source: Path, sampler: str) -> None:
    override = f"boomerang.sampler={sampler}"
    with pytest.raises(ConfigError, match=r"draws no noise on its way back.*boomerang\.accept_deterministic"):
        begin(settings(source, tmp_path / "out", override))
    assert not (tmp_path / "out").exists()
    accepted = settings(source, tmp_path / "out", override, "boomerang.accept_deterministic= few steps are needed ")
    planned = plan.build_plan(accepted, IdealGaussian(), KEY, 5)
    assert planned.accept_deterministic == "few steps are needed"
    other = settings(source, tmp_path / "out", override, "boomerang.accept_deterministic=speed")
    assert plan.build_plan(other, IdealGaussian(), KEY, 5).fingerprint == planned.fingerprint  # it changes no pixel


def test_a_reason_without_need_is_refused(tmp_path: Path, source: Path) -> None:
    with pytest.raises(ConfigError, match=r"accept_deterministic: .* draws noise on its way back: leave it out"):
        settings(source, tmp_path / "out", "boomerang.accept_deterministic=speed")


def test_settings_that_give_more_away_are_named(tmp_path: Path, source: Path) -> None:
    def cautions(*overrides: str) -> list[str]:
        config = settings(source, tmp_path / "out", *overrides)
        return [
            line.split(":")[0] for line in plan.list_cautions(config, plan.build_plan(config, IdealGaussian(), KEY, 5))
        ]

    assert cautions() == ["previous"]
    assert cautions("boomerang.level=0.2") == ["log-SNR +0.66", "previous"]
    accepted = ("boomerang.sampler=ddim", "boomerang.accept_deterministic=speed")
    assert cautions(*accepted) == ["boomerang.sampler ddim", "previous"]
    more = ["output.public_scores exact", "output.size original", "previous"]
    assert cautions("output.public_scores=exact", "output.size=original") == more


def test_recipients_can_join_releases_only_of_one_key_that_do_not_follow_each_other(
    tmp_path: Path, source: Path
) -> None:
    def is_cautioned(key: CustodianKey, *overrides: str) -> bool:
        config = settings(source, tmp_path / "out", *overrides)
        lines = plan.list_cautions(config, plan.build_plan(config, IdealGaussian(), key, 5))
        return any("join their columns" in line for line in lines)

    assert is_cautioned(KEY)
    assert not is_cautioned(KEY, f"previous={tmp_path / 'before'}")
    assert not is_cautioned(CustodianKey(KEY.secret, is_persistent=False))


# -- source and output ------------------------------------------------------------------------------------------------


def test_a_new_or_empty_output_is_fine(tmp_path: Path, source: Path) -> None:
    preflight.check(settings(source, tmp_path / "new" / "deeper"))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / ".DS_Store").touch()
    preflight.check(settings(source, tmp_path / "empty"))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "in"]


@pytest.mark.parametrize("where", ["in/out", "in/a/b/c", "in/../in/out", "link/out"])
def test_an_output_inside_the_source_is_refused(tmp_path: Path, source: Path, where: str) -> None:
    (tmp_path / "link").symlink_to(source)
    assert "lies inside the source: outputs would become inputs" in refused(settings(source, tmp_path / where))


@pytest.mark.parametrize("where", ["in", "in/", "in/../in", "link"])
def test_an_output_that_is_the_source_is_refused(tmp_path: Path, source: Path, where: str) -> None:
    (tmp_path / "link").symlink_to(source)
    assert "is the source: choose a folder outside of it" in refused(settings(source, f"{tmp_path}/{where}"))


@pytest.mark.parametrize("name", ["out*", "a/[b]/out", "what?"])
def test_a_pattern_is_no_name_on_a_store_and_a_name_on_a_disk(tmp_path: Path, source: Path, name: str) -> None:
    assert "holds a pattern" in refused(settings(source, f"memory://bucket/{name}"))
    preflight.check(settings(source, tmp_path / name))


@pytest.mark.parametrize("where", ["out/public", "out/x/y", "link/x"])
def test_a_source_inside_the_output_is_refused(tmp_path: Path, where: str) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "out")
    source = people(tmp_path / where, 1)
    assert "holds the source: originals would lie in the release" in refused(settings(source, tmp_path / "out"))


def test_a_source_file_may_lie_next_to_the_output_but_not_inside(tmp_path: Path) -> None:
    folder_of(tmp_path / "in", {"p.png": GARBAGE, "list.csv": b"image\np.png\n"})
    preflight.check(settings(tmp_path / "in" / "list.csv", tmp_path / "in" / "out"))
    assert "holds the source" in refused(settings(tmp_path / "in" / "list.csv", tmp_path / "in"))


def test_names_with_a_common_prefix_are_different_folders(tmp_path: Path, source: Path) -> None:
    preflight.check(settings(source, tmp_path / "in-anonymized"))
    preflight.check(settings(people(tmp_path / "out-old"), tmp_path / "out"))


def test_an_object_store_is_checked_too(source: Path) -> None:
    import fsspec

    store = fsspec.filesystem("memory")
    store.pipe("/bucket/in/p.png", GARBAGE)
    try:
        assert "inside the source" in refused(settings("memory://bucket/in", "memory://bucket/in/out"))
        assert "holds the source" in refused(settings("memory://bucket/in", "memory://bucket"))
        preflight.check(settings("memory://bucket/in", "memory://bucket/in-2"))
        preflight.check(settings(source, "memory://bucket/in/out"))
    finally:
        store.store.clear()


def test_an_output_that_is_a_file_or_lies_below_one_is_refused(tmp_path: Path, source: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    assert "is a file: name a folder" in refused(settings(source, tmp_path / "file"))
    assert "is a file: name a folder" in refused(settings(source, tmp_path / "file" / "deeper"))
    assert "name a folder" in refused(settings(source, tmp_path / "dangling"))


@pytest.mark.parametrize(
    "files", ["notes.txt", "public/manifest.parquet", "restricted/diary.txt", "restricted/staging/x"]
)
def test_a_foreign_folder_is_not_touched(tmp_path: Path, source: Path, files: str) -> None:
    folder_of(tmp_path / "out", {files: b"mine"})
    assert "is not empty and no release that was begun here" in refused(settings(source, tmp_path / "out"))
    assert tree(tmp_path / "out") == {files: b"mine"}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_output_without_permission_is_refused(tmp_path: Path, source: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "cannot be written: check the permissions" in refused(settings(source, tmp_path / "locked" / "out"))


def test_an_output_that_the_system_calls_unwritable_is_refused(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert "cannot be written: check the permissions" in refused(settings(source, tmp_path / "out"))


@pytest.mark.parametrize("uri", ["nosuch://bucket/x", "zip://"])
def test_an_unknown_address_is_a_one_line_error(tmp_path: Path, source: Path, uri: str) -> None:
    with pytest.raises(UsageError) as caught:
        preflight.check(settings(source, uri))
    assert "\n" not in str(caught.value)


def test_a_missing_or_empty_source_is_the_first_error(tmp_path: Path) -> None:
    assert "no such file or folder" in refused(settings(tmp_path / "none", tmp_path / "out"), SourceError)
    (tmp_path / "in").mkdir()
    assert "no files in it" in refused(settings(tmp_path / "in", tmp_path / "out"), SourceError)


@pytest.mark.parametrize("method", ["write", "write_uncommitted"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EACCES, errno.EROFS])
def test_a_disk_that_does_not_take_it_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, number: int
) -> None:
    place, path_open = StoragePath.from_uri(str(tmp_path)) / "0123 secret id.png", StoragePath._open_descriptor

    def full(*args: Any, **rest: Any) -> None:
        raise OSError(number, os.strerror(number), place.path)

    with monkeypatch.context() as patch, pytest.raises(OutputError) as caught:
        patch.setattr(os, "fsync", full)  # when the file is written
        patch.setattr(StoragePath, "_open_descriptor", full if method == "write_uncommitted" else path_open)
        getattr(place, method)(b"data")
    assert f"output.uri: cannot be written ({os.strerror(number)}): check space" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert not [p for p in tmp_path.iterdir() if p.name.endswith(".tmp")]


# -- taking up a run --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "override",
    ["run.batch_size=1", "run.shard_size=1", "run.threads=1", "run.retries=0", "model.device=cpu", "key_env=OTHER"],
)
def test_how_the_work_is_done_may_change_while_a_run_is_unfinished(tmp_path: Path, source: Path, override: str) -> None:
    undisturbed = run(settings(source, tmp_path / "undisturbed"))
    begin(settings(source, tmp_path / "out"))
    assert public_images(run(settings(source, tmp_path / "out", override)))[0] == public_images(undisturbed)[0]


@pytest.mark.parametrize(
    ("override", "what"),
    [
        ("boomerang.level=0.5", "boomerang.level 0.4, not 0.5"),
        ("boomerang.sampler=ddpm", "boomerang.sampler 'sde-dpm++', not 'ddpm'"),
        ("output.image=jpeg", "output.image 'png', not 'jpeg'"),
        ("output.format=parquet", "output.format 'folder', not 'parquet'"),
        ("source.label=folder", "source.label none, not 'folder'"),
        ("metrics.lpips=none", "metrics.lpips 'st-alex', not 'none'"),
        ("source.limits.max_pixels=5", "source.limits.max_pixels 100000000, not 5"),
        ("output.public_scores=exact", "output.public_scores 'binned', not 'exact'"),
    ],
)
def test_what_a_release_is_made_from_may_not_change_in_between(
    tmp_path: Path, source: Path, override: str, what: str
) -> None:
    begin(settings(source, tmp_path / "out"))
    before = tree(tmp_path / "out")
    with pytest.raises(OutputError) as caught:
        begin(settings(source, tmp_path / "out", override))
    assert f"was begun with {what}: use the settings in its restricted/config.yaml" in str(caught.value)
    assert tree(tmp_path / "out") == before


def test_another_source_model_or_key_is_refused(tmp_path: Path, source: Path) -> None:
    config = settings(source, tmp_path / "out")
    begin(config)
    with pytest.raises(OutputError, match=r"was begun with another source\.uri"):
        begin(settings(people(tmp_path / "other"), tmp_path / "out"))
    ideal = IdealGaussian()
    ideal.digest = "another"
    with pytest.raises(OutputError, match="was begun with another model"):
        begin(config, ideal)
    for other in (CustodianKey(b"x" * 16), CustodianKey(b"x" * 16, is_persistent=False)):
        with pytest.raises(CustodianKeyError, match="ANONYMIZER_KEY: not the key that"):
            begin(config, key=other)


def test_the_same_source_may_be_spelled_in_another_way(
    tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin(settings(source, tmp_path / "out"))
    monkeypatch.chdir(tmp_path)
    begin(settings("in", "out"))
    monkeypatch.chdir(source)
    with pytest.raises(OutputError, match=r"another source\.uri"):
        begin(settings(people(source / "in", 1), tmp_path / "out"))


def test_a_run_without_a_key_may_be_finished_by_another_process(tmp_path: Path, source: Path) -> None:
    config = settings(source, tmp_path / "out")
    begin(config, key=CustodianKey(b"a" * 16, is_persistent=False))
    begin(config, key=CustodianKey(b"b" * 16, is_persistent=False))


def test_a_second_run_on_one_output_is_refused_while_the_first_is_at_work(tmp_path: Path, source: Path) -> None:
    config = settings(source, tmp_path / "out")
    other = [sys.executable, "-c", SECOND, str(tmp_path / "out" / "restricted" / ".lock")]
    with (
        run_lock.exclusive_run(config.output.uri),
        run_lock.exclusive_run(config.output.uri),
    ):  # whoever holds it may take it again
        assert subprocess.run(other, capture_output=True, text=True).stdout == "busy\n"
    with subprocess.Popen([*other, "hold"], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "free\n"
        with (
            pytest.raises(OutputError, match="another run is working on it"),
            run_lock.exclusive_run(config.output.uri),
        ):
            raise AssertionError
        holder.kill()
    with run_lock.exclusive_run(config.output.uri):  # a killed run holds nothing
        preflight.check(config)


SECOND = """
import sys, time
from filelock import FileLock, Timeout
try:
    with FileLock(sys.argv[1], timeout=0):
        print("free", flush=True)
        time.sleep(60 if len(sys.argv) > 2 else 0)
except Timeout:
    print("busy", flush=True)
"""


def test_a_run_that_was_stopped_while_planning_is_planned_anew(tmp_path: Path, source: Path) -> None:
    stale = tmp_path / "out" / "restricted" / "plan" / "shard-00007.json"
    folder_of(stale.parent, {stale.name: b"[]", ".plan.json.00.tmp": b""})
    config = settings(source, tmp_path / "out")
    preflight.check(config)
    release = begin(config)
    assert not stale.exists()
    assert json.loads(release.plan.read())["shards"] == 3


def test_planning_names_no_picture_of_another_release(tmp_path: Path, source: Path) -> None:
    release = begin(settings(source, tmp_path / "out"))
    Path(release.plan.path).unlink()
    Path(release.public.path).mkdir()
    with pytest.raises(OutputError, match="has a public/ that no plan accounts for"):
        begin(settings(source, tmp_path / "out"))


def test_settings_that_were_written_before_the_last_ones_are_refused(tmp_path: Path) -> None:
    """An old file has a seal that holds: for example with a waiver that was withdrawn since."""
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", "run.batch_size=1")
    release = begin(config)
    older, newer = release.config.read(), settings(tmp_path / "in", tmp_path / "out", "run.batch_size=2")
    begin(newer)
    assert plan.read_config(release).run.batch_size == 2
    release.config.write(older)
    with pytest.raises(IntegrityError, match=r"restricted/config\.yaml: is not what was written last: restore it"):
        plan.read_config(release)
    begin(newer)  # the settings are at hand there
    assert plan.read_config(release).run.batch_size == 2


def test_that_a_release_needs_no_key_is_not_believed_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = begin(settings(people(tmp_path / "in", 2), tmp_path / "out"))
    document = json.loads(release.plan.read()) | {"key_check": None, "hmac": None}
    release.plan.write(json.dumps(document).encode())
    text = release.config.read().decode().replace("key_env: ANONYMIZER_KEY", "key_env: NO_SUCH_KEY")
    release.config.write(text.encode())
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    with pytest.raises(CustodianKeyError, match=r"ANONYMIZER_KEY: not the key that .* was made with: unset it if"):
        plan.open_with_key(str(release.root))
    monkeypatch.delenv("ANONYMIZER_KEY")
    assert plan.open_with_key(str(release.root)).key is None
