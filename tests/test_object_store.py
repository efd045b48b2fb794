"""Sources, releases and models in a store that speaks S3, over its real protocol."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from object_store import BUCKET, environment, serving
from running import people, released, run, settings

from anonymizer import events, lease, preflight, store
from anonymizer.errors import OutputError
from anonymizer.layout import Release
from anonymizer.place import Place

pytest.importorskip("s3fs")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving() as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A prefix of its own for each test."""
    for name, value in environment(server).items():
        monkeypatch.setenv(name, value)
    fs, _ = store.open_fs(f"s3://{BUCKET}")
    fs.clear_instance_cache()
    fs, _ = store.open_fs(f"s3://{BUCKET}")
    fs.makedirs(BUCKET, exist_ok=True)
    yield f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"


def upload(folder: Path, uri: str) -> str:
    for file in folder.rglob("*"):
        if file.is_file():
            (Place.of(uri) / str(file.relative_to(folder))).put(file.read_bytes())
    return uri


def pictures(release: Release) -> dict[str, bytes]:
    return {name: (release.public / name).read() for name in release.public.files() if name.startswith("images/")}


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "BEAT", 0.1)
    monkeypatch.setattr(lease, "STALE", 0.5)


# What a store promises


def test_of_many_that_create_one_object_one_succeeds(bucket: str) -> None:
    made = together(lambda number: (Place.of(bucket) / "first").create(b"%d" % number), 8)
    assert sum(made) == 1
    assert (Place.of(bucket) / "first").read() == b"%d" % made.index(True)


def test_what_was_read_is_replaced_only_while_it_lies_there(bucket: str) -> None:
    place = Place.of(bucket) / "file"
    assert place.read_version() == (b"", None)
    assert place.swap(b"one", None) and not place.swap(b"two", None)
    _, version = place.read_version()
    assert place.swap(b"two", version) and not place.swap(b"three", version)
    assert place.read() == b"two"


def test_what_others_write_is_seen_at_once(bucket: str, server: str) -> None:
    folder = Place.of(bucket)
    (folder / "a").put(b"a")
    assert not (folder / "b").exists() and folder.files() == ["a"] and [c.name for c in folder.children()] == ["a"]
    script = f"from anonymizer.place import Place; (Place.of({bucket!r}) / 'b').put(b'b')"
    subprocess.run([sys.executable, "-c", script], check=True)
    assert (folder / "b").exists() and folder.files() == ["a", "b"]
    assert [child.name for child in folder.children()] == ["a", "b"]


def test_a_large_object_goes_up_in_parts_and_leaves_none_behind(bucket: str) -> None:
    place, data = Place.of(bucket) / "large", os.urandom(2**20) * 101  # the store's client splits at 100 MiB
    assert place.create(data) and not place.create(b"other")
    assert place.read() == data
    assert "-" in place.fs.info(place.path)["ETag"]  # which tells how many parts there were
    assert not place.fs.list_multipart_uploads(BUCKET)


def test_events_of_several_writers_are_all_in_the_chain(bucket: str) -> None:
    release = Release.at(bucket)
    together(lambda number: [events.record(release, "told", writer=number, n=n) for n in range(5)], 4)
    found = events.read(release)
    assert sorted((event["details"]["writer"], event["details"]["n"]) for event in found) == [
        (writer, n) for writer in range(4) for n in range(5)
    ]


# One run at a time


def test_a_second_run_on_one_output_is_refused(bucket: str, quick: None) -> None:
    script = (
        "import sys; from anonymizer import lease, preflight; lease.BEAT = .1\n"
        f"with preflight.alone({bucket!r}): print('in', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert other.stdin and other.stdout
    with other:
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(OutputError, match="another run is working on it"), preflight.alone(bucket):
            pass
        other.kill()  # and renews nothing any more
    with preflight.alone(bucket), preflight.alone(bucket):
        assert Release.at(bucket).lock.exists()
    assert not Release.at(bucket).lock.exists()


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
