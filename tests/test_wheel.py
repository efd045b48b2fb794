"""The package installs from a wheel, and runs its demo in an empty folder."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from tests.support import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, timeout=600)
    (path,) = folder.glob("*.whl")
    return path


@pytest.mark.slow
def test_a_wheel_has_all_that_is_needed_and_no_more(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"{top}/py.typed" for top in ("anonymizer", "metrics", "flows")} <= names
    assert {f"anonymizer/bundled/{model}/README.md" for model in ("faces-64", "cifar10-32", "clip-mini")} <= names
    assert any(name.endswith("report/templates/restricted.html.j2") for name in names)
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert any(name.endswith("LicenseRef-Bundled-Weights.txt") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "docs/", "benchmarks/"))]
    metadata = zipfile.ZipFile(wheel).read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert "License-Expression: Apache-2.0 AND LicenseRef-Bundled-Weights" in metadata


@pytest.mark.slow
def test_the_demo_runs_from_a_wheel_in_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    """In an environment of its own, which borrows what the package depends on from this one."""
    inherited = ("PYTHON", "PREFECT", "ANONYMIZER")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(inherited)}
    environment = tmp_path / "environment"
    subprocess.run([sys.executable, "-m", "venv", str(environment)], check=True, timeout=300)
    python = environment / "bin" / "python"
    site = subprocess.run(
        [str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
        capture_output=True, text=True, check=True,
    ).stdout.strip()  # fmt: skip
    subprocess.run(
        [str(python), "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True, timeout=300,
        capture_output=True, env=clean, cwd=tmp_path,
    )  # fmt: skip
    Path(site, "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    empty = tmp_path / "empty"
    empty.mkdir()
    done = subprocess.run(
        [str(environment / "bin" / "anonymizer"), "demo", "--pictures", "12"],
        cwd=empty, env=clean | {"HOME": str(tmp_path)}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert (empty / "demo/release/public/manifest.parquet").exists()
    where = [str(python), "-c", "import anonymizer; print(anonymizer.__file__)"]
    found = subprocess.run(where, cwd=empty, env=clean, capture_output=True, text=True, check=True).stdout
    assert found.startswith(str(environment)), "the wheel, not the checkout"
