"""Record ids are unique, and one bad entry fails alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from anonymizer.data.sources.building import RecordIds
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
