"""Nothing of an original outside restricted/: planted marks are looked for in every place, in every spelling."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from anonymizer.crypto import signing
from anonymizer.data.metadata import find_metadata
from anonymizer.pipeline.shard import ReleaseJob
from anonymizer.storage.layout import Release
from flows.cli import main
from flows.jobs import release as release_job
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.planted_leaks import (
    ADDRESS,
    ALICE,
    MARK,
    PUBLISHER,
    TIMES,
    as_folder,
    as_parquet,
    as_tar,
    forbidden,
    jpeg,
    pictures,
    pictures_of,
    png,
    seen_in,
    spellings,
)
from tests.support.prefect_database import cells, wait_for
from tests.support.releases import HEX, KEY, PlainScorer, rows, tree


@pytest.mark.parametrize("source_of", [as_folder, as_parquet, as_tar])
def test_nothing_of_an_original_is_found_outside_restricted(
    tmp_path: Path,
    prefect_home: Path,
    tiny_model: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    source_of: Any,
) -> None:
    source, options = source_of(tmp_path)
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setattr(release_job, "backbone_of", lambda model: IdealGaussian())
    monkeypatch.setattr(release_job, "scorer_of", lambda metrics, device: PlainScorer())
    model = tmp_path / f"{MARK}Models" / "tiny"
    model.mkdir(parents=True)
    options += [f"model.id={model}", "run.shard_size=3", "run.retries=0", "boomerang.steps=2"]
    key_file = tmp_path / "alice.key"
    key_file.write_bytes(ALICE.private_bytes)
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", PUBLISHER.private_bytes.decode())
    options += [f"policy.approvers={{alice: '{signing.format_public_key(ALICE.public_key)}'}}", "policy.approvals=1"]
    options += ["policy.max_failed=0.5", "policy.scores={lpips: {min: 0.001}}", "policy.escalate=[0.9]"]
    options += [f"lineage.to={tmp_path / 'lineage.jsonl'}"]
    command = ["run", "--source", str(source), "--output", str(tmp_path / "out")]
    command += [part for option in options for part in ("--set", option)]

    # The second shard fails with a message that names what it was working on.
    def failing(job: Any, item: Any) -> Any:
        if job.attempts[0]["shard"] == 1:
            raise RuntimeError(f"{MARK}: {item.record.entry.record_id} of {source}")
        return original(job, item)

    original = ReleaseJob.gate
    with monkeypatch.context() as patch:
        patch.setattr(ReleaseJob, "gate", failing)
        failed = CliRunner().invoke(main, command)
    assert (failed.exit_code, failed.stdout) == (1, "")
    assert failed.stderr.startswith("error: 1 of 3 shards failed")
    done = CliRunner().invoke(main, [*command, "--json"])
    assert done.exit_code == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["read"], counts["released"], counts["failed"]) == (9, 7, 2)

    release = Release.at(str(tmp_path / "out"))
    trust = ["--trust", signing.format_public_key(PUBLISHER.public_key)]
    approved = CliRunner().invoke(main, ["approve", str(tmp_path / "out"), "--key", str(key_file), *trust])
    assert approved.exit_code == 0, approved.stderr
    checked = CliRunner().invoke(main, ["verify", str(tmp_path / "out"), "--rescore", "0", "--json"])
    assert checked.exit_code == 0, checked.stdout
    assert MARK in (tmp_path / "out/restricted/errors/shard-00001.txt").read_text()
    found = rows(release)
    marks = forbidden(source, found)
    public = tree(release.public.path)

    for name, data in public.items():
        for view in seen_in(name, data):
            assert not [mark for mark in marks if mark in view], f"public/{name}"
    for data in pictures_of(public):
        assert find_metadata(data) == []
    assert len(list(pictures_of(public))) == 7

    said = capfd.readouterr()
    runs = [text for result in (failed, done, approved, checked) for text in (result.stdout, result.stderr)]
    for text in (*runs, said.out, said.err, caplog.text):
        assert not [mark for mark in marks if mark in text.encode()]

    events = ADDRESS.sub(b"", (tmp_path / "lineage.jsonl").read_bytes())
    assert events.count(b"\n") == 4  # two that start, one that fails, one that is complete
    assert not [
        mark for mark in marks | {row["output_id"].encode() for row in found if row["output_id"]} if mark in events
    ]

    # Prefect: parameters hold the settings, the source's address among them; nothing else holds anything.
    assert wait_for(lambda: any(t == "task_run" for t, _, _ in cells(prefect_home)))
    ids = {row["output_id"].encode() for row in found if row["output_id"]}
    strict = marks | ids
    kept: dict[str, list[bytes]] = {}
    for table, column, value in cells(prefect_home):
        text = value if isinstance(value, bytes) else str(value).encode()
        kept.setdefault(f"{table}.{column}", []).append(text)
    for where, texts in kept.items():
        text = b"\n".join(texts)
        text = ADDRESS.sub(b"", text) if where == "flow_run.parameters" else TIMES.sub(b"", text)
        assert not [mark for mark in strict if mark in text], where
    plain = {*spellings(MARK), HEX.encode(), KEY.secret, *ids}
    for path in (p for p in prefect_home.rglob("*") if p.is_file()):  # what the database forgot, and its log
        data = ADDRESS.sub(b"", path.read_bytes())
        assert not [mark for mark in plain if mark in data], path.name


def test_the_search_finds_what_it_looks_for() -> None:
    """A search that finds nothing anywhere would pass as well."""
    for text in (f"xx{MARK}yy", f"x{MARK}", MARK):
        hidden = [text.encode(), text.encode("utf-16-le"), base64.b64encode(text.encode()), quote(text).encode()]
        for data in hidden:
            assert [mark for mark in spellings(MARK) if mark in data], data
    assert find_metadata(jpeg(1, MARK)) != []
    assert find_metadata(png(1, MARK)) != []
    table = pa.table({"a": [MARK] * 1000})
    file = io.BytesIO()
    pq.write_table(table, file, compression="zstd")
    assert [view for view in seen_in("x.parquet", file.getvalue()) if MARK.encode() in view]


def test_planted_marks_are_in_the_originals() -> None:
    for name, data in pictures().items():
        assert MARK.encode() in data, name
        assert MARK in name
