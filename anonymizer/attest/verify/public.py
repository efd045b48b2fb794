"""Verification of a public half: signatures, approvals, digests, Merkle root, schema, counts, and every file.

It needs no Prefect, secret key, model or network. It cannot know who owns the signing key: pass trusted keys, or
compare the reported one. Input is untrusted, so every fault becomes a finding, and unsigned content is not read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from functools import partial

from anonymizer.attest import dsse, merkle, revocation, statement
from anonymizer.attest.dsse import SignedStatement
from anonymizer.attest.predicate import ReleasePredicate
from anonymizer.attest.verify import manifest as manifest_checks
from anonymizer.attest.verify.files import check_documents, check_files, check_metadata, check_sizes
from anonymizer.attest.verify.findings import Finding, failed, noted, pass_or_fail, passed
from anonymizer.attest.verify.inventory import Inventory, read_statement, take_inventory
from anonymizer.crypto import signing
from anonymizer.policy.ceilings import find_exceeded
from anonymizer.policy.gates import rule_names
from anonymizer.storage import parquet
from anonymizer.storage.layout import MANIFEST, REVOCATIONS, STATEMENT
from anonymizer.storage.parquet import TableLike
from anonymizer.storage.path import StoragePath

MAX_STRAYS = 1000  # files that nothing speaks of; beyond these a folder is not listed any further
MIN_ROW_BYTES = 48  # of a manifest: an output id and a digest, which look random and cannot be compressed


def check_public(
    folder: StoragePath,
    trusted: Sequence[str] = (),
    decode: int | None = None,
    *,
    approvers: Mapping[str, str] | None = None,
    revocations: Mapping[str, Sequence[SignedStatement]] | None = None,
    pinned: str | None = None,
) -> Iterator[Finding]:
    """Yield the findings of every check of a public half, in order.

    ``trusted`` are public keys, one of which must be the publisher's; where it is not, nothing but the envelope of the
    statement is parsed. ``approvers`` are public keys by name, as the verifier knows them, and ``revocations`` lists
    that were handed out later, by a name for findings. ``pinned`` is the SHA-256 of the statement that must be there.
    All files are read and compared with their signed digests; ``decode`` bounds how many images are decoded as well.
    """
    try:
        data = read_statement(folder)
        if trusted and not dsse.is_signed_by_any(data, map(signing.parse_public_key, trusted)):
            yield failed("signature", "is by none of the keys that are trusted: nothing else was read")
            return
        signed = statement.loads(data)
        predicate = statement.parse_predicate(signed)
        if pinned not in (None, signed.digest):
            raise ValueError("is another one than was read before")
    except FileNotFoundError:
        yield failed("statement", f"{STATEMENT}: is missing: nothing says what this release should be")
        return
    except (ValueError, OSError, MemoryError) as error:
        yield failed("statement", f"{STATEMENT}: {error or 'is too large'}")
        return
    if predicate.publisher is not None and not signed.is_signed_by(signing.parse_public_key(predicate.publisher)):
        yield failed("signature", "the publisher's signature does not hold")
        return
    yield from _check_publisher(predicate.publisher, trusted)
    if trusted and predicate.publisher not in trusted:
        return
    inventory = take_inventory(folder, predicate.manifest.rows + len(signed.digests) + MAX_STRAYS)
    if predicate.sizes is not None and predicate.sizes.keys() != signed.digests.keys():
        yield failed("statement", f"{STATEMENT}: gives sizes of other files than digests")
        return
    inventory = check_sizes(folder, inventory, predicate.sizes)
    yield from _check_approvals(signed, predicate, approvers)
    yield from _check_gate(predicate)
    documents = list(check_documents(folder, inventory, signed.digests))
    yield from documents
    if MANIFEST not in signed.digests:
        yield failed("digests", f"{MANIFEST}: was not signed")
    elif all(finding.result == "pass" for finding in documents):
        manifest = _open_manifest(folder, predicate)
        if isinstance(manifest, Finding):
            yield manifest
            return
        later = partial(_check_later_revocations, revocations or {}, {predicate.publisher, *trusted})
        yield from _check_contents(folder, inventory, signed, predicate, manifest, decode, later)


def _open_manifest(folder: StoragePath, predicate: ReleasePredicate) -> TableLike | Finding:
    """Open the manifest, if it has as many rows as were signed, which is known before one is read."""
    try:
        manifest = parquet.open_table(folder / MANIFEST)
    except Exception:  # hostile bytes can raise any error in a decoder
        return failed("schema", f"{MANIFEST}: is no Parquet file that can be read")
    rows, size = predicate.manifest.rows, (folder / MANIFEST).fs.size((folder / MANIFEST).path)
    if len(manifest) != rows:
        return failed("counts", f"{MANIFEST}: has {len(manifest):,} rows, and {rows:,} were signed")
    if rows * MIN_ROW_BYTES > size:
        return failed("counts", f"{MANIFEST}: has {rows:,} rows in {size:,} bytes, which cannot hold so many")
    return manifest


def _check_contents(
    folder: StoragePath,
    inventory: Inventory,
    signed: SignedStatement,
    predicate: ReleasePredicate,
    manifest: TableLike,
    decode: int | None,
    check_later_revocations: Callable[[TableLike], Iterator[Finding]],
) -> Iterator[Finding]:
    """Check the manifest, and all files against it."""
    try:
        errors = list(manifest_checks.structure_errors(manifest))
    except Exception:  # hostile bytes can raise any error in a decoder
        errors = [f"{MANIFEST}: is no Parquet file that can be read"]
    if errors:
        yield from pass_or_fail("schema", errors, "")
        return
    errors = list(manifest_checks.column_errors(manifest, predicate))
    yield from pass_or_fail("schema", errors, f"{len(manifest.column_names)} columns, none private")
    errors = list(manifest_checks.count_errors(manifest, predicate))
    yield from pass_or_fail("counts", errors, f"{len(manifest):,} rows, as signed")
    errors = list(manifest_checks.name_errors(manifest))
    yield from pass_or_fail("names", errors, "files are called by their ids, and by nothing else")
    root = merkle.root(merkle.encode_rows(manifest)).hex()
    errors = [] if root == predicate.manifest.merkle_root else ["the rows have another Merkle root than was signed"]
    yield from pass_or_fail("merkle", errors, f"root {root[:16]}… over all rows")
    yield from _check_revocations(folder, predicate, manifest)
    yield from check_later_revocations(manifest)
    yield from check_metadata(manifest, signed.digests)
    yield from check_files(folder, inventory, manifest, signed.digests, decode)


def _check_publisher(key: str | None, trusted: Sequence[str]) -> Iterator[Finding]:
    if key is None:
        yield failed("signature", "the statement is not signed: nobody answers for this release")
    elif trusted and key not in trusted:
        yield failed("signature", "names another publisher than those that are trusted: nothing else was read")
    elif trusted:
        yield passed("signature", f"by {key}, a key that is trusted")
    else:
        yield passed("signature", f"by {key}")
        yield noted("signature", "compare that key with the publisher's, or give it with --trust: anybody can make one")


def _check_approvals(
    signed: SignedStatement, predicate: ReleasePredicate, approvers: Mapping[str, str] | None
) -> Iterator[Finding]:
    """Check that enough approvers have signed, and that every signature is valid and by a key that is listed.

    The publisher lists the approvers: with ``approvers``, public keys by name, only those count that it names, too.
    """
    required, valid = predicate.approvals.required, statement.valid_approvers(signed)
    key_ids = {name: signing.parse_public_key(key).keyid for name, key in predicate.approvals.approvers.items()}
    publisher = {signing.parse_public_key(key).keyid for key in [predicate.publisher] if key is not None}
    if unknown := signed.key_ids - publisher - set(key_ids.values()):
        yield failed("approvals", f"{len(unknown)} signatures by keys that the statement does not list")
    signers = {name for name, key_id in key_ids.items() if key_id in signed.key_ids - publisher}
    if invalid := sorted(signers - set(valid)):
        yield failed("approvals", f"signatures that do not hold: {', '.join(invalid)}")
    if approvers is not None:
        listed = predicate.approvals.approvers
        if strangers := [name for name in valid if approvers.get(name) != listed[name]]:
            yield failed("approvals", f"signed with keys that --approvers does not name so: {', '.join(strangers)}")
        valid = tuple(name for name in valid if name not in strangers)
        required = max(required, 1)  # who names approvers expects an approval, whatever the publisher asked for
    if len(valid) < required:
        yield failed("approvals", f"{len(valid)} of {required} that are required ({', '.join(valid) or 'none'})")
    else:
        yield passed("approvals", f"{', '.join(valid)} ({required} required)" if valid else "none required")
    if valid and approvers is None:
        yield noted("approvals", "only the publisher says whose keys these are: give those you know with --approvers")


def _check_gate(predicate: ReleasePredicate) -> Iterator[Finding]:
    gate = predicate.gate
    waived = {waiver.rule for waiver in gate.waivers}
    problems = [f"{r.rule} ({r.bound}) failed" for r in gate.rules if r.result == "fail"]
    problems += [f"{r.rule} was waived by nobody" for r in gate.rules if r.result == "waived" and r.rule not in waived]
    problems += _policy_errors(predicate)
    expired = [waiver for waiver in gate.waivers if waiver.until.isoformat() < predicate.created[:10]]
    problems += [f"{waiver.rule} was waived until {waiver.until}, before this was signed" for waiver in expired]
    if gate.result != "pass":
        problems.append("the policy did not let this release out")
    count = sum(rule.result == "pass" for rule in gate.rules)
    summary = f"{count} rule{'s' * (count != 1)} kept" + (f", {len(gate.waivers)} waived" if gate.waivers else "")
    yield from pass_or_fail("gate", problems, summary if gate.rules else "no rules were set")
    if gate.weaker and predicate.policy is not None:
        reason = predicate.policy.weaker_than_previous
        yield noted("policy", f"weaker than that of the release before: {'; '.join(gate.weaker)}: {reason}")
    if (reason := predicate.settings.accept_deterministic) is not None:
        sampler = predicate.settings.sampler
        yield noted("settings", f"sampler {sampler} draws no noise on its way back, accepted because: {reason}")
    for waiver in gate.waivers:
        yield noted("gate", f"{waiver.rule} was waived by {waiver.who} until {waiver.until}: {waiver.why}")


def _policy_errors(predicate: ReleasePredicate) -> Iterator[str]:
    """Yield a line on each part of the statement that is not as the policy in it says; version 1 holds no policy."""
    policy, gate, approvals = predicate.policy, predicate.gate, predicate.approvals
    if policy is None:
        return
    if (approvals.required, approvals.approvers) != (policy.approvals, policy.approvers):
        yield "the approvals are not those that the policy asks for"
    if {rule.rule for rule in gate.rules} != set(rule_names(policy)):
        yield "the rules are not those that the policy sets"
    waived = {rule.rule for rule in gate.rules if rule.result == "waived"}
    if not {f"ceilings.{name}" for name in find_exceeded(policy.ceilings, predicate.ceilings)} <= waived:
        yield "the ceilings are not within the policy's bounds"
    if not set(gate.waivers) <= set(policy.waivers):
        yield "a waiver is none of the policy's"
    if gate.weaker and policy.weaker_than_previous is None:
        yield "the policy is weaker than that of the release before, and gives no reason"


def _check_revocations(folder: StoragePath, predicate: ReleasePredicate, manifest: TableLike) -> Iterator[Finding]:
    try:
        revocations = revocation.read(folder)
    except (ValueError, OSError) as error:
        yield failed("revocations", f"{REVOCATIONS}: {error}")
        return
    if any(revocation.publisher_of(signed) != predicate.publisher for signed in revocations):
        yield noted("revocations", "some were signed with another key than this release")
    if revocations:
        revoked = {output_id: digest for signed in revocations for output_id, digest in signed.digests.items()}
        count = _count_revoked(manifest, revoked)
        problems = [f"{count:,} pictures are here that were revoked"] if count else []
        yield from pass_or_fail("revocations", problems, f"{len(revoked):,} pictures revoked, none of them here")


def _check_later_revocations(
    lists: Mapping[str, Sequence[SignedStatement]], believed: Set[str | None], manifest: TableLike
) -> Iterator[Finding]:
    """Check against lists that came after the release; ``believed`` are the keys that may revoke its images."""
    for name, revocations in lists.items():
        if any(revocation.publisher_of(signed) not in believed for signed in revocations):
            yield failed(
                "revocations", f"{name}: some are by a key that is neither the publisher's nor named by --trust"
            )
        revoked = {output_id: digest for signed in revocations for output_id, digest in signed.digests.items()}
        count = _count_revoked(manifest, revoked)
        problems = [f"{name}: {count:,} pictures are here that were revoked: delete them"] if count else []
        yield from pass_or_fail(
            "revocations", problems, f"{name}: {len(revoked):,} pictures revoked, none of them here"
        )


def _count_revoked(manifest: TableLike, revoked: Mapping[str, str]) -> int:
    """Count the revoked images (output id -> SHA-256) that a manifest holds, by id or by content."""
    identifiers, present = {*revoked, *revoked.values()}, set[str]()
    for batch in manifest.select(["output_id", "sha256"]).to_batches(max_chunksize=parquet.BATCH_ROWS):
        present |= identifiers.intersection(text for column in batch.columns for text in column.to_pylist())
    return sum(output_id in present or digest in present for output_id, digest in revoked.items())
