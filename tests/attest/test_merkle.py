"""The Merkle root against RFC 6962's own definition and its published test vectors."""

from __future__ import annotations

import hashlib

import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.attest import merkle

# The leaves of Certificate Transparency's reference tests, and the root of the first n of them.
LEAVES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
ROOTS = {
    0: "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    1: "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    2: "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    3: "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    8: "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
}


def by_definition(leaves: list[bytes]) -> bytes:
    if not leaves:
        return hashlib.sha256().digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\0" + leaves[0]).digest()
    k = 1
    while 2 * k < len(leaves):
        k *= 2
    return hashlib.sha256(b"\1" + by_definition(leaves[:k]) + by_definition(leaves[k:])).digest()


def test_roots_are_those_of_certificate_transparency() -> None:
    for n, root in ROOTS.items():
        assert merkle.root(bytes.fromhex(leaf) for leaf in LEAVES[:n]).hex() == root


@given(st.lists(st.binary(max_size=5), max_size=70))
def test_the_root_is_that_of_the_definition(leaves: list[bytes]) -> None:
    assert merkle.root(leaves) == by_definition(leaves)


def test_any_change_of_a_row_is_another_leaf() -> None:
    table = pa.table({"output_id": ["a", "b"], "label": ["x", None], "level": [0.5, 0.5]})
    one, other = list(merkle.encode_rows(table))
    assert one == b'{"label":"x","level":0.5,"output_id":"a"}'
    assert other == b'{"label":null,"level":0.5,"output_id":"b"}'
