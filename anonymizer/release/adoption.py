"""Releases of versions that did not seal: their custodian looks at them once, and seals what is found to be right."""

from __future__ import annotations

import secrets
from dataclasses import replace

from anonymizer.attest import statement
from anonymizer.crypto import seal
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.errors import CustodianKeyError, IntegrityError
from anonymizer.release import event_log, plan, publish
from anonymizer.release.ledger import Ledger, digest_files
from anonymizer.storage.layout import Release


def lacks_seals(release: Release) -> bool:
    """Return whether a published release was signed, and left since, by a version that did not seal."""
    predicate = statement.parse_predicate(publish.read_statement(release))
    return predicate.version == 1 and not seal.is_sealed(release.plan.read())


def adopt(release: Release, key: CustodianKey) -> None:
    """Seal the restricted half of a release that ``lacks_seals``; the caller has verified all of it.

    What is signed stays as it is; an event, which the key vouches for, says which ledger is the signed one. Raises
    CustodianKeyError unless the key is that of the release, IntegrityError if its ledger is not the signed one.
    """
    old_plan = plan.read(Release(release.root))
    if key.check_value is None or key.check_value != old_plan.key_check:
        raise CustodianKeyError("--seal: needs the custodian's key that the release was made with: set that one")
    config = plan.read_config(Release(release.root))
    sealed, new_plan = Release(release.root, key), replace(old_plan, id=old_plan.id or secrets.token_hex(8))
    old, new = Ledger(Release(release.root), old_plan), Ledger(sealed, new_plan)
    before, head = old.digest(), statement.parse_predicate(publish.read_statement(release)).events
    if not event_log.has_signed_ledger(Release(release.root), head.count, before):
        raise IntegrityError("--seal: the ledger is not the one that was there when the release was signed: restore it")
    files = {shard: new.to_bytes(shard, table) for shard, table in old.scan()}
    event_log.record(sealed, event_log.ADOPTED_EVENT, ledger=digest_files(files.values()), signed=before)
    for shard, data in files.items():
        plan.write_entries(sealed, new_plan.id, shard, plan.read_entries(Release(release.root), old_plan, shard))
        sealed.shard_ledger(shard).write(data)
    plan.write_config(sealed, new_plan.id, config)
    plan.write(sealed, new_plan)
