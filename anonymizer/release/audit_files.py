"""The files of an audit in the restricted half: sealed as they are written, and believed only by the key.

``audit.json`` is written last and names the other files by their digests, so that its seal holds for all of them. The
event log, whose lines are keyed, names the last ``audit.json`` by its digest, so that no earlier one takes its place.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pyarrow as pa

from anonymizer.crypto import seal
from anonymizer.errors import IntegrityError
from anonymizer.policy.attackers import Attackers
from anonymizer.policy.gates import AuditResult
from anonymizer.release import event_log, plan
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release

DOCUMENT, FIGURES, PUBLIC = "audit.json", "figures.parquet", "public.json"
EVENT = "audited"
AGAIN = "run `anonymizer audit` again"


def write(release: Release, plan_id: str | None, document: Mapping[str, Any], files: Mapping[str, bytes]) -> None:
    """Write the files of an audit, by name, last ``audit.json`` with ``document`` and their digests, and log it."""
    for name, data in files.items():
        (release.audit / name).write(data)
    digests = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    text = json.dumps({**document, "files": digests, "hmac": seal.PLACEHOLDER}, indent=2)
    data = seal.apply(text.encode(), release.key, _context(plan_id))
    (release.audit / DOCUMENT).write(data)
    attackers = document["attackers"]
    digest = hashlib.sha256(data).hexdigest()
    event_log.record(release, EVENT, pictures=attackers["sample"], attacks=attackers["attacks"], audit=digest)


def read(release: Release) -> AuditResult | None:
    """Return the last audit of this one release; None without one, or where its key was not at hand to make one.

    Raises IntegrityError where a file is not what the audit wrote.
    """
    path = release.audit / DOCUMENT
    if release.sealing_key is None or not path.exists():
        return None
    data = path.read()
    seal.check(data, release.key, _context(plan.read(release).id), f"restricted/audit/{DOCUMENT}", AGAIN)
    logged = [event["details"].get("audit") for event in event_log.read(release) if event["event"] == EVENT]
    if not logged or logged[-1] != hashlib.sha256(data).hexdigest():
        raise IntegrityError(f"restricted/audit/{DOCUMENT}: is not of the last audit in the event log: {AGAIN}")
    audit = json.loads(data)
    files = {name: _read_file(release, name, audit["files"][name]) for name in (FIGURES, PUBLIC)}
    if audit["union"]:
        return None
    rows = parquet.ParquetTable(pa.BufferReader(files[FIGURES])).read().to_pylist()
    return AuditResult(
        when=datetime.fromisoformat(audit["when"]),
        manifest_sha256=audit["manifest"],
        figures=[row for row in rows if row["baseline"] is None],
        attackers=Attackers(**audit["attackers"]),
        missing=audit["unread"] + audit["changed"],
        attacker_limits=audit["lacking"],
        public=json.loads(files[PUBLIC]),
    )


def is_sealed(release: Release) -> bool:
    """Return whether ``audit.json`` has a seal, right or wrong; those of earlier versions have none."""
    return seal.SEAL.search((release.audit / DOCUMENT).read()) is not None


def _read_file(release: Release, name: str, digest: str) -> bytes:
    path = release.audit / name
    data = path.read() if path.exists() else b""
    if hashlib.sha256(data).hexdigest() != digest:
        raise IntegrityError(f"restricted/audit/{name}: is not what the audit wrote: {AGAIN}")
    return data


def _context(plan_id: str | None) -> str:
    return f"{plan_id}/audit"
