"""Taking people out of a release: a new one without them, a signed list of what is revoked, and the old one destroyed.

The new release is written first. The old one is destroyed, but for its event log, when the new one is public: a release
that was signed cannot be changed. Copies that were handed out before cannot be called back; the list asks for it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from securesystemslib.signer import CryptoSigner

from anonymizer import config as configuration
from anonymizer.attest import dsse, revocation
from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import IntegrityError, OutputError, UsageError
from anonymizer.records import Plan, Status
from anonymizer.release import event_log, history, ledger, plan, retention
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release
from anonymizer.storage.path import StoragePath

SUBJECT_PREFIX = "subject:"  # before the name of a person, in a list of what is to be erased
IDENTITY_COLUMNS = ("record_id", "subject", "source_hmac")  # what tells whose a row is
BEGUN_EVENT, DESTROYED_EVENT = (
    "erasing",
    "predecessor destroyed",
)  # events of the new release: its first one, and the last of an erasure


@dataclass(frozen=True)
class ErasureRequest:
    """Who is to be erased: records by their ids, people by what the source calls them; and the line of each."""

    records: Mapping[str, int]
    subjects: Mapping[str, int]

    @classmethod
    def read(cls, file: Path) -> ErasureRequest:
        """One name on a line: a record's id, or ``subject:`` and a person. UsageError where there is none."""
        try:
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, ValueError):
            raise UsageError(
                f"--records {str(file)!r}: cannot be read: name a text file with one record id a line"
            ) from None
        named = {line.strip(): number for number, line in enumerate(lines, start=1) if line.strip()}
        if not named:
            raise UsageError(f"--records {str(file)!r}: names nobody: write one record id, or subject:NAME, on a line")
        subjects = {
            name.removeprefix(SUBJECT_PREFIX).strip(): n for name, n in named.items() if name.startswith(SUBJECT_PREFIX)
        }
        return cls({name: n for name, n in named.items() if not name.startswith(SUBJECT_PREFIX)}, subjects)

    def format_lines(self, records: Iterable[str], subjects: Iterable[str]) -> str:
        """On which lines they stand, the first ten."""
        found = sorted([*(self.records[name] for name in records), *(self.subjects[name] for name in subjects)])
        return f"line{'s' if len(found) > 1 else ''} {', '.join(map(str, found[:10]))}{', ...' * (len(found) > 10)}"


@dataclass(frozen=True)
class ErasureCounts:
    """What an erasure takes out; counts only. ``copies``: further records of the same originals."""

    records: int
    copies: int
    pictures: int


@dataclass(frozen=True)
class ErasurePartition:
    """Who goes: records by name, people, and all records of the originals of either, whose pictures are the same."""

    request: ErasureRequest
    originals: frozenset[str]  # keyed digests of theirs
    revoked: Mapping[str, str]  # output id -> SHA-256 of what was public
    named_count: int
    copy_count: int

    def split(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Those of a shard who stay, and those who go."""
        out = pc.or_(_is_named(table, self.request), _is_in(table["source_hmac"], self.originals))
        return table.filter(pc.invert(out)), table.filter(out)


def check(old: Release, new: Release, wanted: ErasureRequest) -> None:
    """What can be told before the work. UsageError; writes nothing."""
    name = f"release {str(old.root)!r}"
    if new.root.is_inside(old.root):
        raise OutputError("--output: is the release itself, or lies in it, which is to be destroyed: name a new folder")
    if new.plan.exists():
        raise OutputError(f"--output {str(new.root)!r}: is another release: name a new folder")
    if not old.is_published:
        raise OutputError(f"{name}: is not published: remove its folder, nothing was handed out")
    if not old.ledger.exists():
        raise OutputError(f"{name}: its records were purged: nobody can be found in it any more")
    partition(old, wanted)


def is_begun(old: Release, new: Release) -> bool:
    """Whether ``new`` is the release that an erasure from ``old`` began to write, or has written."""
    if not new.config.exists() or [event["event"] for event in event_log.read(new)][:1] != [BEGUN_EVENT]:
        return False
    return plan.read_config(new).previous == history.absolute_uri(str(old.root))


def check_same_request(new: Release, wanted: ErasureRequest) -> None:
    """UsageError where an erasure that was begun is to be finished, and others are named by now."""
    records, subjects = _find_named(new, wanted)
    if records or subjects:
        raise UsageError(
            f"--records: {wanted.format_lines(records, subjects)}: not among those whose erasure was begun here: finish that "  # noqa: E501
            "one with its own file, then erase the others from the new release"
        )


def read_counts(new: Release) -> ErasureCounts:
    """What the erasure that made ``new`` takes out."""
    counts = [event["details"] for event in event_log.read(new) if event["event"] == BEGUN_EVENT][-1]
    return ErasureCounts(counts["records"], counts["copies"], counts["pictures"])


def write_successor(
    old: Release, new: Release, settings: RunConfig, wanted: ErasureRequest, key: CustodianKey, signer: CryptoSigner
) -> None:
    """Write the restricted half of a release like ``old`` without some records; assembling and publishing come next.

    Begins anew where it was stopped before.
    """
    the_plan, parted = plan.read(old), partition(old, wanted)
    new.restricted.make_private_folder()
    _remove_except(new.restricted, {new.event_log.name, new.lock.name, new.errors.name})
    new.config.write(configuration.dump(settings).encode())
    counts = ErasureCounts(parted.named_count, parted.copy_count, len(parted.revoked))
    since = retention.retention_start(old)
    event_log.record(new, BEGUN_EVENT, **asdict(counts), kept_since=since.isoformat() if since else None)
    records = _write_remaining(old, new, the_plan, parted)
    _copy_quarantine(old, new, the_plan)
    history.carry_forward(settings, new)
    digests = dict.fromkeys(parted.originals, "original")
    if key.check_value is not None:
        digests |= {key.subject_hmac(subject): "subject" for subject in wanted.subjects}
    history.add_erased(new, digests)
    if parted.revoked:
        before = new.revocations.read() if new.revocations.exists() else b""
        new.revocations.write(before + dsse.dumps([revocation.build(parted.revoked, signer)]))
    own = replace(the_plan, output=settings.output.uri, records=records)
    new.plan.write(json.dumps(asdict(own), indent=2).encode())  # last: the plan stands when this file does
    event_log.record(new, "planned", records=records, shards=own.shards, fingerprint=own.fingerprint)


def destroy(old: Release, new: Release, successor: str) -> None:
    """Remove a release but for its event log, which says what was removed, as does that of the one in its place.

    ``successor``: SHA-256 of that one's statement. Does nothing where it is done.
    """
    if any(event["event"] == DESTROYED_EVENT for event in event_log.read(new)):
        return
    files = _remaining_files(old)
    size = sum(int(old.root.fs.size(f"{old.root.path}/{name}") or 0) for name in files)
    if files:
        event_log.record(old, "erased", files=len(files), bytes=size, successor=successor)
    old.public.remove()
    _remove_except(old.restricted, {old.event_log.name})  # which outlives a release
    if left := _remaining_files(old):
        raise IntegrityError(f"erase: {len(left)} files of the old release could not be removed: remove them by hand")
    head = event_log.record(old, "destroyed", successor=successor)
    old.event_log_lock.remove()
    event_log.record(new, DESTROYED_EVENT, files=len(files), bytes=size, events=asdict(head))


def is_unfinished(new: Release) -> bool:
    """Whether a release takes the place of another one that has not been destroyed yet."""
    found = {event["event"] for event in event_log.read(new)}
    return BEGUN_EVENT in found and DESTROYED_EVENT not in found


def partition(old: Release, wanted: ErasureRequest) -> ErasurePartition:
    """Part the records of a release. UsageError where somebody who is named is not there.

    With a record go all others of the same original, whose pictures are the same.
    """
    the_plan = plan.read(old)
    known = _find_named(old, wanted)
    _refuse_unknown(wanted, wanted.records.keys() - known[0], wanted.subjects.keys() - known[1])
    named, originals = 0, set[str]()
    for _, table in ledger.scan_shards(old, the_plan, IDENTITY_COLUMNS):
        theirs = table.filter(_is_named(table, wanted))
        named += len(theirs)
        originals.update(theirs["source_hmac"].drop_null().to_pylist())
    parted = ErasurePartition(wanted, frozenset(originals), {}, named, 0)
    go, revoked = 0, dict[str, str]()
    for _, table in ledger.scan_shards(old, the_plan, (*IDENTITY_COLUMNS, "status", "output_id", "sha256")):
        _, theirs = parted.split(table)
        go += len(theirs)
        public = theirs.filter(pc.equal(theirs["status"], Status.RELEASED.value))
        revoked |= zip(public["output_id"].to_pylist(), public["sha256"].to_pylist(), strict=True)
    return replace(parted, revoked=revoked, copy_count=go - named)


def _find_named(release: Release, wanted: ErasureRequest) -> tuple[set[str], set[str]]:
    """Which of the records and people that are named are in a release."""
    records, subjects = set[str](), set[str]()
    for _, table in ledger.scan_shards(release, plan.read(release), IDENTITY_COLUMNS):
        records |= wanted.records.keys() & table["record_id"].to_pylist()
        subjects |= wanted.subjects.keys() & table["subject"].to_pylist()
    return records, subjects


def _is_named(table: pa.Table, wanted: ErasureRequest) -> pa.ChunkedArray:
    return pc.or_(_is_in(table["record_id"], wanted.records), _is_in(table["subject"], wanted.subjects))


def _is_in(column: pa.ChunkedArray, names: Iterable[str]) -> pa.ChunkedArray:
    return pc.fill_null(pc.is_in(column, value_set=pa.array(sorted(names), pa.string())), False)


def _refuse_unknown(wanted: ErasureRequest, records: set[str], subjects: set[str]) -> None:
    if records or subjects:
        raise UsageError(
            f"--records: {wanted.format_lines(records, subjects)}: no such record or subject in the release: see record_id "  # noqa: E501
            "and subject in its ledger; subjects need source.subject"
        )


def _write_remaining(old: Release, new: Release, the_plan: Plan, parted: ErasurePartition) -> int:
    """What stays, planned and committed; released records keep what was published of them. How many records stay."""
    records = 0
    for number, whole in ledger.scan_shards(old, the_plan):
        table, _ = parted.split(whole)
        records += len(table)
        kept = pc.or_(table["kept"], pc.equal(table["status"], Status.RELEASED.value))
        at = table.schema.get_field_index("kept")
        table = table.set_column(at, table.schema.field(at), kept)
        there = set(table["record_id"].to_pylist())
        entries = [entry for entry in plan.read_entries(old, number) if entry.record_id in there]
        plan.write_entries(new, number, entries)
        new.shard_ledger(number).write(parquet.to_bytes(table))
    return records


def _copy_quarantine(old: Release, new: Release, the_plan: Plan) -> None:
    """What the gate held back of those who stay; nothing, and a note of it, where it was purged."""
    held = {
        output_id
        for _, table in ledger.scan_shards(new, the_plan, ("status", "output_id"))
        for output_id in table.filter(pc.equal(table["status"], Status.QUARANTINED.value))["output_id"].to_pylist()
    }
    for place in old.quarantine.children():
        if place.name.partition(".")[0] in held:
            (new.quarantine / place.name).write_uncommitted(place.read())
    if old.purged.exists():
        new.purged.write(old.purged.read())


def _remove_except(folder: StoragePath, kept: set[str]) -> None:
    """Remove what lies in a folder, apart from some names."""
    for place in list(folder.children()):
        if place.name not in kept:
            place.remove()


def _remaining_files(release: Release) -> list[str]:
    """Files of both halves that are to go when the release goes."""
    return [
        f"{half.name}/{name}"
        for half in _halves(release)
        for name in half.list_files()
        if name != release.event_log.name
    ]


def _halves(release: Release) -> Iterator[StoragePath]:
    return (half for half in (release.public, release.restricted) if half.exists())
