"""Envelopes: one spelling is accepted, other types and damaged lines are refused."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.attest import dsse
from tests.support.signing_keys import ADA, EVE, PUBLISHER

KIND = "urn:anonymizer:predicate:test:v1"
DIGEST = "ab" * 32
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
predicates = st.dictionaries(texts, st.none() | st.integers() | texts | st.lists(texts, max_size=3), max_size=4)


@given(st.dictionaries(texts, st.just(DIGEST), max_size=3), predicates, st.booleans(), st.integers(1, 3))
def test_envelopes_survive_a_round_trip(
    digests: dict[str, str], predicate: dict[str, Any], is_signed: bool, count: int
) -> None:
    made = dsse.build(KIND, digests, predicate, PUBLISHER if is_signed else None)
    data = dsse.dumps([made] * count)
    found = dsse.loads(data, KIND)
    assert len(found) == count and dsse.dumps(found) == data
    assert (found[0].digests, found[0].predicate) == (digests, predicate)
    assert found[0].is_signed_by(PUBLISHER.public_key) == is_signed
    assert not found[0].is_signed_by(EVE.public_key)


@given(st.binary(max_size=80))
def test_any_bytes_are_refused_in_one_line(data: bytes) -> None:
    if data:
        with pytest.raises(ValueError, match=r"\A[^\n]+\Z"):
            dsse.loads(data, KIND)


@pytest.mark.parametrize(
    "line",
    [
        b"{}", b"[]", b"null", b'""', b'{"payload":"","payloadType":"","signatures":[]}',
        b'{"payload":"e30=","payloadType":"application/vnd.in-toto+json","signatures":[]}', b"[" * 10_000,
    ],
)  # fmt: skip
def test_json_that_is_no_envelope_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="damaged, or no statement"):
        dsse.loads(line + b"\n", KIND)


def test_a_statement_of_another_kind_is_refused() -> None:
    data = dsse.dumps([dsse.build(KIND, {"a": DIGEST}, {}, PUBLISHER)])
    with pytest.raises(ValueError, match="another kind of statement than urn:other"):
        dsse.loads(data, "urn:other")


@pytest.mark.parametrize("digest", ["AB" * 32, "ab" * 31, "ab" * 33, "xy" * 32, 5, None, ""])
def test_a_digest_in_another_spelling_is_refused(digest: Any) -> None:
    with pytest.raises(ValueError, match="damaged"):
        dsse.loads(dsse.dumps([dsse.build(KIND, {"a": digest}, {}, PUBLISHER)]), KIND)


def test_a_name_with_a_lone_surrogate_is_refused() -> None:
    data = dsse.dumps([dsse.build(KIND, {"\ud800": DIGEST}, {}, PUBLISHER)])
    with pytest.raises(ValueError, match="damaged"):
        dsse.loads(data, KIND)


def test_a_second_signature_replaces_the_first_and_changes_no_other_statement() -> None:
    made = dsse.build(KIND, {"a": DIGEST}, {"x": 1}, PUBLISHER)
    more = made.with_signature(ADA).with_signature(ADA)
    assert made.key_ids == {PUBLISHER.public_key.keyid}
    assert more.key_ids == {PUBLISHER.public_key.keyid, ADA.public_key.keyid}
    assert more.is_signed_by(ADA.public_key) and more.is_signed_by(PUBLISHER.public_key)
