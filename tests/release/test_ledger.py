"""The ledger: typed, committed in one write, and checked against the plan before anything is published."""

from __future__ import annotations

import os
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import IntegrityError
from anonymizer.records import Reason, Status
from anonymizer.release import ledger, plan
from anonymizer.release.ledger import Ledger, LedgerRow, ShardWriter
from anonymizer.schema import COLUMNS, LEDGER_SCHEMA
from anonymizer.storage.layout import Release
from tests.support.releases import (
    KEY,
    PlainScorer,
    assemble_candidate,
    begin,
    one_shard,
    people,
    rows,
    run,
    settings,
    summarize,
    tree,
)
from tests.support.site import page_text

ROW: LedgerRow = dict.fromkeys(LEDGER_SCHEMA.names) | LedgerRow(
    kept=False,
    record_id="r", source_uri="u", source_hmac=None, output_id=None, status=Status.FAILED, reason=Reason.EMPTY,
    attempts=0, level=0.5, t_boom=500, log_snr=-1.0, sampler="ddim", steps=2, clip_similarity=None, lpips=None,
    identity_distance=None, model="m", model_digest="m", config_fingerprint="f", code_version="1", shard=0,
    started=datetime(2024, 5, 17, tzinfo=UTC), seconds=0.1,
)  # fmt: skip


@pytest.fixture
def opened(tmp_path: Path) -> Ledger:
    """The ledger of a run of which nothing is committed."""
    return Ledger.open(begin(settings(people(tmp_path / "in", 5), tmp_path / "out")))


def committed_run(tmp_path: Path) -> tuple[Release, Any]:
    """A run of three shards that is committed and not yet assembled."""
    config = settings(people(tmp_path / "in", 5), tmp_path / "out")
    release = begin(config)
    for shard in range(3):
        one_shard(config, shard)
    return release, config


def rewrite(release: Release, shard: int, change: Any) -> None:
    """As the holder of the key might by mistake; what is written without the key is refused for its seal."""
    ledger = Ledger.open(release)
    table = ledger.read_shard(shard)
    assert table is not None
    changed = change(table).replace_schema_metadata(table.schema.metadata)
    release.shard_ledger(shard).write(ledger.to_bytes(shard, changed))


def assert_nothing_is_published(release: Release, config: Any, match: str) -> None:
    with pytest.raises(IntegrityError, match=match) as caught:
        assemble_candidate(release, config)
    assert "\n" not in str(caught.value)
    assert not release.public.exists()


def test_the_schema_has_the_designed_columns_with_types() -> None:
    designed = (
        "record_id, source_uri, source_hmac, output_id, status, reason, attempts, level, t_boom, log_snr, sampler, "
        "steps, clip_similarity, lpips, identity_distance, model_digest, config_fingerprint, code_version, shard, "
        "started, seconds"
    )
    assert LEDGER_SCHEMA.names[: len(designed.split(", "))] == designed.split(", ")
    later = (
        "model, faces, sha256, bytes, width, height, label, caption, carried, restricted, subject, earlier, kept, "
        "group, group_size"
    )
    assert LEDGER_SCHEMA.names[len(designed.split(", ")) :] == later.split(", ")
    assert LEDGER_SCHEMA.field("started").type == pa.timestamp("us", "UTC")
    assert LEDGER_SCHEMA.field("lpips").type == pa.float32()


def test_the_docs_name_every_column() -> None:
    text = page_text("formats.md")
    assert not [name for name in LEDGER_SCHEMA.names if f"`{name}`" not in text]
    assert not [column for column in COLUMNS if f"| `{column.name}` | {column.type} | {column.meaning} |" not in text]


def test_rows_come_back_as_they_were_written(opened: Ledger) -> None:
    extra = ROW | LedgerRow(
        record_id="ä\U0001f600", status=Status.RELEASED, reason=None, output_id="o", lpips=0.25, bytes=2**40
    )
    summary = ShardWriter(opened, 3, {"lpips": "model"}).commit([ROW, extra], 2, 1.5)
    assert (summary.shard, summary.read, summary.released, summary.quarantined, summary.failed) == (3, 2, 1, 0, 1)
    table = opened.read_shard(3)
    assert table is not None
    assert table.to_pylist()[1] == extra
    assert table.schema.metadata[b"metric_models"] == b'{"lpips": "model"}'


@pytest.mark.parametrize(
    "result", [[], [ROW], [ROW, ROW], [ROW, ROW | LedgerRow(record_id="s"), ROW | LedgerRow(record_id="t")]]
)
def test_rows_that_do_not_account_for_every_record_are_not_committed(opened: Ledger, result: list[LedgerRow]) -> None:
    with pytest.raises(IntegrityError, match=f"{len(result)} rows for 2 records"):
        ShardWriter(opened, 0, {}).commit(result, 2, 1.0)
    assert opened.read_shard(0) is None


@pytest.mark.parametrize("purged", [False, True])
def test_who_comes_after_a_release_is_finished_changes_nothing(tmp_path: Path, purged: bool) -> None:
    config = settings(people(tmp_path / "in", 2), tmp_path / "out")
    release = begin(config)
    late = ShardWriter(Ledger.open(release), 0, {})
    run(config)
    before = tree(tmp_path / "out")
    late.put("late", ".png", b"x")
    if purged:
        release.ledger.remove()
        with pytest.raises(IntegrityError, match="shard 0: was committed by another attempt, whose ledger is gone"):
            late.commit([], 0, 0.0)
        assert not release.ledger.exists()
    else:
        assert late.commit([], 0, 0.0).released == 2
        assert tree(tmp_path / "out") == before
    assert not release.staging.exists()


def test_rows_lie_elsewhere_for_a_while_where_the_restricted_half_takes_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = begin(settings(people(tmp_path / "in", 2), tmp_path / "out"))
    assert ledger.scratch_folder(release) == release.restricted.path
    monkeypatch.setattr(os, "access", lambda path, how: False)
    assert ledger.scratch_folder(release) is None


def test_score_columns_name_their_models(tmp_path: Path) -> None:
    release, config = committed_run(tmp_path)
    assemble_candidate(release, config)
    names = b'{"clip_similarity": "plain-similarity", "lpips": "plain-distance"}'
    assert pq.read_schema(release.shard_ledger(0).path).metadata[b"metric_models"] == names
    assert pq.read_schema(release.manifest.path).metadata[b"metric_models"] == names


def test_counts_agree_for_each_shard_and_for_the_release(tmp_path: Path) -> None:
    release, config = committed_run(tmp_path)
    (tmp_path / "in" / "a" / "person 0.png").unlink()
    assemble_candidate(release, config)
    the_plan = plan.read(release)
    total = summarize(release)
    assert (total.read, total.released + total.quarantined + total.failed) == (5, the_plan.records)
    assert [len(table) for _, table in Ledger.open(release).scan()] == [2, 2, 1]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.slice(1), "planned 2 records, the ledger has 1"),
        (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "planned 2 records, the ledger has 3"),
        (lambda t: pa.concat_tables([t.slice(0, 1), t.slice(0, 1)]), "they are not the same"),
        (lambda t: with_column(t, "record_id", ["x", "y"]), "they are not the same"),
        (lambda t: with_column(t, "status", ["released", "lost"]), "read 2, accounted for 1"),
        (lambda t: with_column(t, "status", ["released", None]), "read 2, accounted for 1"),
        (lambda t: with_column(t, "config_fingerprint", ["x", "x"]), "made with other settings"),
        (lambda t: with_column(t, "sha256", ["0" * 64] * 2), "missing or damaged"),
        (lambda t: with_column(t, "output_id", [None, None]), "share an output id"),
        (lambda t: t.drop_columns(["lpips"]), "another schema"),
    ],
)
def test_a_tampered_ledger_publishes_nothing(tmp_path: Path, change: Any, match: str) -> None:
    release, config = committed_run(tmp_path)
    rewrite(release, 1, change)
    assert_nothing_is_published(release, config, match)


def with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    at = table.schema.get_field_index(name)
    return table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def test_a_row_that_moves_to_another_shard_publishes_nothing(tmp_path: Path) -> None:
    """The total still agrees."""
    release, config = committed_run(tmp_path)
    moved = pq.read_table(release.shard_ledger(0).path).slice(0, 1).replace_schema_metadata()
    rewrite(release, 0, lambda t: t.slice(1))
    rewrite(release, 1, lambda t: pa.concat_tables([t.replace_schema_metadata(), moved]))
    assert_nothing_is_published(release, config, "planned 2 records")


def test_a_ledger_that_was_written_without_the_key_publishes_nothing(tmp_path: Path) -> None:
    """Not even the rows that were there: moved to another shard, or taken from another release with the same key."""
    release, config = committed_run(tmp_path)
    path, own = Path(release.shard_ledger(1).path), Path(release.shard_ledger(1).path).read_bytes()
    other = begin(settings(people(tmp_path / "in", 5), tmp_path / "other"))
    one_shard(settings(people(tmp_path / "in", 5), tmp_path / "other"), 1)
    forged = pq.read_table(path)
    pq.write_table(forged, path)
    assert_nothing_is_published(release, config, "ledger of shard 1: has no seal by the custodian's key")
    for data in (Path(other.shard_ledger(1).path).read_bytes(), Path(release.shard_ledger(0).path).read_bytes()):
        path.write_bytes(data)
        assert_nothing_is_published(release, config, "ledger of shard 1: is not what was written with the custodian's")
    path.write_bytes(own)
    assert len(rows(run(config))) == 5


@pytest.mark.parametrize("data", [b"", b"PAR1", b"garbage" * 100])
def test_a_damaged_ledger_file_publishes_nothing_and_says_how_to_go_on(tmp_path: Path, data: bytes) -> None:
    release, config = committed_run(tmp_path)
    Path(release.shard_ledger(1).path).write_bytes(data)
    assert_nothing_is_published(release, config, r"remove restricted/ledger/shard-00001.parquet")
    Path(release.shard_ledger(1).path).unlink()
    assert len(rows(run(config))) == 5


def test_a_missing_shard_publishes_nothing(tmp_path: Path) -> None:
    release, config = committed_run(tmp_path)
    Path(release.shard_ledger(2).path).unlink()
    assert_nothing_is_published(release, config, "1 of 3 shards are not committed: run the same command again")


def test_a_staged_picture_that_was_exchanged_is_not_published(tmp_path: Path) -> None:
    """For example by its original."""
    release, config = committed_run(tmp_path)
    staged = sorted(Path(release.staging.path).rglob("*.png"))
    staged[0].write_bytes((tmp_path / "in" / "a" / "person 0.png").read_bytes())
    assert_nothing_is_published(release, config, "a staged picture is missing or damaged")


def test_two_records_with_one_output_id_publish_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = settings(people(tmp_path / "in", 2), tmp_path / "out", run={"shard_size": 1})
    release = begin(config)
    monkeypatch.setattr(CustodianKey, "output_id", lambda *parts: "00" * 16)
    for shard in range(2):
        one_shard(config, shard, key=KEY)
    assert_nothing_is_published(release, config, "two records share an output id")


def test_shards_scored_by_different_models_are_not_mixed(tmp_path: Path) -> None:
    config = settings(people(tmp_path / "in", 4), tmp_path / "out")
    release = begin(config)
    one_shard(config, 0)
    other = PlainScorer()
    other.names = {"clip_similarity": "another"}
    one_shard(config, 1, scorer=other)
    assert_nothing_is_published(release, config, "shard 1: scored by other models than the rest")


def test_the_manifest_has_no_column_about_an_original(tmp_path: Path) -> None:
    release, config = committed_run(tmp_path)
    assemble_candidate(release, config)
    names = set(pq.read_schema(release.manifest.path).names)
    assert not names & {
        "record_id",
        "source_uri",
        "source_hmac",
        "clip_similarity",
        "lpips",
        "identity_distance",
        "shard",
    }
    assert {"clip_similarity_bin", "lpips_bin"} <= names


def test_public_bins_hold_the_scores_of_the_ledger(tmp_path: Path) -> None:
    release, config = committed_run(tmp_path)
    assemble_candidate(release, config)
    exact = {row["output_id"]: row for row in rows(release)}
    for shown in pq.read_table(release.manifest.path).to_pylist():
        for name in ("clip_similarity", "lpips"):
            low, high = (float(edge) for edge in re.findall(r"-?\d\.\d", shown[f"{name}_bin"]))
            assert low <= exact[shown["output_id"]][name] < high == pytest.approx(low + 0.1)


@pytest.mark.parametrize(("how", "names"), [("none", set()), ("exact", {"clip_similarity", "lpips"})])
def test_public_scores_are_as_asked_for(tmp_path: Path, how: str, names: set[str]) -> None:
    release = run(settings(people(tmp_path / "in", 3), tmp_path / "out", output={"public_scores": how}))
    shown = set(pq.read_schema(release.manifest.path).names)
    assert {name for name in shown if name.startswith(("clip", "lpips"))} == names
