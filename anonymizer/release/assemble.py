"""From committed shards to a candidate: reconcile, and write what may become ``public/`` in output order."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.config import RunConfig
from anonymizer.crypto.encryption import Sealer
from anonymizer.data import image_codec, passthrough_columns
from anonymizer.data.sinks import Placed, ReleasedPicture, open_sink
from anonymizer.data.sinks.errors import make_folder, output_errors
from anonymizer.errors import IntegrityError, OutputError
from anonymizer.policy import public_scores
from anonymizer.records import Status
from anonymizer.release import history, ledger, plan
from anonymizer.storage import parquet
from anonymizer.storage.external_sort import Ordered
from anonymizer.storage.layout import MANIFEST, Release
from anonymizer.storage.path import Place
from anonymizer.storage.prefetch import ahead

KEPT = "kept"  # in staging, the folder of what was published before
BATCH = 1000  # rows that are Python objects at once
OTHERS = "release: other pictures were written than the ledger has: nothing is published"
PAIR = ("output_id", "sha256")
STAGED = (*PAIR, "shard", "kept")  # which bytes of a shard a row speaks of
WANTED = (
    *STAGED,
    *("bytes", "width", "height", "label", "caption", "carried", "level", "t_boom", "log_snr", "sampler", "steps"),
    *("model", "model_digest", "config_fingerprint", *public_scores.COLUMNS),
)
ROWS = pa.schema([*(ledger.SCHEMA.field(name) for name in WANTED), ("staging", pa.string())])


@dataclass(frozen=True)
class Summary:
    """What a release came to; counts only."""

    read: int
    released: int
    quarantined: int
    failed: int
    shards: int
    seconds: float
    reasons: Mapping[str, int]


def summary(release: Release, the_plan: plan.Plan) -> Summary:
    """Counts of what is committed so far."""
    reasons: Counter[str] = Counter()
    read = released = quarantined = failed = shards = 0
    seconds = 0.0
    for number, table in ledger.committed(release, the_plan, ("reason", *ledger.COUNTED)):
        one = ledger.summarize(number, table)
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
        history.stage(
            release, _kept(release, the_plan), release.staging / KEPT, image_codec.SUFFIXES[config.output.image]
        )
    _quarantine(release, config, the_plan)
    if release.is_assembled:
        with shown(release, the_plan) as rows:
            _check_assembled(release, rows)
    else:
        _assemble(release, config, the_plan)
    release.assembling.remove()
    release.staging.remove()
    release.reopened.remove()


def _assemble(release: Release, config: RunConfig, the_plan: plan.Plan) -> None:
    facts = Facts(config)
    with _released(release, the_plan, facts) as rows:
        attempt = release.assembling / secrets.token_hex(6)
        try:
            for half in (release.public, release.candidate):
                make_room(half)
            _write(attempt, release, config, rows, facts)
            attempt.move_to(release.candidate, last=MANIFEST)
        except (IntegrityError, OutputError):
            if not release.is_assembled:  # nobody else was quicker
                raise
        _check_assembled(release, rows)


class Facts:
    """What all released rows have in common, told from all of them before the first is written."""

    def __init__(self, config: RunConfig) -> None:
        self.models: Mapping[str, str] | None = None
        self.scores: set[str] = set()
        self._kinds = passthrough_columns.Kinds(config.source.carry)

    def see(self, shard: int, models: Mapping[str, str], rows: pa.Table) -> None:
        """``rows``: those of a shard that are released, scored by ``models``."""
        if self.models not in (None, models):
            raise IntegrityError(f"shard {shard}: scored by other models than the rest: {ledger.redo(shard)}")
        self.models = models
        self.scores |= {name for name in public_scores.COLUMNS if rows[name].null_count < len(rows)}
        self._kinds.see(rows["carried"].to_pylist())

    @property
    def types(self) -> Mapping[str, pa.DataType]:
        """Of the carried columns."""
        return self._kinds.types()


def _kept(release: Release, the_plan: plan.Plan) -> Iterator[pa.Table]:
    """What earlier releases published of records that are kept."""
    for _, table in ledger.committed(release, the_plan, ("kept", *PAIR)):
        yield table.filter(table["kept"]).select(PAIR).replace_schema_metadata()


def _quarantine(release: Release, config: RunConfig, the_plan: plan.Plan) -> None:
    """The outputs that the gate held back, and nothing else, in ``restricted/quarantine/``."""
    if release.purged.exists():  # they have been kept long enough, here or in the release that this one follows
        return
    suffix, sealer = image_codec.SUFFIXES[config.output.image], Sealer(config.restricted.recipients)
    staging = release.staging
    there = {place.name for place in release.quarantine.children()}
    held: set[str] = set()
    for _, table in ledger.committed(release, the_plan, ("status", *STAGED)):
        for row in _ending(table, Status.QUARANTINED).to_pylist():
            name = f"{row['output_id']}{suffix}"
            held.add(sealer.name(name))
            if sealer.name(name) not in there:
                sealer.put(release.quarantine / name, _staged(staging, row, suffix))
    for stale in there - held:
        (release.quarantine / stale).remove()


def _write(folder: Place, release: Release, config: RunConfig, rows: Ordered, facts: Facts) -> None:
    """Pictures and manifest of the public half, side by side: neither is ever held as a whole."""
    types = facts.types
    waiting: deque[pa.Table] = deque()  # rows whose pictures the sink has taken, and not all placed yet
    pictures = _pictures(release, _batches(rows, waiting), config)
    placed: list[Placed] = []
    files: Counter[str] = Counter()
    last = ""
    make_folder(folder.fs, folder.path)
    schema = _manifest(ROWS.empty_table(), [], config, facts, types).schema
    with (
        output_errors(),
        folder.fs.open((folder / MANIFEST).path, "wb") as raw,
        parquet.Writer(raw, schema) as manifest,
    ):
        for one in open_sink(config.output, types).write(pictures, folder.fs, folder.path):
            files[one.file.rpartition("/")[0]] += one.file != last
            last = one.file
            placed.append(one)
            if len(placed) == len(waiting[0]):
                manifest.write(_manifest(waiting.popleft(), placed, config, facts, types))
                placed = []
        if placed or waiting:
            raise IntegrityError(OTHERS)
    if any(_count(folder / name) < count for name, count in files.items()):
        raise IntegrityError("release: pictures vanished while it was written: run the same command again")


def _count(folder: Place) -> int:
    """Files in a folder, which may be many."""
    if not folder.is_local:
        return sum(1 for _ in folder.children())
    try:
        with os.scandir(folder.path) as found:
            return sum(1 for _ in found)
    except FileNotFoundError:
        return 0


def make_room(half: Place) -> None:
    """Away with a half without a manifest: on a disk somebody took that, elsewhere a copy was stopped."""
    if half.exists() and half.is_local:
        raise IntegrityError(f"release: {half.name}/ has lost its manifest: restore it, or choose another output")
    half.remove()


def _check_assembled(release: Release, rows: Ordered) -> None:
    shown = (pa.Table.from_batches([b]) for b in parquet.stored(release.manifest).select(PAIR).to_batches(BATCH))
    if _digest(shown) != _digest(rows.tables()):
        raise IntegrityError(
            f"release: {release.handout.name}/ does not hold what the ledger speaks of: restore both from one copy, or "
            "choose another output"
        )


def _digest(tables: Iterable[pa.Table]) -> bytes:
    """SHA-256 over ids and digests of pictures, in their order."""
    found = hashlib.sha256()
    for table in tables:
        for pair in zip(*(table[name].to_pylist() for name in PAIR), strict=True):
            found.update(json.dumps(pair).encode())
    return found.digest()


def _ending(table: pa.Table, status: Status) -> pa.Table:
    """Rows of a shard that ended so, each with its shard's staging folder."""
    kept = table.filter(pc.equal(table["status"], status.value)).replace_schema_metadata()
    own = table.schema.metadata[b"staging"].decode()
    return kept.append_column("staging", pc.if_else(kept["kept"], KEPT, own))


def _released(release: Release, the_plan: plan.Plan, facts: Facts) -> Ordered:
    """Released rows of all shards in output order, each with its shard's staging folder."""

    def rows() -> Iterator[pa.Table]:
        for shard, table in ledger.committed(release, the_plan, ("status", *WANTED)):
            found = _ending(table, Status.RELEASED).select(ROWS.names)
            facts.see(shard, json.loads(table.schema.metadata[b"metric_models"]), found)
            yield found

    return Ordered(rows(), "output_id", the_plan.records, ledger.scratch(release))


def shown(release: Release, the_plan: plan.Plan) -> Ordered:
    """Ids and digests of what is released, in output order; to be closed."""

    def rows() -> Iterator[pa.Table]:
        for _, table in ledger.committed(release, the_plan, ("status", *PAIR)):
            found = table.filter(pc.equal(table["status"], Status.RELEASED.value))
            yield found.select(PAIR).replace_schema_metadata()

    return Ordered(rows(), "output_id", the_plan.records, ledger.scratch(release))


def _batches(rows: Ordered, waiting: deque[pa.Table]) -> Iterator[pa.Table]:
    """Some rows at a time, each put into ``waiting`` before it is handed on."""
    for table in rows.tables():
        if len(pc.unique(table["output_id"])) != len(table):
            raise IntegrityError("release: two records share an output id: nothing is published")
        for begin in range(0, len(table), BATCH):
            waiting.append(table.slice(begin, BATCH))
            yield waiting[-1]


def _pictures(release: Release, batches: Iterable[pa.Table], config: RunConfig) -> Iterator[ReleasedPicture]:
    suffix = image_codec.SUFFIXES[config.output.image]
    rows = (row for batch in batches for row in batch.to_pylist())
    staging = release.staging

    def picture(row: Mapping[str, Any]) -> ReleasedPicture:
        data, columns = _staged(staging, row, suffix), passthrough_columns.from_json(row["carried"])
        return ReleasedPicture(row["output_id"], data, suffix, row["label"], row["caption"], columns)

    if release.root.is_local:
        yield from map(picture, rows)
        return
    with ThreadPoolExecutor(ledger.AHEAD, "staged") as pool:  # each takes a request
        yield from ahead(picture, rows, pool, 2 * ledger.AHEAD)


def _staged(staging: Place, row: Mapping[str, Any], suffix: str) -> bytes:
    """The bytes that the ledger speaks of, and no others."""
    name = f"{row['staging']}/{row['output_id']}{suffix}"
    try:
        data = _read(staging / name)
    except OSError:
        data = b""
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        if row["kept"]:
            raise IntegrityError(
                "release: a picture that is kept is missing or damaged in the releases before this one: nothing is "
                "published: restore their public/, then run the same command again"
            )
        redo = ledger.redo(row["shard"])
        raise IntegrityError(
            f"shard {row['shard']}: a staged picture is missing or damaged: nothing is published: {redo}"
        )
    return data


def _read(place: Place) -> bytes:
    """A small file; on a disk without fsspec, which takes longer than the file itself."""
    if not place.is_local:
        return place.read()
    with open(place.path, "rb") as file:
        return file.read()


def _manifest(
    rows: pa.Table, placed: Sequence[Placed], config: RunConfig, facts: Facts, types: Mapping[str, pa.DataType]
) -> pa.Table:
    """Rows of the manifest, for rows of the ledger and where their pictures were put."""
    if [p.output_id for p in placed] != rows["output_id"].to_pylist():
        raise IntegrityError(OTHERS)
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
    columns |= public_scores.public_columns(rows, config.output.public_scores, facts.scores)
    public = {name: made_by for name, made_by in (facts.models or {}).items() if name in public_scores.COLUMNS}
    return pa.table(columns).replace_schema_metadata({"metric_models": passthrough_columns.to_json(public) or "{}"})
