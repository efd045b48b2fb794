"""Metadata and hidden content of an image are found, even in a release that is signed again."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.support.releases import (
    encoded,
)
from tests.support.signed_release import (
    GREY,
    check,
    encode_image,
    failed_checks,
    replace_image,
)


def with_text() -> PngInfo:
    info = PngInfo()
    info.add_text("Author", "Ada")
    return info


def with_place() -> Image.Exif:
    exif = Image.Exif()
    exif[0x8825] = {1: "N"}
    return exif


SMUGGLED = {
    "text": (encode_image(GREY, pnginfo=with_text()), "carries text"),
    "where it was taken": (encode_image(GREY, exif=with_place()), "carries exif, gps"),
    "bytes at its end": (encode_image(GREY) + b"original.png", "carries trailing data"),
    "transparency": (encode_image(GREY.convert("RGBA")), "holds more than one opaque picture"),
    "a second frame": (
        encode_image(GREY, save_all=True, append_images=[Image.new("RGB", (8, 8), "red")]),
        "holds more than one opaque",
    ),
    "another size": (encode_image(GREY.resize((9, 8))), "has another size"),
    "another kind": (encode_image(GREY, "JPEG"), "does not decode"),
    "a cut one": (encode_image(GREY)[:60], "carries unreadable"),
}  # fmt: skip


@pytest.mark.parametrize("what", SMUGGLED)
def test_hidden_content_of_an_image_is_found(folder_half: Path, what: str) -> None:
    data, predicate = SMUGGLED[what]
    replace_image(folder_half, data)
    (one,) = [finding for finding in check(folder_half) if finding.result == "fail"]
    assert one.check == "pictures" and predicate in one.message


def test_another_plain_image_that_is_signed_passes(folder_half: Path) -> None:
    replace_image(folder_half, encoded(np.full((8, 8, 3), 99, dtype=np.uint8)))
    assert failed_checks(folder_half) == set()
