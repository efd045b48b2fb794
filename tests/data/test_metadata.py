"""Metadata in encoded images is found, by its kind."""

from __future__ import annotations

import struct

from anonymizer.data.metadata import find_metadata
from tests.support.encoded_images import leaky, photo, saved


def test_metadata_is_found_by_kind() -> None:
    assert find_metadata(leaky("JPEG")) == ["comment", "exif", "gps", "icc", "timestamp", "xmp"]
    assert find_metadata(leaky("PNG")) == ["exif", "gps", "icc", "text", "timestamp", "xmp"]
    assert find_metadata(leaky("WEBP")) == ["exif", "gps", "icc", "timestamp", "xmp"]
    assert set(find_metadata(leaky("TIFF"))) >= {"icc", "text", "timestamp"}
    assert find_metadata(saved(photo(), "GIF", comment=b"Jane")) == ["comment"]
    assert find_metadata(b"no picture") == ["unreadable"]
    for kind in ("JPEG", "PNG", "WEBP"):
        assert find_metadata(saved(photo(), kind)) == []
        assert find_metadata(saved(photo(), kind) + b"Jane Doe") == ["trailing data"]


def test_a_thumbnail_an_iptc_block_and_a_late_comment_in_a_jpeg_are_found() -> None:
    def segment(marker: int, body: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body

    data = saved(photo(), "JPEG")
    ifd1 = struct.pack("<HHHIII", 1, 0x0103, 3, 1, 6, 0)
    block = b"II*\0" + struct.pack("<IHI", 8, 0, 14) + ifd1
    assert find_metadata(data[:2] + segment(0xE1, b"Exif\0\0" + block) + data[2:]) == ["exif", "thumbnail"]
    assert find_metadata(data[:2] + segment(0xED, b"Photoshop 3.0\0") + data[2:]) == ["iptc"]
    assert find_metadata(data[:2] + segment(0xE7, b"maker") + data[2:]) == ["other (APP7)"]
    assert find_metadata(data[:-2] + segment(0xFE, b"Jane") + data[-2:]) == ["comment"]
    progressive = saved(photo(), "JPEG", progressive=True)
    assert find_metadata(progressive) == []
