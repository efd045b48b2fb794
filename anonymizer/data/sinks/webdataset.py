"""WebDataset tar parts: ``ID.png`` followed by ``ID.cls``, ``ID.txt`` and ``ID.json`` (label, carried columns)."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from anonymizer.data.sinks import base
from anonymizer.data.sinks.base import Divider, ImageLocation, ReleasedImage, make_folder
from anonymizer.storage.path import translate_storage_errors


class WebDatasetSink:
    """Writes ``data/part-00000.tar`` and so on; no times, owners or names in the headers."""

    def write(self, images: Iterable[ReleasedImage], fs: Any, folder: str) -> Iterator[ImageLocation]:
        make_folder(fs, f"{folder}/data")
        for part, part_images in groupby(images, Divider(base.PART_ROWS, base.PART_BYTES).add):
            file = f"data/part-{part:05d}.tar"
            with (
                translate_storage_errors(fs),
                fs.open(f"{folder}/{file}", "wb") as raw,
                tarfile.TarFile(fileobj=raw, mode="w", format=tarfile.USTAR_FORMAT) as tar,
            ):
                for image in part_images:
                    for name, data in _members(image):
                        header = tarfile.TarInfo(name)  # its defaults: time 0, owner 0, no names
                        header.size = len(data)
                        tar.addfile(header, io.BytesIO(data))
                        tar.members.clear()  # type: ignore[attr-defined]  # TarFile stores every member
                    yield ImageLocation(image.output_id, file, f"{image.output_id}{image.suffix}")


def _members(image: ReleasedImage) -> Iterator[tuple[str, bytes]]:
    """Yield names and contents. WebDataset decodes ``.cls`` as a number, so other labels are in ``.json`` only."""
    yield f"{image.output_id}{image.suffix}", image.data
    values = {**image.columns} | ({} if image.label is None else {"label": image.label})
    if image.label is not None and image.label.isascii() and image.label.removeprefix("-").isdigit():
        yield f"{image.output_id}.cls", image.label.encode()
    if image.caption is not None:
        yield f"{image.output_id}.txt", image.caption.encode()
    if values:
        yield f"{image.output_id}.json", json.dumps(values, ensure_ascii=False, sort_keys=True).encode()
