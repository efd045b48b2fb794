"""A pinned worker: the configurations that it is pinned to run, with their dates filled in, and no other does."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anonymizer.config import AuditConfig, CalibrationConfig, RunConfig
from anonymizer.errors import ConfigError
from anonymizer.policy.calibration import build_resolved
from flows.cli import main
from flows.jobs import release as release_job
from flows.runtime import allowed_configs, run_templates
from tests.support import ROOT
from tests.support.releases import HEX, folder_of, picture, run, settings

EXAMPLES = ROOT / "deployments" / "examples" / "deployed"
ALLOWED = {
    "source": {"uri": "photos", "carry": ["age"], "drop": ["*"]},
    "output": {"uri": "releases/{month}"},
    "previous": "{newest}",
    "boomerang": {"level": 0.5},
    "policy": {"min_released": 10, "scores": {"lpips": {"min": 0.1}}},
}
REFUSED = r"^config: is none of those that this worker is pinned to"


def write_sums(folder: Path) -> None:
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in folder.glob("*.yaml")]
    (folder / "SHA256SUMS").write_text("".join(lines))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of allowed configurations of each kind, to which this process is pinned."""
    folder = tmp_path / "allowed"
    folder.mkdir()
    (folder / "faces.yaml").write_text(yaml.safe_dump(ALLOWED))
    (folder / "audit.yaml").write_text(yaml.safe_dump({"release": "releases/{month}", "attacks": ["linkage"]}))
    write_sums(folder)
    monkeypatch.setenv(allowed_configs.VARIABLE, str(folder))
    return folder


def config_of(tree: Any) -> RunConfig:
    return build_resolved(RunConfig, tree)


def test_an_allowed_configuration_passes_before_and_after_its_dates_are_filled_in(folder: Path) -> None:
    config = config_of(ALLOWED)
    assert allowed_configs.check(config) == config
    without = config.model_copy(update={"previous": None})
    filled = run_templates.fill_templates(without, datetime(2026, 11, 1, tzinfo=UTC))
    assert filled.output.uri == "releases/2026-11"
    for previous in ("releases/2026-10", "releases/2026-10b"):
        range_config = filled.model_copy(update={"previous": previous})
        allowed_configs.check(range_config, is_filled=True)
        with pytest.raises(ConfigError, match=REFUSED):  # who asks for a release does not choose what it follows
            allowed_configs.check(range_config)
    audit = build_resolved(AuditConfig, {"release": "releases/2026-11", "attacks": ["linkage"]})
    allowed_configs.check(audit, is_filled=True)


@pytest.mark.parametrize(
    "change",
    [
        {"output": {"uri": "elsewhere/2026-11"}},
        {"output": {"uri": "releases/2026-11/../../elsewhere"}},
        {"output": {"uri": "releases/2026-11\n"}},
        {"output": {"uri": "releases/{date}"}},
        {"previous": "elsewhere/2026-10"},
        {"previous": "releases/2026-10/../../elsewhere"},
        {"previous": "releases/.."},
        {"policy": {}},
        {"policy": {**ALLOWED["policy"], "min_released": 9}},
        {"source": {**ALLOWED["source"], "uri": "other photos"}},
        {"key_env": "ANONYMIZER_KEY_2"},
    ],
)
def test_any_other_configuration_is_refused(folder: Path, change: dict[str, Any]) -> None:
    for is_filled in (False, True):
        with pytest.raises(ConfigError, match=REFUSED):
            allowed_configs.check(config_of(ALLOWED | change), is_filled=is_filled)


def leaves(tree: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    if isinstance(tree, dict) and tree:
        for key, value in tree.items():
            yield from leaves(value, (*path, key))
    elif isinstance(tree, list) and tree:
        for i, value in enumerate(tree):
            yield from leaves(value, (*path, i))
    else:
        yield path, tree


EVERYTHING = config_of(ALLOWED).model_dump(mode="json")
VALUES = st.none() | st.booleans() | st.integers(-3, 300) | st.floats(0, 1) | st.text(max_size=8) | st.just([])


@hypothesis_settings(suppress_health_check=list(HealthCheck), deadline=None)
@given(leaf=st.sampled_from(list(leaves(EVERYTHING))), value=VALUES)
def test_whatever_one_value_is_changed_to_is_refused(folder: Path, leaf: tuple[Any, Any], value: Any) -> None:
    path, _ = leaf
    tree = config_of(ALLOWED).model_dump(mode="json")
    inner = tree
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    try:
        config = config_of(tree)
    except ConfigError:
        return
    is_same = config == config_of(ALLOWED) or path == ("previous",)
    is_same |= path == ("output", "uri") and bool(re.fullmatch(r"releases/\d{4}-\d{2}", str(value)))
    if is_same:
        return
    with pytest.raises(ConfigError, match=REFUSED):
        allowed_configs.check(config, is_filled=True)


def test_a_flow_run_with_another_configuration_ends_in_one_line(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_templates, "scheduled_start", lambda: datetime(2026, 11, 1, tzinfo=UTC))
    other = tmp_path / "other.yaml"
    other.write_text(yaml.safe_dump(ALLOWED | {"policy": {}}))
    for given_config in (str(other), ALLOWED | {"policy": {}}, config_of(ALLOWED | {"policy": {}})):
        with pytest.raises(ConfigError, match=REFUSED):
            run_templates.run_config(given_config)
    monkeypatch.setattr(run_templates, "newest_release_before", lambda uri: "releases/2026-10")
    assert run_templates.run_config(ALLOWED).output.uri == "releases/2026-11"
    with pytest.raises(ConfigError, match=REFUSED):
        run_templates.audit_config({"release": "releases/2026-11", "attacks": ["parrot"]})
    with pytest.raises(ConfigError, match=REFUSED):
        run_templates.calibration_config(build_resolved(CalibrationConfig, CALIBRATION))


CALIBRATION = yaml.safe_load((EXAMPLES / "calibration.yaml").read_text())


def test_a_single_file_and_the_examples_can_be_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faces.yaml").write_text(yaml.safe_dump(ALLOWED))
    monkeypatch.setenv(allowed_configs.VARIABLE, str(tmp_path / "faces.yaml"))
    allowed_configs.check(config_of(ALLOWED))
    for file in EXAMPLES.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    write_sums(tmp_path)
    monkeypatch.setenv(allowed_configs.VARIABLE, str(tmp_path))
    for kind, name in ((RunConfig, "release"), (AuditConfig, "audit"), (CalibrationConfig, "calibration")):
        tree = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
        allowed_configs.check(build_resolved(kind, tree))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda folder: (folder / "faces.yaml").write_text(yaml.safe_dump(ALLOWED | {"policy": {}})),
        lambda folder: (folder / "SHA256SUMS").unlink(),
        lambda folder: (folder / "faces.yaml").unlink(),
        lambda folder: (folder / "SHA256SUMS").write_text("../faces.yaml\n"),
        lambda folder: (folder / "SHA256SUMS").write_text(f"{'0' * 64}  ../faces.yaml\n"),
        lambda folder: (folder / "SHA256SUMS").write_bytes(b"\xff"),
    ],
)
def test_a_place_that_is_not_as_its_digests_say_refuses_everything(folder: Path, spoil: Any) -> None:
    spoil(folder)
    with pytest.raises(ConfigError, match=rf"^{allowed_configs.VARIABLE}: "):
        allowed_configs.check(config_of(ALLOWED))


@pytest.mark.parametrize("place", ["", ".", "faces.yaml", "/missing"])
def test_a_pin_to_nothing_refuses_everything(folder: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.chdir(folder)  # what lies in the working directory allows nothing
    monkeypatch.setenv(allowed_configs.VARIABLE, place)
    with pytest.raises(ConfigError, match=rf"^{allowed_configs.VARIABLE}: no file, and no folder"):
        allowed_configs.check(config_of(ALLOWED))


def test_a_file_that_the_digests_do_not_list_is_not_allowed(folder: Path) -> None:
    (folder / "more.yaml").write_text(yaml.safe_dump(ALLOWED | {"policy": {}}))
    with pytest.raises(ConfigError, match=REFUSED):
        allowed_configs.check(config_of(ALLOWED | {"policy": {}}))


def test_a_worker_does_not_start_unless_it_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(allowed_configs.VARIABLE, raising=False)
    done = CliRunner().invoke(main, ["worker", "anonymizer-cpu"])
    assert done.exit_code == 2 and done.output.startswith(f"error: {allowed_configs.VARIABLE}: not set")


def test_a_range_runs_on_the_sealed_settings_of_an_allowed_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    allowed = settings(folder_of(tmp_path / "in", {"1.png": picture(1)}), tmp_path / "releases" / "{month}")
    monkeypatch.setenv(allowed_configs.VARIABLE, str(tmp_path / "release.yaml"))
    (tmp_path / "release.yaml").write_text(yaml.safe_dump(allowed.model_dump(mode="json", exclude_defaults=True)))
    filled = run_templates.fill_templates(allowed, datetime(2026, 11, 1, tzinfo=UTC))
    run(filled)
    planned = release_job.read_planned_config(filled.output.uri)
    assert allowed_configs.check(planned, is_filled=True) == planned
    other = filled.model_copy(update={"output": filled.output.model_copy(update={"uri": str(tmp_path / "other")})})
    run(other)
    with pytest.raises(ConfigError, match=REFUSED):
        allowed_configs.check(release_job.read_planned_config(other.output.uri), is_filled=True)
