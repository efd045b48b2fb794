"""The demo: a dataset of nobody, full of leaks, and a release without them."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from anonymizer.bundled.demo_data import ADDRESS, encode_leaky_jpeg
from anonymizer.data import image_codec
from anonymizer.data.metadata import find_metadata
from anonymizer.storage.layout import Release
from flows.cli import main
from flows.cli.demo import MARKER_FILE, count_leaks
from tests.support.releases import folder_of, tree

NAME = "Ada Almqvist"


def test_a_demo_picture_has_every_leak_that_the_table_counts() -> None:
    data = encode_leaky_jpeg(torch.zeros(3, 64, 64), NAME)
    assert set(find_metadata(data)) >= {"exif", "gps", "xmp", "icc", "comment", "thumbnail"}
    assert NAME.encode() in data
    assert ADDRESS.encode() in data
    Image.open(io.BytesIO(data)).load()
    assert image_codec.decode(data, 64).tensor.shape == (3, 64, 64)


def test_the_table_counts_leaks_where_they_are(tmp_path: Path) -> None:
    leaky = encode_leaky_jpeg(torch.zeros(3, 64, 64), NAME)
    source = folder_of(tmp_path / "source", {"Ada_Almqvist_000.jpg": leaky, "b.jpg": leaky})
    public = folder_of(Path(Release.at(str(tmp_path / "release")).public.path), {"images/x.png": b"", "y.jpg": leaky})
    counts = {leak: files for leak, *files in count_leaks(source, public, [NAME])}
    assert counts["a name in the file name"] == [1, 0]
    assert all(files == [2, 1] for leak, files in counts.items() if leak != "a name in the file name")


def test_a_demo_replaces_its_own_folder_and_no_other(tmp_path: Path) -> None:
    folder_of(tmp_path / "mine", {"diary.txt": b"dear"})
    refused = CliRunner().invoke(main, ["demo", "--output", str(tmp_path / "mine")])
    assert refused.exit_code == 2
    earlier = folder_of(tmp_path / "earlier", {MARKER_FILE: b"", "release/public/x": b""})
    bad = CliRunner().invoke(main, ["demo", "--output", str(earlier), "--level", "2"])
    assert bad.exit_code == 2  # and nothing is removed before the settings are known to be good
    assert set(tree(earlier)) == {
        MARKER_FILE,
        "release/public/x",
    }


@pytest.mark.slow
def test_the_demo_shows_each_leak_gone(tmp_path: Path, prefect_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    done = CliRunner().invoke(main, ["demo", "--output", str(tmp_path / "demo"), "--pictures", "12"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert "Released 12 of 14 records, in 4 pictures of 3 or more each" in done.stdout
    assert "empty: 1, truncated: 1" in done.stdout
    assert "FAIL" not in done.stdout
    assert "an ICC profile" in done.stdout
    counts = count_leaks(tmp_path / "demo/source", tmp_path / "demo/release/public", [NAME])
    assert {public for _, _, public in counts} == {0}
    assert 0 not in {source for _, source, _ in counts}
