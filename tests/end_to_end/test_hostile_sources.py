"""Somebody who writes the source, and holds no key, gets nothing from elsewhere published or signed."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anonymizer.errors import SourceError
from anonymizer.records import Reason
from tests.support.http_listener import Quiet, listening
from tests.support.releases import begin, folder_of, manifest, outputs, picture, rows, run, settings
from tests.support.signing_keys import PUBLISHER, VARIABLE, pem


class Secrets(Quiet):
    """A service that only this machine reaches."""

    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(picture(99))

    do_HEAD = do_GET


@pytest.fixture
def inner(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))
    Secrets.asked.clear()
    with listening(Secrets) as url:
        yield url


def hostile_names(secret: Path, url: str) -> list[str]:
    port = url.rpartition(":")[2]
    hosts = ["127.0.0.1", "localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "[::1]", "[::ffff:127.0.0.1]"]
    hosts += ["user@127.0.0.1", "allowed.example@127.0.0.1", "0.0.0.0", "127.0.0.1.", "ALLOWED.example:80@127.0.0.1"]
    names = [f"{scheme}://{host}:{port}/x.png" for scheme in ("http", "HTTP", "https") for host in hosts]
    names += [
        str(secret),
        f"file://{secret}",
        f"local://{secret}",
        f"../out/{secret.name}",
        f"sub/../../out/{secret.name}",
    ]
    names += [
        f"simplecache::{url}/x.png",
        f"filecache::file://{secret}",
        f"zip://x::{url}/x.zip",
        "link.png",
        "folder/s.png",
    ]
    return [*names, "memory://secret/s.png", "s3://secret/s.png", "http://169.254.169.254/latest/meta-data/"]


def write_table(folder: Path, form: str, names: list[str]) -> Path:
    path = folder / f"t.{form}"
    if form == "jsonl":
        path.write_text("".join(json.dumps({"image": name}) + "\n" for name in names))
    elif form == "csv":
        path.write_text("image\n" + "".join(f'"{name}"\n' for name in names))
    else:
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pq.write_table(pa.table({"image": pa.array([{"bytes": None, "path": name} for name in names], kind)}), path)
    return path


@pytest.mark.parametrize("form", ["jsonl", "csv", "parquet"])
def test_nothing_that_a_row_names_elsewhere_is_published(tmp_path: Path, inner: str, form: str) -> None:
    secret = folder_of(tmp_path / "out", {"s.png": picture(99)}) / "s.png"
    fsspec.filesystem("memory").pipe_file("/secret/s.png", picture(99))
    folder = folder_of(tmp_path / "in", {"a.png": picture(0), "b.png": picture(1)})
    (folder / "link.png").symlink_to(secret)
    (folder / "folder").symlink_to(secret.parent)
    names = hostile_names(secret, inner)
    assert len(names) > 40
    table = write_table(folder, form, ["a.png", *names, "b.png"])
    release = run(settings(table, tmp_path / "release", "run.shard_size=100"))
    reasons = Counter(row["reason"] for row in rows(release))
    assert reasons == {None: 2, Reason.OUTSIDE_SOURCE: len(names)}
    assert {name.rpartition("/")[2] for name in outputs(release)} == {"0", str(len(names) + 1)}
    assert len(manifest(release)) == 2 and Secrets.asked == []
    assert not any(b"secret" in (release.public / name).read() for name in release.public.list_files())


def test_a_file_that_is_swapped_for_a_link_after_the_plan_is_not_published(tmp_path: Path, inner: str) -> None:
    secret = folder_of(tmp_path / "out", {"s.png": picture(99)}) / "s.png"
    folder = folder_of(tmp_path / "in", {"a.png": picture(0), "b.png": picture(1)})
    config = settings(folder, tmp_path / "release")
    begin(config)
    (folder / "b.png").unlink()
    (folder / "b.png").symlink_to(secret)
    release = run(config)
    assert {row["record_id"]: row["reason"] for row in rows(release)} == {"a.png": None, "b.png": Reason.OUTSIDE_SOURCE}


@pytest.mark.parametrize("order", ["pictures first", "json first"])
def test_an_archive_whose_samples_stand_apart_is_never_planned(tmp_path: Path, order: str) -> None:
    suffixes = ["png", "json"] if order == "pictures first" else ["json", "png"]
    files = {f"{n}.png": picture(n) for n in range(3)}
    files |= {f"{n}.json": json.dumps({"who": f"person {n}"}).encode() for n in range(3)}
    folder_of(tmp_path / "loose", files)
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "t.tar", "w") as archive:
        for suffix in suffixes:
            for n in range(3):
                archive.add(tmp_path / "loose" / f"{n}.{suffix}", f"{n}.{suffix}")
    config = settings(tmp_path / "in", tmp_path / "release", source={"subject": "who"})
    with pytest.raises(SourceError, match="stand apart"):
        run(config)
    assert not (tmp_path / "release" / "public").exists()


def test_nobody_without_a_name_is_published_where_people_are_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "in", {f"{n}.png": picture(n) for n in range(4)})
    names = ["Ada", None, " ", "Bo"]
    lines = [json.dumps({"image": f"{n}.png", "who": name}) + "\n" for n, name in enumerate(names)]
    (folder / "t.jsonl").write_text("".join(lines))
    release = run(settings(folder / "t.jsonl", tmp_path / "release", source={"subject": "who"}))
    assert Counter(row["reason"] for row in rows(release)) == {None: 2, Reason.NO_SUBJECT: 2}
    assert {row["subject"] for row in rows(release) if row["status"] == "released"} == {"Ada", "Bo"}
    assert len(manifest(release)) == 2
