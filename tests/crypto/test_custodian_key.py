"""The custodian's key: what is derived from it, and what it never gives away."""

from __future__ import annotations

import hashlib
import hmac
import re
from itertools import combinations
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anonymizer.crypto import custodian_key
from anonymizer.crypto.custodian_key import CustodianKey, is_pattern, load_key
from anonymizer.errors import CustodianKeyError
from tests.support.releases import HEX, KEY, manifest, people, picture, public_images, released, rows, run, settings

NAME = "ANONYMIZER_TEST_KEY"


@pytest.mark.parametrize(
    "value",
    [
        "0123456789",
        "ab" * 15,
        "ab" * 16,
        "xy" * 16,
        "ab" * 16 + "a",
        "ключ" * 16,
        "0x" + "ab" * 16,
        "00" * 32,
        "deadbeef" * 8,
        "deadbeef" * 4 + "de",
        "0123456789abcdef" * 2,
        "0123456789abcdef" * 4,
        "deadbeef" * 7 + "deadbee0",
    ],
)
def test_a_malformed_key_is_refused_without_repeating_it(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(NAME, value)
    with pytest.raises(CustodianKeyError) as caught:
        load_key(NAME)
    assert str(caught.value).startswith(f"{NAME}: not a key: give 32 or more random hex digits")
    assert value not in str(caught.value)
    assert value not in repr(caught.value)
    assert caught.value.__context__ is None or value not in str(caught.value.__context__)


@given(st.binary(min_size=1, max_size=40), st.integers(16, 80))
def test_a_key_that_repeats_a_shorter_one_is_refused(part: bytes, size: int) -> None:
    secret = (part * size)[: max(size, 2 * len(part))]
    assert is_pattern(secret)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(CustodianKeyError, match="not a key"):
        patch.setenv(NAME, secret.hex())
        load_key(NAME)


@given(st.sets(st.integers(0, 255), min_size=1, max_size=8), st.randoms(use_true_random=False), st.integers(16, 80))
def test_a_key_of_few_different_bytes_is_refused(values: set[int], random: Random, size: int) -> None:
    assert is_pattern(bytes(random.choices(sorted(values), k=size)))


@given(st.integers(16, 80), st.integers(0, 2**32))
def test_a_key_that_was_drawn_at_random_is_taken(size: int, seed: int) -> None:
    assert not is_pattern(Random(seed).randbytes(size))


def test_a_key_is_read_from_its_variable_and_its_repr_hides_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(NAME, f" {HEX.upper()}\n")
    key = load_key(NAME)
    assert key == KEY
    assert key.is_persistent
    assert HEX not in repr(key).lower()
    assert repr(KEY.secret) not in repr(key)


def test_without_a_key_each_process_has_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(NAME, raising=False)
    one = load_key(NAME)
    assert load_key(NAME) is one  # retries within the process give the same pictures
    assert not one.is_persistent
    assert one.check_value is None
    custodian_key._fresh_key.cache_clear()
    assert load_key(NAME).secret != one.secret


def test_derived_values_are_hmacs_with_domain_separation() -> None:
    message = b"anonymizer/1/output-id" + b"".join(
        len(part).to_bytes(8, "big") + part for part in (b"a/b", b"digest", b"settings")
    )
    expected = hmac.new(KEY.secret, message, hashlib.sha256).digest()
    assert KEY.derive("output-id", b"a/b", b"digest", b"settings") == expected
    assert KEY.output_id("a/b", "digest", "settings") == expected[:16].hex()


@given(st.lists(st.binary(max_size=4), max_size=3), st.lists(st.binary(max_size=4), max_size=3))
def test_parts_cannot_be_shifted_into_each_other(one: list[bytes], other: list[bytes]) -> None:
    assert (KEY.derive("p", *one) == KEY.derive("p", *other)) == (one == other)


def test_derived_values_differ_by_purpose_record_data_settings_and_key() -> None:
    other = CustodianKey(bytes(32))
    values = [KEY.derive(purpose, b"x")[:16] for purpose in ("output-id", "source", "noise", "check", "person")]
    values += [KEY.noise_key(*parts) for parts in (("b", "c"), ("c", "c"), ("b", "d"))]
    ids = (("a", "b", "c"), ("b", "b", "c"), ("a", "c", "c"), ("a", "b", "d"))
    values += [bytes.fromhex(KEY.output_id(*parts)) for parts in ids]
    values += [other.noise_key("b", "c"), other.derive("output-id", b"x")[:16]]
    assert all(a != b for a, b in combinations(values, 2))
    assert KEY.source_hmac(b"data") != hashlib.sha256(b"data").hexdigest()
    assert KEY.check_value != other.check_value


def test_the_same_key_replays_the_same_pictures_byte_for_byte(tmp_path: Path) -> None:
    source = people(tmp_path / "in")
    one, other = (run(settings(source, tmp_path / name)) for name in ("one", "other"))
    assert public_images(one)[0] == public_images(other)[0]
    assert public_images(one)[1].equals(public_images(other)[1])


def test_another_key_gives_other_pictures_names_and_digests(tmp_path: Path) -> None:
    source = people(tmp_path / "in")
    fresh = CustodianKey(b"f" * 32, is_persistent=False)
    one, other = run(settings(source, tmp_path / "one")), run(settings(source, tmp_path / "other"), key=fresh)
    assert not set(released(one).values()) & set(released(other).values())
    for column in ("output_id", "source_hmac"):
        assert not {row[column] for row in rows(one)} & {row[column] for row in rows(other)}


def test_output_ids_are_unrelated_to_source_order(tmp_path: Path) -> None:
    """Under a random order of n, the rank correlation has a standard deviation of 1 / sqrt(n - 1)."""
    count = 400
    ids = [KEY.output_id(f"{i:05d}.png", "digest", "settings") for i in range(count)]
    ranks = {output_id: rank for rank, output_id in enumerate(sorted(ids))}
    differences = sum((i - ranks[output_id]) ** 2 for i, output_id in enumerate(ids))
    rho = 1 - 6 * differences / (count * (count**2 - 1))
    assert abs(rho) < 4 / (count - 1) ** 0.5
    release = run(settings(people(tmp_path / "in", 6), tmp_path / "out"))
    outputs = manifest(release)["output_id"].to_pylist()
    assert outputs == sorted(outputs)


def test_copies_of_one_original_get_one_output_across_shards(tmp_path: Path) -> None:
    """Two outputs of one original would add up for an attacker; the same one twice says no more than once."""
    source = people(tmp_path / "in", 4)
    for name in ("a/0 copy.png", "b/z copy.png"):
        (source / name).write_bytes((source / "a" / "person 0.png").read_bytes())
    release = run(settings(source, tmp_path / "out"))
    outputs = released(release)
    assert len(outputs) == 6 and len(set(outputs.values())) == 4
    assert outputs["a/person 0.png"] == outputs["a/0 copy.png"] == outputs["b/z copy.png"]
    assert len({row["shard"] for row in rows(release) if row["sha256"] == outputs["a/person 0.png"]}) > 1
    assert len({row["output_id"] for row in rows(release)}) == 6


def test_ids_differ_for_another_level_and_for_a_changed_original(tmp_path: Path) -> None:
    """Else an id would follow a person through all releases under one key, and outputs of it could be averaged."""
    source = people(tmp_path / "in")
    one = run(settings(source, tmp_path / "one"))
    other = run(settings(source, tmp_path / "other", boomerang={"level": 0.5, "steps": 2}))
    ids = [{row["record_id"]: row["output_id"] for row in rows(release)} for release in (one, other)]
    assert not set(ids[0].values()) & set(ids[1].values())
    (source / "a" / "person 0.png").write_bytes(picture(99))
    later = {row["record_id"]: row["output_id"] for row in rows(run(settings(source, tmp_path / "later")))}
    assert {name for name in later if later[name] != ids[0][name]} == {"a/person 0.png"}


def test_a_groups_id_depends_on_its_members_and_settings_and_not_on_their_order() -> None:
    names = {
        KEY.group_id(["a", "b"], "settings"), KEY.group_id(["b", "a"], "settings"), KEY.group_id(["a", "b"], "others"),
        KEY.group_id(["a", "b", "c"], "settings"), KEY.group_id(["ab"], "settings"),
    }  # fmt: skip
    assert len(names) == 4
    assert all(re.fullmatch("[0-9a-f]{32}", name) for name in names)
