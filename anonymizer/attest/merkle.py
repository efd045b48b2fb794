"""A Merkle tree over the rows of a manifest (RFC 6962, section 2.1): one hash that stands for all of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator

from anonymizer.storage import parquet
from anonymizer.storage.parquet import TableLike

LEAF_PREFIX, NODE_PREFIX = b"\x00", b"\x01"  # so that no row can be taken for two hashes


def root(leaves: Iterable[bytes]) -> bytes:
    """The tree's hash (32 bytes); of no leaves the hash of nothing. Holds one hash for each level of the tree."""
    peaks: list[tuple[int, bytes]] = []  # height and hash of complete subtrees, highest first
    for leaf in leaves:
        height, found = 0, hashlib.sha256(LEAF_PREFIX + leaf).digest()
        while peaks and peaks[-1][0] == height:
            height, found = height + 1, _hash_node(peaks.pop()[1], found)
        peaks.append((height, found))
    if not peaks:
        return hashlib.sha256().digest()
    found = peaks.pop()[1]
    while peaks:
        found = _hash_node(peaks.pop()[1], found)
    return found


def encode_rows(manifest: TableLike) -> Iterator[bytes]:
    """Each row as JSON (RFC 8259) in ASCII: keys sorted, no spaces, numbers as Python writes them."""
    for batch in manifest.to_batches(max_chunksize=parquet.BATCH_ROWS):
        for row in batch.to_pylist():
            yield json.dumps(row, sort_keys=True, separators=(",", ":"), default=str).encode()


def _hash_node(left: bytes, right: bytes) -> bytes:
    return hashlib.sha256(NODE_PREFIX + left + right).digest()
