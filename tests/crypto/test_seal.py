"""Seals: what the holder of the key wrote is known, and nothing else, whatever the format around the seal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.crypto import seal
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import IntegrityError

KEY = CustodianKey(bytes(range(32)))
OTHER = CustodianKey(bytes(range(1, 33)))


def refused(data: bytes, key: CustodianKey = KEY, context: str = "here") -> bool:
    with pytest.raises(IntegrityError) as caught:
        seal.check(data, key, context, "the file")
    assert str(caught.value).startswith("the file: ") and "\n" not in str(caught.value)
    return True


@given(st.binary(), st.binary().filter(lambda data: b"hmac-sha256:" not in data))
def test_what_was_sealed_is_known(before: bytes, after: bytes) -> None:
    data = seal.apply(before + seal.PLACEHOLDER.encode() + after, KEY, "here")
    seal.check(data, KEY, "here", "the file")
    assert data.startswith(before) and data.endswith(after)
    assert refused(data, OTHER) and refused(data, context="there")


@given(st.binary(min_size=1), st.data())
def test_any_change_is_found(content: bytes, draw: st.DataObject) -> None:
    data = seal.apply(content + seal.PLACEHOLDER.encode() + b"end", KEY, "here")
    position = draw.draw(st.integers(0, len(data) - 1))
    value = draw.draw(st.integers(0, 255).filter(lambda value: value != data[position]))
    assert refused(data[:position] + bytes([value]) + data[position + 1 :])
    assert refused(data[:position]) and refused(data + b"x")


@given(st.binary())
def test_what_has_no_seal_is_refused(data: bytes) -> None:
    assert refused(data)
    assert refused(data + seal.PLACEHOLDER.encode())


def test_seals_inside_the_content_do_not_count() -> None:
    mine = seal.apply(seal.PLACEHOLDER.encode(), KEY, "here")
    data = seal.apply(mine + seal.PLACEHOLDER.encode(), KEY, "here")
    seal.check(data, KEY, "here", "the file")
    assert refused(data[len(mine) :] + mine)


def test_a_key_that_is_thrown_away_seals_nothing_and_checks_nothing() -> None:
    fresh, data = CustodianKey(bytes(range(32)), is_persistent=False), seal.PLACEHOLDER.encode()
    assert seal.apply(data, fresh, "here") == data == seal.apply(data, None, "here")
    seal.check(b"anything", fresh, "here", "the file")
    seal.check(b"anything", None, "here", "the file")
