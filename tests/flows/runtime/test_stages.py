"""Stages of a job as Prefect tasks: their names, their line in the log, and errors that name no record."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from anonymizer.errors import ConfigError, StepError
from anonymizer.storage.path import StoragePath
from tests.support.prefect_database import query, wait_for


@dataclass(frozen=True)
class Summary:
    read: int
    released: int
    risk: float
    record_id: str


def summarize_records(path: str, values: list[float]) -> Summary:
    return Summary(len(values), 1, 0.875, path)


def forward(summary: Summary) -> None:
    assert summary.read == 3


def fail_on_record(path: str) -> None:
    raise ValueError(path)


def refuse(path: str) -> None:
    raise ConfigError("model.id: not usable")


@pytest.mark.usefixtures("prefect_home")
def test_a_stage_is_a_task_with_one_line_of_counts_and_no_stored_argument(
    tmp_path: Path, prefect_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prefect import flow

    from flows.runtime import stages

    lines = list[str]()
    monkeypatch.setattr(stages, "get_run_logger", lambda: SimpleNamespace(info=lines.append))

    @flow(name="flow-of-stages", persist_result=False)
    def job() -> Summary:
        stage = stages.StageRunner("job", StoragePath.from_uri(str(tmp_path)), StepError("job: failed"), ["anonymizer"])
        summary = stage(summarize_records, "/home/alice/7.png", [0.125] * 3)
        stage(forward, summary)
        return summary

    assert job() == Summary(3, 1, 0.875, "/home/alice/7.png")
    assert lines[0].startswith("summarize-records: 3 read, 1 released in ")
    assert lines[1].startswith("forward: done in ")
    sql = "SELECT * FROM task_run WHERE name LIKE 'summarize-records%' OR name LIKE 'forward%'"
    assert wait_for(lambda: len(query(prefect_home, sql)) == 2)
    assert not [value for row in query(prefect_home, sql) for value in row if "alice" in str(value)]
    inputs_sql = sql.replace("*", "id, task_inputs") + " ORDER BY name"
    (_, inputs), (summarized, _) = query(prefect_home, inputs_sql)
    assert str(summarized) in inputs  # an arrow in the graph


@pytest.mark.usefixtures("prefect_home")
def test_an_error_that_may_name_a_record_is_kept_in_the_folder(tmp_path: Path) -> None:
    from prefect import flow

    from flows.runtime import stages

    runner = stages.StageRunner("job", StoragePath.from_uri(str(tmp_path)), StepError("job: failed"), ["anonymizer"])

    @flow(persist_result=False)
    def job(path: str) -> None:
        runner(refuse if path == "refused" else fail_on_record, path)

    with pytest.raises(StepError, match=r"^job: failed: see .*/errors/job\.txt$") as caught:
        job("/home/alice/7.png")
    assert "alice" not in str(caught.value) and caught.value.__context__ is None
    assert "alice" in (tmp_path / "errors/job.txt").read_text()
    with pytest.raises(ConfigError, match=r"^model\.id: not usable$"):
        job("refused")


@pytest.mark.usefixtures("prefect_home")
@pytest.mark.parametrize("name", ["release", "audit", "calibrate", "augment", "enhance"])
def test_a_run_started_from_the_page_has_a_form(name: str) -> None:
    """Prefect shows a form for a parameter whose schema has properties, and a text field for an address."""
    from importlib import import_module

    flow = getattr(import_module(f"flows.{name}"), name)
    schema = flow.parameters.model_dump()
    form, address = schema["properties"]["config"]["anyOf"]
    assert address == {"type": "string"}
    properties = schema["definitions"][form["$ref"].rpartition("/")[2]]["properties"]
    section = "source" if name in ("release", "augment", "enhance") else "attacks"
    assert section in properties
