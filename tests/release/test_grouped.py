"""Releases of groups: nothing public, and no row of the ledger, tells of one member; and what would is found."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anonymizer.attest import statement
from anonymizer.attest.verify import check_public
from anonymizer.errors import ConfigError, IntegrityError, OutputError, RecordError
from anonymizer.records import Status
from anonymizer.release import erase, grouped
from anonymizer.release.ledger import Ledger
from anonymizer.release.retry import reopen_failed
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.schema import MANIFEST_TYPES, SCORE_TYPES
from anonymizer.storage.layout import Release
from tests.support.groups import begin_grouped, finish_grouped, group_id, group_settings, in_threes, photos, run_grouped
from tests.support.releases import (
    GARBAGE,
    HEX,
    KEY,
    begin,
    folder_of,
    follow,
    listing,
    manifest,
    one_shard,
    people,
    picture,
    rows,
    run,
    settings,
    summarize,
    tree,
    verification_failures,
)
from tests.support.signed_release import read_manifest, sign_again, with_column, write_manifest
from tests.support.signing_keys import PUBLISHER

EACH: Mapping[str, Any] = {"groups": {"outputs": "each"}}


@pytest.fixture(autouse=True)
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", PUBLISHER.private_bytes.decode())
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)


@pytest.mark.parametrize("layout", ["folder", "webdataset", "parquet"])
@pytest.mark.parametrize("outputs", ["one", "each"])
def test_a_release_of_groups_verifies_and_accounts_for_every_record(tmp_path: Path, outputs: str, layout: str) -> None:
    source = photos(tmp_path / "in", 8)
    (source / "broken.png").write_bytes(GARBAGE)
    config = group_settings(source, tmp_path / "out", groups={"outputs": outputs}, output={"format": layout})
    release = run_grouped(config, lambda es: in_threes([e for e in es if e.record_id != "broken.png"]))
    assert verification_failures(release) == []
    counts = summarize(release)
    assert (counts.read, counts.released, counts.failed, counts.waiting) == (9, 6, 1, 2)
    assert counts.images == len(manifest(release)) == (2 if outputs == "one" else 6)
    signed = statement.read(release.public).predicate
    assert signed["counts"] == {
        "read": 9, "released": 6, "quarantined": 0, "failed": 1, "waiting": 2, "images": counts.images,
    }  # fmt: skip
    assert signed["groups"] == {
        "k": 3, "outputs": outputs, "by": [], "features": "pixels", "distinct": "record", "generalise": {},
    }  # fmt: skip


@pytest.mark.parametrize("outputs", ["one", "each"])
def test_the_public_half_holds_k_and_nothing_that_tells_groups_apart(tmp_path: Path, outputs: str) -> None:
    """Each column but those of the picture itself is the same for all; and no group's id, keyed or not, is there."""
    release = run_grouped(group_settings(photos(tmp_path / "in", 9), tmp_path / "out", groups={"outputs": outputs}))
    table = manifest(release)
    assert set(table.column_names) == {*MANIFEST_TYPES, "k", *(n for n in SCORE_TYPES if n.endswith("_bin"))}
    own = {"output_id", "file", "sha256", "bytes", "clip_similarity_bin", "lpips_bin"}
    assert all(len(set(table[name].to_pylist())) == 1 for name in set(table.column_names) - own)
    assert set(table["k"].to_pylist()) == {3}
    public = b"".join(tree(release.public.path).values())
    secret = {row[name] for row in rows(release) for name in ("group", "source_hmac")}
    assert len(secret) == 3 + 9
    assert not [text for text in secret if text.encode() in public]
    assert table["output_id"].to_pylist() == sorted(table["output_id"].to_pylist())


def test_no_id_is_that_of_a_member(tmp_path: Path) -> None:
    release = run_grouped(group_settings(photos(tmp_path / "in", 12), tmp_path / "out", **EACH))
    for row in rows(release):
        own = KEY.output_id(row["record_id"], row["source_hmac"], row["config_fingerprint"])
        nameless = KEY.output_id("", row["source_hmac"], row["config_fingerprint"])
        assert row["output_id"] not in (own, nameless)


def with_row(release: Release, change: Callable[[list[dict[str, Any]]], object]) -> None:
    """Change the rows of the committed shard, sealed as the custodian would; those in groups come first, in order."""
    ledger = Ledger.open(release)
    table = ledger.read_shard(0)
    assert table is not None
    changed = sorted(table.to_pylist(), key=lambda row: (row["group"] is None, row["group"], row["record_id"]))
    change(changed)
    path = release.shard_ledger(0)
    path.remove()
    path.write(ledger.to_bytes(0, pa.Table.from_pylist(changed, table.schema)))


def swap(name: str) -> Callable[[list[dict[str, Any]]], None]:
    """Exchange a value of one group for that of another one."""

    def change(found: list[dict[str, Any]]) -> None:
        found[0][name], found[3][name] = found[3][name], found[0][name]

    return change


# What an attacker, or a mistake of ours, could have put there; and what the ledger's reader says of it.
PLANTED: Mapping[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "a label of its own": (lambda r: r[0].update(label="b"), "differ in what is published"),
    "a caption of its own": (lambda r: r[0].update(caption="Ada in the garden"), "differ in what is published"),
    "a carried value of its own": (lambda r: r[0].update(carried='{"age": 31}'), "differ in what is published"),
    "a restricted value of groups.by of its own": (
        lambda r: r[0].update(restricted='{"ward": "south"}'), "column of groups.by",
    ),
    "a size of its own": (lambda r: r[0].update(width=9), "differ in what is published"),
    "a level of its own": (lambda r: r[0].update(level=0.5), "differ in what is published"),
    "attempts of its own": (lambda r: r[0].update(attempts=2), "differ in what is published"),
    "one original twice": (lambda r: r[0].update(source_hmac=r[1]["source_hmac"]), "in a group twice"),
    "one person twice": (lambda r: r[0].update(subject=" PERSON 1"), "in a group twice"),
    "a member less": (
        lambda r: r[0].update(group=None, group_size=None, output_id=None, status="waiting"), "other members",
    ),
    "a member without an output": (lambda r: r[0].update(output_id=None), "other outputs than"),
    "an output of no group": (lambda r: r[0].update(group=None), "an output of no group"),
    "another size": (lambda r: [row.update(group_size=4) for row in r[:3]], "other members"),
    "members of two groups exchanged": (swap("group"), "another group than planned"),
}  # fmt: skip


@pytest.mark.parametrize("outputs", ["one", "each"])
@pytest.mark.parametrize("what", PLANTED)
def test_what_would_tell_of_a_member_is_found_before_anything_is_published(
    tmp_path: Path, what: str, outputs: str
) -> None:
    items = [{"image": f"p{i}.png", "who": f"person {i}", "ward": "north", "kind": "a"} for i in range(6)]
    source = listing(folder_of(tmp_path / "in", {f"p{i}.png": picture(i) for i in range(6)}), items)
    columns = {"label": "kind", "subject": "who", "restricted": ["ward"]}
    groups = {"by": ["label", "ward"], "outputs": outputs}
    config = group_settings(source, tmp_path / "out", source=columns, groups=groups)
    release = begin_grouped(config)
    one_shard(config, 0)
    change, message = PLANTED[what]
    with_row(release, change)
    with pytest.raises(IntegrityError, match=message):
        finish_grouped(release, config)
    assert not release.is_assembled


SHARED: Mapping[str, tuple[str, Callable[[list[dict[str, Any]]], object], str]] = {
    "one output for two groups": (
        "one", lambda r: [row.update(output_id=r[0]["output_id"]) for row in r], "share an output id",
    ),
    "a score of its own": ("one", lambda r: r[0].update(lpips=0.01), "share an output id"),
    "a digest of its own": ("one", lambda r: r[0].update(sha256="0" * 64), "share an output id"),
    "two outputs for one group": ("one", lambda r: r[0].update(output_id="0" * 32), "other outputs than"),
    "an output for two members": ("each", lambda r: r[0].update(output_id=r[1]["output_id"]), "other outputs than"),
    "an output for members of two groups": (
        "each", lambda r: r[0].update(output_id=r[3]["output_id"]), "share an output id",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SHARED)
def test_outputs_are_shared_within_a_group_or_not_at_all(tmp_path: Path, what: str) -> None:
    outputs, change, message = SHARED[what]
    config = group_settings(photos(tmp_path / "in", 6), tmp_path / "out", groups={"outputs": outputs})
    release = begin_grouped(config)
    one_shard(config, 0)
    with_row(release, change)
    with pytest.raises(IntegrityError, match=message):
        finish_grouped(release, config)


def test_rows_of_groups_are_refused_where_the_settings_make_none(tmp_path: Path) -> None:
    config = settings(people(tmp_path / "in", 3), tmp_path / "out", run={"shard_size": 9})
    release = begin(config)
    one_shard(config, 0)
    with_row(release, lambda found: [row.update(group="0" * 32, group_size=3) for row in found])
    with pytest.raises(IntegrityError, match="an output of no group, and groups"):
        run(config)


def derive_from_member(found: list[dict[str, Any]]) -> None:
    row = found[0]
    row["output_id"] = KEY.output_id(row["record_id"], row["source_hmac"], row["config_fingerprint"])


def deal_in_order(found: list[dict[str, Any]]) -> None:
    """Deal the outputs of each group in the order of its records."""
    for group in (found[:3], found[3:]):
        by_number = [KEY.output_id("", KEY.group_hmac(group[0]["group"], [r["source_hmac"] for r in group], n),
                                   group[0]["config_fingerprint"]) for n in range(3)]  # fmt: skip
        for row, output_id in zip(group, by_number, strict=True):
            row["output_id"] = output_id


@pytest.mark.parametrize("change", [derive_from_member, deal_in_order])
def test_ids_of_a_member_or_dealt_in_order_are_found_with_the_key(tmp_path: Path, change: Any) -> None:
    config = group_settings(photos(tmp_path / "in", 6), tmp_path / "out", **EACH)
    release = run_grouped(config)
    before = {row["record_id"]: row["output_id"] for row in rows(release)}
    with_row(release, change)
    assert {row["record_id"]: row["output_id"] for row in rows(release)} != before
    found = {f.check: f for f in check_restricted(release, config, KEY)}
    assert (found["groups"].result, found["ledger"].result) == ("fail", "fail")
    assert "were dealt anew" in found["groups"].message


PUBLIC: Mapping[str, tuple[Callable[[pa.Table], pa.Table], Callable[[Any], object], str]] = {
    "another k": (lambda t: with_column(t, "k", [2] * len(t)), lambda p: None, "another k than was signed"),
    "no k": (lambda t: t.drop_columns(["k"]), lambda p: None, "has no k"),
    "k of a size": (lambda t: with_column(t, "k", [3, 4]), lambda p: None, "another k than was signed"),
    "k without groups": (lambda t: t, lambda p: p.update(groups=None), "has k, and none"),
    "a column of groups": (
        lambda t: with_column(t, "group", pa.array(["a", "b"])), lambda p: None, "has private columns: group",
    ),
    "sizes of groups": (
        lambda t: with_column(t, "group_size", pa.array([3, 3])), lambda p: None, "has private columns: group_size",
    ),
    "fewer records than k each": (
        lambda t: t, lambda p: p["counts"].update(released=5, waiting=1), "fewer than 3 each",
    ),
    "none waiting": (lambda t: t, lambda p: p["counts"].update(read=7), "not as many accounted for"),
    "images as records": (lambda t: t, lambda p: p["counts"].update(images=6), "rows, and"),
}  # fmt: skip


@pytest.mark.parametrize("what", PUBLIC)
def test_a_public_half_that_says_other_things_of_groups_than_were_signed_is_found(tmp_path: Path, what: str) -> None:
    release = run_grouped(group_settings(photos(tmp_path / "in", 6), tmp_path / "out"))
    change, resign, message = PUBLIC[what]
    folder = Path(release.public.path)
    write_manifest(folder, change(read_manifest(folder)))
    sign_again(folder, resign, by=(PUBLISHER,))
    assert any(message in str(f) for f in check_public(release.public) if f.result == "fail")


def test_a_failed_member_is_done_again_with_those_who_wait_for_it_and_a_sampled_group_never(tmp_path: Path) -> None:
    """Of the first group one vanished, and two waited; of the second one vanished, and three were enough."""
    source = photos(tmp_path / "in", 7)
    config = group_settings(source, tmp_path / "out", policy={"max_failed": 0})

    def assign(entries: Any) -> dict[str, str]:
        return {entry.record_id: "first" if entry.record_id < "p3" else "second" for entry in entries}

    release = begin_grouped(config, assign)
    taken = {name: (source / name).read_bytes() for name in ("p0.png", "p3.png")}
    for name in taken:
        (source / name).unlink()
    one_shard(config, 0)
    ends = {row["record_id"]: row["status"] for row in rows(release)}
    assert [ends[f"p{i}.png"] for i in range(7)] == ["failed", "waiting", "waiting", "failed", *3 * ["released"]]
    before = {row["record_id"]: row for row in rows(release)}
    folder_of(source, taken)
    assert reopen_failed(release) == 2
    one_shard(config, 0)
    after = {row["record_id"]: row for row in rows(release)}
    assert [after[f"p{i}.png"]["status"] for i in range(7)] == [*3 * ["released"], "waiting", *3 * ["released"]]
    assert {after[f"p{i}.png"]["group"] for i in range(3)} == {group_id("first")}
    assert all(after[f"p{i}.png"] == before[f"p{i}.png"] for i in (4, 5, 6))
    finish_grouped(release, config)
    assert verification_failures(release) == []


def test_a_release_with_groups_follows_none_and_none_follows_it_yet(tmp_path: Path) -> None:
    first = run_grouped(group_settings(photos(tmp_path / "in", 3), tmp_path / "first"))
    for k in (1, 3):
        with pytest.raises(ConfigError, match=r"boomerang\.k"):
            begin(follow(first, tmp_path / "in", tmp_path / f"next{k}", boomerang={"k": k}))
    single = run(settings(tmp_path / "in", tmp_path / "single"))
    with pytest.raises(ConfigError, match=r"boomerang\.k"):
        begin(follow(single, tmp_path / "in", tmp_path / "then", boomerang={"k": 3}))
    with pytest.raises(OutputError, match="holds groups"):
        erase.check(first, Release.at(str(tmp_path / "without"), KEY))


def test_the_settings_of_groups_are_those_that_were_signed(tmp_path: Path) -> None:
    config = group_settings(photos(tmp_path / "in", 3), tmp_path / "out")
    release = run_grouped(config)
    other = group_settings(tmp_path / "in", tmp_path / "out", groups={"leftover": "merge", "features": "clip"})
    found = {f.check: f for f in check_restricted(release, other, KEY)}
    assert "groups" in found["settings"].message
    assert found["settings"].result == "fail"


def test_a_group_that_was_only_quarantined_lies_in_quarantine_once(tmp_path: Path) -> None:
    config = group_settings(
        photos(tmp_path / "in", 6), tmp_path / "out",
        policy={"scores": {"lpips": {"max": 0}}}, **EACH,
    )  # fmt: skip
    release = begin_grouped(config)
    one_shard(config, 0)
    with_row(release, lambda found: [row.update(status="released", reason=None) for row in found[3:]])
    finish_grouped(release, config)
    assert len(list(release.quarantine.children())) == 3
    one = group_settings(tmp_path / "in", tmp_path / "one", policy={"scores": {"lpips": {"max": 0}}})
    release = begin_grouped(one)
    one_shard(one, 0)
    with_row(release, lambda found: [row.update(status="released", reason=None) for row in found[3:]])
    finish_grouped(release, one)
    assert [p.name for p in release.quarantine.children()] == [
        f"{output_id}.png" for output_id in {r["output_id"] for r in rows(release) if r["status"] == Status.QUARANTINED}
    ]
    assert verification_failures(release) == []


NUMBERS = st.integers(-200, 200) | st.floats(-(2.0**40), 2.0**40)


@given(st.lists(NUMBERS | NUMBERS.map(str), min_size=2, max_size=6))
@hypothesis_settings(max_examples=100)
def test_a_range_holds_all_values_in_any_order_and_spelling_with_ends_outside(values: list[Any]) -> None:
    """Its ends are coarser than a part of the spread, and no wider than the spread and twice the largest step."""
    numbers = [float(value) for value in values]
    text, spread = grouped.format_range(values), max(numbers) - min(numbers)
    assert text == grouped.format_range([f" {value:+.17g}" for value in sorted(numbers, reverse=True)])
    if spread == 0:
        assert float(text) == pytest.approx(numbers[0], rel=1e-11)
        return
    low, high = map(float, text.split(" to "))
    slack = 1e-11 * max(map(abs, numbers))
    assert low <= min(numbers) + slack
    assert high >= max(numbers) - slack
    assert high - low <= spread + 2 * (2.5 * spread / len(numbers)) + 2 * slack


def test_the_ends_of_a_range_are_not_the_values_of_members() -> None:
    assert grouped.format_range([31.59610026883358, 63.402265357164836, "027"]) == "20 to 80"
    assert grouped.format_range([-5, -3]) == "-5 to -3"
    assert grouped.format_range([41234.17, 87213.55, 50000, 60000, 70000]) == "40000 to 90000"
    assert grouped.format_range([" 27", "27.0", 27]) == "27"


@pytest.mark.parametrize("value", ["", "old", None, True, float("nan"), "inf", 1e16, [1]])
def test_what_is_no_number_has_no_range(value: Any) -> None:
    with pytest.raises(RecordError):
        grouped.as_number(value)
