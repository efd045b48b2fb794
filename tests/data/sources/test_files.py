"""Names of files are made printable without becoming equal."""

from __future__ import annotations

import os

from hypothesis import given
from hypothesis import strategies as st

from anonymizer.data.sources.files import to_printable


@given(st.text(st.characters(codec=None), max_size=20), st.text(st.characters(codec=None), max_size=20))
def test_printable_names_are_visible_valid_and_distinct(one: str, other: str) -> None:
    one, other = (os.fsdecode(text.encode("utf-8", "surrogatepass")) for text in (one, other))
    assert to_printable(one).isprintable()
    to_printable(one).encode()
    assert (to_printable(one) == to_printable(other)) == (one == other)
