"""Where among very many digests some are: sorted bytes instead of a dictionary, a fifth of the memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Places = npt.NDArray[np.int64]


class Lookup:
    """Texts of one kind, each of which may stand at several places; an array of as many bytes as they have."""

    def __init__(self, texts: pa.Array | pa.ChunkedArray) -> None:
        chunks = texts.chunks if isinstance(texts, pa.ChunkedArray) else [texts]
        keys = np.concatenate([np.empty(0, "S1"), *(_bytes(chunk.to_pylist()) for chunk in _short(chunks))])
        self._order: Places = np.argsort(keys, kind="stable")
        self._keys = keys[self._order]

    def first(self, texts: Sequence[str]) -> Places:
        """The first place of each; -1 where there is none."""
        asked = _bytes(texts)
        at = np.searchsorted(self._keys, asked)
        found = np.full(len(asked), -1, np.int64)
        near = np.flatnonzero(at < len(self._keys))
        same = near[self._keys[at[near]] == asked[near]]
        found[same] = self._order[at[same]]
        return found

    def every(self, text: str) -> Places:
        """All places of one."""
        low, high = (np.searchsorted(self._keys, _bytes([text])[0], side) for side in ("left", "right"))
        return self._order[low:high]

    def firsts(self) -> Places:
        """The first place of each text that there is, ascending."""
        new = np.append(True, self._keys[1:] != self._keys[:-1])[: len(self._keys)]
        return np.sort(self._order[new])


def _short(chunks: Sequence[pa.Array], size: int = 100_000) -> list[pa.Array]:
    return [chunk.slice(at, size) for chunk in chunks for at in range(0, len(chunk), size)]


def _bytes(texts: Sequence[str]) -> npt.NDArray[np.bytes_]:
    return np.array([text.encode() for text in texts], dtype=np.bytes_)
