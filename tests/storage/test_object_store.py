"""Sources, releases and models in a store that speaks S3, over its real protocol."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from botocore.exceptions import ClientError
from click.testing import CliRunner
from s3fs.errors import translate_boto_error

from anonymizer.attest.verify import check_public
from anonymizer.backbones import load_backbone
from anonymizer.backbones.load import resolve
from anonymizer.backbones.pipeline_folder import digest
from anonymizer.config import ModelConfig, dump, load
from anonymizer.crypto import signing
from anonymizer.data.sources import files, open_source
from anonymizer.errors import ConfigError, ModelError, OutputError, SourceError, UsageError
from anonymizer.records import Reason, Scores
from anonymizer.release import event_log, preflight, publish, retention
from anonymizer.release.plan import resolve_config
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.storage import download, filesystem, lease, parquet, run_lock
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath
from flows.cli import main
from flows.jobs import erase as erase_job
from metrics.models import weights
from tests.support.object_store import BUCKET, checking_keys, environment, serving, unreliable
from tests.support.releases import (
    GARBAGE,
    HEX,
    KEY,
    Unscored,
    folder_of,
    listing,
    people,
    picture,
    plain,
    released,
    rows,
    run,
    settings,
)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as url:
        yield url


def reach(monkeypatch: pytest.MonkeyPatch, url: str) -> Any:
    """The file system of the server at ``url``, which the environment names from here on."""
    for name, value in environment(url).items():
        monkeypatch.setenv(name, value)
    filesystem.open_fs("s3://")[0].clear_instance_cache()
    return filesystem.open_fs("s3://")[0]


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A prefix of its own for each test."""
    fs = reach(monkeypatch, server)
    fs.makedirs(BUCKET, exist_ok=True)
    yield f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"


def upload(folder: Path, uri: str) -> str:
    for file in folder.rglob("*"):
        if file.is_file():
            (StoragePath.from_uri(uri) / str(file.relative_to(folder))).write_uncommitted(file.read_bytes())
    return uri


def pictures(release: Release) -> dict[str, bytes]:
    return {name: (release.public / name).read() for name in release.public.list_files() if name.startswith("images/")}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "RENEWAL_SECONDS", 0.1)
    monkeypatch.setattr(lease, "EXPIRY_SECONDS", 0.5)


# What a store promises


def test_of_many_that_create_one_object_one_succeeds(bucket: str) -> None:
    made = together(lambda number: (StoragePath.from_uri(bucket) / "first").create(b"%d" % number), 8)
    assert sum(made) == 1
    assert (StoragePath.from_uri(bucket) / "first").read() == b"%d" % made.index(True)


def test_what_was_read_is_replaced_only_while_it_lies_there(bucket: str) -> None:
    place = StoragePath.from_uri(bucket) / "file"
    assert place.read_with_version() == (b"", None)
    assert place.compare_and_swap(b"one", None) and not place.compare_and_swap(b"two", None)
    _, version = place.read_with_version()
    assert place.compare_and_swap(b"two", version) and not place.compare_and_swap(b"three", version)
    assert place.read() == b"two"


def test_what_others_write_is_seen_at_once(bucket: str, server: str) -> None:
    folder = StoragePath.from_uri(bucket)
    (folder / "a").write_uncommitted(b"a")
    assert not (folder / "b").exists() and folder.list_files() == ["a"] and [c.name for c in folder.children()] == ["a"]
    write = f"(StoragePath.from_uri({bucket!r}) / 'b').write_uncommitted(b'b')"
    script = f"from anonymizer.storage.path import StoragePath; {write}"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (folder / "b").exists() and folder.list_files() == ["a", "b"]
    assert [child.name for child in folder.children()] == ["a", "b"]


def test_a_large_object_goes_up_in_parts_and_leaves_none_behind(bucket: str) -> None:
    place, data = (
        StoragePath.from_uri(bucket) / "large",
        os.urandom(2**20) * 101,
    )  # the store's client splits at 100 MiB
    assert place.create(data) and not place.create(b"other")
    assert place.read() == data
    assert "-" in place.fs.info(place.path)["ETag"]  # which tells how many parts there were
    assert not place.fs.list_multipart_uploads(BUCKET)


def test_events_of_several_writers_are_all_in_the_chain(bucket: str) -> None:
    release = Release.at(bucket)
    together(lambda number: [event_log.record(release, "told", writer=number, n=n) for n in range(3)], 3)
    found = event_log.read(release)
    assert sorted((event["details"]["writer"], event["details"]["n"]) for event in found) == [
        (writer, n) for writer in range(3) for n in range(3)
    ]


# One run at a time


def test_a_second_run_on_one_output_is_refused(bucket: str, quick: None) -> None:
    script = (
        "import sys; from anonymizer.storage import lease, run_lock; lease.RENEWAL_SECONDS = .1\n"
        f"with run_lock.exclusive_run({bucket!r}): print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert other.stdin and other.stdout
    with other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(OutputError, match="another run is working on it"), run_lock.exclusive_run(bucket):
            pass
        other.kill()  # and renews nothing any more
    with run_lock.exclusive_run(bucket), run_lock.exclusive_run(bucket):
        assert Release.at(bucket).lock.exists()
    assert not Release.at(bucket).lock.exists()


# Sources


def packed(folder: Path, kind: str) -> Path:
    """The pictures of ``people`` in another format."""
    files = sorted(folder.rglob("*.png"))
    out = folder.parent / kind
    out.mkdir()
    if kind == "webdataset":
        with tarfile.open(out / "part.tar", "w") as tar:
            for number, file in enumerate(files):
                tar.add(file, f"{number}.png")
    elif kind == "parquet":
        table = pa.table({"image": [file.read_bytes() for file in files]})
        pq.write_table(table, out / "part.parquet", row_group_size=2)
    return out


@pytest.mark.parametrize("kind", ["webdataset", "parquet"])
def test_archives_and_tables_are_read_as_from_a_disk(bucket: str, tmp_path: Path, kind: str) -> None:
    source = packed(people(tmp_path / "in"), kind)
    here, there = (open_source(settings(uri, "out").source) for uri in (source, upload(source, bucket)))
    assert [r.data for r in there.read(list(there.entries()))] == [r.data for r in here.read(list(here.entries()))]


def test_rows_of_a_listing_lead_to_objects_and_what_is_missing_fails_alone(bucket: str, tmp_path: Path) -> None:
    uri = upload(people(tmp_path / "in"), f"{bucket}/in")
    names = ["a/person 0.png", f"{uri}/b/person 1.png", f"{uri}/none.png", f"s3://{BUCKET}-none/x.png"]
    upload(listing(tmp_path / "list", [{"image": name} for name in names]).parent, uri)
    source = open_source(settings(f"{uri}/list.jsonl", "out").source)
    found = list(source.read(list(source.entries())))
    assert [record.data for record in found] == [picture(0), picture(1), b"", b""]
    assert [record.problem for record in found[2:]] == [Reason.UNREADABLE] * 2


def test_a_table_is_read_in_pieces(bucket: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of twelve row groups one is wanted; far less than the file comes over."""
    noise, buffer = np.random.default_rng(0), io.BytesIO()
    pictures = [noise.bytes(2**21) for _ in range(24)]
    pq.write_table(pa.table({"image": pictures}), buffer, row_group_size=2, compression="none")
    (StoragePath.from_uri(bucket) / "big.parquet").write_uncommitted(buffer.getvalue())
    with unreliable(server, every=10**9) as proxy:
        reach(monkeypatch, proxy.url)
        source = open_source(settings(bucket, "out").source)
        entries = list(source.entries())
        assert proxy.sent < 2 * files.BLOCK_BYTES + 2**20
        proxy.sent = 0
        assert [record.data for record in source.read(entries[6:8])] == pictures[6:8]
        assert proxy.sent < 4 * 2**21 + 3 * files.BLOCK_BYTES


def test_a_long_listing_comes_in_pages_and_leaves_out_what_is_no_record(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "PAGE_KEYS", 2)
    names = ["a b/1.png", "a b/2.png", "a.png", "b/.DS_Store", "b/.git/x", "b/ü#?.png", "b/", "c/d/e.png", "z.png"]
    fs = StoragePath.from_uri(bucket).fs
    for name in names:
        fs.call_s3("put_object", Bucket=BUCKET, Key=f"{bucket.removeprefix(f's3://{BUCKET}/')}/{name}", Body=b"x")
    (StoragePath.from_uri(bucket + "-beside") / "y.png").write_uncommitted(b"x")
    source = open_source(settings(bucket, "out").source)
    assert [entry.record_id for entry in source.entries()] == [
        *("a b/1.png", "a b/2.png", "a.png", "b/ü#?.png", "c/d/e.png", "z.png")
    ]
    assert [record.data for record in source.read(list(source.entries()))] == [b"x"] * 6


def test_a_source_that_changes_between_plan_and_read_is_noticed(bucket: str) -> None:
    place = StoragePath.from_uri(bucket) / "in"
    (place / "a.png").write_uncommitted(picture(0))
    source = open_source(settings(str(place), "out").source)
    entries = list(source.entries())
    (place / "a.png").write_uncommitted(picture(0) + b"more")
    assert [record.problem for record in source.read(entries)] == [Reason.CHANGED]


# What is wrong is said before the work, in one line, without names of objects


@pytest.fixture
def told(bucket: str) -> Callable[[], list[str]]:
    """The lines that say what is wrong with source, output, model and configuration."""

    def told() -> list[str]:
        config = settings(f"{bucket}/in", f"{bucket}/out", model={"id": f"{bucket}/model"})
        works: list[Callable[[], Any]] = [
            lambda: preflight.check(config),
            lambda: preflight.check_output(config),
            lambda: load_backbone(config.model),
            lambda: load(f"{bucket}/release.yaml"),
            lambda: Release.at(f"{bucket}/out").plan.read(),
        ]
        lines = []
        for work in works:
            with pytest.raises(UsageError) as error:
                work()
            lines.append(str(error.value))
            assert "\n" not in lines[-1] and "secret" not in lines[-1] and "someone" not in lines[-1]
        fields = [f"source.uri '{bucket}/in': ", f"output.uri '{bucket}/out': ", f"model.id '{bucket}/model': "]
        fields += ["config: ", f"s3://{BUCKET}: "]
        assert [line.startswith(field) for line, field in zip(lines, fields, strict=True)] == [True] * 5, lines
        return lines

    return told


def test_a_key_that_the_store_does_not_know_is_told(server: str, told: Callable[[], list[str]]) -> None:
    with checking_keys(server):
        lines = told()
    assert all("access denied: check the credentials" in line for line in lines[:2] + lines[3:]), lines
    assert "access key" in lines[2]


def test_missing_credentials_are_told(told: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    filesystem.open_fs("s3://")[0].clear_instance_cache()
    assert all("no credentials were found" in line for line in told())


def test_a_bucket_that_there_is_not_is_told(bucket: str) -> None:
    config = settings("s3://no-such-bucket/in", "s3://no-such-bucket/out")
    for work, error in ((preflight.check, SourceError), (preflight.check_output, OutputError)):
        with pytest.raises(error, match=r"\.uri 's3://no-such-bucket/.*: there is no such bucket: make it"):
            work(config)


def test_a_store_that_nobody_answers_for_is_told(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    reach(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(SourceError, match="cannot be reached: check the network and the endpoint"):
        preflight.check(settings(f"{bucket}/in", f"{bucket}/out"))


def test_without_its_package_the_extra_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3")
    for work, error in (
        (lambda: StoragePath.from_uri(bucket), OutputError),
        (lambda: files.locate(bucket), SourceError),
    ):
        with pytest.raises(error, match=r"not installed: pip install 'anonymizer\[s3\]'"):
            work()


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("NoSuchKey", "there is no such file"),
        ("NoSuchBucket", "there is no such bucket"),
        ("AccessDenied", "access denied"),
        ("InvalidAccessKeyId", "does not know this access key"),
        ("SignatureDoesNotMatch", "the secret key does not belong"),
        ("ExpiredToken", "the credentials have expired"),
        ("SlowDown", "failed several times in a row"),
        ("InternalError", "failed several times in a row"),
        ("EntityTooLarge", r"the store refused \(EntityTooLarge\)"),
        ("ada.png", r"the store refused \(EIO\)"),
    ],
)
def test_what_a_store_answers_is_never_repeated(code: str, said: str) -> None:
    answer = {"Error": {"Code": code, "Message": "The key people/ada.png of someone is a secret"}}
    error = translate_boto_error(ClientError(answer, "GetObject"))
    assert re.search(said, filesystem.explain(error))
    assert not re.search("ada|people|someone|secret is", filesystem.explain(error))


# Models and configurations


def test_a_model_in_a_store_is_the_one_on_a_disk_and_is_fetched_once(
    bucket: str, server: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path / "cache"))
    uri = upload(tiny_model, f"{bucket}/model")
    (StoragePath.from_uri(uri) / "unet/other.ckpt").write_uncommitted(GARBAGE)
    config = ModelConfig(id=uri)
    with unreliable(server, every=10) as proxy:
        reach(monkeypatch, proxy.url)
        model = load_backbone(config)
        assert model.digest == load_backbone(ModelConfig(id=str(tiny_model))).digest
        proxy.sent = 0
        load_backbone(config)
        assert proxy.sent < 10_000  # a listing, no weights
    assert not list((tmp_path / "cache").rglob("*.ckpt"))
    (StoragePath.from_uri(uri) / "scheduler/scheduler_config.json").write_uncommitted(b"{}")
    assert resolve(config) != resolve(ModelConfig(id=str(tiny_model))) and len(cached(tmp_path)) == 2


def test_several_processes_fetch_a_model_once(bucket: str, tiny_model: Path, tmp_path: Path) -> None:
    config = ModelConfig(id=upload(tiny_model, f"{bucket}/model"))
    script = f"from anonymizer.storage import download; download.download_folder('model.id', {config.id!r}, list)"
    env = os.environ | {download.CACHE_VARIABLE: str(tmp_path / "cache")}
    running = [subprocess.Popen([sys.executable, "-c", script], env=env) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    (folder,) = cached(tmp_path)
    assert digest(folder) == digest(tiny_model)


@pytest.mark.parametrize("name", ["../../outside.json", "unet/..\\outside.json", "/outside.json"])
def test_no_object_leads_out_of_the_cache(bucket: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leads out"):
        download._path_inside(tmp_path, name)


def test_pickled_weights_in_a_store_are_refused_as_anywhere(
    bucket: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path / "cache"))
    uri = upload(tiny_model, f"{bucket}/model")
    weights = StoragePath.from_uri(uri) / "unet/diffusion_pytorch_model.safetensors"
    (StoragePath.from_uri(uri) / "unet/diffusion_pytorch_model.bin").write_uncommitted(weights.read())
    weights.remove()
    with pytest.raises(ModelError, match="safetensors"):
        load_backbone(ModelConfig(id=uri))


def test_weights_of_a_score_come_from_a_store_too(bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path / "cache"))
    (StoragePath.from_uri(bucket) / "face.onnx").write_uncommitted(b"weights")
    assert weights.resolve_file("metrics.identity", f"{bucket}/face.onnx").read_bytes() == b"weights"
    with pytest.raises(ModelError, match="no file of a model lies there"):
        weights.resolve_file("metrics.identity", f"{bucket}/none.onnx")


def test_a_configuration_may_lie_in_a_store(bucket: str) -> None:
    config = settings(f"{bucket}/in", f"{bucket}/out")
    (StoragePath.from_uri(bucket) / "release.yaml").write_uncommitted(dump(config).encode())
    assert load(f"{bucket}/release.yaml") == config
    with pytest.raises(ConfigError, match="no file"):
        load(f"{bucket}/none.yaml")
    with pytest.raises(ConfigError, match="holds a password") as error:
        load(f"s3://someone:secret@{BUCKET}/release.yaml")
    assert "secret" not in str(error.value)


def cached(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]


# A whole run


def test_a_release_in_a_store_is_the_one_on_a_disk(bucket: str, tmp_path: Path) -> None:
    source = people(tmp_path / "in")
    on_disk = run(settings(source, tmp_path / "out"))
    config = settings(upload(source, f"{bucket}/in"), f"{bucket}/out")
    preflight.check(config)
    in_store = run(config)
    assert in_store.is_published
    assert released(in_store) == released(on_disk)
    assert pictures(in_store) == pictures(on_disk)
    assert in_store.manifest.read() == on_disk.manifest.read()


@pytest.mark.slow
def test_months_approvals_erasures_and_purges_work_in_a_store(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publisher, ada = signing.generate_key_pair(), signing.generate_key_pair()
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", publisher.private_bytes.decode())
    source = upload(
        folder_of(people(tmp_path / "in", 3), {"c/bad.png": GARBAGE, "c/black.png": plain(0)}), f"{bucket}/in"
    )
    policy = {"approvals": 1, "approvers": {"ada": signing.format_public_key(ada.public_key)}}
    sections = {"source": {"subject": "folder"}, "restricted": {"picture_days": 30}, "policy": policy}
    sections["run"] = {"shard_size": 8}

    january = run(settings(source, f"{bucket}/january", **sections), scorer=Unscored(Scores()))
    assert not january.is_published and january.candidate.exists()
    assert publish.approve(january, ada).is_published
    assert problems(january) == []

    february = run(settings(source, f"{bucket}/february", f"previous={bucket}/january", **sections))
    publish.approve(february, ada)
    assert {name: sha for name, sha in released(february).items() if name in released(january)} == released(january)

    (file := tmp_path / "withdrawn.txt").write_text("subject:b\n")
    erase_job.run(f"{bucket}/february", file, f"{bucket}/erased")
    erased = Release.at(f"{bucket}/erased")
    publish.approve(erased, ada)
    assert erase_job.run(f"{bucket}/february", file, f"{bucket}/erased").published
    assert february.root.list_files() == ["restricted/events.jsonl"]
    assert set(released(erased)) == {name for name in released(january) if not name.startswith("b/")} | {"c/black.png"}
    assert problems(erased) == []

    assert january.quarantine.exists()
    retention.purge(january, resolve_config(january).restricted, datetime.now(UTC) + timedelta(days=31))
    assert not january.quarantine.exists() and problems(january) == []


def problems(release: Release) -> list[str]:
    found = [*check_public(release.public), *check_restricted(release, resolve_config(release), KEY)]
    assert {"signature", "pictures", "ledger", "materials", "events"} <= {finding.check for finding in found}
    return [str(finding) for finding in found if finding.result == "fail"]


def test_what_is_removed_is_gone_or_said_to_be_left(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """S3 answers to a list of deletions as a whole, and its client does not look at the answer for each."""
    folder = StoragePath.from_uri(bucket)
    for name in ("a", "b/c"):
        (folder / name).write_uncommitted(b"x")
    monkeypatch.setattr(type(folder.fs), "_bulk_delete", nothing_deleted)
    with pytest.raises(OutputError, match=r"could not be deleted: check that the credentials may delete"):
        folder.remove()
    monkeypatch.undo()


async def nothing_deleted(self: Any, paths: list[str], **more: Any) -> list[str]:
    return []


def test_a_store_that_ignores_conditions_is_cautioned_about(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(f"{bucket}/in", f"{bucket}/out")
    assert preflight.list_cautions(config) == []
    fs = StoragePath.from_uri(bucket).fs
    put = fs.pipe_file
    monkeypatch.setattr(fs, "pipe_file", lambda path, data, mode="", **more: put(path, data))
    (caution,) = preflight.list_cautions(config)
    assert "ignores conditions" in caution and not StoragePath.from_uri(f"{bucket}/out").exists()


def test_a_bucket_that_keeps_what_is_erased_is_cautioned_about(bucket: str) -> None:
    fs = StoragePath.from_uri(bucket).fs
    fs.makedirs("versioned")
    fs.make_bucket_versioned("versioned")
    (caution,) = preflight.list_cautions(settings("in", "s3://versioned/out"))
    assert "keeps old versions" in caution


def test_an_output_that_may_not_be_deleted_is_refused_before_the_work(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(type(StoragePath.from_uri(bucket).fs), "_bulk_delete", nothing_deleted)
    with pytest.raises(OutputError, match=r"output\.uri 's3://.*': something could not be deleted"):
        preflight.check_output(settings(f"{bucket}/in", f"{bucket}/out"))


@pytest.mark.slow
def test_the_commands_work_on_a_store(
    bucket: str, tmp_path: Path, tiny_model: Path, prefect_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A configuration, a source, a model and a release, all in a store, through Prefect, as on a disk."""
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", signing.generate_key_pair().private_bytes.decode())
    monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path / "cache"))
    source = people(tmp_path / "in", 4)
    more: dict[str, Any] = {"metrics": {"clip": "none", "lpips": "none"}}
    here = settings(source, tmp_path / "out", model={"id": str(tiny_model)}, **more)
    there = settings(
        upload(source, f"{bucket}/in"), f"{bucket}/out", model={"id": upload(tiny_model, f"{bucket}/m")}, **more
    )
    (tmp_path / "here.yaml").write_text(dump(here))
    (StoragePath.from_uri(bucket) / "there.yaml").write_uncommitted(dump(there).encode())

    assert json.loads(cli("plan", f"{bucket}/there.yaml", "--json"))["records"] == 4
    assert not StoragePath.from_uri(f"{bucket}/out").exists()
    for config in (tmp_path / "here.yaml", f"{bucket}/there.yaml"):
        assert json.loads(cli("run", config, "--json"))["released"] == 4
    on_disk, in_store = Release.at(str(tmp_path / "out")), Release.at(f"{bucket}/out")
    assert pictures(in_store) == pictures(on_disk)
    assert in_store.manifest.read() == on_disk.manifest.read()
    assert not in_store.lock.exists()

    assert json.loads(cli("status", in_store.root, "--json"))["state"] == "complete"
    shown = parquet.read(in_store.manifest)["output_id"][0].as_py()
    assert shown in cli("inspect", in_store.root, shown)
    assert "4 read again" in cli("verify", in_store.root, "--replay", "2")
    audited = json.loads(cli("audit", in_store.root, "--attacks", "linkage", "--features", "pixels", "--json"))
    assert audited["audited"] == 4 and in_store.audit_page.exists()


def cli(*words: Any) -> str:
    done = CliRunner().invoke(main, [str(word) for word in words])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.slow
def test_a_store_that_fails_one_request_in_ten_changes_nothing(
    bucket: str, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = people(tmp_path / "in", 4)
    undisturbed = run(settings(source, tmp_path / "out"))
    config = settings(upload(source, f"{bucket}/in"), f"{bucket}/out")
    with unreliable(server, every=10) as proxy:
        reach(monkeypatch, proxy.url)
        preflight.check(config)
        with run_lock.exclusive_run(config.output.uri):
            disturbed = run(config)
        assert proxy.failed > 20
        assert [row["status"] for row in rows(disturbed)] == ["released"] * 4
        assert pictures(disturbed) == pictures(undisturbed)
        assert disturbed.manifest.read() == undisturbed.manifest.read()
        assert [event["n"] for event in event_log.read(disturbed)] == [1, 2, 3, 4]


def test_an_answer_that_was_lost_is_no_sign_of_somebody_else(
    bucket: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client puts again, and is told that something lies there: what it has put itself."""
    with unreliable(server, every=3) as proxy:
        proxy.faults = ("lost",)
        reach(monkeypatch, proxy.url)
        for number in range(6):
            place = StoragePath.from_uri(bucket) / f"file {number}"
            assert place.create(b"mine") and not place.create(b"other")
            assert place.compare_and_swap(b"mine again", place.read_with_version()[1])
        assert proxy.failed > 6


def together(work: Callable[[int], Any], count: int) -> list[Any]:
    """What each of several threads returns that do the same at the same time."""
    results: list[Any] = [None] * count
    ready = threading.Barrier(count)

    def one(number: int) -> None:
        ready.wait()
        results[number] = work(number)

    threads = [threading.Thread(target=one, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
