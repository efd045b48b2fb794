"""Merkle tree over the rows of a manifest (RFC 6962, section 2.1)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator

from anonymizer.storage import parquet
from anonymizer.storage.parquet import TableLike

LEAF_PREFIX, NODE_PREFIX = b"\x00", b"\x01"  # so that no row can pass for a pair of hashes


def root(leaves: Iterable[bytes]) -> bytes:
    """Return the tree's hash (32 bytes), for no leaves that of no bytes; memory grows with the logarithm of leaves."""
    peaks: list[tuple[int, bytes]] = []  # height and hash of complete subtrees, highest first
    for leaf in leaves:
        height, node = 0, hashlib.sha256(LEAF_PREFIX + leaf).digest()
        while peaks and peaks[-1][0] == height:
            height, node = height + 1, _hash_node(peaks.pop()[1], node)
        peaks.append((height, node))
    if not peaks:
        return hashlib.sha256().digest()
    node = peaks.pop()[1]
    while peaks:
        node = _hash_node(peaks.pop()[1], node)
    return node


def encode_rows(manifest: TableLike) -> Iterator[bytes]:
    """Yield each row as ASCII JSON (RFC 8259): keys sorted, no spaces, numbers in Python's notation."""
    for batch in manifest.to_batches(max_chunksize=parquet.BATCH_ROWS):
        for row in batch.to_pylist():
            yield json.dumps(row, sort_keys=True, separators=(",", ":"), default=str).encode()


def _hash_node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(NODE_PREFIX + left + right).digest()
