"""Every command and every line of Python in the documentation is run as a reader would run it, or says why not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.snippets import read_snippets, script_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/reference").glob("*.md"))]
RUN = [page for page in PAGES if any(snippet.reason is None for snippet in read_snippets(page))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_block_that_is_not_run_says_why(page: Path) -> None:
    for snippet in read_snippets(page):
        assert snippet.reason is None or len(snippet.reason.split()) >= 2, snippet.code


@pytest.mark.slow
@pytest.mark.parametrize("page", RUN, ids=lambda page: page.name)
def test_the_commands_of_a_page_work(page: Path, world: Path, tmp_path: Path, prefect_home: Path) -> None:
    folder = tmp_path / "reader"
    shutil.copytree(world, folder)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(tmp_path),
    }
    done = subprocess.run(
        ["bash", "-c", script_of(page)], cwd=folder, env=environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
