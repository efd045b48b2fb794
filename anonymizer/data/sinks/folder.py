"""An image folder: ``images/LABEL/ID.png``, or by the first two letters of the id where no label is carried."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

from anonymizer.data.sinks import Placed, ReleasedPicture
from anonymizer.data.sinks.errors import make_folder, output_errors
from anonymizer.storage import filesystem
from anonymizer.storage.prefetch import ahead


class FolderSink:
    """One file for each picture."""

    def write(self, pictures: Iterable[ReleasedPicture], fs: Any, folder: str) -> Iterator[Placed]:
        made: set[str] = set()

        def put(picture: ReleasedPicture) -> Placed:
            group = folder_name(picture.label) if picture.label else picture.output_id[:2]
            if group not in made:
                make_folder(fs, f"{folder}/images/{group}")
                made.add(group)
            file = f"images/{group}/{picture.output_id}{picture.suffix}"
            with output_errors(fs):
                filesystem.patiently(lambda: fs.pipe_file(f"{folder}/{file}", picture.data))
            return Placed(picture.output_id, file)

        if filesystem.is_local(fs):
            yield from map(put, pictures)
            return
        with ThreadPoolExecutor(filesystem.AT_ONCE, "sink") as pool:  # each takes a request
            yield from ahead(put, pictures, pool, 2 * filesystem.AT_ONCE)


def folder_name(label: str) -> str:
    """A label as the name of one folder: percent-encoded; cut, with a digest, where file systems would refuse it."""
    name = quote(label, safe="")
    if not name.strip("."):
        name = name.replace(".", "%2E")
    if len(name) > 200:
        name = f"{name[:180]}~{hashlib.sha256(label.encode()).hexdigest()[:16]}"
    return name
