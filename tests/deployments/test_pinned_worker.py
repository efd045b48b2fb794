"""A pinned worker does only allowed releases, whatever somebody who reaches Prefect's API asks of it."""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from anonymizer.config import RunConfig
from anonymizer.storage.layout import Release
from tests.support.planted_leaks import PUBLISHER
from tests.support.prefect_site import ROOT, Site, running, wait
from tests.support.releases import HEX, people, settings

ENDED = ("COMPLETED", "FAILED", "CRASHED")
POOL = "anonymizer-cpu"
HOSTILE_MODULE = """
import os
from prefect import flow
open(os.environ.get("MARK", {mark!r}), "a").write("module\\n")
@flow(name="release", on_cancellation=[lambda *a: open({mark!r}, "a").write("hook\\n")])
def release(config=None): open({mark!r}, "a").write("flow\\n")
"""


class Attacker:
    """Somebody who reaches the API of a site, and the disk that its data lies on."""

    def __init__(self, site: Site, folder: Path) -> None:
        self.site, self.folder, self.mark = site, folder, folder / "mark"
        (folder / "hostile.py").write_text(HOSTILE_MODULE.format(mark=str(self.mark)))
        self.count = 0

    def run(self, parameters: Any, flow: str = "release", **deployment: Any) -> dict[str, Any]:
        """Make a deployment, run it, and return its flow run once that has ended."""
        self.count += 1
        body: dict[str, Any] = {
            "name": f"attack-{self.count}", "flow_id": self.site.ask("flows/", {"name": flow})["id"],
            "work_pool_name": POOL, "entrypoint": "flows.release.release", "enforce_parameter_schema": False,
        }  # fmt: skip
        made = self.site.ask("deployments/", body | deployment)
        run = self.site.ask(f"deployments/{made['id']}/create_flow_run", {"parameters": parameters})
        path = f"flow_runs/{run['id']}"
        ended = wait(lambda: (now := self.site.ask(path))["state"]["type"] in ENDED and now, 180)
        assert ended, self.site.log("pinned")
        found: dict[str, Any] = ended
        return found


@pytest.fixture
def site(tmp_path: Path, tiny_model: Path) -> Iterator[tuple[Site, Attacker, RunConfig]]:
    folder, allowed = tmp_path / "site", tmp_path / "allowed"
    folder.mkdir()
    allowed.mkdir()
    config = settings(
        people(tmp_path / "in", 2), tmp_path / "out", model={"id": str(tiny_model)}, policy={"min_released": 1},
        metrics={"clip": "none", "lpips": "none"},
    )  # fmt: skip
    text = yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)).encode()
    (allowed / "release.yaml").write_bytes(text)
    (allowed / "SHA256SUMS").write_text(f"{hashlib.sha256(text).hexdigest()}  release.yaml\n")
    with running(folder, "sqlite") as site:
        template = str(ROOT / "deployments" / "work-pools" / "process.json")
        site.prefect("work-pool", "create", POOL, "--type", "process", "--base-job-template", template)
        site.work(
            "pinned", POOL, ANONYMIZER_POLICY=str(allowed), ANONYMIZER_KEY=HEX,
            ANONYMIZER_SIGNING_KEY=PUBLISHER.private_bytes.decode(),
        )  # fmt: skip
        yield site, Attacker(site, folder), config


@pytest.mark.slow
def test_a_pinned_worker_does_what_it_is_pinned_to_and_nothing_else(site: tuple[Site, Attacker, RunConfig]) -> None:
    site, attacker, config = site
    tree, mark = config.model_dump(mode="json"), str(attacker.mark)
    request = urllib.request.Request(f"{site.url}/flows/filter", b"{}", {"Content-Type": "application/json"})
    with pytest.raises(urllib.error.HTTPError, match="401"):  # without the password
        urllib.request.urlopen(request, timeout=15)

    weaker = tree | {"policy": {}}
    elsewhere = tree | {"output": {**tree["output"], "uri": str(attacker.folder / "stolen")}}
    file = attacker.folder / "weaker.yaml"
    file.write_text(yaml.safe_dump(weaker))
    for settings_of_attacker in (elsewhere, str(file)):
        run = attacker.run({"config": settings_of_attacker})
        assert run["state"]["type"] == "FAILED"
        assert "none of those that this worker is pinned to" in run["state"]["message"]
    assert attacker.run({})["state"]["type"] != "COMPLETED"
    run = attacker.run({}, flow="erase")
    assert "flow: is none that a pinned worker runs" in run["state"]["message"]

    # Code, commands, environment and folders of the attacker's own: nothing of them is run or read.
    shell = {"prefect.deployments.steps.run_shell_script": {"script": f"touch {mark}"}}
    environment = {"ANONYMIZER_POLICY": str(file), "PYTHONPATH": str(attacker.folder), "MARK": mark}
    environment["PREFECT__FLOW_ENTRYPOINT"] = "hostile.py:release"
    for deployment in (
        {"pull_steps": [shell], "job_variables": {"command": f"touch {mark}"}},
        {
            "entrypoint": "hostile.py:release", "path": str(attacker.folder),
            "job_variables": {"env": environment, "working_dir": str(attacker.folder)},
        },
    ):  # fmt: skip
        run = attacker.run({"config": weaker}, **deployment)
        assert run["state"]["type"] == "FAILED", deployment
        assert "none of those that this worker is pinned to" in run["state"]["message"], deployment
    assert not attacker.mark.exists(), attacker.mark.read_text()
    assert not Release.at(config.output.uri).root.exists() and not (attacker.folder / "stolen").exists()

    run = attacker.run({"config": tree})
    assert run["state"]["type"] == "COMPLETED", site.log("pinned")
    assert Release.at(config.output.uri).is_published
