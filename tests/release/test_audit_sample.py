"""Outsiders are outside: what is among the originals of a release is no outsider."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from anonymizer.config import SourceConfig
from anonymizer.release.audit_sample import ImageSet, Outsiders, draw_images, exclude_insiders
from tests.support.releases import encoded, listing, picture


def read(root: Path, pictures: dict[str, bytes], who: dict[str, str] | None = None) -> ImageSet:
    """Pictures of a folder; ``who`` says who is on them."""
    root.mkdir()
    for name, data in pictures.items():
        (root / name).write_bytes(data)
    items = [{"image": name, "who": (who or {}).get(name, name)} for name in pictures]
    source = SourceConfig(uri=str(listing(root, items)), label="who")
    return draw_images(source, 8, 100, np.random.default_rng(0))


@pytest.fixture
def insiders(tmp_path: Path) -> ImageSet:
    return read(tmp_path / "in", {f"{i}.png": picture(i) for i in range(4)}, {"0.png": "Ada"})


def test_a_picture_of_the_release_is_no_outsider(tmp_path: Path, insiders: ImageSet) -> None:
    pixels = np.random.default_rng(2).integers(40, 200, (8, 10, 3), dtype=np.uint8)  # picture(2), saved another way
    given = {"a.png": picture(1), "b.bmp": encoded(pixels, "BMP"), "c.png": picture(9), "d.png": picture(8)}
    result = exclude_insiders(read(tmp_path / "out", given), insiders, identified=False)
    assert (result.same_picture, result.same_person, len(result.images)) == (2, 0, 2)
    assert result.images.labels == ["c.png", "d.png"] and result.images.images.shape == (2, 3, 8, 8)
    assert result.note == "outsiders: 2 left out that are originals of the release, and 0 that show its people"


def test_people_of_the_release_are_no_outsiders_where_people_are_known(tmp_path: Path, insiders: ImageSet) -> None:
    given = read(tmp_path / "out", {"a.png": picture(9), "b.png": picture(8), "c.png": picture(0)}, {"a.png": "Ada"})
    result = exclude_insiders(given, insiders, identified=True)
    assert (result.same_picture, result.same_person, result.images.labels) == (1, 1, ["b.png"])
    assert exclude_insiders(given, insiders, identified=False).same_person == 0


def test_people_without_a_name_are_not_one_person(insiders: ImageSet) -> None:
    columns = [["x"] * 4, [None] * 4, [None] * 4, [{}] * 4, [1] * 4, [(8, 8)] * 4]
    strangers = ImageSet(insiders.images + 1, *columns, [b""] * 4)
    unnamed = ImageSet(insiders.images, *columns, [b"a"] * 4)
    result = exclude_insiders(strangers, unnamed, identified=True)
    assert len(result.images) == 4 and result.note is None


def test_outsiders_who_are_all_inside_leave_none(insiders: ImageSet) -> None:
    result = exclude_insiders(insiders, insiders, identified=True)
    assert isinstance(result, Outsiders) and not result.images and result.same_picture == 4
    assert result.images.images.shape == (0, 3, 8, 8)
