"""WebDataset tar parts: ``ID.png`` with ``ID.json`` (label, carried columns), ``ID.cls`` and ``ID.txt`` beside it."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator
from typing import Any

from anonymizer.data import sinks
from anonymizer.data.sinks import ImageLocation, ReleasedImage
from anonymizer.data.sinks.errors import make_folder, translate_storage_errors


class WebDatasetSink:
    """``data/part-00000.tar`` and so on; no times, owners or names in the headers."""

    def write(self, images: Iterable[ReleasedImage], fs: Any, folder: str) -> Iterator[ImageLocation]:
        make_folder(fs, f"{folder}/data")
        waiting = iter(images)
        first = next(waiting, None)
        part = 0
        while first is not None:
            file = f"data/part-{part:05d}.tar"
            rows = size = 0
            with translate_storage_errors(fs), fs.open(f"{folder}/{file}", "wb") as raw, _open_tar(raw) as tar:
                while first is not None and (not rows or _fits(rows, size, first)):
                    for name, data in _members(first):
                        _add_member(tar, name, data)
                    yield ImageLocation(first.output_id, file, f"{first.output_id}{first.suffix}")
                    rows, size = rows + 1, size + len(first.data)
                    first = next(waiting, None)
            part += 1


def _fits(rows: int, size: int, picture: ReleasedImage) -> bool:
    return rows < sinks.PART_ROWS and size + len(picture.data) <= sinks.PART_BYTES


def _open_tar(file: Any) -> tarfile.TarFile:
    return tarfile.TarFile(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT)


def _members(picture: ReleasedImage) -> Iterator[tuple[str, bytes]]:
    """Names and contents. ``.cls`` is a number to WebDataset's decoders, so other labels stand in ``.json`` only."""
    yield f"{picture.output_id}{picture.suffix}", picture.data
    known = {**picture.columns} | ({} if picture.label is None else {"label": picture.label})
    if picture.label is not None and picture.label.isascii() and picture.label.removeprefix("-").isdigit():
        yield f"{picture.output_id}.cls", picture.label.encode()
    if picture.caption is not None:
        yield f"{picture.output_id}.txt", picture.caption.encode()
    if known:
        yield f"{picture.output_id}.json", json.dumps(known, ensure_ascii=False, sort_keys=True).encode()


def _add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    header = tarfile.TarInfo(name)  # its defaults: time 0, owner 0, no names
    header.size = len(data)
    tar.addfile(header, io.BytesIO(data))
    tar.members.clear()  # type: ignore[attr-defined]  # it would remember every member
