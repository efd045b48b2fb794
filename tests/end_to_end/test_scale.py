"""Many records: each step of a release takes as much memory for a hundred thousand as for ten thousand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from tests.support import ROOT

pytestmark = [pytest.mark.scale, pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux")]

SMALL, LARGE = 10_000, 100_000
MORE = 64  # MiB that 90,000 further records may take in one process: held as rows, 40,000 took 110 to 120
BENCHMARK = ROOT / "benchmarks" / "scale.py"
EVERY = ["plan", "shards", "log", "reconcile", "assemble", "report", "publish", "inspect", "verify-both", "draw",
         "previous"]  # fmt: skip


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Peak memory of each step in a process of its own, for few records and for ten times as many."""
    work = tmp_path_factory.mktemp("scale")
    command = [sys.executable, str(BENCHMARK), "--workers", "2", "--shard-size", "500", "--work", str(work)]
    sizes = ["--records", str(SMALL), str(LARGE), "--json", str(work / "found.json"), "--steps", "imports", *EVERY]
    subprocess.run([*command, *sizes], check=True, env=os.environ | {"PYTHONPATH": str(BENCHMARK.parents[1])})
    found: dict[str, Any] = json.loads((work / "found.json").read_text())
    return found


@pytest.mark.parametrize("step", EVERY)
def test_memory_does_not_grow_with_the_number_of_records(measured: dict[str, Any], step: str) -> None:
    small, large = (measured[str(size)][step]["peak_mib"] for size in (SMALL, LARGE))
    assert large - small < MORE


def test_nothing_but_the_imports_takes_much(measured: dict[str, Any]) -> None:
    imports = measured[str(LARGE)]["imports"]["peak_mib"]
    over = {step: told["peak_mib"] - imports for step, told in measured[str(LARGE)].items()}
    assert max(value for step, value in over.items() if step != "shards") < 200, over
