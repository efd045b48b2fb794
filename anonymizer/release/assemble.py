"""From a finished ledger to a candidate: the images and the manifest that may become ``public/``, in output order."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.attest import statement
from anonymizer.config import RunConfig
from anonymizer.crypto.encryption import Encryptor
from anonymizer.data import image_codec, passthrough_columns
from anonymizer.data.sinks import ImageLocation, ReleasedImage, open_sink
from anonymizer.data.sinks.base import make_folder
from anonymizer.errors import IntegrityError, OutputError
from anonymizer.policy import public_scores
from anonymizer.records import Status
from anonymizer.release import event_log
from anonymizer.release.finished_ledger import ID_AND_DIGEST, OUTPUT_SCHEMA, FinishedLedger
from anonymizer.release.ledger import PREFETCH_FILES, redo_hint
from anonymizer.schema import GROUP_TYPES, IMAGE_COLUMNS, METHOD_COLUMNS, SCORE_COLUMNS
from anonymizer.storage import parquet
from anonymizer.storage.layout import MANIFEST, Release
from anonymizer.storage.path import StoragePath, translate_storage_errors
from anonymizer.storage.prefetch import prefetch_map

BATCH_ROWS = 1000  # rows that are Python objects at once
ASSEMBLED_EVENT = "assembled"
MISMATCH = "release: other pictures were written than the ledger has: nothing is published"


def assemble(release: Release, config: RunConfig, ledger: FinishedLedger) -> None:
    """Write quarantine, images and manifest, unless they were written before; tidy up what was staged.

    Raises IntegrityError if the manifest does not match the ledger.
    """
    suffix = image_codec.SUFFIXES[config.output.image]
    if not release.purged.exists():  # past its retention period, here or in the release that this one replaces
        _fill_quarantine(release, Encryptor(config.restricted.recipients), ledger, suffix)
    if not release.is_assembled:
        _write_candidate(release, config, ledger)
    _check_assembled(release, ledger)
    release.assembling.remove()
    release.staging.remove()
    release.reopened.remove()


def remove_incomplete(half: StoragePath) -> None:
    """Remove a half without a manifest, which an interrupted copy left; on a disk that is an IntegrityError."""
    if half.exists() and half.is_local:
        raise IntegrityError(f"release: {half.name}/ has lost its manifest: restore it, or choose another output")
    half.remove()


def _fill_quarantine(release: Release, encryptor: Encryptor, ledger: FinishedLedger, suffix: str) -> None:
    """Write the quarantined outputs, and nothing else, to ``restricted/quarantine/``."""
    existing = {path.name for path in release.quarantine.children()}
    expected: set[str] = set()
    for table in ledger.outputs(Status.QUARANTINED):
        for row in table.to_pylist():
            name = f"{row['output_id']}{suffix}"
            expected.add(encryptor.file_name(name))
            if encryptor.file_name(name) not in existing:
                encryptor.write_uncommitted(release.quarantine / name, _read_staged(release.staging, row, suffix))
    for name in existing - expected:
        (release.quarantine / name).remove()


def _write_candidate(release: Release, config: RunConfig, ledger: FinishedLedger) -> None:
    attempt = release.assembling / secrets.token_hex(6)
    try:
        for half in (release.public, release.candidate):
            remove_incomplete(half)
        digest = _write_public(attempt, release, config, ledger)
        event_log.record(release, ASSEMBLED_EVENT, manifest=digest)
        attempt.move_to(release.candidate, last=MANIFEST)
    except (IntegrityError, OutputError):
        if not release.is_assembled:  # else another process was first
            raise


def _write_public(folder: StoragePath, release: Release, config: RunConfig, ledger: FinishedLedger) -> str:
    """Write images and manifest of the public half at the same time, and return the manifest's SHA-256.

    Neither is ever in memory as a whole.
    """
    types = ledger.passthrough_types
    pending: deque[pa.Table] = deque()  # rows whose images the sink has taken, and has not all located yet
    images = _read_images(release, _batches(ledger, pending), image_codec.SUFFIXES[config.output.image])
    locations: list[ImageLocation] = []
    files: Counter[str] = Counter()  # by folder
    last = ""
    make_folder(folder.fs, folder.path)
    schema = _manifest_rows(OUTPUT_SCHEMA.empty_table(), [], config, ledger, types).schema
    with (
        translate_storage_errors(),
        folder.fs.open((folder / MANIFEST).path, "wb") as raw,
        parquet.Writer(hashed := parquet.HashedFile(raw), schema) as manifest,
    ):
        for location in open_sink(config.output, types).write(images, folder.fs, folder.path):
            files[location.file.rpartition("/")[0]] += location.file != last  # images of one file stand together
            last = location.file
            locations.append(location)
            if len(locations) == len(pending[0]):
                manifest.write(_manifest_rows(pending.popleft(), locations, config, ledger, types))
                locations = []
        if locations or pending:
            raise IntegrityError(MISMATCH)
    if any(_count_files(folder / name) < count for name, count in files.items()):
        raise IntegrityError("release: pictures vanished while it was written: run the same command again")
    return hashed.sha256.hexdigest()


def _count_files(folder: StoragePath) -> int:
    """Return the number of files in a folder, which may be large."""
    if not folder.is_local:
        return sum(1 for _ in folder.children())
    try:
        with os.scandir(folder.path) as entries:
            return sum(1 for _ in entries)
    except FileNotFoundError:
        return 0


def read_manifest_digest(release: Release) -> str | None:
    """Return the SHA-256 of the manifest as it was assembled, from the event log; None where none was."""
    digests = [e["details"]["manifest"] for e in event_log.read(release) if e["event"] == ASSEMBLED_EVENT]
    return digests[-1] if digests else None


def _check_assembled(release: Release, ledger: FinishedLedger) -> None:
    """Raise IntegrityError where the manifest is not what was assembled, or does not match the ledger."""
    if not release.is_published and statement.file_digest(release.manifest) != read_manifest_digest(release):
        raise IntegrityError(
            f"release: restricted/candidate/{MANIFEST} is not what was assembled: restore it, or choose another output"
        )
    manifest = parquet.open_table(release.manifest).select(ID_AND_DIGEST).to_batches(BATCH_ROWS)
    if _hash_pairs(manifest) != _hash_pairs(ledger.outputs(Status.RELEASED)):
        raise IntegrityError(
            f"release: {release.public_or_candidate.name}/ does not hold what the ledger speaks of: restore both from "
            "one copy, or choose another output"
        )


def is_manifest_of_ledger(release: Release, config: RunConfig, ledger: FinishedLedger, is_first: bool) -> bool:
    """Return whether each row of the manifest, in all columns, is what the ledger gives.

    ``is_first``: the release is of the first version, whose columns from the source had other types: they, and scores,
    are not compared.
    """
    types, manifest = ledger.passthrough_types, parquet.open_table(release.manifest)
    names = [*IMAGE_COLUMNS, *METHOD_COLUMNS] if is_first else manifest.column_names
    schema = _manifest_rows(OUTPUT_SCHEMA.empty_table(), [], config, ledger, types).schema
    if not is_first and not schema.equals(manifest.schema, check_metadata=True):
        return False
    batches, pending = manifest.to_batches(BATCH_ROWS), manifest.schema.empty_table()
    for table in ledger.outputs(Status.RELEASED):
        for begin in range(0, len(table), BATCH_ROWS):
            rows = table.slice(begin, BATCH_ROWS)
            while len(pending) < len(rows) and (batch := next(batches, None)) is not None:
                pending = pa.concat_tables([pending, pa.Table.from_batches([batch], manifest.schema)])
            actual, pending = pending.slice(0, len(rows)), pending.slice(len(rows))
            if actual["output_id"].to_pylist() != rows["output_id"].to_pylist():
                return False
            places = zip(*(actual[name].to_pylist() for name in ("output_id", "file", "member")), strict=True)
            expected = _manifest_rows(rows, [ImageLocation(*place) for place in places], config, ledger, types)
            if not expected.select(names).equals(actual.select(names)):
                return False
    return len(pending) == 0 and next(batches, None) is None


def _hash_pairs(tables: Iterable[pa.Table | pa.RecordBatch]) -> bytes:
    """Return the SHA-256 over ids and digests of images, in their order."""
    digest = hashlib.sha256()
    for table in tables:
        for pair in zip(*(table[name].to_pylist() for name in ID_AND_DIGEST), strict=True):
            digest.update(json.dumps(pair).encode())
    return digest.digest()


def _batches(ledger: FinishedLedger, pending: deque[pa.Table]) -> Iterator[pa.Table]:
    """Yield released rows in batches, each appended to ``pending`` first."""
    for table in ledger.outputs(Status.RELEASED):
        if len(pc.unique(table["output_id"])) != len(table):
            raise IntegrityError("release: two records share an output id: nothing is published")
        for begin in range(0, len(table), BATCH_ROWS):
            pending.append(table.slice(begin, BATCH_ROWS))
            yield pending[-1]


def _read_images(release: Release, batches: Iterable[pa.Table], suffix: str) -> Iterator[ReleasedImage]:
    rows = (row for batch in batches for row in batch.to_pylist())
    staging = release.staging

    def read(row: Mapping[str, Any]) -> ReleasedImage:
        data, columns = _read_staged(staging, row, suffix), passthrough_columns.from_json(row["carried"])
        return ReleasedImage(row["output_id"], data, suffix, row["label"], row["caption"], columns)

    if release.root.is_local:
        yield from map(read, rows)
        return
    with ThreadPoolExecutor(PREFETCH_FILES, "staged") as pool:  # each takes a request
        yield from prefetch_map(read, rows, pool, 2 * PREFETCH_FILES)


def _read_staged(staging: StoragePath, row: Mapping[str, Any], suffix: str) -> bytes:
    """Return the bytes whose digest the ledger has. Raises IntegrityError for any others."""
    path = staging / f"{row['staging']}/{row['output_id']}{suffix}"
    try:
        data = _read_bytes(path)
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() == row["sha256"]:
        return data
    raise IntegrityError(
        f"shard {row['shard']}: a staged picture is missing or damaged: nothing is published: {redo_hint(row['shard'])}"
    )


def _read_bytes(path: StoragePath) -> bytes:
    """Return the bytes of a small file; on a disk without fsspec, which takes longer than the file itself."""
    if not path.is_local:
        return path.read()
    with open(path.path, "rb") as file:
        return file.read()


def _manifest_rows(
    rows: pa.Table,
    locations: Sequence[ImageLocation],
    config: RunConfig,
    ledger: FinishedLedger,
    types: Mapping[str, pa.DataType],
) -> pa.Table:
    """Return rows of the manifest, for rows of the ledger and where their images were written."""
    if [location.output_id for location in locations] != rows["output_id"].to_pylist():
        raise IntegrityError(MISMATCH)
    columns: dict[str, Any] = {
        "output_id": rows["output_id"],
        "file": pa.array([location.file for location in locations], pa.string()),
        "member": pa.array([location.member for location in locations], pa.string()),
        **{name: rows[name] for name in ("sha256", "bytes", "width", "height")},
        "format": pa.repeat(config.output.image, len(rows)),
        "label": rows["label"],
        "caption": rows["caption"],
        **passthrough_columns.to_arrays(rows["carried"].to_pylist(), types),
        **{name: rows[name] for name in METHOD_COLUMNS},
        **({"k": pa.array([config.boomerang.k] * len(rows), GROUP_TYPES["k"])} if config.boomerang.k > 1 else {}),
        **public_scores.to_public_columns(rows, config.output.public_scores, ledger.score_columns),
    }
    models = {name: model for name, model in (ledger.metric_models or {}).items() if name in SCORE_COLUMNS}
    return pa.table(columns).replace_schema_metadata({"metric_models": passthrough_columns.to_json(models) or "{}"})
