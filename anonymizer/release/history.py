"""The releases before this one: unchanged originals keep the output that was published, the erased ones stay away.

A second output of one original would add up with the first for an attacker, so none is drawn: what was published once
is published again, to the byte, whatever the settings are by now. An original is known by its bytes (a keyed digest),
not by its name; one that was away for some releases is looked for in all that are still at hand.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from anonymizer import config as configuration
from anonymizer.attest import revocation, statement
from anonymizer.attest.verify import check_public
from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.data import released_images
from anonymizer.data.passthrough_columns import from_json
from anonymizer.errors import ConfigError, CustodianKeyError, OutputError
from anonymizer.records import Scores, Status
from anonymizer.release import event_log, ledger, plan
from anonymizer.schema import LEDGER_SCHEMA
from anonymizer.storage import parquet
from anonymizer.storage.digest_index import DigestIndex
from anonymizer.storage.external_sort import ExternalSort
from anonymizer.storage.layout import REVOCATIONS, Release
from anonymizer.storage.path import StoragePath

ERASED_SCHEMA = pa.schema([("kind", pa.string()), ("hmac", pa.string())])  # kind: original, subject
SHARED_SETTINGS = ("output.image", "output.quality", "output.size")  # what all files of one release have in common
DIGEST_SCHEMA = pa.schema([("output_id", pa.string()), ("sha256", pa.string())])
PREDECESSORS_FILE = "before.json"  # in the restricted half: addresses of all releases before this one, the latest first

# What a row says of an output that was made for an earlier release, and goes on to say.
REUSED_COLUMNS = (
    *("started", "seconds", "level", "t_boom", "log_snr", "sampler", "steps", "model", "model_digest"),
    *("config_fingerprint", "code_version", "clip_similarity", "lpips", "identity_distance", "faces"),
    *("sha256", "bytes", "width", "height"),
)
CHUNK_ROWS = 50_000  # rows that are held in one piece
DICTIONARY_COLUMNS = {
    "sampler",
    "model",
    "model_digest",
    "config_fingerprint",
    "code_version",
}  # the same in very many rows
REUSED_SCHEMA = pa.schema(
    [
        pa.field(name, pa.dictionary(pa.int32(), pa.string()))
        if name in DICTIONARY_COLUMNS
        else LEDGER_SCHEMA.field(name)
        for name in REUSED_COLUMNS
    ]
)


@dataclass(frozen=True)
class PublishedHistory:
    """What was published before, ``rows`` of ``KEPT`` for the keyed digests in ``lookups``, and the digests of what was
    erased.

    Release after release, the latest first: ``lookups`` holds where its rows begin, and where in them a digest is.
    """

    rows: pa.Table | None = None
    lookups: Sequence[tuple[int, DigestIndex]] = ()
    erased: frozenset[str] = frozenset()

    def find_row(self, source_hmac: str) -> Mapping[str, Any] | None:
        """What the ledger says of an original that was published (``KEPT``); none of one that was not."""
        for begin, lookup in self.lookups:
            at = int(lookup.first_positions([source_hmac])[0])
            if at >= 0 and self.rows is not None:
                row: Mapping[str, Any] = self.rows.slice(begin + at, 1).to_pylist()[0]
                return row
        return None

    def is_erased(self, source_hmac: str | None, subject_hmac: str | None) -> bool:
        return source_hmac in self.erased or subject_hmac in self.erased


EMPTY_HISTORY = PublishedHistory()


@dataclass(frozen=True)
class Difference:
    """Pictures of originals that the previous release has too, that it has not, and that it alone has."""

    kept: int
    new: int
    left_out: int

    def __str__(self) -> str:
        return f"{self.kept:,} kept, {self.new:,} new, {self.left_out:,} left out"


def check(config: RunConfig, key: CustodianKey, metric_models: Mapping[str, str]) -> None:
    """Whether a run with these settings and scores may follow the release that ``previous`` names."""
    if config.previous is None:
        return
    before, name = Release.at(config.previous), f"previous {config.previous!r}"
    if StoragePath.from_uri(config.output.uri).is_inside(before.root):
        raise ConfigError(f"{name}: is the output itself, or holds it: each release has a place of its own")
    if not before.plan.exists():
        what = "was erased: name the release that took its place" if before.event_log.exists() else (
            "has no restricted half: name the release with both halves")  # fmt: skip
        raise ConfigError(f"{name}: {what}")
    if not before.is_published:
        raise ConfigError(f"{name}: is not published: finish it first, or name the one before it")
    if not before.ledger.exists():
        raise ConfigError(
            f"{name}: its records were purged (restricted.record_days), and without them no original is known again: "
            "name a release whose records are still there"
        )
    if key.check_value is None or key.check_value != plan.read(before).key_check:
        raise CustodianKeyError(
            f"{config.key_env}: not the key that {name} was made with: without it no original is known again: set it"
        )
    made = plan.read_config(before)
    for setting in SHARED_SETTINGS:
        was, now = configuration.get_setting(made, setting), configuration.get_setting(config, setting)
        if was != now:
            raise ConfigError(f"{setting}: {name} has {was!r}, not {now!r}: files of one release are of one kind")
    if config.model.has_record_condition:
        raise ConfigError(
            f"{name}: its pictures would go on to show what the model was told of a record then: leave out "
            "model.condition and columns in model.prompt, or begin anew without previous"
        )
    if config.model.safety_checker and not made.model.safety_checker:
        raise ConfigError(
            f"model.safety_checker: {name} was made without it, and its pictures would be kept unchecked: set it to "
            "false, or begin anew without previous"
        )
    for older in (before, *predecessors(before)):
        _refuse_unverified(older, name if older is before else "previous: a release before it")
        models = _metric_models(older)
        for score in sorted(models.keys() & metric_models.keys()):
            if models[score] != metric_models[score]:
                raise ConfigError(
                    f"metrics: {name} has {score} by {models[score]}, not {metric_models[score]}: use that"
                )


def refuse_erased(config: RunConfig) -> None:
    """ConfigError where the release before was erased meanwhile: what was taken back may be among what is kept."""
    if config.previous is None:
        return
    before = Release.at(config.previous)
    if not before.plan.exists() or not before.is_published:
        raise ConfigError(
            f"previous {config.previous!r}: was erased meanwhile: make this release anew, in another output, with the "
            "release that took its place as previous"
        )


def _refuse_unverified(before: Release, name: str) -> None:
    """ConfigError where a release is not, or not any more, what was signed: it would be taken over, and signed anew."""
    bad = [f.check for f in check_public(before.public, decode=0) if f.result == "fail" and f.check != "signature"]
    head = statement.parse_predicate(statement.read(before.public)).events if not bad else None
    if head is not None:
        sealed = event_log.read(before)[: head.count][-1:]
        if not sealed or sealed[0]["details"].get("ledger") != ledger.compute_digest(before, plan.read(before)):
            bad = ["ledger"]
    if bad:
        raise ConfigError(f"{name}: does not verify ({bad[0]}): see `anonymizer verify`, and restore it")


def absolute_uri(uri: str) -> str:
    """Where a release lies, whatever folder a command is run in."""
    place = StoragePath.from_uri(uri)
    return place.path if place.is_local else uri


def carry_forward(config: RunConfig, release: Release) -> None:
    """What goes on from release to release: who was erased, the list of what was revoked, and which came before."""
    if config.previous is None:
        return
    before = Release.at(config.previous)
    if revocation.read(before.public) and not before.erased.exists():
        raise OutputError(f"previous {config.previous!r}: restricted/erased.parquet is missing: restore it, or people "
                          "come back")  # fmt: skip
    for old, new in ((before.erased, release.erased), (before.public / REVOCATIONS, release.revocations)):
        if old.exists() and not new.exists():
            new.write(old.read())
    (release.restricted / PREDECESSORS_FILE).write(
        json.dumps([absolute_uri(config.previous), *_predecessor_uris(before)]).encode()
    )


def predecessors(release: Release) -> list[Release]:
    """The releases before this one that are at hand, with their records; the latest first."""
    every = [Release.at(uri) for uri in _predecessor_uris(release)]
    return [one for one in every if one.is_published and one.plan.exists() and one.ledger.exists()]


def count_missing(config: RunConfig) -> int:
    """Releases before this one that are neither at hand, with their records, nor destroyed by an erasure."""
    if config.previous is None:
        return 0
    before = Release.at(config.previous)
    every = [before, *(Release.at(uri) for uri in _predecessor_uris(before))]
    gone = [one for one in every if not (one.plan.exists() and one.ledger.exists())]
    return sum(not one.event_log.exists() or one.plan.exists() for one in gone)


def load(release: Release) -> PublishedHistory:
    """What the releases before this one published, the latest of each original, and what must not come back."""
    parts, lookups, begin = [REUSED_SCHEMA.empty_table()], list[tuple[int, DigestIndex]](), 0
    for before in predecessors(release):
        rows, lookup = _new_rows(before, [known for _, known in lookups])
        lookups.append((begin, lookup))
        parts.append(rows)
        begin += len(rows)
    return PublishedHistory(pa.concat_tables(parts), lookups, _read_erased(release))


def _new_rows(release: Release, known: Sequence[DigestIndex]) -> tuple[pa.Table, DigestIndex]:
    """Rows of what a release published, one for each original that is not ``known``; and where each is."""
    parts, waiting = [REUSED_SCHEMA.empty_table()], list[pa.Table]()

    def digests() -> Iterator[list[str]]:
        for rows in _published_rows(release, ("source_hmac", *REUSED_COLUMNS)):
            texts = rows["source_hmac"].to_pylist()
            seen = np.zeros(len(texts), bool)
            for lookup in known:
                seen |= lookup.first_positions(texts) >= 0
            waiting.append(rows.filter(pa.array(~seen)).select(REUSED_COLUMNS).cast(REUSED_SCHEMA))
            if sum(map(len, waiting)) >= CHUNK_ROWS:
                parts.append(_concatenate(waiting))
            yield [text for text, is_known in zip(texts, seen, strict=True) if not is_known]

    lookup = DigestIndex(digests())
    table = pa.concat_tables([*parts, _concatenate(waiting)])
    return table, lookup


def _concatenate(waiting: list[pa.Table]) -> pa.Table:
    """Small tables as one, in one piece; none of them waits any more."""
    table = pa.concat_tables([REUSED_SCHEMA.empty_table(), *waiting]).unify_dictionaries().combine_chunks()
    waiting.clear()
    return table


def read_scores(row: Mapping[str, Any]) -> Scores:
    """The scores in a row of the ledger."""
    return Scores(row["clip_similarity"], row["lpips"], row["identity_distance"], row["faces"])


def stage_published(release: Release, reused: Iterable[pa.Table], folder: StoragePath, suffix: str) -> None:
    """Put what was published before, for rows that are kept, into ``folder``; a file of a release is read once.

    ``kept``: tables with ``output_id`` and ``sha256``.
    """
    rows = pa.concat_tables([DIGEST_SCHEMA.empty_table(), *(table.select(DIGEST_SCHEMA.names) for table in reused)])
    lookup = DigestIndex(chunk.to_pylist() for chunk in rows["sha256"].chunks)
    waiting = np.ones(len(rows), bool)
    for before in predecessors(release):
        if not waiting.any():
            return
        for row, data in released_images.read_images(before.public, _pending_rows(before, lookup, waiting)):
            if hashlib.sha256(data).hexdigest() == row["sha256"]:
                places = lookup.all_positions(row["sha256"])
                waiting[places] = False
                for output_id in rows["output_id"].take(pa.array(places)).to_pylist():
                    (folder / f"{output_id}{suffix}").write_uncommitted(data)


def _pending_rows(release: Release, lookup: DigestIndex, waiting: npt.NDArray[np.bool_]) -> Iterator[Mapping[str, Any]]:
    """Rows of a manifest, in its order, whose pictures are still waited for."""
    for batch in (
        parquet.open_table(release.manifest).select(["file", "member", "sha256"]).to_batches(parquet.BATCH_ROWS)
    ):
        found = lookup.first_positions(batch["sha256"].to_pylist())
        found[found >= 0] = np.where(waiting[found[found >= 0]], found[found >= 0], -1)
        yield from batch.filter(pa.array(found >= 0)).to_pylist()


def compare_with_previous(config: RunConfig, release: Release) -> Difference | None:
    """How a release differs from the one before it; none where there is none, or none that is at hand."""
    if config.previous is None:
        return None
    before = next(
        (one for one in predecessors(release) if str(one.root) == str(Release.at(config.previous).root)), None
    )
    if before is None:
        return None
    plans = plan.read(before), plan.read(release)
    records = max(the_plan.records for the_plan in plans)  # parted alike, so that what is alike lies in one part
    kept = new = left_out = 0
    with (
        ExternalSort(_published_rows(before, ("source_hmac",)), "source_hmac", records) as earlier,
        ExternalSort(_published_rows(release, ("source_hmac",)), "source_hmac", records) as later,
    ):
        for pair in zip(earlier.tables(), later.tables(), strict=True):
            was, now = (Counter(rows["source_hmac"].to_pylist()) for rows in pair)
            kept, new, left_out = kept + (was & now).total(), new + (now - was).total(), left_out + (was - now).total()
    return Difference(kept, new, left_out)


def add_erased(release: Release, digests: Mapping[str, str]) -> None:
    """Add keyed digests (digest -> original or subject) to the list of what must not come back."""
    old = parquet.read(release.erased).to_pylist() if release.erased.exists() else []
    every = {row["hmac"]: row["kind"] for row in old} | dict(digests)
    rows = [{"kind": kind, "hmac": hmac} for hmac, kind in sorted(every.items())]
    release.erased.write(parquet.to_bytes(pa.Table.from_pylist(rows, ERASED_SCHEMA)))


def _read_erased(release: Release) -> frozenset[str]:
    if not release.erased.exists():
        if release.revocations.exists():
            raise OutputError("release: restricted/erased.parquet is missing: restore it, or people come back")
        return frozenset()
    try:
        return frozenset(parquet.read(release.erased)["hmac"].to_pylist())
    except (pa.ArrowException, OSError, KeyError):
        raise OutputError("release: restricted/erased.parquet is damaged: restore it, or people come back") from None


def _published_rows(release: Release, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Rows of what a release published, shard by shard"""
    for _, table in ledger.scan_shards(release, plan.read(release), ("status", *columns)):
        rows = table.filter(pc.equal(table["status"], Status.RELEASED.value))
        yield rows.select(columns).replace_schema_metadata()


def _predecessor_uris(release: Release) -> list[str]:
    place = release.restricted / PREDECESSORS_FILE
    try:
        return list(json.loads(place.read())) if place.exists() else []
    except ValueError:
        raise OutputError(
            f"release: restricted/{PREDECESSORS_FILE} is damaged: restore it, or people get a second output"
        ) from None


def _metric_models(release: Release) -> dict[str, str]:
    """Which model made each score."""
    for _, table in ledger.scan_shards(release, plan.read(release), ("status",)):
        return {k: str(v) for k, v in from_json(table.schema.metadata[b"metric_models"].decode()).items()}
    return {}
