"""Every command and every line of Python in the documentation is run as a reader would run it, or says why not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support import ROOT
from tests.support.snippets import read_snippets, script_of

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "docs/reference").glob("*.md"))]
RUN = [page for page in PAGES if any(snippet.reason is None for snippet in read_snippets(page))]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name: invented people as ``photos/``, in Parquet, small and large."""
    folder = tmp_path_factory.mktemp("world")
    sheet = Image.open(ROOT / "anonymizer/bundled/faces-64/sheet.png").convert("RGB")
    margin, side, rows = 110, 128, []  # labels on the left; samples at twice their size
    boxes = [(margin + i * side, 0, margin + (i + 1) * side, side) for i in range(6)]
    tiles = [sheet.crop(box).resize((64, 64)) for box in boxes]
    for number, tile in enumerate(tiles):
        person = f"person{number % 3}"
        for name, image in (("photos", tile), ("more-photos", tile.transpose(Image.Transpose.FLIP_LEFT_RIGHT))):
            path = folder / name / person / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            image.save(path)
        for name, side in (("small", 16), ("full-size", 64)):
            (folder / name).mkdir(exist_ok=True)
            tile.resize((side, side), Image.Resampling.LANCZOS).save(folder / name / f"{number}.png")
        data = (folder / "photos" / person / f"{number}.png").read_bytes()
        rows.append({"image": data, "split": "test" if number < 4 else "train", "label": person, "age": 30 + number})
    pq.write_table(pa.Table.from_pylist(rows), folder / "photos.parquet")
    shutil.copytree(ROOT / "deployments", folder / "deployments")
    return folder


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
