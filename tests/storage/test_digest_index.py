"""The index of digests finds the positions that a dictionary finds."""

from __future__ import annotations

import random

from anonymizer.storage.digest_index import DigestIndex


def test_an_index_finds_the_positions_that_a_dictionary_finds() -> None:
    rng = random.Random(0)
    texts = [f"{rng.randrange(300):064x}" for _ in range(1000)]
    lookup = DigestIndex([texts[:300], [], texts[300:]])
    first = {text: texts.index(text) for text in texts}
    asked = [f"{n:064x}" for n in range(400)] + ["", "x", "f" * 65]
    assert lookup.first_positions(asked).tolist() == [first.get(text, -1) for text in asked]
    assert sorted(lookup.all_positions(texts[0]).tolist()) == [at for at, text in enumerate(texts) if text == texts[0]]
    assert lookup.unique_positions().tolist() == sorted(first.values())


def test_an_empty_index_finds_nothing() -> None:
    lookup = DigestIndex([])
    assert (
        lookup.first_positions(["a"]).tolist() == [-1]
        and not len(lookup.unique_positions())
        and not len(lookup.all_positions("a"))
    )
