"""An image folder: ``images/LABEL/ID.png``, or the first two letters of the id where there is no label.

Captions and carried columns are repeated in a file that Hugging Face's ImageFolder reads.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from math import isfinite
from typing import Any
from urllib.parse import quote

from anonymizer.data.sinks.base import ImageLocation, ReleasedImage, make_folder
from anonymizer.schema import OWN_TYPES
from anonymizer.storage import filesystem
from anonymizer.storage.parquet import BATCH_ROWS, TableLike
from anonymizer.storage.path import translate_storage_errors
from anonymizer.storage.prefetch import prefetch_map

FILE_COLUMN = re.compile(r"(^|_)file_names?$")  # ImageFolder takes such a column for the names of files


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


def metadata_columns(manifest: TableLike) -> list[str]:
    """Return the columns that the metadata of an image folder repeats; none where the folders say all that is carried.

    Columns whose names ImageFolder would take for those of files are left out.
    """
    if manifest["member"].null_count < len(manifest):
        return []
    carried = [name for name in manifest.column_names if name not in OWN_TYPES and not FILE_COLUMN.search(name)]
    texts = [name for name in ("label", "caption") if manifest[name].null_count < len(manifest)]
    return [*texts, *carried] if carried or "caption" in texts else []


def metadata_lines(manifest: TableLike) -> Iterator[bytes]:
    """Yield a JSON line for each image: the path of its file as ``file_name``, and its columns; nothing without any."""
    if columns := metadata_columns(manifest):
        for batch in manifest.select(["file", *columns]).to_batches(max_chunksize=BATCH_ROWS):
            for row in batch.to_pylist():
                finite = {k: None if isinstance(v, float) and not isfinite(v) else v for k, v in row.items()}
                line = {"file_name": finite.pop("file"), **finite}
                yield json.dumps(line, ensure_ascii=False).encode() + b"\n"


def label_folder(label: str) -> str:
    """Return a label as a folder name: percent-encoded; a name too long for file systems is cut, with a digest."""
    name = quote(label, safe="")
    if not name.strip("."):
        name = name.replace(".", "%2E")
    if len(name) > 200:
        name = f"{name[:180]}~{hashlib.sha256(label.encode()).hexdigest()[:16]}"
    return name
