"""Erasing people from a release: a successor without them, a signed revocation list, and the old release destroyed.

The successor is written first. A signed release cannot be changed, so the old one is destroyed, except for its event
log, once the successor is public. Copies that were distributed before cannot be recalled; the revocation list asks
their holders to delete them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Container, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from securesystemslib.signer import CryptoSigner

from anonymizer.attest import dsse, revocation
from anonymizer.config import RunConfig
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.data import image_codec
from anonymizer.errors import OutputError, UsageError
from anonymizer.records import Plan, Status, normalize_record_id, normalize_subject
from anonymizer.release import event_log, history, plan, retention, succession
from anonymizer.release.ledger import Ledger, staging_folder
from anonymizer.storage.layout import Release
from anonymizer.storage.path import absolute_uri

SUBJECT_PREFIX = "subject:"  # before the name of a person, in a list of what is to be erased
IDENTITY_COLUMNS = ("record_id", "subject", "source_hmac")


@dataclass(frozen=True)
class ErasureRequest:
    """Records, by id, and people that are to be erased, in their one spelling, each with its line number."""

    records: Mapping[str, int]
    subjects: Mapping[str, int]

    @classmethod
    def read(cls, file: Path) -> ErasureRequest:
        """Read one record id, or ``subject:`` and a name, from each line. Raises UsageError where there is none.

        Outer space does not count, except in an id or name that is written as a JSON string.
        """
        try:
            lines = file.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, ValueError):
            raise UsageError(
                f"--records {str(file)!r}: cannot be read: name a text file with one record id a line"
            ) from None
        records, subjects = dict[str, int](), dict[str, int]()
        for number, line in enumerate(map(str.strip, lines), start=1):
            if line.startswith(SUBJECT_PREFIX):
                name = normalize_subject(_unquote(line.removeprefix(SUBJECT_PREFIX).strip(), number))
                if not name:
                    raise UsageError(f"--records: line {number}: subject: without a name: write subject:NAME")
                subjects[name] = number
            elif line:
                records[normalize_record_id(_unquote(line, number))] = number
        if not records and not subjects:
            raise UsageError(f"--records {str(file)!r}: names nobody: write one record id, or subject:NAME, on a line")
        return cls(records, subjects)

    def format_lines(self, records: Iterable[str], subjects: Iterable[str]) -> str:
        """Return the first ten lines of some records and people, for an error message."""
        lines = sorted([*(self.records[name] for name in records), *(self.subjects[name] for name in subjects)])
        return f"line{'s' if len(lines) > 1 else ''} {', '.join(map(str, lines[:10]))}{', ...' * (len(lines) > 10)}"

    def mask(self, table: pa.Table) -> pa.ChunkedArray:
        """Return which rows are named: by record or by person."""
        records = _spellings(table["record_id"], normalize_record_id, self.records)
        subjects = _spellings(table["subject"], normalize_subject, self.subjects)
        return pc.or_(_is_in(table["record_id"], records), _is_in(table["subject"], subjects))


@dataclass(frozen=True)
class Matches:
    """What of a request is in a release: ``count`` rows, the keyed digests of their originals, and the ids of others.

    ``unread``: ids of rows without such a digest, as their originals could not be read.
    """

    records: set[str]
    subjects: set[str]
    originals: frozenset[str]
    unread: frozenset[str]
    count: int


@dataclass(frozen=True)
class ErasureCounts:
    """What an erasure removes; counts only. ``copies``: further records of the same originals."""

    records: int
    copies: int
    pictures: int


@dataclass(frozen=True)
class ErasurePartition:
    """Which rows are erased: those that the request names, and all others of the same originals."""

    request: ErasureRequest
    originals: frozenset[str]  # keyed digests
    unread: frozenset[str]  # ids of records that have none
    revoked: Mapping[str, str]  # output id -> SHA-256 of the published images
    counts: ErasureCounts

    def split(self, table: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Return the rows of a shard that remain, and those that are erased."""
        erased = pc.or_(self.request.mask(table), _is_in(table["source_hmac"], self.originals))
        return table.filter(pc.invert(erased)), table.filter(erased)


def check(old: Release, new: Release) -> None:
    """Raise UsageError for what prevents an erasure, before any work; writes nothing."""
    name = f"release {str(old.root)!r}"
    if new.root.is_inside(old.root):
        raise OutputError("--output: is the release itself, or lies in it, which is to be destroyed: name a new folder")
    if new.plan.exists():
        raise OutputError(f"--output {str(new.root)!r}: is another release: name a new folder")
    if not old.is_published:
        raise OutputError(f"{name}: is not published: remove its folder, nothing was handed out")
    if not old.ledger.exists():
        raise OutputError(f"{name}: its records were purged: nobody can be found in it any more")
    if (successor := succession.pending_successor(old)) not in (None, absolute_uri(str(new.root))):
        raise OutputError(
            f"{name}: an erasure from it is not finished: finish that one, then erase the others from {successor!r}, "
            "or cancel it (`anonymizer erase --cancel`)"
        )
    if (other := succession.find_replacement(old, str(new.root))) is not None:
        raise OutputError(f"{name}: people are erased from it, or were, by {other!r}: erase from that one")
    if plan.read_config(old).boomerang.k > 1:
        raise OutputError(
            f"{name}: holds groups, whose outputs are of several people: this version erases no one of them"
        )


def is_begun(old: Release, new: Release) -> bool:
    """Return whether ``new`` is the successor that an erasure from ``old`` has begun to write, or has written."""
    if not new.config.exists() or not succession.is_successor(new):
        return False
    return plan.read_config(new).previous == absolute_uri(str(old.root))


def check_same_request(new: Release, request: ErasureRequest) -> None:
    """Raise UsageError where an erasure is to be finished with a request that names others who are still there."""
    matches = _match(new, request)
    if matches.count:
        lines = request.format_lines(matches.records, matches.subjects)
        raise UsageError(
            f"--records: {lines}: not among those whose erasure was begun here: finish that one with its own file, "
            "then erase the others from the new release"
        )


def read_counts(new: Release) -> ErasureCounts:
    """Return what the erasure that made ``new`` removed."""
    details = [event["details"] for event in event_log.read(new) if event["event"] == event_log.ERASURE_BEGUN][-1]
    return ErasureCounts(details["records"], details["copies"], details["pictures"])


def write_successor(
    old: Release, new: Release, settings: RunConfig, request: ErasureRequest, key: CustodianKey, signer: CryptoSigner
) -> None:
    """Write the restricted half of a release like ``old`` without the erased records; it is assembled next.

    Starts over where it was interrupted.
    """
    old, new = replace(old, key=key), replace(new, key=key)
    old_plan, parted = plan.read(old), partition(old, request)
    new_plan = replace(old_plan, output=absolute_uri(settings.output.uri), id=secrets.token_hex(8), shard_records=())
    new.restricted.make_private_folder()
    succession.remove_except(new.restricted, {new.event_log.name, new.lock.name, new.errors.name})
    plan.write_config(new, new_plan.id, settings)
    start = retention.retention_start(old)
    kept_since = start.isoformat() if start else None
    replaced = {"replaces": absolute_uri(str(old.root)), "statement": history.statement_digest_at(str(old.root))}
    event_log.record(new, event_log.ERASURE_BEGUN, **asdict(parted.counts), **replaced, kept_since=kept_since)
    records = _write_remaining(old, new, new_plan, parted)
    contents, erased, revoked = history.collect_inherited(settings, new), new.erased.name, new.revocations.name
    contents[erased] = history.add_erased(contents.get(erased), _list_digests(parted, key))
    if parted.revoked:
        contents[revoked] = contents.get(revoked, b"") + dsse.dumps([revocation.build(parted.revoked, signer)])
    plan.write(new, replace(new_plan, records=records), history.write_inherited(new, contents))


def partition(old: Release, request: ErasureRequest) -> ErasurePartition:
    """Return which records of a release are erased. Raises UsageError where the request names some that are not there.

    All records of the same original are erased together, as their images are the same.
    """
    matches = _match(old, request)
    records, subjects = request.records.keys() - matches.records, request.subjects.keys() - matches.subjects
    if records or subjects:
        lines = request.format_lines(records, subjects)
        raise UsageError(
            f"--records: {lines}: no such record or subject in the release: see record_id and subject in its ledger; "
            "subjects need source.subject"
        )
    parted = ErasurePartition(request, matches.originals, matches.unread, {}, ErasureCounts(matches.count, 0, 0))
    erased, revoked = 0, dict[str, str]()
    for _, table in Ledger.open(old).scan((*IDENTITY_COLUMNS, "status", "output_id", "sha256")):
        _, rows = parted.split(table)
        erased += len(rows)
        public = rows.filter(pc.equal(rows["status"], Status.RELEASED.value))
        revoked |= zip(public["output_id"].to_pylist(), public["sha256"].to_pylist(), strict=True)
    counts = ErasureCounts(matches.count, erased - matches.count, len(revoked))
    return replace(parted, revoked=revoked, counts=counts)


def _match(release: Release, request: ErasureRequest) -> Matches:
    records, subjects, originals, unread, count = set[str](), set[str](), set[str](), set[str](), 0
    for _, table in Ledger.open(release).scan(IDENTITY_COLUMNS):
        rows = table.filter(request.mask(table))
        count += len(rows)
        records |= request.records.keys() & map(normalize_record_id, rows["record_id"].to_pylist())
        subjects |= request.subjects.keys() & map(normalize_subject, rows["subject"].drop_null().to_pylist())
        originals.update(rows["source_hmac"].drop_null().to_pylist())
        unread.update(rows.filter(rows["source_hmac"].is_null())["record_id"].to_pylist())
    return Matches(records, subjects, frozenset(originals), frozenset(unread), count)


def _list_digests(parted: ErasurePartition, key: CustodianKey) -> dict[str, str]:
    """Return the keyed digests (digest -> kind) by which the erased are known again.

    Ids: those that the request names, and of its people those whose originals could not be read.
    """
    digests = dict.fromkeys(parted.originals, "original")
    digests |= {key.subject_hmac(subject): "subject" for subject in parted.request.subjects}
    return digests | {key.record_hmac(name): "record" for name in {*parted.request.records, *parted.unread}}


def _unquote(text: str, line: int) -> str:
    """Return a text as it is, or the content of a JSON string. Raises UsageError for a damaged one."""
    if len(text) < 2 or not text[0] == text[-1] == '"':
        return text
    try:
        name = str(json.loads(text))
        name.encode()  # raises on half a surrogate pair, which JSON can spell
    except ValueError:
        raise UsageError(
            f"--records: line {line}: is quoted, and no JSON string: put a backslash before a quote or backslash in it"
        ) from None
    return name


def _spellings(column: pa.ChunkedArray, normalize: Callable[[str], str], names: Container[str]) -> list[str]:
    """Return the values of a column that are one of ``names`` when normalised."""
    return [value for value in pc.unique(column).drop_null().to_pylist() if normalize(value) in names]


def _is_in(column: pa.ChunkedArray, names: Iterable[str]) -> pa.ChunkedArray:
    return pc.fill_null(pc.is_in(column, value_set=pa.array(sorted(names), pa.string())), False)


def _write_remaining(old: Release, new: Release, new_plan: Plan, parted: ErasurePartition) -> int:
    """Write plan, ledger and quarantine of the records that remain, and return how many these are.

    Released records are marked as ``kept``, so that their published images are reused.
    """
    records, quarantined, released = 0, set[str](), list[pa.Table]()
    ledger, new_ledger = Ledger.open(old), Ledger(new, new_plan)
    for shard, table in ledger.scan():
        rows, _ = parted.split(table)
        records += len(rows)
        kept = pc.or_(rows["kept"], pc.equal(rows["status"], Status.RELEASED.value))
        position = rows.schema.get_field_index("kept")
        rows = rows.set_column(position, rows.schema.field(position), kept)
        held_back = pc.equal(rows["status"], Status.QUARANTINED.value)
        quarantined |= set(rows.filter(held_back)["output_id"].to_pylist())
        record_ids = set(rows["record_id"].to_pylist())
        entries = [entry for entry in plan.read_entries(old, ledger.plan, shard) if entry.record_id in record_ids]
        plan.write_entries(new, new_plan.id, shard, entries)
        new.shard_ledger(shard).write(new_ledger.to_bytes(shard, rows))
        ids = rows.filter(pc.equal(rows["status"], Status.RELEASED.value))["output_id"].combine_chunks()
        folder = pa.array([staging_folder(table)] * len(ids), pa.string()).dictionary_encode()
        released.append(pa.table({"output_id": ids, "staging": folder}))
    history.stage_remaining(old, new, released, image_codec.SUFFIXES[plan.read_config(old).output.image])
    for path in old.quarantine.children():
        if path.name.partition(".")[0] in quarantined:
            (new.quarantine / path.name).write_uncommitted(path.read())
    if old.purged.exists():
        new.purged.write(old.purged.read())
    return records
