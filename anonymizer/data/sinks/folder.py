"""An image folder: ``images/LABEL/ID.png``, or by the first two letters of the id where no label is carried."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from anonymizer.data.sinks import ImageLocation, ReleasedImage
from anonymizer.data.sinks.errors import make_folder, translate_storage_errors
from anonymizer.storage import filesystem
from anonymizer.storage.prefetch import prefetch_map


class FolderSink:
    """One file for each picture."""

    def write(self, images: Iterable[ReleasedImage], fs: Any, folder: str) -> Iterator[ImageLocation]:
        made: set[str] = set()

        def put(picture: ReleasedImage) -> ImageLocation:
            group = label_folder(picture.label) if picture.label else picture.output_id[:2]
            if group not in made:
                make_folder(fs, f"{folder}/images/{group}")
                made.add(group)
            file = f"images/{group}/{picture.output_id}{picture.suffix}"
            with translate_storage_errors(fs):
                filesystem.with_retries(lambda: fs.pipe_file(f"{folder}/{file}", picture.data))
            return ImageLocation(picture.output_id, file)

        if filesystem.is_local(fs):
            yield from map(put, images)
            return
        with ThreadPoolExecutor(filesystem.MAX_PARALLEL_REQUESTS, "sink") as pool:  # each takes a request
            yield from prefetch_map(put, images, pool, 2 * filesystem.MAX_PARALLEL_REQUESTS)


def label_folder(label: str) -> str:
    """A label as the name of one folder: percent-encoded; cut, with a digest, where file systems would refuse it."""
    name = quote(label, safe="")
    if not name.strip("."):
        name = name.replace(".", "%2E")
    if len(name) > 200:
        name = f"{name[:180]}~{hashlib.sha256(label.encode()).hexdigest()[:16]}"
    return name
