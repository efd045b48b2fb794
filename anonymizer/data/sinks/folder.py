"""An image folder: ``images/LABEL/ID.png``, or the first two letters of the id where there is no label."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from anonymizer.data.sinks.base import ImageLocation, ReleasedImage, make_folder
from anonymizer.storage import filesystem
from anonymizer.storage.path import translate_storage_errors
from anonymizer.storage.prefetch import prefetch_map


class FolderSink:
    """One file for each image."""

    def write(self, images: Iterable[ReleasedImage], fs: Any, folder: str) -> Iterator[ImageLocation]:
        existing: set[str] = set()

        def put(image: ReleasedImage) -> ImageLocation:
            group = label_folder(image.label) if image.label else image.output_id[:2]
            if group not in existing:
                make_folder(fs, f"{folder}/images/{group}")
                existing.add(group)
            file = f"images/{group}/{image.output_id}{image.suffix}"
            with translate_storage_errors(fs):
                filesystem.with_retries(lambda: fs.pipe_file(f"{folder}/{file}", image.data))
            return ImageLocation(image.output_id, file)

        if filesystem.is_local(fs):
            yield from map(put, images)
            return
        with ThreadPoolExecutor(filesystem.MAX_PARALLEL_REQUESTS, "sink") as pool:  # one request for each image
            yield from prefetch_map(put, images, pool, 2 * filesystem.MAX_PARALLEL_REQUESTS)


def label_folder(label: str) -> str:
    """Return a label as a folder name: percent-encoded; a name too long for file systems is cut, with a digest."""
    name = quote(label, safe="")
    if not name.strip("."):
        name = name.replace(".", "%2E")
    if len(name) > 200:
        name = f"{name[:180]}~{hashlib.sha256(label.encode()).hexdigest()[:16]}"
    return name
