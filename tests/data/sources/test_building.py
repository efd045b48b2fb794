"""Record ids are unique, and one bad entry fails alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer.data.passthrough_columns import TypeInference, to_arrays, to_json
from anonymizer.data.sources.building import RecordIds, to_json_value, to_number
from anonymizer.data.sources.files import to_printable
from anonymizer.records import Entry, Reason
from tests.support.sources import open_uri, write_files


@given(st.lists(st.text("a#%23", max_size=6), max_size=30))
def test_ids_are_unique_and_first_claims_unchanged(claims: list[str]) -> None:
    ids, seen = RecordIds(), set[str]()
    given_out = [ids.claim(to_printable(own)) for own in claims]
    assert len({record_id for record_id, _ in given_out}) == len(claims)
    for own, (record_id, problem) in zip(claims, given_out, strict=True):
        assert problem is (Reason.DUPLICATE_ID if own in seen else None)
        assert own in seen or record_id == to_printable(own)
        seen.add(own)


def test_very_many_duplicates_take_no_longer_than_others() -> None:
    ids = RecordIds()
    assert len({ids.claim("a") for _ in range(100_000)}) == 100_000


def test_a_broken_entry_costs_that_entry_only(tmp_path: Path) -> None:
    write_files(tmp_path, a=b"1", b=b"2")
    entries: Sequence[Entry] = list(open_uri(tmp_path).entries())
    wrong = Entry("x", str(tmp_path / "none"))
    assert [r.problem for r in open_uri(tmp_path).read([entries[0], wrong, entries[1]])] == [
        None,
        Reason.UNREADABLE,
        None,
    ]


@pytest.mark.parametrize(("text", "number"), [("5", 5), ("-3", -3), ("0", 0), ("0.5", 0.5), ("-1.25", -1.25)])
def test_a_text_that_spells_a_number_is_one(text: str, number: float) -> None:
    assert to_number(text) == number and type(to_number(text)) is type(number)


TEXTS = [
    "007",
    "1.50",
    "+1",
    "1e5",
    "1_000",
    "0x1",
    "nan",
    "inf",
    "-inf",
    "NaN",
    " 1",
    "1 ",
    "",
    "-0",
    ".5",
    "5.",
    "\u0663",
]


@pytest.mark.parametrize("text", [*TEXTS, "9" * 30, "1e400", "2026-11-01", "true"])
def test_a_text_that_a_number_would_not_give_back_stays_text(text: str) -> None:
    assert to_number(text) == text


NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70).map(str), st.floats().map(str), st.text("0123456789.e+-_ ", max_size=5)
)


@settings(deadline=None)
@given(st.lists(st.one_of(NUMBERS, st.sampled_from(TEXTS), st.none()), max_size=6))
def test_a_column_of_a_csv_is_numbers_or_the_texts_as_they_were(values: list[str | None]) -> None:
    texts = [to_json({"x": to_json_value(to_number(value))}) for value in values]
    inference = TypeInference(["x"])
    inference.update(texts)
    types = inference.types()
    found = to_arrays(texts, types)["x"].to_pylist()
    if types["x"] == "string":
        assert found == values
    else:
        assert found == [None if value is None else float(value) for value in values]
