"""A record is whole or it fails with a reason: no label, column or person is lost in silence."""

from __future__ import annotations

import gzip
import io
import json
import random
import tarfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer.errors import SourceError
from anonymizer.records import Reason, Record, normalize_subject
from tests.support.sources import DROP_REST, member, open_uri, problems, read_all, source_error, tar, write_files

COLUMNS: dict[str, Any] = {"label": "cls", "carry": ["age"], "subject": "who"}


def sample(key: str, number: int = 0) -> list[tuple[str, bytes]]:
    sides = json.dumps({"who": f"person {number}", "age": number}).encode()
    return [(f"{key}.jpg", f"picture {number}".encode()), (f"{key}.cls", b"%d" % number), (f"{key}.json", sides)]


def is_whole(record: Record, number: int) -> bool:
    return (record.label, record.subject, record.columns) == (str(number), f"person {number}", {"age": number})


ORDERS = {
    "by kind": lambda members: sorted(members, key=lambda one: one[0].rpartition(".")[2] != "jpg"),
    "json first": lambda members: sorted(members, key=lambda one: not one[0].endswith("json")),
    "json last": lambda members: sorted(members, key=lambda one: one[0].endswith("json")),
}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("options", [COLUMNS | {"drop": ["*"]}, DROP_REST, {"label": "cls", "drop": ["json"]}])
def test_files_of_a_sample_that_stand_apart_are_refused(tmp_path: Path, order: str, options: dict[str, Any]) -> None:
    members = ORDERS[order]([one for n in range(3) for one in sample(f"a/{n}", n)])
    (tmp_path / "s.tar").write_bytes(tar(*members))
    message = source_error(tmp_path / "s.tar", **options)
    assert "'s.tar': files of one sample stand apart" in message and "tar --sort=name -cf" in message
    assert "a/0" not in message
    (tmp_path / "s.tar").write_bytes(tar(*sorted(members)))
    records = read_all(tmp_path / "s.tar", **COLUMNS)
    assert all(is_whole(record, n) for n, record in enumerate(records.values()))


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 4), st.integers(0, 3), st.booleans(), st.booleans())
def test_in_any_order_each_record_is_whole_or_fails(
    tmp_path_factory: pytest.TempPathFactory, chance: random.Random, count: int, lost: int, shuffle: bool, packed: bool
) -> None:
    """Members in any order, some of them missing or stored twice, plain or compressed, joined with another archive."""
    members = [one for n in range(count) for one in sample(str(n), n)]
    if shuffle:
        chance.shuffle(members)
    for _ in range(lost):
        del members[chance.randrange(len(members))]
    members += chance.sample(members, min(len(members), chance.randrange(2)))
    cut = chance.randrange(len(members) + 1)
    data = tar(*members[:cut]) + tar(*members[cut:]) if chance.random() < 0.3 else tar(*members)
    path = tmp_path_factory.getbasetemp() / ("order.tar.gz" if packed else "order.tar")
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    try:
        records = read_all(path, **COLUMNS)
    except SourceError:
        return
    for record in records.values():
        if record.problem is None:
            assert is_whole(record, int(record.data.decode().removeprefix("picture ")))


def test_a_missing_side_file_fails_its_record(tmp_path: Path) -> None:
    picture, label, sides = sample("1", 1)
    for members, options, problem in (
        ([picture], {"label": "cls"}, Reason.BAD_METADATA),
        ([picture, sides], {"label": "cls"}, Reason.BAD_METADATA),
        ([picture, sides], {"label": "label"}, Reason.BAD_METADATA),
        ([picture, sides], {"label": "sex"}, None),  # a key that may be left out
        ([picture, ("1.json", b'{"label": null}')], {"label": "label"}, None),
        ([picture, label], {"label": "cls", "caption": "txt"}, Reason.BAD_METADATA),
        ([picture, label], {"carry": ["age"], "drop": ["cls"]}, Reason.BAD_METADATA),
        ([picture, label], {"subject": "who", "drop": ["cls"]}, Reason.NO_SUBJECT),
        ([picture, ("1.xml", b"")], {"label": "cls", "drop": ["xml"]}, Reason.BAD_METADATA),
        ([picture, ("1.json", b"{}")], {"subject": "who"}, Reason.NO_SUBJECT),
        ([picture], {}, None),
        ([picture], {"label": "folder"}, None),
    ):
        (tmp_path / "s.tar").write_bytes(tar(*members, ("2.jpg", b"2"), ("2.json", b"{}")))
        options = {"drop": ["*"]} | options
        (record, *_) = read_all(tmp_path / "s.tar", **options).values()
        assert record.problem is problem, options


@pytest.mark.parametrize(
    "side",
    [
        member("1.json", kind=tarfile.SYMTYPE, link="2.json"),
        member("1.json", kind=tarfile.LNKTYPE, link="2.json"),
        member("1.json", b" " * 2**20 + b"{}"),
        member("1.json", b'["a"]'),
        member("1.json", b"null"),
        member("1.json", b'{"age": 1, "age": 2}'),
        member("1.json", b"[" * 100_000),
    ],
)
def test_a_side_file_that_cannot_be_read_fails_its_record(tmp_path: Path, side: tuple[tarfile.TarInfo, bytes]) -> None:
    (tmp_path / "s.tar").write_bytes(tar(("1.jpg", b"1"), side))
    for options in ({"carry": ["age"]}, {"label": "label", "drop": ["age"]}):
        assert set(problems(read_all(tmp_path / "s.tar", **options)).values()) == {Reason.BAD_METADATA}


def test_a_side_file_that_is_there_twice_fails_its_record(tmp_path: Path) -> None:
    """Which of two people is meant cannot be known."""
    picture, label, sides = sample("1", 1)
    (tmp_path / "s.tar").write_bytes(tar(picture, label, sides, ("1.JSON", b'{"who": "another", "age": 1}')))
    assert set(problems(read_all(tmp_path / "s.tar", **COLUMNS)).values()) == {Reason.BAD_METADATA}


@pytest.mark.parametrize("between", ["._1.json", "folder/", ".DS_Store"])
def test_what_tools_leave_behind_parts_no_record(tmp_path: Path, between: str) -> None:
    """As tar on macOS writes it: the file of attributes before each file."""
    picture, label, sides = (member(*one) for one in sample("1", 1))
    left = member(between.rstrip("/"), kind=tarfile.DIRTYPE if between.endswith("/") else tarfile.REGTYPE)
    (tmp_path / "s.tar").write_bytes(tar(left, picture, label, left, sides))
    (record,) = read_all(tmp_path / "s.tar", **COLUMNS).values()
    assert is_whole(record, 1)


def test_a_record_that_damage_or_an_end_mark_parts_fails(tmp_path: Path) -> None:
    parts = [tar(one, form=tarfile.USTAR_FORMAT)[:1024] for one in sample("1", 1)]
    whole, end = tar(*sample("2", 2), form=tarfile.USTAR_FORMAT), bytes(1024)
    damaged = b"\xaa" * 1024
    for data in (
        parts[0] + parts[1] + damaged + parts[2] + whole,
        parts[0] + damaged + parts[1] + parts[2] + whole,
        parts[0] + parts[1] + end + parts[2] + end,
        parts[0] + parts[1],
        parts[0] + parts[1] + parts[2][:600],
        parts[0] + parts[1] + damaged,
    ):
        (tmp_path / "s.tar").write_bytes(data)
        records = read_all(tmp_path / "s.tar", label="cls", **DROP_REST)
        assert records["s.tar/1"].problem is Reason.TRUNCATED
        if data.endswith(whole):
            assert records["s.tar/2"].label == "2"


def test_a_key_that_comes_back_with_a_picture_is_a_duplicate(tmp_path: Path) -> None:
    (tmp_path / "s.tar").write_bytes(tar(*sample("1", 1), *sample("2", 2)) + tar(*sample("1", 3)))
    records = read_all(tmp_path / "s.tar", **COLUMNS)
    assert problems(records) == {"s.tar/1%#2": Reason.DUPLICATE_ID} and is_whole(records["s.tar/1"], 1)


def test_a_large_archive_apart_is_refused_without_holding_it(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for suffix in ("jpg", "json"):
            for n in range(2000):
                info, data = member(f"{n}.{suffix}", b"{}")
                archive.addfile(info, io.BytesIO(data))
    (tmp_path / "s.tar").write_bytes(buffer.getvalue())
    assert "stand apart" in source_error(tmp_path / "s.tar", **DROP_REST)


BLANK = [None, "", " ", "\t\n", "\u00a0", "\u3000"]
FORMATS = ["folder", "listing", "csv", "parquet", "webdataset"]


def source_of(folder: Path, form: str, subjects: list[Any]) -> tuple[Path, dict[str, Any]]:
    """Write one record for each subject, in a format; return its address and options."""
    names = [f"{n}.png" for n in range(len(subjects))]
    write_files(folder, **{name: b"x" for name in names})
    if form == "folder":
        for name, subject in zip(names, subjects, strict=True):
            (folder / name).unlink()
            place = folder / str(subject) if str(subject or "").strip("/") else folder
            place.mkdir(exist_ok=True)
            (place / name).write_bytes(b"x")
        return folder, {"subject": "folder"}
    rows = [{"image": name, "who": subject} for name, subject in zip(names, subjects, strict=True)]
    if form == "listing":
        (folder / "l.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return folder / "l.jsonl", {"subject": "who"}
    if form == "csv":
        text = "".join(f'{row["image"]},"{row["who"] or ""}"\n' for row in rows)
        (folder / "l.csv").write_text(f"image,who\n{text}")
        return folder / "l.csv", {"subject": "who"}
    if form == "parquet":
        pq.write_table(pa.table({"image": [b"x"] * len(rows), "who": pa.array(subjects, pa.string())}), folder / "t.pq")
        return folder / "t.pq", {"subject": "who"}
    sides = [json.dumps({"who": subject}).encode() for subject in subjects]
    members = [one for n, side in enumerate(sides) for one in ((f"{n}.png", b"x"), (f"{n}.json", side))]
    (folder / "s.tar").write_bytes(tar(*members))
    return folder / "s.tar", {"subject": "who"}


@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("blank", BLANK)
def test_where_people_are_named_no_record_is_taken_without_one(tmp_path: Path, form: str, blank: str | None) -> None:
    if form == "folder" and not (blank or " ").isprintable():
        pytest.skip("the name of a folder, and so of a person, is percent-encoded")
    uri, options = source_of(tmp_path / "in", form, ["Ada", blank, "Bo"])
    found = sorted((record.subject or "", record.problem) for record in read_all(uri, **options).values())
    assert [subject for subject, problem in found if problem is None] == ["Ada", "Bo"]
    assert [problem for _, problem in found if problem] == [Reason.NO_SUBJECT]
    assert not problems(read_all(uri, **DROP_REST if form != "folder" else {})), "nobody asked for people"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.one_of(st.none(), st.text(st.characters(codec="utf-8"), max_size=3)), min_size=1, max_size=4))
def test_any_record_has_a_person_or_a_problem(
    tmp_path_factory: pytest.TempPathFactory, subjects: list[str | None]
) -> None:
    for form in ("listing", "parquet", "webdataset"):
        uri, options = source_of(tmp_path_factory.mktemp("people"), form, subjects)
        records = list(open_uri(uri, **options).read(list(open_uri(uri, **options).entries())))
        for record, subject in zip(records, subjects, strict=True):
            is_named = bool(normalize_subject(subject or ""))
            assert (record.problem is None) == is_named
            assert not is_named or normalize_subject(record.subject or "") == normalize_subject(subject or "")
