"""One configuration for every month: where a scheduled release goes, and which release was before it."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from anonymizer import config
from anonymizer.config import AuditConfig, CalibrationConfig, RunConfig
from anonymizer.errors import ConfigError
from anonymizer.release import event_log, preflight
from anonymizer.storage.layout import Release
from flows.runtime import run_templates
from tests.support import ROOT
from tests.support.releases import KEY, PlainScorer, people, run, settings
from tests.support.signing_keys import PUBLISHER, VARIABLE, pem

EXAMPLES = ROOT / "deployments/examples/deployed"
WHEN = datetime(2026, 12, 1, 3, 0, 7, tzinfo=UTC)


@pytest.fixture(autouse=True)
def publisher(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, pem(PUBLISHER))


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("s3://bucket/{month}", "s3://bucket/2026-12"),
        ("releases/{date}/x", "releases/2026-12-01/x"),
        ("{time}", "2026-12-01T030007"),
        ("plain", "plain"),
    ],
)
def test_an_address_is_dated_by_when_the_run_was_to_start(uri: str, expected: str) -> None:
    assert run_templates.fill_date("output.uri", uri, WHEN) == expected


@pytest.mark.parametrize("uri", ["r/{mnoth}", "r/{}", "r/{newest}"])
def test_an_unknown_name_in_braces_is_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match=r"output\.uri: \{\w*\} stands for nothing there: known: \{month\}"):
        run_templates.fill_date("output.uri", uri, WHEN)


def placed(tmp_path: Path, when: datetime = WHEN) -> RunConfig:
    tree: dict[str, Any] = {"source": {"uri": str(tmp_path / "in")}, "previous": "{newest}"}
    asked = config.build(tree | {"output": {"uri": str(tmp_path / "releases/{month}")}})
    return run_templates.fill_templates(asked, when)


def published(tmp_path: Path, name: str, earlier: str | None = None) -> Release:
    people(tmp_path / "in", 2)
    more = [] if earlier is None else [f"previous={tmp_path / 'releases' / earlier}"]
    return run(settings(tmp_path / "in", tmp_path / "releases" / name, *more))


def test_the_newest_release_before_this_one_is_the_previous_and_one_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match="leave previous out for the first of a series; if there were others, restore"
    ):
        placed(tmp_path)  # they may have been removed by somebody
    for name in ("2026-10", "2026-11", "2027-01"):
        published(tmp_path, name)
    (tmp_path / "releases/2026-11-notes").mkdir()
    assert placed(tmp_path).previous == str(tmp_path / "releases/2026-11")
    assert placed(tmp_path).output.uri == str(tmp_path / "releases/2026-12")


def test_a_release_that_was_begun_keeps_its_previous_one_if_another_is_published_meanwhile(tmp_path: Path) -> None:
    published(tmp_path, "2026-09")
    published(tmp_path, "2026-12", "2026-09")
    published(tmp_path, "2026-11", "2026-09")
    assert placed(tmp_path).previous == str(tmp_path / "releases/2026-09")


def test_an_unpublished_month_is_skipped(tmp_path: Path) -> None:
    published(tmp_path, "2026-10")
    Release.at(str(tmp_path / "releases/2026-11")).restricted.make_private_folder()
    assert placed(tmp_path).previous == str(tmp_path / "releases/2026-10")


def test_an_erased_release_without_a_successor_stops_the_run(tmp_path: Path) -> None:
    published(tmp_path, "2026-10")
    erased = published(tmp_path, "2026-11")
    erased.public.remove()
    erased.plan.remove()
    event_log.record(erased, "destroyed", successor="elsewhere")
    with pytest.raises(ConfigError, match=r"'2026-11' was erased, and no later release .* or erased people come back"):
        placed(tmp_path)
    published(tmp_path, "2026-11b")
    assert placed(tmp_path).previous == str(tmp_path / "releases/2026-11b")
    preflight.check_previous(settings(tmp_path / "in", tmp_path / "releases/2026-12",
                            f"previous={placed(tmp_path).previous}"), KEY, PlainScorer.names)  # fmt: skip


def test_placeholders_are_refused_on_the_command_line(tmp_path: Path) -> None:
    asked = config.build(
        {"source": {"uri": str(people(tmp_path / "in", 1))}, "output": {"uri": f"{tmp_path}/{{month}}"}}
    )
    with pytest.raises(ConfigError, match=r"output\.uri: \{month\} is filled in when a deployment runs: write the"):
        run_templates.refuse_placeholders(asked)


def test_settings_may_lie_at_any_address(tmp_path: Path, store: Any) -> None:
    text = (EXAMPLES / "release.yaml").read_bytes()
    store.pipe_file("/settings/release.yaml", text)
    (tmp_path / "release.yaml").write_bytes(text)
    expected = config.build(yaml.safe_load(text))
    assert run_templates.read_config(RunConfig, "memory://settings/release.yaml") == expected
    assert run_templates.read_config(RunConfig, str(tmp_path / "release.yaml")) == expected
    assert run_templates.read_config(RunConfig, yaml.safe_load(text)) == expected
    with pytest.raises(ConfigError, match=r"config: no file 'memory://settings/other\.yaml'"):
        run_templates.read_config(RunConfig, "memory://settings/other.yaml")


def test_examples_of_deployments_are_settings() -> None:
    assert run_templates.read_config(AuditConfig, str(EXAMPLES / "audit.yaml")).identity == "folder"
    assert run_templates.read_config(CalibrationConfig, str(EXAMPLES / "calibration.yaml")).levels == (
        0.2,
        0.4,
        0.6,
        0.8,
    )
