"""Check of every file of a public half: none missing, none unaccounted for, each image as the manifest describes it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import chain, groupby
from operator import itemgetter

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.attest import statement
from anonymizer.attest.verify.archives import ImageOrProblem, read_part
from anonymizer.attest.verify.findings import Finding, pass_or_fail
from anonymizer.attest.verify.image import IMAGE_COLUMNS, ManifestRow, find_problem
from anonymizer.attest.verify.inventory import Inventory, open_file
from anonymizer.attest.verify.manifest import PART_PATTERN, passthrough_types
from anonymizer.data.pillow_warnings import suppress_pillow_warnings
from anonymizer.data.sinks.folder import metadata_lines
from anonymizer.storage import parquet
from anonymizer.storage.layout import AUDIT, IMAGE_METADATA, MANIFEST, REVOCATIONS, STATEMENT
from anonymizer.storage.parquet import TableLike
from anonymizer.storage.path import StoragePath
from anonymizer.storage.prefetch import chunked, prefetch_map

DOCUMENTS = {MANIFEST, REVOCATIONS, AUDIT, IMAGE_METADATA, "README.md", "report.html", "croissant.json"}
WRONG_SIZE = "has another size than was signed, and was not read"
CHUNK_SIZE = 32  # images that a thread checks in one go


@dataclass(frozen=True)
class ImageCheck:
    """How many images were checked, how many of them decoded, and the problems of some."""

    checked: int
    decoded: int
    problems: Sequence[str]


def check_sizes(folder: StoragePath, inventory: Inventory, sizes: Mapping[str, int] | None) -> Inventory:
    """Return the inventory with the files that have another size than was signed, of which not a byte is to be read."""
    wrong = {name for name in inventory.files.intersection(sizes or ()) if _size(folder / name) != (sizes or {})[name]}
    return replace(inventory, wrong_sizes=frozenset(wrong))


def _size(path: StoragePath) -> int | None:
    try:
        return int(path.fs.size(path.path))
    except OSError:
        return None


def check_documents(folder: StoragePath, inventory: Inventory, digests: Mapping[str, str]) -> Iterator[Finding]:
    """Compare the signed files that hold no images with their digests; parts are read together with their images."""
    names = sorted(name for name in digests if not PART_PATTERN.fullmatch(name))
    results = {name: _digest_problem(folder, inventory, name, digests[name]) for name in names}
    problems = [f"{name}: {problem}" for name, problem in results.items() if problem]
    yield from pass_or_fail("digests", problems, f"{len(names)} files, as signed")


def _digest_problem(folder: StoragePath, inventory: Inventory, name: str, sha256: str) -> str | None:
    if name not in inventory.files:
        return "is missing"
    if name in inventory.wrong_sizes:
        return WRONG_SIZE
    try:
        return None if statement.file_digest(folder / name) == sha256 else "is not what was signed"
    except OSError:
        return "cannot be read"


def check_metadata(manifest: TableLike, digests: Mapping[str, str]) -> Iterator[Finding]:
    """Check that the metadata of an image folder, where there is some, says what the manifest says."""
    if IMAGE_METADATA in digests:
        digest = hashlib.sha256()
        for line in metadata_lines(manifest):
            digest.update(line)
        is_same = digest.hexdigest() == digests[IMAGE_METADATA]
        problems = [] if is_same else [f"{IMAGE_METADATA}: does not repeat the manifest"]
        yield from pass_or_fail("metadata", problems, "repeats the manifest")


def check_files(
    folder: StoragePath, inventory: Inventory, manifest: TableLike, digests: Mapping[str, str], decode: int | None
) -> Iterator[Finding]:
    """Check that no file is missing or unaccounted for, and that every image is as its manifest row describes it.

    About ``decode`` images are decoded as well, evenly chosen by digest; None decodes all.
    """
    stride = 1 if decode is None else max(1, len(manifest) // max(1, decode))
    extra, problems = set(inventory.files), []
    for rows in _file_rows(manifest):
        extra.difference_update(row["file"] for row in rows)
        problems += [f"{row['file']}: is missing" for row in rows if row["file"] not in inventory.files]
    yield from pass_or_fail("strays", list(_find_strays(inventory, extra, digests)), "no file that nothing speaks of")
    del extra
    checked = decoded = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool, suppress_pillow_warnings():
        files = prefetch_map(
            lambda rows: _check_images(_read_files(folder, inventory, rows), stride), _file_rows(manifest), pool, 64
        )
        archived = chunked(_read_parts(folder, inventory, manifest, digests), CHUNK_SIZE)
        for result in chain(files, prefetch_map(lambda images: _check_images(images, stride), archived, pool, 16)):
            checked += result.checked
            decoded += result.decoded
            problems += result.problems
    if not problems and checked != len(manifest):
        problems = [f"{len(manifest) - checked:,} pictures of the manifest could not be looked at"]
    which = "they decode" if decoded == checked else f"the {decoded:,} that were decoded do"
    yield from pass_or_fail("pictures", problems, f"{checked:,} read again: as signed, {which}, and carry nothing else")


def _find_strays(inventory: Inventory, extra: Set[str], digests: Mapping[str, str]) -> Iterator[str]:
    """Yield a line on each entry that no release has; ``extra`` are the files that no manifest row names."""
    yield from inventory.irregular
    yield from (f"{name}: nothing speaks of it" for name in sorted(extra - digests.keys() - {STATEMENT}))
    unknown = sorted(name for name in digests if name not in DOCUMENTS and not PART_PATTERN.fullmatch(name))
    yield from (f"{name}: was signed, and is no file of a release" for name in unknown)
    if inventory.empty_folders != {"data"} or inventory.files - DOCUMENTS - {STATEMENT}:
        # A release without images may have an empty data/.
        yield from (f"{name}: is an empty folder" for name in sorted(inventory.empty_folders))


def _file_rows(manifest: TableLike) -> Iterator[list[ManifestRow]]:
    """Yield the rows of images that are files of their own, in chunks."""
    batches = manifest.select(IMAGE_COLUMNS).to_batches(max_chunksize=parquet.BATCH_ROWS)
    files = (batch.filter(pc.is_null(batch["member"])) for batch in batches)
    return chunked((row for batch in files for row in batch.to_pylist()), CHUNK_SIZE)


def _read_files(folder: StoragePath, inventory: Inventory, rows: Iterable[ManifestRow]) -> Iterator[ImageOrProblem]:
    """Yield images that are files of their own, skipping missing ones."""
    for row in rows:
        if row["file"] in inventory.files:
            try:
                with open_file(folder, row["file"]) as file:
                    has_size = file.seek(0, os.SEEK_END) == row["bytes"]  # a larger file might exhaust the memory
                    file.seek(0)
                    yield row, file.read() if has_size else b""
            except (OSError, MemoryError):
                yield f"{row['file']}: cannot be read"


def _read_parts(
    folder: StoragePath, inventory: Inventory, manifest: TableLike, digests: Mapping[str, str]
) -> Iterator[ImageOrProblem]:
    """Yield the images of all parts; each is read once, so its rows must be consecutive, as they were written."""
    signed, done = {name for name in digests if PART_PATTERN.fullmatch(name)}, set[str]()
    archived = manifest.select([*IMAGE_COLUMNS, "label", "caption", *passthrough_types(manifest)])
    no_rows = archived.schema.empty_table()
    yield from (f"{name}: is missing" for name in sorted(signed - inventory.files))
    for name, runs in groupby(_part_runs(archived), itemgetter(0)):
        if name in done:
            yield f"{name}: its rows do not stand together"
        elif name not in signed:
            yield f"{name}: was not signed"
        elif name in inventory.files - inventory.wrong_sizes:
            yield from read_part(folder, name, digests[name], pa.Table.from_batches([rows for _, rows in runs]))
        done.add(name)
    yield from (f"{name}: {WRONG_SIZE}" for name in sorted(signed & inventory.wrong_sizes))
    for name in sorted((signed & inventory.files) - inventory.wrong_sizes - done):
        yield from read_part(folder, name, digests[name], no_rows)


def _part_runs(archived: TableLike) -> Iterator[tuple[str, pa.RecordBatch]]:
    """Yield consecutive rows of one part with its name; a part may be cut by the bounds of batches."""
    for batch in archived.to_batches(max_chunksize=parquet.BATCH_ROWS):
        rows, start = batch.filter(pc.is_valid(batch["member"])), 0
        runs = pc.run_end_encode(rows["file"])
        for name, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
            yield name, rows.slice(start, end - start)
            start = end


def _check_images(images: Iterable[ImageOrProblem], stride: int) -> ImageCheck:
    checked, decoded, problems = 0, 0, []
    for item in images:
        if isinstance(item, str):
            problems.append(item)
            continue
        row, data = item
        decode = int(row["sha256"][:8], 16) % stride == 0
        checked, decoded = checked + 1, decoded + decode
        if problem := find_problem(row, data, decode=decode):
            problems.append(f"{row['file']}{'/' + row['member'] if row['member'] else ''}: {problem}")
    return ImageCheck(checked, decoded, problems)
