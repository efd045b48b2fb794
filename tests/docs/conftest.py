"""What a reader of the documentation has at hand."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.support import ROOT


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the pages name: invented people as ``photos/``, in Parquet, small and large."""
    folder = tmp_path_factory.mktemp("world")
    sheet = Image.open(ROOT / "anonymizer/bundled/faces-64/sheet.png").convert("RGB")
    margin, side, rows = 110, 128, []  # labels on the left; samples at twice their size
    boxes = [(margin + i * side, 0, margin + (i + 1) * side, side) for i in range(6)]
    tiles = [sheet.crop(box).resize((64, 64)) for box in boxes]
    for number, tile in enumerate(tiles):
        person = f"person{(0, 0, 0, 1, 1, 2)[number]}"  # classes of different sizes
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
