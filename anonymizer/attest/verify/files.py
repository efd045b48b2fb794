"""Every file of a public half, read again: nothing missing, nothing more, and each picture what the manifest says."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, groupby, islice

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.attest import statement
from anonymizer.attest.verify.archives import ImageOrProblem, read_part
from anonymizer.attest.verify.findings import Finding, pass_or_fail
from anonymizer.attest.verify.image import IMAGE_COLUMNS, ManifestRow, find_problem
from anonymizer.attest.verify.inventory import Inventory, open_file
from anonymizer.attest.verify.manifest import PART_PATTERN, passthrough_types
from anonymizer.data.pillow_warnings import suppress_pillow_warnings
from anonymizer.storage import parquet
from anonymizer.storage.layout import AUDIT, MANIFEST, REVOCATIONS, STATEMENT
from anonymizer.storage.parquet import TableLike
from anonymizer.storage.path import StoragePath
from anonymizer.storage.prefetch import prefetch_map

DOCUMENTS = {MANIFEST, REVOCATIONS, AUDIT, "README.md", "report.html", "croissant.json"}
CHUNK_SIZE = 32  # pictures that a thread looks at in one go


@dataclass(frozen=True)
class ImageCheck:
    """How many pictures were looked at, how many of them decoded, and what is wrong with some."""

    checked: int
    decoded: int
    problems: Sequence[str]


def check_documents(folder: StoragePath, there: Inventory, digests: Mapping[str, str]) -> Iterator[Finding]:
    """Files that were signed and hold no pictures; the others are read with their pictures."""
    papers = sorted(name for name in digests if not PART_PATTERN.fullmatch(name))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        found = prefetch_map(lambda name: _digest_problem(folder, there, name, digests[name]), papers, pool, depth=16)
        problems = [f"{name}: {wrong}" for name, wrong in zip(papers, found, strict=True) if wrong]
    yield from pass_or_fail("digests", problems, f"{len(papers)} files, as signed")


def check_files(
    folder: StoragePath, there: Inventory, manifest: TableLike, digests: Mapping[str, str], decode: int | None
) -> Iterator[Finding]:
    """Nothing is missing, nothing is there that nothing speaks of, and every picture is what the manifest says.

    ``decode``: about how many are decoded, besides their digest and structure; none: all of them.
    """
    every = 1 if decode is None else max(1, len(manifest) // max(1, decode))
    unknown, problems = set(there.files), []
    for rows in _file_rows(manifest):
        unknown.difference_update(row["file"] for row in rows)
        problems += [f"{row['file']}: is missing" for row in rows if row["file"] not in there.files]
    yield from pass_or_fail("strays", list(_find_strays(there, unknown, digests)), "no file that nothing speaks of")
    del unknown
    seen = decoded = 0
    with ThreadPoolExecutor(os.cpu_count()) as pool, suppress_pillow_warnings():
        looks = prefetch_map(
            lambda rows: _check_images(_read_files(folder, there, rows), every), _file_rows(manifest), pool, depth=64
        )
        inside = _in_chunks(_read_parts(folder, there, manifest, digests))
        for found in chain(looks, prefetch_map(lambda some: _check_images(some, every), inside, pool, depth=16)):
            seen += found.checked
            decoded += found.decoded
            problems += found.problems
    if not problems and seen != len(manifest):
        problems = [f"{len(manifest) - seen:,} pictures of the manifest could not be looked at"]
    which = "they decode" if decoded == seen else f"the {decoded:,} that were decoded do"
    yield from pass_or_fail("pictures", problems, f"{seen:,} read again: as signed, {which}, and carry nothing else")


def _find_strays(there: Inventory, unknown: Set[str], digests: Mapping[str, str]) -> Iterator[str]:
    """``unknown``: files that hold no picture of their own."""
    yield from there.irregular
    yield from (f"{name}: nothing speaks of it" for name in sorted(unknown - digests.keys() - {STATEMENT}))
    other = sorted(name for name in digests if name not in DOCUMENTS and not PART_PATTERN.fullmatch(name))
    yield from (f"{name}: was signed, and is no file of a release" for name in other)
    if there.empty_folders != {"data"} or there.files - DOCUMENTS - {STATEMENT}:  # which a release of nothing may have
        yield from (f"{name}: is an empty folder" for name in sorted(there.empty_folders))


def _digest_problem(folder: StoragePath, there: Inventory, name: str, signed: str) -> str | None:
    """Why a file is not what was signed, or nothing."""
    try:
        if name in there.files:
            return None if statement.file_digest(folder / name) == signed else "is not what was signed"
    except OSError:
        return "cannot be read"
    return "is missing"


def _read_files(folder: StoragePath, there: Inventory, rows: Iterable[ManifestRow]) -> Iterator[ImageOrProblem]:
    """Pictures that are files of their own; those that are missing have been said."""
    for row in rows:
        if row["file"] in there.files:
            try:
                with open_file(folder, row["file"]) as file:
                    same = file.seek(0, os.SEEK_END) == row["bytes"]  # or it may be larger than the memory
                    file.seek(0)
                    data = file.read() if same else b""
            except (OSError, MemoryError):
                yield f"{row['file']}: cannot be read"
            else:
                yield row, data


def _read_parts(
    folder: StoragePath, there: Inventory, manifest: TableLike, digests: Mapping[str, str]
) -> Iterator[ImageOrProblem]:
    """Pictures in parts, each of which is read once: rows of one stand together, as they were written."""
    parts = {name for name in digests if PART_PATTERN.fullmatch(name)}
    seen: set[str] = set()
    for name, rows in chain(_rows_by_part(manifest), _parts_without_rows(parts, seen, manifest)):
        if name in seen:
            yield f"{name}: its rows do not stand together"
        elif name not in parts:
            yield f"{name}: was not signed"
        elif name not in there.files:
            yield f"{name}: is missing"
        else:
            yield from read_part(folder, name, digests[name], rows)
        seen.add(name)


def _parts_without_rows(parts: Set[str], seen: Set[str], manifest: TableLike) -> Iterator[tuple[str, pa.Table]]:
    """Parts that no row speaks of, once all others are ``seen``."""
    for name in sorted(parts - seen):
        yield name, _part_columns(manifest).schema.empty_table()


def _rows_by_part(manifest: TableLike) -> Iterator[tuple[str, pa.Table]]:
    """The rows of each part, as far as they stand together."""
    last, waiting = "", list[pa.RecordBatch]()
    for batch in _part_columns(manifest).to_batches(max_chunksize=parquet.BATCH_ROWS):
        rows = batch.filter(pc.is_valid(batch["member"]))
        at = 0
        for name, same in groupby(rows["file"].to_pylist()):
            if name != last and waiting:
                yield last, pa.Table.from_batches(waiting)
                waiting = []
            count = sum(1 for _ in same)
            waiting.append(rows.slice(at, count))
            last, at = name, at + count
    if waiting:
        yield last, pa.Table.from_batches(waiting)


def _part_columns(manifest: TableLike) -> TableLike:
    """What rows say of pictures in parts."""
    return manifest.select([*IMAGE_COLUMNS, "label", "caption", *passthrough_types(manifest)])


def _check_images(found: Iterable[ImageOrProblem], every: int) -> ImageCheck:
    seen, decoded, problems = 0, 0, []
    for one in found:
        if isinstance(one, str):
            problems.append(one)
            continue
        row, data = one
        decode = int(row["sha256"][:8], 16) % every == 0
        seen, decoded = seen + 1, decoded + decode
        if wrong := find_problem(row, data, decode=decode):
            problems.append(f"{row['file']}{'/' + row['member'] if row['member'] else ''}: {wrong}")
    return ImageCheck(seen, decoded, problems)


def _file_rows(manifest: TableLike) -> Iterator[list[ManifestRow]]:
    """Rows of pictures that are files of their own, some at a time."""
    for batch in manifest.select(IMAGE_COLUMNS).to_batches(max_chunksize=parquet.BATCH_ROWS):
        rows = batch.filter(pc.is_null(batch["member"]))
        for begin in range(0, len(rows), CHUNK_SIZE):
            yield rows.slice(begin, CHUNK_SIZE).to_pylist()


def _in_chunks(items: Iterable[ImageOrProblem]) -> Iterator[list[ImageOrProblem]]:
    iterator = iter(items)
    while chunk := list(islice(iterator, CHUNK_SIZE)):
        yield chunk
