"""Noise is a function of (key, attempt, sample, step) and of nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from anonymizer.noise import KeyedNoise

KEYS = [bytes([i]) * 16 for i in range(6)]
LIKE = torch.empty(6, 3, 4, 4)


def test_a_row_does_not_depend_on_its_batch():
    whole = KeyedNoise(KEYS)(5, LIKE)
    for i, key in enumerate(KEYS):
        assert torch.equal(KeyedNoise([key])(5, LIKE[:1])[0], whole[i])


def test_order_does_not_matter():
    backwards = KeyedNoise(KEYS[::-1])(5, LIKE)
    assert torch.equal(backwards.flip(0), KeyedNoise(KEYS)(5, LIKE))


def test_key_attempt_sample_and_step_each_change_everything():
    base = KeyedNoise(KEYS[:1])
    like = LIKE[:1]
    others = [
        KeyedNoise(KEYS[1:2])(5, like),
        KeyedNoise(KEYS[:1], attempt=1)(5, like),
        base.sample(1)(5, like),
        base(6, like),
    ]
    for other in others:
        assert not torch.isclose(other, base(5, like)).any()


def test_all_128_bits_of_the_key_count():
    like = torch.empty(1, 8)
    seen = {tuple(KeyedNoise([(1 << bit).to_bytes(16, "big")])(0, like)[0].tolist()) for bit in range(128)}
    assert len(seen) == 128


def test_draws_are_standard_normal_and_uncorrelated():
    n = 200_000
    a, b = (KeyedNoise(KEYS[:1])(step, torch.empty(1, n))[0].double() for step in (1, 2))
    assert abs(a.mean()) < 5 / n**0.5
    assert abs(a.var() - 1) < 5 * (2 / n) ** 0.5
    assert abs((a * b).mean()) < 5 / n**0.5


def test_the_stream_is_philox_as_published():
    # Random123's known answer for philox4x64-10 with an all-zero key and counter 0.
    raw = np.random.Philox(key=0, counter=np.array([2**64 - 1] * 4, dtype=np.uint64)).random_raw(4)
    assert [hex(int(x)) for x in raw] == [
        "0x16554d9eca36314c",
        "0xdb20fe9d672d0fdc",
        "0xd7e772cee186176b",
        "0x7e68b68aec7ba23b",
    ]


def test_a_replay_sees_the_numbers_that_were_drawn():
    # Replaying an old run needs the same numbers; numpy may change them in a new version, and then this fails.
    drawn = KeyedNoise([bytes(range(16))])(7, torch.empty(1, 4))[0]
    expected = np.random.Generator(
        np.random.Philox(key=int.from_bytes(bytes(range(16)), "little"), counter=[0, 7, 0, 0])
    ).standard_normal(4, dtype=np.float32)
    assert drawn.tolist() == expected.tolist()


def test_one_key_for_each_row_is_demanded():
    with pytest.raises(ValueError, match="6 for a batch of 2"):
        KeyedNoise(KEYS)(0, LIKE[:2])


@pytest.mark.parametrize("key", [b"", b"short", bytes(17)])
def test_a_key_of_another_length_is_refused(key: bytes) -> None:
    with pytest.raises(ValueError, match="each must be 16 bytes"):
        KeyedNoise([bytes(16), key])
