"""The releases before this one: unchanged originals keep the output that was published, the erased ones stay away.

A second output of one original would add up with the first for an attacker, so none is drawn: what was published once
is published again, to the byte, whatever the settings are by now. An original is known by its bytes (a keyed digest),
not by its name; one that was away for some releases is looked for in all that are still at hand.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer import config as configuration
from anonymizer import events, ledger, parquet, plan, public
from anonymizer.attest import revocation, statement
from anonymizer.carried import from_json
from anonymizer.config import RunConfig
from anonymizer.errors import ConfigError, CustodianKeyError, OutputError
from anonymizer.keys import CustodianKey
from anonymizer.layout import REVOCATIONS, Release
from anonymizer.place import Place
from anonymizer.records import Scores, Status
from anonymizer.verify import check_public

ERASED = pa.schema([("kind", pa.string()), ("hmac", pa.string())])  # kind: original, subject
SAME = ("output.image", "output.quality", "output.size")  # what all files of one release have in common
LINE = "before.json"  # in the restricted half: addresses of all releases before this one, the latest first

# What a row says of an output that was made for an earlier release, and goes on to say.
KEPT = (
    *("started", "seconds", "level", "t_boom", "log_snr", "sampler", "steps", "model", "model_digest"),
    *("config_fingerprint", "code_version", "clip_similarity", "lpips", "identity_distance", "faces"),
    *("sha256", "bytes", "width", "height"),
)
ROWS = pa.schema([ledger.SCHEMA.field(name) for name in ("source_hmac", *KEPT)])


@dataclass(frozen=True)
class Previous:
    """What was published before, by the keyed digest of its original, and the digests of what was erased."""

    rows: pa.Table | None = None
    index: Mapping[str, int] = field(default_factory=dict)
    erased: frozenset[str] = frozenset()

    def row(self, source_hmac: str) -> Mapping[str, Any] | None:
        """What the ledger says of an original that was published (``KEPT``); none of one that was not."""
        at = self.index.get(source_hmac)
        if at is None or self.rows is None:
            return None
        row: Mapping[str, Any] = self.rows.slice(at, 1).to_pylist()[0]
        return row

    def is_erased(self, source_hmac: str | None, subject_hmac: str | None) -> bool:
        return source_hmac in self.erased or subject_hmac in self.erased


NOTHING = Previous()


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
    if Place.of(config.output.uri).lies_in(before.root):
        raise ConfigError(f"{name}: is the output itself, or holds it: each release has a place of its own")
    if not before.plan.exists():
        what = "was erased: name the release that took its place" if before.events.exists() else (
            "has no restricted half: name the release with both halves")  # fmt: skip
        raise ConfigError(f"{name}: {what}")
    if not before.is_published:
        raise ConfigError(f"{name}: is not published: finish it first, or name the one before it")
    if not before.ledger.exists():
        raise ConfigError(
            f"{name}: its records were purged (restricted.record_days), and without them no original is known again: "
            "name a release whose records are still there"
        )
    if key.check is None or key.check != plan.read(before).key_check:
        raise CustodianKeyError(
            f"{config.key_env}: not the key that {name} was made with: without it no original is known again: set it"
        )
    made = plan.stored(before)
    for setting in SAME:
        was, now = configuration.setting(made, setting), configuration.setting(config, setting)
        if was != now:
            raise ConfigError(f"{setting}: {name} has {was!r}, not {now!r}: files of one release are of one kind")
    if config.model.differs_by_record:
        raise ConfigError(
            f"{name}: its pictures would go on to show what the model was told of a record then: leave out "
            "model.condition and columns in model.prompt, or begin anew without previous"
        )
    if config.model.safety_checker and not made.model.safety_checker:
        raise ConfigError(
            f"model.safety_checker: {name} was made without it, and its pictures would be kept unchecked: set it to "
            "false, or begin anew without previous"
        )
    for older in (before, *line(before)):
        _refuse_changed(older, name if older is before else "previous: a release before it")
        models = _models(older)
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


def _refuse_changed(before: Release, name: str) -> None:
    """ConfigError where a release is not, or not any more, what was signed: it would be taken over, and signed anew."""
    bad = [f.check for f in check_public(before.public, decode=0) if f.result == "fail" and f.check != "signature"]
    head = statement.said_of(statement.read(before.public)).events if not bad else None
    if head is not None:
        sealed = events.read(before)[: head.count][-1:]
        if not sealed or sealed[0]["details"].get("ledger") != ledger.digest(before, plan.read(before)):
            bad = ["ledger"]
    if bad:
        raise ConfigError(f"{name}: does not verify ({bad[0]}): see `anonymizer verify`, and restore it")


def address(uri: str) -> str:
    """Where a release lies, whatever folder a command is run in."""
    place = Place.of(uri)
    return place.path if place.is_local else uri


def take_over(config: RunConfig, release: Release) -> None:
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
    (release.restricted / LINE).write(json.dumps([address(config.previous), *_addresses(before)]).encode())


def line(release: Release) -> list[Release]:
    """The releases before this one that are at hand, with their records; the latest first."""
    every = [Release.at(uri) for uri in _addresses(release)]
    return [one for one in every if one.is_published and one.plan.exists() and one.ledger.exists()]


def absent(config: RunConfig) -> int:
    """Releases before this one that are neither at hand, with their records, nor destroyed by an erasure."""
    if config.previous is None:
        return 0
    before = Release.at(config.previous)
    every = [before, *(Release.at(uri) for uri in _addresses(before))]
    gone = [one for one in every if not (one.plan.exists() and one.ledger.exists())]
    return sum(not one.events.exists() or one.plan.exists() for one in gone)


def load(release: Release) -> Previous:
    """What the releases before this one published, the latest of each original, and what must not come back."""
    index: dict[str, int] = {}
    parts = [ROWS.empty_table()]
    for before in line(release):
        for rows in _published(before):
            found = rows["source_hmac"].to_pylist()
            fresh = {hmac: at for at, hmac in enumerate(found) if hmac not in index}
            index |= {hmac: len(index) + n for n, hmac in enumerate(fresh)}
            parts.append(rows.take(pa.array(fresh.values(), pa.int64())))
    return Previous(pa.concat_tables(parts).combine_chunks(), index, _erased(release))


def scores(row: Mapping[str, Any]) -> Scores:
    """The scores in a row of the ledger."""
    return Scores(row["clip_similarity"], row["lpips"], row["identity_distance"], row["faces"])


def stage(release: Release, rows: pa.Table, folder: Place, suffix: str) -> None:
    """Put what was published before, for rows that are kept, into ``folder``; a file of a release is read once."""
    wanted: dict[str, list[str]] = {}
    for row in rows.select(["sha256", "output_id"]).to_pylist():
        wanted.setdefault(row["sha256"], []).append(row["output_id"])
    for before in line(release):
        if not wanted:
            return
        manifest = parquet.read(before.manifest, ["file", "member", "sha256"])
        there = manifest.filter(pc.is_in(manifest["sha256"], value_set=pa.array(list(wanted), pa.string())))
        for row, data in public.contents(before.public, there.to_pylist()):
            if hashlib.sha256(data).hexdigest() == row["sha256"]:
                for output_id in wanted.pop(row["sha256"], ()):
                    (folder / f"{output_id}{suffix}").put(data)


def difference(config: RunConfig, release: Release) -> Difference | None:
    """How a release differs from the one before it; none where there is none, or none that is at hand."""
    if config.previous is None:
        return None
    before = next((one for one in line(release) if str(one.root) == str(Release.at(config.previous).root)), None)
    if before is None:
        return None
    was, now = (Counter(_hmacs(one)) for one in (before, release))
    return Difference((was & now).total(), (now - was).total(), (was - now).total())


def write_erased(release: Release, digests: Mapping[str, str]) -> None:
    """Add keyed digests (digest -> original or subject) to the list of what must not come back."""
    old = parquet.read(release.erased).to_pylist() if release.erased.exists() else []
    every = {row["hmac"]: row["kind"] for row in old} | dict(digests)
    rows = [{"kind": kind, "hmac": hmac} for hmac, kind in sorted(every.items())]
    release.erased.write(parquet.to_bytes(pa.Table.from_pylist(rows, ERASED)))


def _erased(release: Release) -> frozenset[str]:
    if not release.erased.exists():
        if release.revocations.exists():
            raise OutputError("release: restricted/erased.parquet is missing: restore it, or people come back")
        return frozenset()
    try:
        return frozenset(parquet.read(release.erased)["hmac"].to_pylist())
    except (pa.ArrowException, OSError, KeyError):
        raise OutputError("release: restricted/erased.parquet is damaged: restore it, or people come back") from None


def _published(release: Release) -> Iterator[pa.Table]:
    """Rows of what a release published, shard by shard."""
    for _, table in ledger.committed(release, plan.read(release)):
        rows = table.filter(pc.equal(table["status"], Status.RELEASED.value))
        yield rows.select(ROWS.names).replace_schema_metadata()


def _hmacs(release: Release) -> Iterator[str]:
    for rows in _published(release):
        yield from rows["source_hmac"].to_pylist()


def _addresses(release: Release) -> list[str]:
    place = release.restricted / LINE
    try:
        return list(json.loads(place.read())) if place.exists() else []
    except ValueError:
        raise OutputError(f"release: restricted/{LINE} is damaged: restore it, or people get a second output") from None


def _models(release: Release) -> dict[str, str]:
    """Which model made each score."""
    for _, table in ledger.committed(release, plan.read(release)):
        return {k: str(v) for k, v in from_json(table.schema.metadata[b"metric_models"].decode()).items()}
    return {}
