"""Every format lists each record once and reads each as bytes or as a typed problem; nothing goes missing."""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import tracemalloc
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer.config import SourceConfig
from anonymizer.data.sources import IGNORED_NAMES, Source, open_source, to_printable
from anonymizer.data.sources.building import RecordIds
from anonymizer.errors import SourceError
from anonymizer.records import Entry, Reason, Record


def source(uri: object, **options: Any) -> Source:
    return open_source(SourceConfig.model_validate({"uri": str(uri), **options}))


def taken(uri: object, **options: Any) -> dict[str, Record]:
    """Record id -> record; listed once, read by a source opened anew, as the shards of a run do."""
    entries = list(source(uri, **options).entries())
    records = list(source(uri, **options).read(entries))
    assert [record.entry for record in records] == entries, "one record for each entry, in order"
    assert len({entry.record_id for entry in entries}) == len(entries), "ids are unique"
    assert all(entry.record_id.isprintable() and entry.record_id.encode() for entry in entries)
    assert all((not record.data) == (record.problem is not None) for record in records if record.entry.size != 0)
    return {record.entry.record_id: record for record in records}


def problems(records: dict[str, Record]) -> dict[str, Reason]:
    return {key: record.problem for key, record in records.items() if record.problem is not None}


def error(uri: object, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        taken(uri, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def memory() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    fs.rm("/", recursive=True) if fs.ls("/") else None
    yield fs
    fs.rm("/", recursive=True) if fs.ls("/") else None


def write(root: Path, **files: bytes) -> Path:
    for name, data in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


# Folders


def test_a_folder_gives_each_file_in_a_stable_order_with_its_folder_as_label(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/x/1.jpg", "top.gif", "a/0.webp"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    records = taken(tmp_path, label="folder")
    assert {key: record.data.decode() for key, record in records.items()} == {key: key for key in records}
    assert list(records) == ["a/0.webp", "a/x/1.jpg", "b/2.png", "top.gif"]
    assert [record.label for record in records.values()] == ["a", "a/x", "b", None]
    assert all(record.label is None for record in taken(tmp_path).values()), "a label is carried only when asked for"


def test_what_is_no_picture_is_listed_and_what_systems_leave_behind_is_not(tmp_path: Path) -> None:
    for name in ("notes.txt", ".hidden.png", "movie.mp4", "photo", "._photo.png", *IGNORED_NAMES):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "__MACOSX").mkdir()
    (tmp_path / "__MACOSX" / "photo.png").write_bytes(b"x")
    assert sorted(taken(tmp_path)) == [".hidden.png", "movie.mp4", "notes.txt", "photo"]


def test_names_with_newlines_and_bytes_that_are_no_text_work(tmp_path: Path) -> None:
    names = [b"new\nline.png", b"latin\xe9.png", b"50%.png", "föhn.png".encode(), b"a::b c'\".png", b"50%25.png"]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(name)
    records = taken(tmp_path, label="folder")
    assert {record.data for record in records.values()} == set(names)
    assert set(records) == {"new%0Aline.png", "latin%E9.png", "50%25.png", "föhn.png", "a::b c'\".png", "50%2525.png"}
    for record in records.values():
        assert json.loads(json.dumps(record.entry.uri)) == record.entry.uri
        assert to_printable(record.entry.uri).isprintable() and to_printable(record.entry.uri).encode()


def test_a_folder_named_in_another_encoding_is_a_label_of_valid_text(tmp_path: Path) -> None:
    folder = os.path.join(os.fsencode(tmp_path), b"caf\xe9 100%")
    os.mkdir(folder)
    with open(os.path.join(folder, b"1.png"), "wb") as file:
        file.write(b"x")
    assert [record.label for record in taken(tmp_path, label="folder").values()] == ["caf%E9 100%"]


def test_links_are_followed_inside_the_source_and_not_out_of_it(tmp_path: Path) -> None:
    root = write(tmp_path / "in", a__1=b"one")
    write(tmp_path / "out", secret=b"secret")
    (root / "file-in").symlink_to(root / "a" / "1")
    (root / "folder-in").symlink_to("a")
    (root / "file-out").symlink_to(tmp_path / "out" / "secret")
    (root / "folder-out").symlink_to("../out")
    (root / "a" / "circle").symlink_to("..")
    (root / "broken").symlink_to("nothing")
    os.mkfifo(root / "pipe")
    records = taken(root)
    assert problems(records) == {
        "file-out": Reason.OUTSIDE_SOURCE,
        "folder-out": Reason.OUTSIDE_SOURCE,
        "broken": Reason.UNREADABLE,
        "pipe": Reason.UNREADABLE,
    }
    assert {key for key, record in records.items() if record.data == b"one"} == {"a/1", "file-in", "folder-in/1"}


def test_a_link_that_is_put_in_after_planning_does_not_lead_out(tmp_path: Path) -> None:
    root = write(tmp_path / "in", one=b"12345", folder__two=b"12345")
    write(tmp_path / "out", one=b"54321", two=b"54321")
    entries = list(source(root).entries())
    (root / "one").unlink()
    (root / "one").symlink_to(tmp_path / "out" / "one")
    (root / "folder" / "two").unlink()
    (root / "folder").rmdir()
    (root / "folder").symlink_to(tmp_path / "out")
    assert [record.problem for record in source(root).read(entries)] == [Reason.OUTSIDE_SOURCE] * 2


def test_files_that_vanish_or_change_after_planning_are_told(tmp_path: Path) -> None:
    root = write(tmp_path, a=b"1", b=b"22", c=b"333", d=b"4444")
    entries = list(source(root).entries())
    (root / "a").unlink()
    (root / "b").write_bytes(b"more")
    (root / "c").unlink()
    (root / "c").mkdir()
    found = [record.problem for record in source(root).read(entries)]
    assert found == [Reason.UNREADABLE, Reason.CHANGED, Reason.UNREADABLE, None]


def test_a_file_over_the_limit_is_not_read_into_memory(tmp_path: Path) -> None:
    with open(tmp_path / "big.png", "wb") as file:
        file.truncate(2**33)  # sparse
    tracemalloc.start()
    records = taken(tmp_path)
    assert problems(records) == {"big.png": Reason.TOO_MANY_BYTES}
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_a_folder_on_another_file_system_works_alike(memory: Any) -> None:
    for name in ("b/2.png", "a/1.png", ".DS_Store", "a/empty.png"):
        memory.pipe_file(f"/set/{name}", b"" if "empty" in name else name.encode())
    records = taken("memory://set", label="folder")
    assert list(records) == ["a/1.png", "a/empty.png", "b/2.png"]
    assert records["a/1.png"].data == b"a/1.png" and records["a/1.png"].label == "a"
    assert records["a/1.png"].entry.uri.startswith("memory://")
    entries = list(source("memory://set").entries())
    memory.rm("/set/a/1.png")
    memory.pipe_file("/set/b/2.png", b"longer than it was")
    assert [r.problem for r in source("memory://set").read(entries)] == [Reason.UNREADABLE, None, Reason.CHANGED]


def test_a_source_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    assert "no such file or folder" in error(tmp_path / "nothing")
    assert "no files in it" in error(tmp_path)
    assert "source.label 'x'" in error(write(tmp_path, one=b"1"), label="x")
    assert "source.carry: a folder has no columns" in error(tmp_path, carry=["age"])
    assert "cannot be opened" in error("nosuchprotocol://x")
    assert "a file of unknown format" in error(tmp_path / "one")
    assert "a file: name the folder" in error(tmp_path / "one", format="folder")
    assert "'label' is a column of the release itself" in error(tmp_path, carry=["label"])
    assert "'lpips_bin' is a column of the release itself" in error(tmp_path, carry=["lpips_bin"])


# Tar


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes] | tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for info, data in members:
            archive.addfile(info if isinstance(info, tarfile.TarInfo) else member(info, data)[0], io.BytesIO(data))
    return file.getvalue()


REST: dict[str, Any] = {"drop": ["*"]}  # what a test is not about is left behind
SAMPLES = [
    ("a/001.jpg", b"one"), ("a/001.cls", b"7\n"), ("a/001.txt", b" a man "), ("a/001.json", b'{"age": 5, "sex": "m"}'),
    ("b/002.json", b'{"age": null, "label": "x"}'), ("b/002.png", b"two"),
]  # fmt: skip


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("packed", [False, True])
def test_members_of_one_key_are_one_record(tmp_path: Path, form: int, packed: bool) -> None:
    path = tmp_path / ("s.tar.gz" if packed else "s.tar")
    path.write_bytes(gzip.compress(tar(*SAMPLES, form=form)) if packed else tar(*SAMPLES, form=form))
    one, two = taken(path, label="label", caption="caption", carry=["age"], drop=["sex"]).values()
    assert one.entry.record_id == f"{path.name}/a/001"
    assert (one.data, one.label, one.caption, one.columns) == (b"one", "7", "a man", {"age": 5})
    assert (two.data, two.label, two.caption, two.columns) == (b"two", "x", None, {"age": None})
    assert [record.label for record in taken(path, label="cls", **REST).values()] == ["7", None]
    assert [record.label for record in taken(path, label="sex", **REST).values()] == ["m", None]
    assert [record.label for record in taken(path, label="folder", **REST).values()] == ["a", "b"]
    one, two = taken(path, **REST).values()
    assert (one.label, one.caption, one.columns) == (None, None, {})


def test_a_folder_of_tars_is_found_out_and_any_part_of_it_can_be_read(tmp_path: Path, memory: Any) -> None:
    for shard in range(3):
        data = tar(*((f"{n:03d}.png", b"%d/%d" % (shard, n)) for n in range(4)))
        (tmp_path / f"part-{shard}.tar").write_bytes(data)
        memory.pipe_file(f"/set/part-{shard}.tar", data)
    (tmp_path / "README.md").write_text("about it")
    for uri in (tmp_path, "memory://set"):
        records = taken(uri)
        assert [record.data for record in records.values()] == [b"%d/%d" % (s, n) for s in range(3) for n in range(4)]
        entries = list(source(uri).entries())[2:9:3]
        assert [record.data for record in source(uri).read(entries)] == [b"0/2", b"1/1", b"2/0"]
        assert [record.data for record in source(uri).read(entries[::-1])] == [b"2/0", b"1/1", b"0/2"]


def test_long_and_odd_names_in_a_tar_work(tmp_path: Path) -> None:
    names = [
        "x" * 150 + ".png",
        "./dot.png",
        "../../etc/out.png",
        "/root.png",
        "new\nline.png",
        "b\udce9.png",
        "UP.JPG",
    ]
    (tmp_path / "s.tar").write_bytes(tar(*((name, b"data") for name in names)))
    records = taken(tmp_path / "s.tar")
    assert not problems(records) and len(records) == len(names)
    assert {"s.tar/dot", "s.tar/../../etc/out", "s.tar/new%0Aline", "s.tar/b%E9", "s.tar/UP"} <= set(records)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.tar"], "nothing is extracted"


def test_several_pictures_under_one_key_are_all_accounted_for(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar(("1.jpg", b"photo"), ("1.seg.png", b"mask"), ("2.jpg", b"photo"), ("2.seg.png", b"mask")))
    assert problems(taken(path)) == {"s.tar/1%#2": Reason.DUPLICATE_ID, "s.tar/2%#2": Reason.DUPLICATE_ID}
    assert [record.data for record in taken(path, image="seg.png").values()] == [b"mask", b"mask"]


def test_members_that_are_no_pictures_links_and_devices_have_their_reasons(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(
        tar(
            ("good.png", b"good"),
            ("only.json", b"{}"),
            ("noextension", b"x"),
            member("link.png", kind=tarfile.SYMTYPE, link="/etc/passwd"),
            member("hard.png", kind=tarfile.LNKTYPE, link="good.png"),
            member("pipe.png", kind=tarfile.FIFOTYPE),
            member("folder.png", kind=tarfile.DIRTYPE),
            ("._good.png", b"apple double"),
            ("good.png", b"again"),
        )
    )
    assert problems(taken(path)) == {
        "s.tar/only": Reason.NOT_AN_IMAGE,
        "s.tar/noextension": Reason.NOT_AN_IMAGE,
        "s.tar/link": Reason.OUTSIDE_SOURCE,
        "s.tar/hard": Reason.OUTSIDE_SOURCE,
        "s.tar/pipe": Reason.UNREADABLE,
        "s.tar/good%#2": Reason.DUPLICATE_ID,
    }


def test_metadata_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    sides = [b"{", b'{"age": [1]}', b'{"age": "\\ud800"}', b"\xff", b'{"age": 1}', b"[" * 100_000]
    path.write_bytes(tar(*(m for n, side in enumerate(sides) for m in ((f"{n}.png", b"x"), (f"{n}.json", side)))))
    assert list(problems(taken(path, carry=["age"]))) == [f"s.tar/{n}" for n in (0, 1, 2, 3, 5)]
    assert set(problems(taken(path, carry=["age"])).values()) == {Reason.BAD_METADATA}
    assert list(problems(taken(path, restricted=["age"]))) == [f"s.tar/{n}" for n in (0, 1, 2, 3, 5)]
    assert list(problems(taken(path, drop=["age"]))) == [f"s.tar/{n}" for n in (0, 3, 5)], "their keys are not known"
    for drop in (["*"], ["json"]):
        assert not problems(taken(path, drop=drop)), "nobody asked for it"


def test_a_tar_with_a_damaged_middle_loses_only_what_is_damaged(tmp_path: Path) -> None:
    data = bytearray(tar(*((f"{n}.png", b"%d" % n * 600) for n in range(6)), form=tarfile.USTAR_FORMAT))
    sample = 512 + 1024
    data[2 * sample : 2 * sample + 512] = b"\xaa" * 512  # the header of 2.png
    (tmp_path / "s.tar").write_bytes(data)
    records = taken(tmp_path / "s.tar")
    assert problems(records) == {"s.tar/(damaged)": Reason.TRUNCATED}
    assert list(records) == ["s.tar/0", "s.tar/1", "s.tar/(damaged)", "s.tar/3", "s.tar/4", "s.tar/5"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_that_ends_early_says_so(tmp_path: Path, packed: bool) -> None:
    data = tar(*((f"{n}.png", os.urandom(600)) for n in range(6)), form=tarfile.USTAR_FORMAT)
    for length in (1536 * 4, 1536 * 3 + 100, 1536 * 3 + 700):
        path = tmp_path / "s.tar"
        path.write_bytes(gzip.compress(data)[: length // 3] if packed else data[:length])
        records = taken(path)
        assert "s.tar/(damaged)" in problems(records)
        assert records["s.tar/0"].data and (packed or records["s.tar/2"].data)


def test_tars_that_were_joined_are_read_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar(("1.png", b"1")) + tar(("2.png", b"2")))
    records = taken(tmp_path / "s.tar")
    assert not problems(records) and list(records) == ["s.tar/1", "s.tar/2"]


def test_a_file_that_is_no_tar_is_told_and_among_others_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "b.tar").write_bytes(b"")
    assert "no readable tar archive" in error(tmp_path)
    assert "no readable tar archive" in error(tmp_path / "a.tar")
    (tmp_path / "c.tar").write_bytes(tar(("1.png", b"1")))
    assert list(problems(taken(tmp_path))) == ["a.tar/(damaged)", "b.tar/(damaged)"]
    assert "source.where: works with Parquet" in error(tmp_path, where={"a": "b"})


def test_a_tar_that_changes_after_planning_is_told(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar(("1.png", b"1"), ("2.png", b"2")))
    entries = list(source(path).entries())
    path.write_bytes(tar(("1.png", b"1"), ("3.png", b"2")))
    assert [record.problem for record in source(path).read(entries)] == [None, Reason.CHANGED]
    path.unlink()
    path.with_name("t.tar").write_bytes(tar(("1.png", b"1")))
    assert [record.problem for record in source(tmp_path).read(entries)] == [Reason.UNREADABLE] * 2


def test_other_files_beside_tars_or_parquet_are_failed_rows(tmp_path: Path, memory: Any) -> None:
    data = tar(("1.png", b"1"))
    write(tmp_path / "tar", **{"b.tar": data, "sub__a.jpg": b"jpg", "z.zip": b"zip", "README.md": b"", "c.idx": b""})
    os.mkfifo(tmp_path / "tar" / "pipe")
    (tmp_path / "tar" / "out.jpg").symlink_to(tmp_path)
    no = Reason.NOT_AN_IMAGE
    records = taken(tmp_path / "tar", format="webdataset")
    assert problems(records) == dict.fromkeys(["c.idx", "out.jpg", "pipe", "sub/a.jpg", "z.zip"], no)
    assert records["b.tar/1"].data == b"1"
    write(tmp_path / "pq", **{"z.jpg": b"jpg", "a.zip": b"zip", "_SUCCESS": b"", "_common_metadata": b""})
    pq.write_table(pa.table({"image": [b"1"]}), tmp_path / "pq" / "p.parquet")
    os.mkfifo(tmp_path / "pq" / "pipe")
    records = taken(tmp_path / "pq", format="parquet")
    assert problems(records) == dict.fromkeys(["a.zip", "pipe", "z.jpg"], no)
    assert records["p.parquet/0"].data == b"1"
    memory.pipe({"/set/b.tar": data, "/set/x.jpg": b"jpg"})
    assert problems(taken("memory://set", format="webdataset")) == {"x.jpg": no}


def test_other_files_alone_are_no_archives(tmp_path: Path) -> None:
    write(tmp_path, **{"a.jpg": b"jpg"})
    assert "no readable tar archive" in error(tmp_path, format="webdataset")
    assert "no rows in it" in error(tmp_path, format="parquet")


def test_a_picture_behind_a_thousand_tars_is_told(memory: Any) -> None:
    memory.pipe({f"/set/{n:04d}.tar": tar(("1.png", b"1")) for n in range(1001)} | {"/set/z.jpg": b"jpg"})
    assert problems(taken("memory://set")) == {"z.jpg": Reason.NOT_AN_IMAGE}


def test_tars_behind_a_thousand_side_files_are_found_out(memory: Any) -> None:
    memory.pipe({f"/set/a/{n}.json": b"{}" for n in range(1001)} | {"/set/b.tar": tar(("1.png", b"1"))})
    assert list(taken("memory://set")) == ["b.tar/1"]


def test_a_member_over_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar(("1.png", b"1" * 100), ("2.png", b"2")))
    assert problems(taken(tmp_path / "s.tar", limits={"max_bytes": 99})) == {"s.tar/1": Reason.TOO_MANY_BYTES}


def extension(kind: bytes, payload: bytes, **more: Any) -> bytes:
    """A header that says something of the next one, as tarfile itself would not write it."""
    info = tarfile.TarInfo("x")
    info.type, info.size = kind, more.get("size", len(payload))
    return info.tobuf(tarfile.GNU_FORMAT) + payload + bytes(-len(payload) % 512)


LARGE = 8 * 2**20
PLAIN = {n: tar((f"{n}.png", b"%d" % n), form=tarfile.USTAR_FORMAT)[:1024] for n in range(1, 4)}
SMALL = extension(tarfile.XHDTYPE, b"13 comment=x\n")
BOMBS = {
    "pax": extension(tarfile.XHDTYPE, b"%d comment=" % LARGE + b"x" * LARGE),
    "pax global": extension(tarfile.XGLTYPE, b"%d comment=" % LARGE + b"x" * LARGE),
    "pax solaris": extension(tarfile.SOLARIS_XHDTYPE, b"%d comment=" % LARGE + b"x" * LARGE),
    "long name": extension(tarfile.GNUTYPE_LONGNAME, b"x" * LARGE),
    "long link": extension(tarfile.GNUTYPE_LONGLINK, b"x" * LARGE),
    "behind another": SMALL + extension(tarfile.GNUTYPE_LONGNAME, b"x" * LARGE),
    "a chain": extension(tarfile.XHDTYPE, b"x" * 2**19) * (LARGE // 2**19),
    "a chain of empty ones": extension(tarfile.XHDTYPE, b"") * (2**20 // 512),
    "globals": extension(tarfile.XGLTYPE, b"%d x=" % 2**19 + b"x" * (2**19 - 9)) * (LARGE // 2**19),
    "negative": extension(tarfile.GNUTYPE_LONGNAME, b"x" * 512, size=-512),
    "backwards": extension(tarfile.REGTYPE, b"", size=-512 * 3),
    "sparse": extension(tarfile.XHDTYPE, b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n")
    + extension(tarfile.REGTYPE, b"99999999\n" + b"1234567890\n" * (LARGE // 11)),
}  # fmt: skip


@pytest.mark.parametrize("bomb", BOMBS)
def test_headers_that_fill_the_memory_are_damage(tmp_path: Path, bomb: str) -> None:
    (tmp_path / "s.tar").write_bytes(PLAIN[1] + BOMBS[bomb] + PLAIN[2] + PLAIN[3] + bytes(1024))
    (tmp_path / "z.tar.gz").write_bytes(gzip.compress(BOMBS[bomb] + PLAIN[1] + PLAIN[2] + PLAIN[3] + bytes(1024), 1))
    for name in ("s.tar", "z.tar.gz"):
        tracemalloc.start()
        records = taken(tmp_path / name, **REST)
        assert tracemalloc.get_traced_memory()[1] < LARGE * 3 / 4
        tracemalloc.stop()
        assert set(problems(records)) == {f"{name}/(damaged)"}
        assert {record.data for record in records.values()} == {b"1", b"2", b"3", b""}


def test_a_chain_of_headers_is_damage_however_deep_the_calls_are_already(tmp_path: Path) -> None:
    """tarfile calls itself for each header; at the limit of calls it would break off inside the decompressor."""

    def deep(calls: int) -> dict[str, Record]:
        return deep(calls - 1) if calls else taken(tmp_path / "z.tar.gz", **REST)

    (tmp_path / "z.tar.gz").write_bytes(gzip.compress(extension(tarfile.XHDTYPE, b"") * 500 + PLAIN[1] + bytes(1024)))
    for calls in range(48):
        assert [record.data for record in deep(calls).values()] == [b"", b"1"]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_as_large_as_tools_write_them_are_read(tmp_path: Path, form: int) -> None:
    info, data = member("folder/" * 500 + "1.png", b"one")
    info.pax_headers = {"SCHILY.xattr.user.note": "x" * 60_000} if form == tarfile.PAX_FORMAT else {}
    (tmp_path / "s.tar").write_bytes(tar((info, data), ("2.png", b"two"), form=form))
    assert [record.data for record in taken(tmp_path / "s.tar").values()] == [b"one", b"two"]


def test_a_global_header_is_no_damage(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w", pax_headers={"comment": "a commit"}) as archive:
        for n in range(2):
            info, data = member(f"{n}.png", b"%d" % n)
            archive.addfile(info, io.BytesIO(data))
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes() * 2)
    assert [record.data for record in taken(tmp_path / "s.tar").values() if not record.problem] == [b"0", b"1"]
    assert set(problems(taken(tmp_path / "s.tar")).values()) == {Reason.DUPLICATE_ID}


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 8),
    st.lists(st.tuples(st.integers(0, 12_000), st.integers(1, 255)), max_size=5),
    st.integers(0, 12_000),
)
def test_a_damaged_tar_is_records_or_a_clear_error(members: int, changes: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(tar(*((f"{n}.{e}", b"{}" * 20) for n in range(members) for e in ("png", "json"))))
    for at, value in changes:
        data[at % len(data)] ^= value
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/wild/s.tar", bytes(data[: max(cut, 600)]))
    try:
        taken("memory://wild/s.tar", carry=["age"])
    except SourceError:
        pass
    finally:
        fs.rm("/wild", recursive=True)


# Parquet

TABLE: dict[str, Any] = {
    "image": [b"one", b"two", None, b"", b"five"],
    "label": [0, 1, 1, 0, None],
    "text": ["a", None, "c", "d", "e"],
    "age": [1, 2, 3, 4, 5],
    "split": ["train", "test", "test", "train", "test"],
    "name": ["p", "q", "r", "q", None],
}


def test_parquet_rows_of_bytes_or_of_hugging_faces_struct_are_records(tmp_path: Path) -> None:
    pq.write_table(pa.table(TABLE), tmp_path / "plain.parquet")
    struct = [None if b is None else {"bytes": b, "path": "secret.jpg"} for b in TABLE["image"]]
    pq.write_table(pa.table(TABLE | {"image": struct}), tmp_path / "struct.parquet", row_group_size=2)
    for name in ("plain.parquet", "struct.parquet"):
        records = taken(tmp_path / name, label="label", caption="text", carry=["age"], drop=["split", "name"])
        assert problems(records) == {f"{name}/2": Reason.EMPTY, f"{name}/3": Reason.EMPTY}
        first, last = records[f"{name}/0"], records[f"{name}/4"]
        assert (first.data, first.label, first.caption, first.columns) == (b"one", "0", "a", {"age": 1})
        assert (last.data, last.label, last.caption, last.columns) == (b"five", None, "e", {"age": 5})
        assert (taken(tmp_path / name, **REST)[f"{name}/0"]).columns == {}


def test_rows_are_chosen_by_where_and_named_by_id(tmp_path: Path) -> None:
    pq.write_table(pa.table(TABLE), tmp_path / "t.parquet")
    records = taken(tmp_path, where={"split": "test"}, id="name", drop=["label", "text", "age"])
    assert problems(records) == {"r": Reason.EMPTY, "t.parquet/4": Reason.BAD_METADATA}
    records = taken(tmp_path, id="name", where={"age": "4"}, **REST)
    assert list(records) == ["q"]
    assert problems(taken(tmp_path, id="name", **REST))["q%#2"] is Reason.DUPLICATE_ID
    assert "none of its 5 rows matches source.where" in error(tmp_path, where={"split": "none"}, **REST)


def test_any_rows_can_be_read_in_any_order(tmp_path: Path, memory: Any) -> None:
    for part in range(2):
        table = pa.table({"image": [b"%d/%d" % (part, n) for n in range(100)]})
        pq.write_table(table, tmp_path / f"{part}.parquet", row_group_size=30)
        memory.put_file(str(tmp_path / f"{part}.parquet"), f"/set/{part}.parquet")
    for uri in (tmp_path, "memory://set"):
        entries = list(source(uri).entries())
        for chosen in (entries[25:135:7], entries[::-9], [entries[150], entries[3], entries[3]]):
            wanted = [entry.record_id.replace(".parquet", "").encode() for entry in chosen]
            assert [record.data for record in source(uri).read(chosen)] == wanted


def test_class_labels_of_hugging_face_have_their_names(tmp_path: Path) -> None:
    features = {"label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
    table = pa.table({"image": [b"1", b"2"], "label": [1, 0]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "t.parquet")
    assert [record.label for record in taken(tmp_path, label="label").values()] == ["dog", "cat"]


def test_values_that_are_carried_are_plain(tmp_path: Path) -> None:
    import datetime
    from decimal import Decimal

    columns = {"when": datetime.datetime(2024, 5, 6), "much": Decimal("1.50"), "yes": True, "big": 2**63, "no": 0.5}
    arrays = {key: pa.array([value], pa.uint64() if key == "big" else None) for key, value in columns.items()}
    pq.write_table(pa.table({"image": [b"1"]} | arrays), tmp_path / "t.parquet")
    (record,) = taken(tmp_path, carry=list(columns), label="yes").values()
    assert record.label == "true"
    assert dict(record.columns) == {
        "when": "2024-05-06T00:00:00", "much": "1.50", "yes": True, "big": str(2**63), "no": 0.5,
    }  # fmt: skip


def test_parquet_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table(TABLE | {"list": [[1]] * 5}), path)
    message = error(path, image="imag")
    assert message == "source.image: no column 'imag' among the 7 of 't.parquet': did you mean 'image'?"
    assert error(path, label="x") == "source.label: no column 'x' among the 7 of 't.parquet': check its spelling"
    assert "source.where: no column 'x'" in error(path, where={"x": "1"})
    assert "holds list" in error(path, carry=["list"])
    assert "holds string, not pictures" in error(path, image="text")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), path)
    assert "no rows in it" in error(path)
    for broken in (b"", b"PAR1", b"no parquet" * 100, path.read_bytes()[:-9]):
        path.write_bytes(broken)
        assert "not a Parquet file, or is damaged" in error(path)


def test_a_damaged_parquet_page_costs_its_row_group_only(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pictures = [os.urandom(5000) for _ in range(200)]
    pq.write_table(pa.table({"image": pictures}), path, row_group_size=50, compression="zstd", use_dictionary=False)
    data = bytearray(path.read_bytes())
    start = pq.ParquetFile(path).metadata.row_group(2).column(0).data_page_offset
    data[start : start + 200] = bytes(200)
    path.write_bytes(data)
    entries = list(source(path).entries())
    found = list(source(path).read(entries))
    assert [record.data for record in found] == pictures[:100] + [b""] * 50 + pictures[150:]
    assert all(record.problem is Reason.UNREADABLE for record in found[100:150])


def test_a_parquet_file_that_shrinks_after_planning_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"image": [b"1", b"2", b"3"], "name": [1, 2, 3]}), path)
    entries, named = list(source(path, **REST).entries()), list(source(path, id="name").entries())
    pq.write_table(pa.table({"image": [b"1"], "name": [1]}), path)
    assert [record.problem for record in source(path, **REST).read(entries)] == [Reason.CHANGED] * 3
    found = [record.problem for record in source(path, id="name").read(named)]
    assert found == [None, Reason.CHANGED, Reason.CHANGED]
    path.with_name("other.parquet").write_bytes(path.read_bytes())
    path.unlink()
    assert [record.problem for record in source(tmp_path, **REST).read(entries)] == [Reason.UNREADABLE] * 3


CHANGES = {
    "inserted": [("new", "x"), ("one", "a"), ("two", "b"), ("six", "c")],
    "reordered": [("two", "b"), ("one", "a"), ("six", "c")],
    "dropped": [("two", "b"), ("six", "c")],
}


def people(rows: list[tuple[str, str]], **more: list[Any]) -> pa.Table:
    return pa.table({"image": [b"%s" % who.encode() for who, _ in rows], "who": [w for w, _ in rows]} | more)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("options", [{"drop": ["who"]}, {"id": "who"}])
def test_rows_that_move_in_a_parquet_file_after_planning_are_told(
    tmp_path: Path, memory: Any, change: str, options: dict[str, Any]
) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(people([("one", "a"), ("two", "b"), ("six", "c")]), path)
    memory.put_file(str(path), "/set/t.parquet")
    entries = {uri: list(source(uri, **options).entries()) for uri in (path, "memory://set")}
    pq.write_table(people(CHANGES[change]), path)
    memory.put_file(str(path), "/set/t.parquet")
    for uri, planned in entries.items():
        found = list(source(uri, **options).read(planned))
        assert [record.entry for record in found] == planned
        if "id" in options:  # a row that still stands where it stood is known by its id
            assert all(r.problem is Reason.CHANGED or r.data.decode() == r.entry.record_id for r in found)
            assert Reason.CHANGED in [record.problem for record in found]
        else:
            assert [record.problem for record in found] == [Reason.CHANGED] * 3


def test_a_row_that_no_longer_matches_where_is_told(tmp_path: Path) -> None:
    path, rows = tmp_path / "t.parquet", [("one", ""), ("two", "")]
    pq.write_table(people(rows, consent=["yes", "yes"]), path)
    options: dict[str, Any] = {"id": "who", "where": {"consent": "yes"}}
    entries = list(source(path, **options).entries())
    pq.write_table(people(rows, consent=["yes", "no"]), path)
    assert [record.problem for record in source(path, **options).read(entries)] == [None, Reason.CHANGED]


def test_a_parquet_file_that_loses_its_columns_after_planning_is_told(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(people([("one", "a")]), path)
    entries = list(source(path, id="who").entries())
    for table in (pa.table({"who": ["one"]}), pa.table({"image": [b"one"]}), pa.table({"image": ["x"], "who": ["x"]})):
        pq.write_table(table, path)
        assert [record.problem for record in source(path, id="who").read(entries)] == [Reason.CHANGED]


def test_a_parquet_file_that_is_copied_elsewhere_is_known_by_its_ids(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(people([("one", "a")]), path)
    entries = list(source(path, id="who").entries())
    os.utime(path, (1, 1))
    assert [record.data for record in source(path, id="who").read(entries)] == [b"one"]


def test_memory_stays_flat_while_parquet_is_read(tmp_path: Path) -> None:
    def peak(rows: int) -> int:
        path = tmp_path / f"{rows}.parquet"
        pq.write_table(pa.table({"image": [os.urandom(20_000) for _ in range(rows)]}), path, row_group_size=100)
        entries = list(source(path).entries())
        before, most = pa.total_allocated_bytes(), 0
        for _ in source(path).read(entries):
            most = max(most, pa.total_allocated_bytes() - before)
        return most

    assert peak(1000) < 1.1 * peak(200)


# Listings


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return write(tmp_path, a=b"a-picture", sub__b=b"b-picture")


def test_rows_of_a_csv_name_pictures_beside_it(pictures: Path) -> None:
    (pictures / "list.csv").write_text(
        '\ufeffimage,sex,words,age\na,f,"two\nlines, and ""quotes""",5\n\nsub/b,m,,6\n', encoding="utf-8"
    )
    one, two = taken(pictures / "list.csv", label="sex", caption="words", carry=["age"]).values()
    assert (one.entry.record_id, two.entry.record_id) == ("list.csv/0", "list.csv/1")
    assert (one.data, one.label, one.columns) == (b"a-picture", "f", {"age": "5"})
    assert one.caption == 'two\nlines, and "quotes"'
    assert (two.data, two.label, two.caption, two.columns) == (b"b-picture", "m", None, {"age": "6"})
    assert [r.data for r in taken(pictures / "list.csv", where={"sex": "m"}, **REST).values()] == [b"b-picture"]


def test_rows_of_jsonl_and_tsv_work_alike(pictures: Path, memory: Any) -> None:
    (pictures / "list.jsonl").write_text('{"image": "a"}\n\n{"image": "sub/b", "id": 7, "ok": true}\n')
    records = taken(pictures / "list.jsonl", id="id", carry=["ok"])
    assert problems(records) == {"list.jsonl/0": Reason.BAD_METADATA}
    assert (records["7"].data, records["7"].columns) == (b"b-picture", {"ok": True})
    (pictures / "list.tsv").write_text("image\tsex\na\tf, really\n")
    assert [record.label for record in taken(pictures / "list.tsv", label="sex").values()] == ["f, really"]
    memory.pipe_file("/set/list.csv", b"image,k\nx.png,1\nmemory://elsewhere/y.png,2\n")
    memory.pipe_file("/set/x.png", b"x")
    memory.pipe_file("/elsewhere/y.png", b"y")
    records = taken("memory://set/list.csv", carry=["k"])
    assert [(record.data, record.columns["k"]) for record in records.values()] == [(b"x", "1"), (b"y", "2")]


def test_any_rows_of_a_listing_can_be_read_in_any_order(tmp_path: Path) -> None:
    for n in range(20):
        (tmp_path / f"{n}.png").write_bytes(b"%d" % n)
    (tmp_path / "l.csv").write_text("image,n\n" + "".join(f'{n}.png,"{n}\n"\n' for n in range(20)))
    entries = list(source(tmp_path / "l.csv", carry=["n"]).entries())
    for chosen in (entries[3:15:4], entries[::-1], entries[9:11]):
        read = list(source(tmp_path / "l.csv", carry=["n"]).read(chosen))
        assert [f"{record.columns['n']}".strip().encode() for record in read] == [record.data for record in read]


def test_a_listing_reaches_out_of_its_folder_only_by_a_full_address(tmp_path: Path) -> None:
    outside = write(tmp_path / "out", c=b"c-picture")
    root = write(tmp_path / "in", a=b"a-picture")
    (root / "link").symlink_to(outside / "c")
    rows = [
        "../out/c",
        "a/../../out/c",
        "link",
        str(outside / "c"),
        (outside / "c").as_uri(),
        "zip://a::/x",
        "x://y",
        "no",
        "",
    ]
    (root / "l.jsonl").write_text("".join(json.dumps({"image": row}) + "\n" for row in rows))
    found = [record.problem or record.data for record in taken(root / "l.jsonl").values()]
    out = Reason.OUTSIDE_SOURCE
    assert found == [out, out, out, b"c-picture", b"c-picture", out, out, Reason.UNREADABLE, Reason.EMPTY]


def test_a_listing_that_cannot_be_used_is_one_clear_line(pictures: Path) -> None:
    path = pictures / "l.csv"
    for text, message in {
        "": "has no header: its first line must name the columns",
        "image\n": "no rows in it",
        "file,age\na,1\n": "source.image: no column 'image' among the 2 of 'l.csv': name the column of the paths",
        "image,age\na,1\nb,2,3\n": "line 3 of 'l.csv' has 3 fields, not the 2 of the header",
        'image\n"a\n': "line 2 of 'l.csv': unexpected end of data",
        "image\n" + "a" * 200_000: "line 2 of 'l.csv': field larger than field limit",
    }.items():
        path.write_text(text)
        assert message in error(path, **REST)
    path.write_bytes(b"image\ncaf\xe9\n")
    assert "line 2 of 'l.csv' is not UTF-8" in error(path)
    (pictures / "l.jsonl").write_text('{"image": "a"}\n[1]\n')
    assert "line 2 of 'l.jsonl' is not a JSON object" in error(pictures / "l.jsonl")
    (pictures / "l.jsonl").write_text('{"image": "a"}\n{"image": "a", "age": 3}\n')
    message = error(pictures / "l.jsonl", label="sex", **REST)
    assert "no column 'sex' among the 2 of 'l.jsonl': check its spelling" in message
    assert "a folder: name the CSV" in error(pictures, format="listing")


def test_a_listing_that_changes_after_planning_is_told(pictures: Path) -> None:
    (pictures / "l.csv").write_text("image,n\na,1\nsub/b,2\n")
    entries = list(source(pictures / "l.csv", carry=["n"]).entries())
    (pictures / "l.csv").write_text("image,n\nsub/b,1\nsub/b,2\n")
    found = [record.problem for record in source(pictures / "l.csv", carry=["n"]).read(entries)]
    assert found[0] is Reason.CHANGED


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("options", [{"drop": ["who"]}, {"id": "who"}, {"carry": ["who"]}])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_rows_that_move_in_a_listing_after_planning_are_told(
    tmp_path: Path, change: str, options: dict[str, Any], suffix: str
) -> None:
    def listing(rows: list[tuple[str, str]]) -> None:
        lines = [json.dumps({"who": who, "image": file}) for who, file in rows]
        lines = lines if suffix == "jsonl" else ["who,image", *(f"{who},{file}" for who, file in rows)]
        path.write_text("\n".join(lines))

    path = write(tmp_path, a=b"a", b=b"b", c=b"c", x=b"x") / f"l.{suffix}"
    listing([("one", "a"), ("two", "b"), ("six", "c")])
    entries = list(source(path, **options).entries())
    listing(CHANGES[change])
    found = [record.problem or record.data for record in source(path, **options).read(entries)]
    still = [b"c"] if change == "reordered" else [Reason.CHANGED]
    assert found == [Reason.CHANGED, Reason.CHANGED, *still]


def test_a_row_of_a_listing_that_is_cut_or_renamed_after_planning_is_told(tmp_path: Path) -> None:
    path = write(tmp_path, a=b"a", b=b"b") / "l.csv"
    text = "sex,words,image\nmale,she,a\nfemale,he,b\n"
    asked: list[dict[str, Any]] = [{"id": "words"}, {"label": "sex"}, {"where": {"sex": "female"}}, {}]
    for options in (more | REST for more in asked):
        path.write_text(text)
        last = list(source(path, **options).entries())[-1:]
        for now in (text.replace("male,she", "ma"), text.replace("sex,words", "words,sex"), "sex,image\nfemale,b\n"):
            path.write_text(now)
            assert [record.problem for record in source(path, **options).read(last)] == [Reason.CHANGED]
        path.write_text(text)
        one = source(path, **options)
        assert [record.data for record in one.read(last)] == [b"b"]
        path.write_text(text.replace("sex,words", "words,sex"))
        assert [record.problem for record in one.read(last)] == [Reason.CHANGED], "the header is read anew"


def test_rows_of_a_listing_far_away_are_read_side_by_side(memory: Any) -> None:
    rows = range(200)
    memory.pipe({f"/set/{n}.png": b"%d" % n for n in rows})
    memory.pipe_file("/set/l.csv", b"image,n\n" + b"".join(b'%d.png,"%d\n"\n' % (n, n) for n in rows))
    found = taken("memory://set/l.csv", carry=["n"]).values()
    assert [(record.data, record.columns["n"]) for record in found] == [(b"%d" % n, f"{n}\n") for n in rows]


def test_a_listing_without_a_header_is_told_without_its_data(pictures: Path) -> None:
    path = pictures / "l.csv"
    path.write_text("images/Abel.png,Abel,imag\nimages/b.png,Eve,x\n")
    for options in ({}, {"label": "label"}, {"id": "id"}):
        assert not any(word in error(path, **options) for word in ("Abel", "images"))


def test_an_unknown_column_among_very_many_is_a_short_line(pictures: Path) -> None:
    path = pictures / "l.csv"
    names = ["image", "labels", "label1", "label2", "label3", *(f"feature{n:06d}" for n in range(100_000))]
    path.write_text(",".join(names) + "\n" + ",".join("a" for _ in names) + "\n")
    message = error(path, label="label")
    assert "no column 'label' among the 100005 of 'l.csv': did you mean 'labels', 'label3', 'label2'?" in message
    assert len(message) < 200


def test_two_columns_of_one_name_are_refused_if_asked_for(pictures: Path) -> None:
    path = pictures / "l.csv"
    path.write_text("image,sex,sex,age\na,f,m,3\n")
    assert "source.label: 2 columns 'sex' in 'l.csv': rename all but one" in error(path, label="sex")
    for options in ({"carry": ["sex"]}, {"id": "sex"}, {"where": {"sex": "f"}}, {"image": "sex"}):
        assert "2 columns 'sex' in 'l.csv'" in error(path, **options)
    assert [record.data for record in taken(path, carry=["age"], drop=["sex"]).values()] == [b"a-picture"]
    table = pa.Table.from_arrays([pa.array([b"1"]), pa.array(["f"]), pa.array(["m"])], ["image", "sex", "sex"])
    pq.write_table(table, pictures / "t.parquet")
    assert "source.label: 2 columns 'sex' in 't.parquet'" in error(pictures / "t.parquet", label="sex")
    assert [record.data for record in taken(pictures / "t.parquet", drop=["sex"]).values()] == [b"1"]


@pytest.mark.parametrize("ids", [["a", "a", "a#2"], ["a#2", "a", "a"], ["a", "a", "a%#2", "a%2523"]])
def test_only_a_second_claim_to_an_id_is_a_duplicate(pictures: Path, ids: list[str]) -> None:
    path = pictures / "l.jsonl"
    path.write_text("".join(json.dumps({"image": "a", "id": own}) + "\n" for own in ids))
    records = taken(path, id="id")
    assert problems(records) == {"a%#2": Reason.DUPLICATE_ID}
    assert {to_printable(own) for own in ids} <= set(records), "each record keeps its own id"


@given(st.lists(st.text("a#%23", max_size=6), max_size=30))
def test_ids_stay_apart_and_first_claims_are_kept(wanted: list[str]) -> None:
    ids, seen = RecordIds(), set[str]()
    given_out = [ids.claim(to_printable(own)) for own in wanted]
    assert len({record_id for record_id, _ in given_out}) == len(wanted)
    for own, (record_id, problem) in zip(wanted, given_out, strict=True):
        assert problem is (Reason.DUPLICATE_ID if own in seen else None)
        assert own in seen or record_id == to_printable(own)
        seen.add(own)


def test_very_many_duplicates_take_no_longer_than_others() -> None:
    ids = RecordIds()
    assert len({ids.claim("a") for _ in range(100_000)}) == 100_000


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["l.csv", "l.jsonl", "l.parquet"]), st.binary(max_size=300))
def test_wild_tables_are_records_or_a_clear_error(name: str, data: bytes) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file(f"/wild/{name}", (b"image,x\n" if name == "l.csv" else b"") + data)
    try:
        taken(f"memory://wild/{name}", carry=["x"])
    except SourceError as error:
        assert "\n" not in str(error)
    finally:
        fs.rm("/wild", recursive=True)


# All of them


@given(st.text(st.characters(codec=None), max_size=20), st.text(st.characters(codec=None), max_size=20))
def test_printable_names_are_visible_valid_and_distinct(one: str, other: str) -> None:
    one, other = (os.fsdecode(text.encode("utf-8", "surrogatepass")) for text in (one, other))
    assert to_printable(one).isprintable()
    to_printable(one).encode()
    assert (to_printable(one) == to_printable(other)) == (one == other)


def test_a_broken_entry_costs_that_entry_only(tmp_path: Path) -> None:
    write(tmp_path, a=b"1", b=b"2")
    entries: Sequence[Entry] = list(source(tmp_path).entries())
    wrong = Entry("x", str(tmp_path / "none"))
    assert [r.problem for r in source(tmp_path).read([entries[0], wrong, entries[1]])] == [
        None,
        Reason.UNREADABLE,
        None,
    ]


def test_sources_need_no_torch() -> None:
    import subprocess
    import sys

    code = (
        "import sys, anonymizer.data.sources.folder, anonymizer.data.sources.webdataset; print('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
