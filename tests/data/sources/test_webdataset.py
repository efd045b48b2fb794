"""WebDataset archives: members of one key are one record; damage costs only what is damaged."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
import tracemalloc
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer.errors import SourceError
from anonymizer.records import Reason, Record
from tests.support.sources import DROP_REST, member, open_uri, problems, read_all, source_error, tar, write_files

SAMPLES = [
    ("a/001.jpg", b"one"), ("a/001.cls", b"7\n"), ("a/001.txt", b" a man "), ("a/001.json", b'{"age": 5, "sex": "m"}'),
    ("b/002.json", b'{"age": null, "label": "x"}'), ("b/002.png", b"two"),
]  # fmt: skip


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("packed", [False, True])
def test_members_of_one_key_are_one_record(tmp_path: Path, form: int, packed: bool) -> None:
    path = tmp_path / ("s.tar.gz" if packed else "s.tar")
    path.write_bytes(gzip.compress(tar(*SAMPLES, form=form)) if packed else tar(*SAMPLES, form=form))
    one, two = read_all(path, label="label", carry=["age"], drop=["sex", "txt"]).values()
    assert one.entry.record_id == f"{path.name}/a/001"
    assert (one.data, one.label, one.columns) == (b"one", "7", {"age": 5})
    assert (two.data, two.label, two.columns) == (b"two", "x", {"age": None})
    one, two = read_all(path, label="cls", caption="caption", **DROP_REST).values()
    assert (one.label, one.caption, two.problem) == ("7", "a man", Reason.BAD_METADATA)
    assert [record.label for record in read_all(path, label="sex", **DROP_REST).values()] == ["m", None]
    assert [record.label for record in read_all(path, label="folder", **DROP_REST).values()] == ["a", "b"]
    one, two = read_all(path, **DROP_REST).values()
    assert (one.label, one.caption, one.columns) == (None, None, {})


def test_a_folder_of_tars_is_detected_and_any_part_of_it_can_be_read(tmp_path: Path, memory: Any) -> None:
    for shard in range(3):
        data = tar(*((f"{n:03d}.png", b"%d/%d" % (shard, n)) for n in range(4)))
        (tmp_path / f"part-{shard}.tar").write_bytes(data)
        memory.pipe_file(f"/set/part-{shard}.tar", data)
    (tmp_path / "README.md").write_text("about it")
    for uri in (tmp_path, "memory://set"):
        records = read_all(uri)
        assert [record.data for record in records.values()] == [b"%d/%d" % (s, n) for s in range(3) for n in range(4)]
        entries = list(open_uri(uri).entries())[2:9:3]
        assert [record.data for record in open_uri(uri).read(entries)] == [b"0/2", b"1/1", b"2/0"]
        assert [record.data for record in open_uri(uri).read(entries[::-1])] == [b"2/0", b"1/1", b"0/2"]


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
    records = read_all(tmp_path / "s.tar")
    assert not problems(records) and len(records) == len(names)
    assert {"s.tar/dot", "s.tar/../../etc/out", "s.tar/new%0Aline", "s.tar/b%E9", "s.tar/UP"} <= set(records)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["s.tar"], "nothing is extracted"


def test_several_pictures_under_one_key_are_all_accounted_for(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar(("1.jpg", b"photo"), ("1.seg.png", b"mask"), ("2.jpg", b"photo"), ("2.seg.png", b"mask")))
    assert problems(read_all(path)) == {"s.tar/1%#2": Reason.DUPLICATE_ID, "s.tar/2%#2": Reason.DUPLICATE_ID}
    assert [record.data for record in read_all(path, image="seg.png").values()] == [b"mask", b"mask"]


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
    assert problems(read_all(path)) == {
        "s.tar/only": Reason.NOT_AN_IMAGE,
        "s.tar/noextension": Reason.NOT_AN_IMAGE,
        "s.tar/link": Reason.OUTSIDE_SOURCE,
        "s.tar/hard": Reason.OUTSIDE_SOURCE,
        "s.tar/pipe": Reason.UNREADABLE,
        "s.tar/good%#2": Reason.DUPLICATE_ID,
    }


def test_unreadable_metadata_fails_its_record(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    sides = [b"{", b'{"age": [1]}', b'{"age": "\\ud800"}', b"\xff", b'{"age": 1}', b"[" * 100_000]
    path.write_bytes(tar(*(m for n, side in enumerate(sides) for m in ((f"{n}.png", b"x"), (f"{n}.json", side)))))
    assert list(problems(read_all(path, carry=["age"]))) == [f"s.tar/{n}" for n in (0, 1, 2, 3, 5)]
    assert set(problems(read_all(path, carry=["age"])).values()) == {Reason.BAD_METADATA}
    assert list(problems(read_all(path, restricted=["age"]))) == [f"s.tar/{n}" for n in (0, 1, 2, 3, 5)]
    assert list(problems(read_all(path, drop=["age"]))) == [f"s.tar/{n}" for n in (0, 3, 5)], "their keys are not known"
    for drop in (["*"], ["json"]):
        assert not problems(read_all(path, drop=drop)), "the values are not used"


def test_a_tar_with_a_damaged_middle_loses_only_what_is_damaged(tmp_path: Path) -> None:
    data = bytearray(tar(*((f"{n}.png", b"%d" % n * 600) for n in range(6)), form=tarfile.USTAR_FORMAT))
    sample = 512 + 1024
    data[2 * sample : 2 * sample + 512] = b"\xaa" * 512  # the header of 2.png
    (tmp_path / "s.tar").write_bytes(data)
    records = read_all(tmp_path / "s.tar")
    assert problems(records) == {"s.tar/(damaged)": Reason.TRUNCATED}
    assert list(records) == ["s.tar/0", "s.tar/1", "s.tar/(damaged)", "s.tar/3", "s.tar/4", "s.tar/5"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_tar_that_ends_early_is_truncated(tmp_path: Path, packed: bool) -> None:
    data = tar(*((f"{n}.png", os.urandom(600)) for n in range(6)), form=tarfile.USTAR_FORMAT)
    for length in (1536 * 4, 1536 * 3 + 100, 1536 * 3 + 700):
        path = tmp_path / "s.tar"
        path.write_bytes(gzip.compress(data)[: length // 3] if packed else data[:length])
        records = read_all(path)
        assert "s.tar/(damaged)" in problems(records)
        assert records["s.tar/0"].data and (packed or records["s.tar/2"].data)


def test_concatenated_tars_are_read_to_the_end(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar(("1.png", b"1")) + tar(("2.png", b"2")))
    records = read_all(tmp_path / "s.tar")
    assert not problems(records) and list(records) == ["s.tar/1", "s.tar/2"]


def test_a_file_that_is_no_tar_is_refused_and_among_others_fails_alone(tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    (tmp_path / "b.tar").write_bytes(b"")
    assert "no readable tar archive" in source_error(tmp_path)
    assert "no readable tar archive" in source_error(tmp_path / "a.tar")
    (tmp_path / "c.tar").write_bytes(tar(("1.png", b"1")))
    assert list(problems(read_all(tmp_path))) == ["a.tar/(damaged)", "b.tar/(damaged)"]
    assert "source.where: works with Parquet" in source_error(tmp_path, where={"a": "b"})


def test_a_tar_that_changes_after_planning_fails_its_records(tmp_path: Path) -> None:
    path = tmp_path / "s.tar"
    path.write_bytes(tar(("1.png", b"1"), ("2.png", b"2")))
    entries = list(open_uri(path).entries())
    path.write_bytes(tar(("1.png", b"1"), ("3.png", b"2")))
    assert [record.problem for record in open_uri(path).read(entries)] == [None, Reason.CHANGED]
    path.unlink()
    path.with_name("t.tar").write_bytes(tar(("1.png", b"1")))
    assert [record.problem for record in open_uri(tmp_path).read(entries)] == [Reason.UNREADABLE] * 2


def test_other_files_among_tars_or_parquet_are_failed_rows(tmp_path: Path, memory: Any) -> None:
    data = tar(("1.png", b"1"))
    files = {"b.tar": data, "sub__a.jpg": b"jpg", "z.zip": b"zip", "README.md": b"", "c.idx": b""}
    write_files(tmp_path / "tar", **files)
    os.mkfifo(tmp_path / "tar" / "pipe")
    (tmp_path / "tar" / "out.jpg").symlink_to(tmp_path)
    no = Reason.NOT_AN_IMAGE
    records = read_all(tmp_path / "tar", format="webdataset")
    assert problems(records) == dict.fromkeys(["c.idx", "out.jpg", "pipe", "sub/a.jpg", "z.zip"], no)
    assert records["b.tar/1"].data == b"1"
    write_files(tmp_path / "pq", **{"z.jpg": b"jpg", "a.zip": b"zip", "_SUCCESS": b"", "_common_metadata": b""})
    pq.write_table(pa.table({"image": [b"1"]}), tmp_path / "pq" / "p.parquet")
    os.mkfifo(tmp_path / "pq" / "pipe")
    records = read_all(tmp_path / "pq", format="parquet")
    assert problems(records) == dict.fromkeys(["a.zip", "pipe", "z.jpg"], no)
    assert records["p.parquet/0"].data == b"1"
    memory.pipe({"/set/b.tar": data, "/set/x.jpg": b"jpg"})
    assert problems(read_all("memory://set", format="webdataset")) == {"x.jpg": no}


def test_other_files_without_an_archive_are_refused(tmp_path: Path) -> None:
    write_files(tmp_path, **{"a.jpg": b"jpg"})
    assert "no readable tar archive" in source_error(tmp_path, format="webdataset")
    assert "no rows in it" in source_error(tmp_path, format="parquet")


def test_an_image_after_a_thousand_tars_fails(memory: Any) -> None:
    memory.pipe({f"/set/{n:04d}.tar": tar(("1.png", b"1")) for n in range(1001)} | {"/set/z.jpg": b"jpg"})
    assert problems(read_all("memory://set")) == {"z.jpg": Reason.NOT_AN_IMAGE}


def test_tars_after_a_thousand_side_files_are_detected(memory: Any) -> None:
    memory.pipe({f"/set/a/{n}.json": b"{}" for n in range(1001)} | {"/set/b.tar": tar(("1.png", b"1"))})
    assert list(read_all("memory://set")) == ["b.tar/1"]


def test_a_member_over_the_limit_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar(("1.png", b"1" * 100), ("2.png", b"2")))
    assert problems(read_all(tmp_path / "s.tar", limits={"max_bytes": 99})) == {"s.tar/1": Reason.TOO_MANY_BYTES}


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
        records = read_all(tmp_path / name, **DROP_REST)
        assert tracemalloc.get_traced_memory()[1] < LARGE * 3 / 4
        tracemalloc.stop()
        assert set(problems(records)) == {f"{name}/(damaged)"}
        assert {record.data for record in records.values()} == {b"1", b"2", b"3", b""}


def test_a_chain_of_headers_is_damage_however_deep_the_calls_are_already(tmp_path: Path) -> None:
    """tarfile calls itself for each header; at the limit of calls it would break off inside the decompressor."""

    def deep(calls: int) -> dict[str, Record]:
        return deep(calls - 1) if calls else read_all(tmp_path / "z.tar.gz", **DROP_REST)

    (tmp_path / "z.tar.gz").write_bytes(gzip.compress(extension(tarfile.XHDTYPE, b"") * 500 + PLAIN[1] + bytes(1024)))
    for calls in range(48):
        assert [record.data for record in deep(calls).values()] == [b"", b"1"]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_headers_as_large_as_tools_write_them_are_read(tmp_path: Path, form: int) -> None:
    info, data = member("folder/" * 500 + "1.png", b"one")
    info.pax_headers = {"SCHILY.xattr.user.note": "x" * 60_000} if form == tarfile.PAX_FORMAT else {}
    (tmp_path / "s.tar").write_bytes(tar((info, data), ("2.png", b"two"), form=form))
    assert [record.data for record in read_all(tmp_path / "s.tar").values()] == [b"one", b"two"]


def test_a_global_header_is_no_damage(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "s.tar", "w", pax_headers={"comment": "a commit"}) as archive:
        for n in range(2):
            info, data = member(f"{n}.png", b"%d" % n)
            archive.addfile(info, io.BytesIO(data))
    (tmp_path / "s.tar").write_bytes((tmp_path / "s.tar").read_bytes() * 2)
    assert [record.data for record in read_all(tmp_path / "s.tar").values() if not record.problem] == [b"0", b"1"]
    assert set(problems(read_all(tmp_path / "s.tar")).values()) == {Reason.DUPLICATE_ID}


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
        read_all("memory://wild/s.tar", carry=["age"])
    except SourceError:
        pass
    finally:
        fs.rm("/wild", recursive=True)
