"""Sources in an object store are read over its real protocol."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anonymizer.data.sources import files, open_source
from anonymizer.records import Reason
from anonymizer.storage.path import StoragePath
from tests.support.object_store import BUCKET, reach, unreliable, upload
from tests.support.releases import listing, people, picture, settings


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


def test_a_listing_refers_to_objects_and_only_missing_ones_fail(bucket: str, tmp_path: Path) -> None:
    uri = upload(people(tmp_path / "in"), f"{bucket}/in")
    names = ["a/person 0.png", f"{uri}/b/person 1.png", f"{uri}/none.png", f"s3://{BUCKET}-none/x.png"]
    names += [f"s3://{BUCKET}-other/x.png", f"{uri}-beside/x.png", f"{uri}/../x.png"]  # with these credentials
    upload(listing(tmp_path / "list", [{"image": name} for name in names]).parent, uri)
    source = open_source(
        settings(
            f"{uri}/list.jsonl", "out", source={"uri": f"{uri}/list.jsonl", "allow": [f"s3://{BUCKET}-none"]}
        ).source
    )
    found = list(source.read(list(source.entries())))
    assert [record.data for record in found] == [picture(0), picture(1), b"", b"", b"", b"", b""]
    assert [record.problem for record in found[2:]] == [Reason.UNREADABLE] * 2 + [Reason.OUTSIDE_SOURCE] * 3


def test_a_table_is_read_one_row_group_at_a_time(bucket: str, server: str, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_a_long_listing_is_paged_and_skips_objects_that_are_no_records(
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


def test_a_source_that_changed_between_plan_and_read_is_detected(bucket: str) -> None:
    place = StoragePath.from_uri(bucket) / "in"
    (place / "a.png").write_uncommitted(picture(0))
    source = open_source(settings(str(place), "out").source)
    entries = list(source.entries())
    (place / "a.png").write_uncommitted(picture(0) + b"more")
    assert [record.problem for record in source.read(entries)] == [Reason.CHANGED]
