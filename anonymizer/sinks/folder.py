"""An image folder: ``images/LABEL/ID.png``, or by the first two letters of the id where no label is carried."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any
from urllib.parse import quote

from anonymizer.sinks import Placed, ReleasedPicture
from anonymizer.sinks.writing import make_folder, output_errors


class FolderSink:
    """One file for each picture."""

    def write(self, pictures: Iterable[ReleasedPicture], fs: Any, folder: str) -> Iterator[Placed]:
        made: set[str] = set()
        for picture in pictures:
            group = folder_name(picture.label) if picture.label else picture.output_id[:2]
            if group not in made:
                make_folder(fs, f"{folder}/images/{group}")
                made.add(group)
            file = f"images/{group}/{picture.output_id}{picture.suffix}"
            with output_errors(fs):
                fs.pipe_file(f"{folder}/{file}", picture.data)
            yield Placed(picture.output_id, file)


def folder_name(label: str) -> str:
    """A label as the name of one folder: percent-encoded; cut, with a digest, where file systems would refuse it."""
    name = quote(label, safe="")
    if not name.strip("."):
        name = name.replace(".", "%2E")
    if len(name) > 200:
        name = f"{name[:180]}~{hashlib.sha256(label.encode()).hexdigest()[:16]}"
    return name
