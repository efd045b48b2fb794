"""Lineage events: what they say, that they say nothing of a record, and that a lost one never stops a run."""

from __future__ import annotations

import json
import os
import re
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch
from uuid import UUID

import fsspec
import jsonschema
import pytest
from openlineage.client.naming import dataset as naming

from anonymizer.config import RunConfig
from anonymizer.errors import GateError, OutputError, StepError
from anonymizer.records import Scores
from anonymizer.release import plan
from anonymizer.report import audit as audit_report
from anonymizer.storage.layout import AUDIT, Release
from flows.lineage import openlineage
from flows.lineage.emit import RunOutcome, emit_run_events
from tests.support import ROOT
from tests.support.http_listener import Quiet, listening
from tests.support.releases import GARBAGE, HEX, Unscored, folder_of, manifest, picture, plain, rows, run, settings

DOCS = ROOT / "docs"
FACETS = {"anonymizer_anonymization": "anonymization", "anonymizer_risk": "risk"}
Event = dict[str, Any]


@pytest.fixture(autouse=True)
def nothing_else_is_set_up(tmp_path: Path) -> Iterator[None]:
    """No settings of OpenLineage but those of a test; its client adds some to the environment by itself."""
    mine = {name: value for name, value in os.environ.items() if not name.startswith("OPENLINEAGE")}
    with patch.dict(os.environ, mine | {"NO_PROXY": "127.0.0.1", "HOME": str(tmp_path)}, clear=True), chdir(tmp_path):
        yield


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    """Four pictures that can be released, one that has no score, and one that is none."""
    files = {f"mrs jones {i}.png": picture(i) for i in range(4)} | {"black.png": plain(0), "bad.png": GARBAGE}
    source = folder_of(tmp_path / "in", files)
    return settings(source, tmp_path / "out", lineage={"to": str(tmp_path / "events" / "lineage.jsonl")})


def released(config: RunConfig) -> Release:
    return run(config, scorer=Unscored(Scores()))


def to(config: RunConfig, address: str) -> RunConfig:
    return config.model_copy(update={"lineage": config.lineage.model_copy(update={"to": address})})


def events(config: RunConfig) -> list[Event]:
    assert config.lineage.to is not None
    found = [json.loads(line) for line in Path(config.lineage.to).read_text().splitlines()]
    for event in found:
        check(event)
    return found


def schema(name: str) -> Any:
    return json.loads((DOCS / "schemas" / f"{name}-facet.json").read_text())


def check(event: Event) -> None:
    """An event as OpenLineage wants one, its facets of ours as their schemas do."""
    assert set(event) == {"eventTime", "eventType", "inputs", "job", "outputs", "producer", "run", "schemaURL"}
    assert re.fullmatch(r"urn:anonymizer:\d+\.\d+\.\d+\S*", event["producer"])
    UUID(event["run"]["runId"])
    facets = {**event["run"]["facets"]}
    for output in event["outputs"]:
        facets |= output["facets"] | output["outputFacets"]
    assert all(re.match(r"\w+:", facet["_producer"]) and facet["_schemaURL"] for facet in facets.values())
    for key, name in FACETS.items():
        jsonschema.Draft202012Validator(schema(name)).validate(facets)
        if key in facets:  # the address in the event leads to what describes it
            where, _, pointer = facets[key]["_schemaURL"].partition("#/$defs/")
            assert where == schema(name)["$id"] and pointer in schema(name)["$defs"]


# -- what events say --------------------------------------------------------------------------------------------------


def test_a_release_emits_start_and_complete_with_its_counts(config: RunConfig) -> None:
    with emit_run_events(config, "release") as told:
        release = released(config)
        told.gate = "pass"
    assert told.problems == []
    start, complete = events(config)
    assert (start["eventType"], complete["eventType"]) == ("START", "COMPLETE")
    assert start["run"]["runId"] == complete["run"]["runId"]
    assert start["job"] == complete["job"] == {"namespace": "anonymizer", "name": "release", "facets": {}}
    for event in (start, complete):
        assert [(i["namespace"], i["name"]) for i in event["inputs"]] == [("file", config.source.uri)]
        assert [(o["namespace"], o["name"]) for o in event["outputs"]] == [("file", release.public.path)]

    said, the_plan = complete["run"]["facets"]["anonymizer_anonymization"], plan.read(release)
    assert [said[name] for name in ("read", "released", "quarantined", "failed")] == [6, 4, 1, 1]
    assert (said["level"], said["sampler"], said["gate"]) == (0.4, "sde-dpm++", "pass")
    assert (said["t_boom"], said["log_snr"], said["steps"]) == (the_plan.t_boom, the_plan.log_snr, 2)
    assert (said["model_digest"], said["config_fingerprint"]) == (the_plan.model_digest, the_plan.fingerprint)

    (output,) = complete["outputs"]
    columns = {field["name"]: field["type"] for field in output["facets"]["schema"]["fields"]}
    assert columns == {column.name: str(column.type) for column in manifest(release).schema}
    files = [path for path in Path(release.public.path).rglob("*") if path.is_file()]
    statistics = output["outputFacets"]["outputStatistics"]
    assert (statistics["rowCount"], statistics["fileCount"]) == (4, len(files))
    assert statistics["size"] == sum(path.stat().st_size for path in files)
    assert output["facets"]["anonymizer_risk"]["result"] == "not measured"


def test_no_event_names_a_record_or_holds_a_secret(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    # What another program's settings ask for does not go into our events either.
    others = {"facets": {"environment_variables": ["ANONYMIZER_KEY"], "source_code_location": {"disabled": False}}}
    others["facets"]["source_code_location"]["repo_url"] = "https://example.invalid/secret"
    Path("openlineage.yml").write_text(json.dumps(others | {"transport": {"type": "console"}}))
    with emit_run_events(config, "release"):
        release = released(config)
    text = Path(config.lineage.to or "").read_text()
    assert len(events(config)) == 2
    told = {str(row[name]) for row in rows(release) for name in ("record_id", "output_id", "source_hmac", "sha256")}
    assert len(told) > 15
    assert not [value for value in [*told - {"None"}, "jones", HEX, "example.invalid"] if value in text]


def risk_of(event: Event) -> Any:
    return event["outputs"][0]["facets"]["anonymizer_risk"]


@pytest.mark.parametrize("job", ["release", "audit", "erase"])
def test_risk_in_events_is_the_public_summary_of_the_audit(config: RunConfig, job: Any) -> None:
    release = released(config)
    line = {"attack": "linkage", "risk_high": 0.31, "risk": 0.2}
    answers = [audit_report.Answer(q, [line] if "linkage" in q.attacks else []) for q in audit_report.QUESTIONS]
    attackers = {name: 1 for name in ("attacks", "sample", "released", *audit_report.EFFORT)}
    told = {"manifest": "0" * 64, "audited": 120}
    told |= {
        "unread": 0,
        "changed": 0,
        "attackers": attackers,
        "features": ["pixels"],
        "config": dict.fromkeys(audit_report.EVIDENCE),
    }
    summary = audit_report.build_public_summary(plan.read(release), told, answers)
    place = release.audit_summary if job == "audit" else release.public / AUDIT
    place.write(json.dumps(summary).encode())
    with emit_run_events(config, job):
        pass
    risk = risk_of(events(config)[-1])
    assert (risk["result"], risk["pictures_attacked"]) == ("measured", 120)
    assert risk["formal_guarantee"] == "No formal guarantee"  # no ceiling was planned
    assert risk["answers"] == summary["answers"]
    assert risk["answers"]["Linkability"]["risk_above_chance_at_most"] == 0.35
    assert risk["answers"]["Inference"]["result"] == "not measured"


@pytest.mark.parametrize(
    "job, reads, writes",
    [("release", "in before/public", True), ("audit", "in out/public", False), ("erase", "before/public", True)],
)
def test_each_job_names_what_it_reads_and_what_it_writes(
    tmp_path: Path, config: RunConfig, job: Any, reads: str, writes: bool
) -> None:
    released(config)
    with emit_run_events(config.model_copy(update={"previous": f"{tmp_path}/before/"}), job):
        pass
    _, complete = events(config)
    assert complete["job"]["name"] == job
    assert [i["name"] for i in complete["inputs"]] == [str(tmp_path / name) for name in reads.split()]
    assert ("outputStatistics" in complete["outputs"][0]["outputFacets"]) is writes


def test_a_release_that_was_moved_is_named_where_it_lies(tmp_path: Path, config: RunConfig) -> None:
    Path(released(config).root.path).rename(tmp_path / "moved")
    with emit_run_events(config, "audit", str(tmp_path / "moved")) as told:
        pass
    assert told.problems == []
    assert events(config)[-1]["outputs"][0]["name"] == str(tmp_path / "moved" / "public")


def test_a_second_run_is_appended_under_another_id(config: RunConfig) -> None:
    released(config)
    for _ in range(2):
        with emit_run_events(config, "release"):
            pass
    assert [event["eventType"] for event in events(config)] == ["START", "COMPLETE"] * 2
    assert len({event["run"]["runId"] for event in events(config)}) == 2


@pytest.mark.parametrize(
    "uri, expected",
    [
        ("/data/photos", naming.LocalFileSystem("/data/photos")),
        ("file:///data/photos", naming.LocalFileSystem("/data/photos")),
        ("zip://a/*.png::file:///data/set.zip", naming.LocalFileSystem("/data/set.zip")),
        ("s3://bucket/faces/2026", naming.S3("bucket", "faces/2026")),
        ("gs://bucket/faces", naming.GCS("bucket", "faces")),
        ("simplecache::s3://bucket/a.tar", naming.S3("bucket", "a.tar")),
    ],
)
def test_datasets_are_named_as_openlineage_names_them(uri: str, expected: Any) -> None:
    assert openlineage.dataset_name(uri) == (expected.get_namespace(), expected.get_name())


def test_a_relative_path_is_named_by_the_whole_one(tmp_path: Path) -> None:
    assert openlineage.dataset_name("photos") == ("file", str(tmp_path / "photos"))


@pytest.mark.parametrize("uri", ["https://host/set.tar?sig=s3cret", "https://s3cret@host/set.tar"])
def test_what_may_be_a_secret_in_an_address_is_left_out(uri: str) -> None:
    assert openlineage.dataset_name(uri) == ("https://host", "set.tar")


# -- runs that end badly ----------------------------------------------------------------------------------------------


def failed(config: RunConfig, error: BaseException, gate: Any = "none") -> Event:
    """The last event of a run that ended so, with the error unchanged."""
    with pytest.raises(type(error)) as caught, emit_run_events(config, "release") as told:
        told.gate = gate
        raise error
    assert caught.value is error and not hasattr(error, "__notes__")
    return events(config)[-1]


def test_a_reportable_error_is_sent_with_its_text(config: RunConfig) -> None:
    event = failed(config, OutputError("output.uri: is full"))
    assert event["eventType"] == "FAIL"
    assert event["run"]["facets"]["errorMessage"]["message"] == "OutputError: output.uri: is full"


@pytest.mark.parametrize("kind", [ValueError, StepError, OSError])
def test_any_other_error_is_sent_by_its_kind_only(config: RunConfig, kind: type[Exception]) -> None:
    event = failed(config, kind("/in/mrs jones 1.png"))
    assert event["run"]["facets"]["errorMessage"]["message"] == kind.__name__
    assert "jones" not in json.dumps(event)


def test_a_run_that_was_stopped_is_aborted(config: RunConfig) -> None:
    assert failed(config, KeyboardInterrupt())["eventType"] == "ABORT"


def test_a_release_that_the_gate_holds_back_fails_with_its_gate(config: RunConfig) -> None:
    released(config)
    event = failed(config, GateError("policy: the release is not let out: audits"), "fail")
    assert event["run"]["facets"]["anonymizer_anonymization"]["gate"] == "fail"
    assert event["outputs"][0]["facets"] == {}  # nothing was handed out


# -- servers and files ------------------------------------------------------------------------------------------------

Answer = Callable[[int], tuple[int, dict[str, str]]]


@contextmanager
def server(answer: Answer = lambda number: (201, {})) -> Iterator[tuple[str, list[Any]]]:
    """A lineage server that answers its n-th request so; its address, and what it was sent."""
    seen: list[Any] = []

    class Handler(Quiet):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            seen.append((self.path, self.headers.get("Authorization"), json.loads(body)))
            status, headers = answer(len(seen))
            self.send_response(status)
            for name, value in ({"Content-Length": "0"} | headers).items():
                self.send_header(name, value)
            self.end_headers()

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()

    with listening(Handler) as url:
        yield url, seen


def emitted(config: RunConfig) -> RunOutcome:
    with emit_run_events(config, "release") as told:
        pass
    return told


def test_a_server_gets_the_events_and_the_key_of_its_environment(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    released(config)
    monkeypatch.setenv("OPENLINEAGE_API_KEY", "s3cret")
    monkeypatch.setenv("OPENLINEAGE_URL", "http://127.0.0.1:9")  # the settings go before it
    with server() as (address, seen):
        assert emitted(to(config, address)).problems == []
    assert [(path, header) for path, header, _ in seen] == [("/api/v1/lineage", "Bearer s3cret")] * 2
    assert [event["eventType"] for _, _, event in seen] == ["START", "COMPLETE"]
    for *_, event in seen:
        check(event)
        assert "s3cret" not in json.dumps(event)


def test_without_a_key_none_is_sent_and_the_endpoint_may_be_another(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    released(config)
    monkeypatch.setenv("OPENLINEAGE_ENDPOINT", "lineage/v2")
    with server() as (address, seen):
        assert emitted(to(config, address)).problems == []
    assert {(path, header) for path, header, _ in seen} == {("/lineage/v2", None)}


def test_events_are_switched_off_as_in_any_program_with_openlineage(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    released(config)
    monkeypatch.setenv("OPENLINEAGE_DISABLED", "true")
    assert emitted(config).problems == []
    assert events(config) == []


@pytest.mark.parametrize(
    "answer, why, requests",
    [
        (lambda number: (503, {}), "HTTP 503", 4),
        (lambda number: (401, {}), "HTTP 401", 4),
        (lambda number: (301, {"Location": "/moved"}), "HTTP 301", 4),
    ],
)
def test_an_event_that_a_server_refuses_is_sent_again_and_then_reported_as_lost(
    config: RunConfig, answer: Answer, why: str, requests: int, caplog: pytest.LogCaptureFixture
) -> None:
    released(config)
    with server(answer) as (address, seen):
        told = emitted(to(config, address))
    assert len(seen) == requests
    assert [line.split(", ")[0] for line in told.problems] == [
        f"lineage.to: did not take the {state} event of this run ({why})" for state in ("START", "COMPLETE")
    ]
    assert not [record for record in caplog.records if record.levelname not in ("DEBUG", "INFO")]


def test_an_event_that_is_refused_once_is_not_lost(config: RunConfig) -> None:
    released(config)
    with server(lambda number: (500 if number == 1 else 201, {})) as (address, seen):
        assert emitted(to(config, address)).problems == []
    assert [event["eventType"] for *_, event in seen] == ["START", "START", "COMPLETE"]


def test_a_server_that_cannot_be_reached_is_a_line_without_its_address(config: RunConfig) -> None:
    released(config)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = emitted(to(config, f"http://127.0.0.1:{port}"))
    assert len(told.problems) == 2
    assert all("(ConnectionError)" in line and "\n" not in line for line in told.problems)
    assert not [line for line in told.problems if "127.0.0.1" in line or str(port) in line]


def test_a_server_that_never_answers_costs_seconds(config: RunConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    released(config)
    monkeypatch.setattr(openlineage, "TIMEOUT", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        begun = time.monotonic()
        told = emitted(to(config, f"http://127.0.0.1:{silent.getsockname()[1]}"))
        assert time.monotonic() - begun < 3
    assert len(told.problems) == 2


def test_a_failed_run_whose_event_is_lost_still_fails_with_its_own_error(tmp_path: Path, config: RunConfig) -> None:
    with pytest.raises(OutputError, match="mine") as caught, emit_run_events(to(config, str(tmp_path)), "release"):
        raise OutputError("mine")
    assert str(caught.value) == "mine"
    assert [line.partition(", ")[0] for line in caught.value.__notes__] == [
        f"lineage.to: did not take the {state} event of this run (Is a directory)" for state in ("START", "FAIL")
    ]


def test_a_release_that_cannot_be_read_completes_all_the_same(config: RunConfig) -> None:
    with emit_run_events(config, "release") as told:
        pass
    assert told.problems == ["lineage: the last event says nothing of the release (OutputError)"]
    assert [event["eventType"] for event in events(config)] == ["START", "COMPLETE"]


def test_a_new_file_is_private_and_an_existing_one_keeps_its_mode(tmp_path: Path, config: RunConfig) -> None:
    released(config)
    emitted(config)
    assert stat.S_IMODE(Path(config.lineage.to or "").stat().st_mode) == 0o600
    (tmp_path / "mine.jsonl").touch(0o640)
    emitted(to(config, str(tmp_path / "mine.jsonl")))
    assert stat.S_IMODE((tmp_path / "mine.jsonl").stat().st_mode) == 0o640


def test_events_can_go_to_a_store(config: RunConfig) -> None:
    released(config)
    memory = fsspec.filesystem("memory")
    try:
        assert emitted(to(config, "memory://lineage/events.jsonl")).problems == []
        lines = memory.cat_file("/lineage/events.jsonl").splitlines()
    finally:
        memory.store.clear()
    assert [json.loads(line)["eventType"] for line in lines] == ["START", "COMPLETE"]


def test_without_a_destination_openlineage_is_not_imported(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom anonymizer.config import build\nfrom flows.lineage.emit import emit_run_events\n"
        "config = build({'source': {'uri': 'in'}, 'output': {'uri': 'out'}})\n"
        "with emit_run_events(config, 'release') as told: told.gate = 'pass'\n"
        "print(told.problems, [name for name in sys.modules if name.startswith('openlineage')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[] []"
    assert not list(tmp_path.iterdir())


# -- what is documented -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FACETS.values())
def test_every_field_of_a_facet_is_documented(name: str) -> None:
    text = (DOCS / "lineage.md").read_text()
    for definition in schema(name)["$defs"].values():
        fields = set(definition["properties"]) - {"_producer", "_schemaURL"}
        assert fields and not [field for field in fields if f"`{field}`" not in text]


def test_the_documented_event_is_one() -> None:
    (example,) = re.findall(r"```json\n(.*?)```", (DOCS / "lineage.md").read_text(), re.DOTALL)
    check(json.loads(example))
