"""The notebook goes from a folder to an audited release."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tests.support import ROOT

NOTEBOOK = ROOT / "docs/notebooks/first-release.ipynb"


def test_the_notebook_is_committed_without_outputs() -> None:
    """They would hold what a machine is called, and go stale."""
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(cell.get("outputs") for cell in cells)


@pytest.mark.slow
def test_the_notebook_runs(world: Path, tmp_path: Path, prefect_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(world / "photos", tmp_path / "photos")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    assert "PREFECT_API_URL" in os.environ
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [cell.outputs for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(output.output_type == "error" for cell in outputs for output in cell)
    findings = outputs[-1][0]["text"].splitlines()
    assert [line.split()[1] for line in findings if line.startswith("fail")] == ["signature"]  # it is not signed
