"""No measured risk reaches the scheduler: a Prefect server's database and files are searched for every figure."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from anonymizer.config import AuditConfig, RunConfig
from anonymizer.errors import ConfigError, GateError
from anonymizer.policy.calibration import build_resolved
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release
from flows.jobs import audit as audit_job
from flows.jobs import release as release_job
from tests.support.calibrations import KIND, calibration, level, sealed
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.prefect_database import cells
from tests.support.releases import HEX, PlainScorer, folder_of, picture
from tests.support.signing_keys import PUBLISHER

# Risks with digits that stand nowhere else.
CHOSEN, CONFIRMED, HIGH = 0.0412837, 0.0198273, 0.7193846


def told(home: Path) -> bytes:
    """All that the server was told: its database, and the files beside it."""
    values = [value if isinstance(value, bytes) else str(value).encode() for _, _, value in cells(home)]
    return b"\n".join([*values, *(path.read_bytes() for path in home.rglob("*") if path.is_file())])


def spellings(figure: float) -> set[bytes]:
    """A figure as Python, JSON or a message may write it, where it has digits enough to be told from a count."""
    forms = {repr(figure), f"{figure:.3f}", f"{100 * figure:.1f}", f"{figure:.6g}"}
    return {form.encode() for form in forms if len(form.partition(".")[2]) > 3}


@pytest.mark.slow
def test_no_risk_that_was_measured_reaches_the_scheduler(
    tmp_path: Path, prefect_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from flows import audit as audit_flow  # with Prefect, which reads its settings then
    from flows import release as release_flow

    monkeypatch.setenv("ANONYMIZER_KEY", HEX)
    monkeypatch.setenv("ANONYMIZER_SIGNING_KEY", PUBLISHER.private_bytes.decode())
    for job in (release_job, audit_job):
        monkeypatch.setattr(job, "backbone_of", lambda model: IdealGaussian())
        monkeypatch.setattr(job, "scorer_of", lambda metrics, device: PlainScorer())
    source = folder_of(tmp_path / "in", {f"{i}.png": picture(i) for i in range(24)})
    (tmp_path / "c.json").write_bytes(
        sealed(calibration(level(0.4, HIGH), level(0.6, CHOSEN, CONFIRMED), level(0.8, CHOSEN, CHOSEN)))
    )
    rule = {"calibration": str(tmp_path / "c.json"), "max_risk": 0.05}
    tree: dict[str, Any] = {
        "source": {"uri": str(source), "kind": KIND},
        "output": {"uri": str(tmp_path / "out")},
        "boomerang": {"level": rule, "steps": 2},
        "policy": {"risk": {"max_linkage": {"upper": 0.0001}}, "attackers": {"features": ["pixels"], "averaged": 20}},
    }
    # As a deployment does: the rule is resolved inside the flow. First one that no level keeps, and one unconfirmed.
    for max_risk in (0.001, 0.03):
        impossible = tree | {"boomerang": {"level": rule | {"max_risk": max_risk}, "steps": 2}}
        with pytest.raises(ConfigError, match="no level"):
            release_flow.release(impossible)
    for config in (tree, build_resolved(RunConfig, tree)):  # as a deployment, and as the command line does
        with pytest.raises(GateError, match=r"max_linkage \(upper end at most 0\.0001\)"):
            release_flow.release(config)
        attacked = {"attacks": ["linkage"], "features": ["pixels"], "averaged": 20}
        audit_flow.audit(build_resolved(AuditConfig, {"release": str(tmp_path / "out")} | attacked))
    release = Release.at(str(tmp_path / "out"))
    rows = parquet.read(release.audit / "figures.parquet").to_pylist()
    figures = {value for row in rows for value in row.values() if isinstance(value, float)} | {CHOSEN, CONFIRMED, HIGH}
    document = told(prefect_home)
    assert f'"max_risk": {rule["max_risk"]}'.encode() in document.replace(b'":0', b'": 0'), "settings are there"
    forms = {form for figure in figures for form in spellings(figure)}
    assert len(forms) > 20 and not [form for form in sorted(forms) if form in document]
    assert json.loads((release.audit / "audit.json").read())["attackers"]["features"] == ["pixels"]
