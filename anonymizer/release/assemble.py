"""From committed shards to a candidate: reconcile, and write what may become ``public/`` in output order."""

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

from anonymizer.config import RunConfig
from anonymizer.crypto.encryption import Encryptor
from anonymizer.data import image_codec, passthrough_columns
from anonymizer.data.sinks import ImageLocation, ReleasedImage, open_sink
from anonymizer.data.sinks.base import make_folder
from anonymizer.errors import IntegrityError, OutputError
from anonymizer.policy import public_scores
from anonymizer.records import Plan, Status, Summary
from anonymizer.release import history, ledger, plan
from anonymizer.schema import LEDGER_SCHEMA, SCORE_COLUMNS
from anonymizer.storage import parquet
from anonymizer.storage.external_sort import ExternalSort
from anonymizer.storage.layout import MANIFEST, Release
from anonymizer.storage.path import StoragePath, translate_storage_errors
from anonymizer.storage.prefetch import prefetch_map

REUSED_FOLDER = "kept"  # in staging, the folder of what was published before
BATCH_ROWS = 1000  # rows that are Python objects at once
MISMATCH = "release: other pictures were written than the ledger has: nothing is published"
ID_AND_DIGEST = ("output_id", "sha256")
STAGED_COLUMNS = (*ID_AND_DIGEST, "shard", "kept")  # which bytes of a shard a row speaks of
RELEASED_COLUMNS = (
    *STAGED_COLUMNS,
    *("bytes", "width", "height", "label", "caption", "carried", "level", "t_boom", "log_snr", "sampler", "steps"),
    *("model", "model_digest", "config_fingerprint", *SCORE_COLUMNS),
)
RELEASED_SCHEMA = pa.schema([*(LEDGER_SCHEMA.field(name) for name in RELEASED_COLUMNS), ("staging", pa.string())])


def summarize_release(release: Release, the_plan: Plan) -> Summary:
    """Counts of what is committed so far."""
    reasons: Counter[str] = Counter()
    read = released = quarantined = failed = shards = 0
    seconds = 0.0
    for number, table in ledger.scan_shards(release, the_plan, ("reason", *ledger.COUNT_COLUMNS)):
        one = ledger.summarize_shard(number, table)
        reasons.update(table["reason"].drop_null().to_pylist())
        read, released, quarantined = read + one.read, released + one.released, quarantined + one.quarantined
        failed, shards, seconds = failed + one.failed, shards + 1, seconds + one.seconds
    return Summary(read, released, quarantined, failed, shards, seconds, dict(sorted(reasons.items())))


def assemble(release: Release, config: RunConfig) -> None:
    """Write the pictures and the manifest that may become the public half; does nothing where they are there already.

    IntegrityError if counts disagree, or if what is there is not what the ledger speaks of.
    """
    the_plan = plan.read(release)
    ledger.reconcile(release, the_plan)
    if not release.is_assembled:
        history.stage_published(
            release,
            _reused_rows(release, the_plan),
            release.staging / REUSED_FOLDER,
            image_codec.SUFFIXES[config.output.image],
        )
    _fill_quarantine(release, config, the_plan)
    if release.is_assembled:
        with released_digests(release, the_plan) as rows:
            _check_assembled(release, rows)
    else:
        _assemble(release, config, the_plan)
    release.assembling.remove()
    release.staging.remove()
    release.reopened.remove()


def _assemble(release: Release, config: RunConfig, the_plan: Plan) -> None:
    facts = ManifestTraits(config)
    with _sort_released(release, the_plan, facts) as rows:
        attempt = release.assembling / secrets.token_hex(6)
        try:
            for half in (release.public, release.candidate):
                remove_incomplete(half)
            _write_public(attempt, release, config, rows, facts)
            attempt.move_to(release.candidate, last=MANIFEST)
        except (IntegrityError, OutputError):
            if not release.is_assembled:  # nobody else was quicker
                raise
        _check_assembled(release, rows)


class ManifestTraits:
    """What all released rows have in common, told from all of them before the first is written."""

    def __init__(self, config: RunConfig) -> None:
        self.models: Mapping[str, str] | None = None
        self.scores: set[str] = set()
        self._kinds = passthrough_columns.TypeInference(config.source.carry)

    def update(self, shard: int, models: Mapping[str, str], rows: pa.Table) -> None:
        """``rows``: those of a shard that are released, scored by ``models``."""
        if self.models not in (None, models):
            raise IntegrityError(f"shard {shard}: scored by other models than the rest: {ledger.redo_hint(shard)}")
        self.models = models
        self.scores |= {name for name in SCORE_COLUMNS if rows[name].null_count < len(rows)}
        self._kinds.update(rows["carried"].to_pylist())

    @property
    def types(self) -> Mapping[str, pa.DataType]:
        """Of the carried columns."""
        return self._kinds.types()


def _reused_rows(release: Release, the_plan: Plan) -> Iterator[pa.Table]:
    """What earlier releases published of records that are kept."""
    for _, table in ledger.scan_shards(release, the_plan, ("kept", *ID_AND_DIGEST)):
        yield table.filter(table["kept"]).select(ID_AND_DIGEST).replace_schema_metadata()


def _fill_quarantine(release: Release, config: RunConfig, the_plan: Plan) -> None:
    """The outputs that the gate held back, and nothing else, in ``restricted/quarantine/``."""
    if release.purged.exists():  # they have been kept long enough, here or in the release that this one follows
        return
    suffix, sealer = image_codec.SUFFIXES[config.output.image], Encryptor(config.restricted.recipients)
    staging = release.staging
    there = {place.name for place in release.quarantine.children()}
    held: set[str] = set()
    for _, table in ledger.scan_shards(release, the_plan, ("status", *STAGED_COLUMNS)):
        for row in _rows_with_status(table, Status.QUARANTINED).to_pylist():
            name = f"{row['output_id']}{suffix}"
            held.add(sealer.file_name(name))
            if sealer.file_name(name) not in there:
                sealer.write_uncommitted(release.quarantine / name, _read_staged(staging, row, suffix))
    for stale in there - held:
        (release.quarantine / stale).remove()


def _write_public(
    folder: StoragePath, release: Release, config: RunConfig, rows: ExternalSort, facts: ManifestTraits
) -> None:
    """Pictures and manifest of the public half, side by side: neither is ever held as a whole."""
    types = facts.types
    waiting: deque[pa.Table] = deque()  # rows whose pictures the sink has taken, and not all placed yet
    pictures = _read_pictures(release, _batches(rows, waiting), config)
    placed: list[ImageLocation] = []
    files: Counter[str] = Counter()
    last = ""
    make_folder(folder.fs, folder.path)
    schema = _manifest_rows(RELEASED_SCHEMA.empty_table(), [], config, facts, types).schema
    with (
        translate_storage_errors(),
        folder.fs.open((folder / MANIFEST).path, "wb") as raw,
        parquet.Writer(raw, schema) as manifest,
    ):
        for one in open_sink(config.output, types).write(pictures, folder.fs, folder.path):
            files[one.file.rpartition("/")[0]] += one.file != last
            last = one.file
            placed.append(one)
            if len(placed) == len(waiting[0]):
                manifest.write(_manifest_rows(waiting.popleft(), placed, config, facts, types))
                placed = []
        if placed or waiting:
            raise IntegrityError(MISMATCH)
    if any(_count_files(folder / name) < count for name, count in files.items()):
        raise IntegrityError("release: pictures vanished while it was written: run the same command again")


def _count_files(folder: StoragePath) -> int:
    """Files in a folder, which may be many."""
    if not folder.is_local:
        return sum(1 for _ in folder.children())
    try:
        with os.scandir(folder.path) as found:
            return sum(1 for _ in found)
    except FileNotFoundError:
        return 0


def remove_incomplete(half: StoragePath) -> None:
    """Away with a half without a manifest: on a disk somebody took that, elsewhere a copy was stopped."""
    if half.exists() and half.is_local:
        raise IntegrityError(f"release: {half.name}/ has lost its manifest: restore it, or choose another output")
    half.remove()


def _check_assembled(release: Release, rows: ExternalSort) -> None:
    shown = (
        pa.Table.from_batches([b])
        for b in parquet.open_table(release.manifest).select(ID_AND_DIGEST).to_batches(BATCH_ROWS)
    )
    if _digest(shown) != _digest(rows.tables()):
        raise IntegrityError(
            f"release: {release.public_or_candidate.name}/ does not hold what the ledger speaks of: restore both from one copy, or "  # noqa: E501
            "choose another output"
        )


def _digest(tables: Iterable[pa.Table]) -> bytes:
    """SHA-256 over ids and digests of pictures, in their order."""
    found = hashlib.sha256()
    for table in tables:
        for pair in zip(*(table[name].to_pylist() for name in ID_AND_DIGEST), strict=True):
            found.update(json.dumps(pair).encode())
    return found.digest()


def _rows_with_status(table: pa.Table, status: Status) -> pa.Table:
    """Rows of a shard that ended so, each with its shard's staging folder."""
    kept = table.filter(pc.equal(table["status"], status.value)).replace_schema_metadata()
    own = table.schema.metadata[b"staging"].decode()
    return kept.append_column("staging", pc.if_else(kept["kept"], REUSED_FOLDER, own))


def _sort_released(release: Release, the_plan: Plan, facts: ManifestTraits) -> ExternalSort:
    """Released rows of all shards in output order, each with its shard's staging folder."""

    def rows() -> Iterator[pa.Table]:
        for shard, table in ledger.scan_shards(release, the_plan, ("status", *RELEASED_COLUMNS)):
            found = _rows_with_status(table, Status.RELEASED).select(RELEASED_SCHEMA.names)
            facts.update(shard, json.loads(table.schema.metadata[b"metric_models"]), found)
            yield found

    return ExternalSort(rows(), "output_id", the_plan.records, ledger.scratch_folder(release))


def released_digests(release: Release, the_plan: Plan) -> ExternalSort:
    """Ids and digests of what is released, in output order; to be closed."""

    def rows() -> Iterator[pa.Table]:
        for _, table in ledger.scan_shards(release, the_plan, ("status", *ID_AND_DIGEST)):
            found = table.filter(pc.equal(table["status"], Status.RELEASED.value))
            yield found.select(ID_AND_DIGEST).replace_schema_metadata()

    return ExternalSort(rows(), "output_id", the_plan.records, ledger.scratch_folder(release))


def _batches(rows: ExternalSort, waiting: deque[pa.Table]) -> Iterator[pa.Table]:
    """Some rows at a time, each put into ``waiting`` before it is handed on."""
    for table in rows.tables():
        if len(pc.unique(table["output_id"])) != len(table):
            raise IntegrityError("release: two records share an output id: nothing is published")
        for begin in range(0, len(table), BATCH_ROWS):
            waiting.append(table.slice(begin, BATCH_ROWS))
            yield waiting[-1]


def _read_pictures(release: Release, batches: Iterable[pa.Table], config: RunConfig) -> Iterator[ReleasedImage]:
    suffix = image_codec.SUFFIXES[config.output.image]
    rows = (row for batch in batches for row in batch.to_pylist())
    staging = release.staging

    def picture(row: Mapping[str, Any]) -> ReleasedImage:
        data, columns = _read_staged(staging, row, suffix), passthrough_columns.from_json(row["carried"])
        return ReleasedImage(row["output_id"], data, suffix, row["label"], row["caption"], columns)

    if release.root.is_local:
        yield from map(picture, rows)
        return
    with ThreadPoolExecutor(ledger.READ_AHEAD, "staged") as pool:  # each takes a request
        yield from prefetch_map(picture, rows, pool, 2 * ledger.READ_AHEAD)


def _read_staged(staging: StoragePath, row: Mapping[str, Any], suffix: str) -> bytes:
    """The bytes that the ledger speaks of, and no others."""
    name = f"{row['staging']}/{row['output_id']}{suffix}"
    try:
        data = _read_bytes(staging / name)
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        if row["kept"]:
            raise IntegrityError(
                "release: a picture that is kept is missing or damaged in the releases before this one: nothing is "
                "published: restore their public/, then run the same command again"
            )
        redo = ledger.redo_hint(row["shard"])
        raise IntegrityError(
            f"shard {row['shard']}: a staged picture is missing or damaged: nothing is published: {redo}"
        )
    return data


def _read_bytes(place: StoragePath) -> bytes:
    """A small file; on a disk without fsspec, which takes longer than the file itself."""
    if not place.is_local:
        return place.read()
    with open(place.path, "rb") as file:
        return file.read()


def _manifest_rows(
    rows: pa.Table,
    placed: Sequence[ImageLocation],
    config: RunConfig,
    facts: ManifestTraits,
    types: Mapping[str, pa.DataType],
) -> pa.Table:
    """Rows of the manifest, for rows of the ledger and where their pictures were put."""
    if [p.output_id for p in placed] != rows["output_id"].to_pylist():
        raise IntegrityError(MISMATCH)
    columns: dict[str, Any] = {
        "output_id": rows["output_id"],
        "file": pa.array([p.file for p in placed], pa.string()),
        "member": pa.array([p.member for p in placed], pa.string()),
        "sha256": rows["sha256"],
        "bytes": rows["bytes"],
        "width": rows["width"],
        "height": rows["height"],
        "format": pa.repeat(config.output.image, len(rows)),
        "label": rows["label"],
        "caption": rows["caption"],
    }
    columns |= passthrough_columns.to_arrays(rows["carried"].to_pylist(), types)
    columns |= {name: rows[name] for name in ("level", "t_boom", "log_snr", "sampler", "steps")}
    columns |= {"model": rows["model"], "model_digest": rows["model_digest"]}
    columns |= {"config_fingerprint": rows["config_fingerprint"]}
    columns |= public_scores.to_public_columns(rows, config.output.public_scores, facts.scores)
    public = {name: made_by for name, made_by in (facts.models or {}).items() if name in SCORE_COLUMNS}
    return pa.table(columns).replace_schema_metadata({"metric_models": passthrough_columns.to_json(public) or "{}"})
