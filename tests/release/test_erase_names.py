"""Who is erased stays away under every spelling of a name, under the id of the record, and by lists of before."""

from __future__ import annotations

import json
import unicodedata
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anonymizer.crypto import signing
from anonymizer.data.sources.files import to_printable
from anonymizer.errors import UsageError
from anonymizer.records import normalize_record_id, normalize_subject
from anonymizer.release import history, plan
from anonymizer.release.erase import ErasureRequest
from anonymizer.storage.layout import Release
from flows.jobs import erase as erase_job
from tests.support.releases import (
    HEX,
    KEY,
    folder_of,
    follow,
    listing,
    outputs,
    picture,
    plain,
    rows,
    run,
    settings,
    verification_failures,
)

FUZZ = hypothesis_settings(max_examples=200, deadline=None, database=None)
ADA = "Ada Müller-Weiß"
TEXT = st.text(st.characters(exclude_categories=("Cs",)))
SOURCE = {"id": "id", "subject": "who", "drop": ["*"]}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", signing.generate_key_pair().private_bytes.decode())


def month(
    tmp_path: Path, name: str, people: dict[str, str | None], before: str | None = None, **source: Any
) -> Release:
    """A release of one new picture for each record (id -> person), which follows another."""
    folder = tmp_path / f"{name}-in"
    folder_of(folder, {f"{i}.png": picture(zlib.crc32(f"{name} {i}".encode()) % 10_000) for i in range(len(people))})
    items = [{"image": f"{i}.png", "id": key, "who": who} for i, (key, who) in enumerate(people.items())]
    where, section = listing(folder, items), {"source": SOURCE | source}
    if before is None:
        return run(settings(where, tmp_path / name, **section))
    return run(follow(str(tmp_path / before), where, tmp_path / name, **section))


def erase(tmp_path: Path, old: str, *lines: str) -> int:
    """Erase what the lines name from release ``old`` into ``new``; return the number of records."""
    (file := tmp_path / "withdrawn.txt").write_text("\n".join(lines), encoding="utf-8")
    done = erase_job.run(str(tmp_path / old), file, str(tmp_path / "new"))
    assert verification_failures(Release.at(str(tmp_path / "new"))) == []
    return done.erased


def reasons(release: Release) -> dict[str, str | None]:
    return {row["record_id"]: row["reason"] for row in rows(release)}


# -- one spelling -----------------------------------------------------------------------------------------------------


@FUZZ
@given(TEXT, st.sampled_from(["NFC", "NFD"]), st.text(" \t\n\u00a0\u2003", max_size=3))
def test_a_name_has_one_spelling(name: str, form: Any, space: str) -> None:
    own = normalize_subject(name)
    assert normalize_subject(own) == own == own.strip() == unicodedata.normalize("NFC", own)
    assert normalize_subject(f"{space}{unicodedata.normalize(form, name)}{space}") == own
    assert normalize_subject(name.casefold()) == own
    assert KEY.subject_hmac(name) == KEY.subject_hmac(own) in KEY.erasure_digests("r", None, name)
    assert KEY.record_hmac(unicodedata.normalize(form, name)) == KEY.record_hmac(name)


@pytest.mark.parametrize(("one", "other"), [("Ada", "Adá"), ("Ada B", "Ada  B"), ("Ada", "Ad"), ("ﬁ", "f")])
def test_other_names_are_other_people(one: str, other: str) -> None:
    assert normalize_subject(one) != normalize_subject(other)


def test_case_and_space_of_an_id_count() -> None:
    assert len({KEY.record_hmac(name) for name in ("a", "A", " a", "a ")}) == 4


@FUZZ
@given(TEXT.map(to_printable), TEXT)
def test_every_id_and_name_can_be_written_into_a_request(tmp_path_factory: Any, record_id: str, name: str) -> None:
    file = tmp_path_factory.getbasetemp() / "request.txt"
    file.write_text(f"{json.dumps(record_id)}\nsubject: {json.dumps(name)}\n", encoding="utf-8")
    if not normalize_subject(name):
        with pytest.raises(UsageError, match="line 2: subject: without a name"):
            ErasureRequest.read(file)
        return
    request = ErasureRequest.read(file)
    assert request.records == {normalize_record_id(record_id): 1} and request.subjects == {normalize_subject(name): 2}


@pytest.mark.parametrize("line", ['"a"b"', '"\\"', '"\\ud800"', 'subject:"a" "b"'])
def test_a_damaged_quote_is_reported_by_its_line_only(tmp_path: Path, line: str) -> None:
    (file := tmp_path / "request.txt").write_text(f"fine\n{line}\n")
    with pytest.raises(UsageError, match="--records: line 2: is quoted, and no JSON string") as caught:
        ErasureRequest.read(file)
    assert line not in str(caught.value)


def test_an_id_with_outer_spaces_is_erased_and_its_neighbour_is_not(tmp_path: Path) -> None:
    month(tmp_path, "old", {" r 1": "a", "r 1": "b", '"r"': "c", "subject:x": "d"})
    assert erase(tmp_path, "old", '" r 1"', r'"\"r\""', '"subject:x"') == 3
    assert set(outputs(Release.at(str(tmp_path / "new")))) == {"r 1"}


# -- afterwards -------------------------------------------------------------------------------------------------------


SPELLINGS = (ADA, f" {ADA.upper()}\t", unicodedata.normalize("NFD", ADA), ADA.casefold())


@pytest.mark.parametrize("asked", SPELLINGS)
def test_a_person_is_erased_and_stays_away_under_every_spelling(tmp_path: Path, asked: str) -> None:
    people = {f"r{i}": name for i, name in enumerate((*SPELLINGS, "Ben"))}
    month(tmp_path, "old", dict(people))
    assert erase(tmp_path, "old", f"subject:{asked}") == 4
    later = month(tmp_path, "later", {f"n{i}": name for i, name in enumerate(people.values())}, "new")
    assert reasons(later) == {f"n{i}": "withdrawn" for i in range(4)} | {"n4": None}
    assert verification_failures(later) == []


def test_lists_of_earlier_versions_hold_as_they_were_written(tmp_path: Path) -> None:
    old = month(tmp_path, "old", {"r0": "Ben"})
    its_plan = plan.read(old)
    digest = KEY.derive("subject", f" {ADA} ".encode()).hex()
    old.erased.write(history.add_erased(None, {digest: "subject"}))  # as they wrote it
    plan.write(old, its_plan)
    later = month(tmp_path, "later", {"n0": f" {ADA} ", "n1": "Ben", "n2": "Cyd"}, "old")
    assert reasons(later) == {"n0": "withdrawn", "n1": None, "n2": None}


@pytest.mark.parametrize("line", ["r-a", "subject:ada"])
def test_a_record_that_could_not_be_read_stays_away_by_its_id(tmp_path: Path, line: str) -> None:
    """Even where next month's settings name no person."""
    small = {"limits": {"max_bytes": 150}}
    folder = folder_of(tmp_path / "in", {"a.png": picture(0), "b.png": picture(1), "c.png": plain(150)})
    people = {"a": "Ada", "b": "Ben", "c": "Cyd"}
    items = [{"image": f"{key}.png", "id": f"r-{key}", "who": who} for key, who in people.items()]
    where = listing(folder, items)
    old = run(settings(where, tmp_path / "old", source=SOURCE | small))
    assert reasons(old) == {"r-a": "too_many_bytes", "r-b": "too_many_bytes", "r-c": None}
    assert [row["record_id"] for row in rows(old) if row["source_hmac"]] == ["r-c"]
    assert erase(tmp_path, "old", line) == 1
    later = run(follow(str(tmp_path / "new"), where, tmp_path / "later", source={"id": "id", "drop": ["*"]}))
    assert reasons(later) == {"r-a": "withdrawn", "r-b": None, "r-c": None}


def test_a_record_that_is_named_by_its_id_stays_away_with_other_bytes(tmp_path: Path) -> None:
    month(tmp_path, "old", {"r0": "Ada", "r1": "Ben"})
    erase(tmp_path, "old", "r0")
    assert reasons(month(tmp_path, "later", {"r0": "Ada", "r1": "Ben"}, "new")) == {"r0": "withdrawn", "r1": None}


def test_another_person_in_the_row_of_an_erased_one_is_not_kept_away(tmp_path: Path) -> None:
    """Without ``source.id`` an id is a place in a table, which others take next month."""
    old = month(tmp_path, "old", {"x": "Ada", "y": "Ben"}, id=None, drop=["*"])
    assert sorted(reasons(old)) == ["list.jsonl/0", "list.jsonl/1"]
    erase(tmp_path, "old", "subject:ada")
    later = month(tmp_path, "later", {"y": "Ben", "z": "Cyd"}, "new", id=None, drop=["*"])
    assert reasons(later) == {"list.jsonl/0": None, "list.jsonl/1": None}
