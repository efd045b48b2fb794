"""The public half alone: signatures, approvals, digests, Merkle root, schema, counts, and every file read again.

Nothing here needs Prefect, a key, a model or a network. What it cannot tell is whose the signing key is: give the keys
that are trusted, or compare the one that is named. It reads what a stranger wrote, so whatever is wrong with that ends
as a finding; and what was not signed is not looked into any further.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from anonymizer.attest import merkle, revocation, statement
from anonymizer.attest.dsse import SignedStatement
from anonymizer.attest.predicate import ReleasePredicate
from anonymizer.attest.verify import manifest as table
from anonymizer.attest.verify.files import check_documents, check_files
from anonymizer.attest.verify.findings import Finding, failed, noted, pass_or_fail, passed
from anonymizer.attest.verify.inventory import Inventory, take_inventory
from anonymizer.crypto import signing
from anonymizer.storage import parquet
from anonymizer.storage.layout import MANIFEST, REVOCATIONS, STATEMENT
from anonymizer.storage.parquet import TableLike
from anonymizer.storage.path import StoragePath


def check_public(folder: StoragePath, trusted: Sequence[str] = (), decode: int | None = None) -> Iterator[Finding]:
    """Every check of a public half, in order. ``trusted``: public keys, one of which must be the publisher's.

    Every file is read and compared with what was signed; ``decode`` bounds how many pictures are decoded as well.
    """
    there = take_inventory(folder)
    if STATEMENT not in there.files:
        yield failed("statement", f"{STATEMENT}: is missing: nothing says what this release should be")
        return
    try:
        signed = statement.read(folder)
        said = statement.parse_predicate(signed)
    except (ValueError, OSError, MemoryError) as problem:
        yield failed("statement", f"{STATEMENT}: {problem or 'is too large'}")
        return
    if said.publisher is not None and not signed.is_signed_by(signing.parse_public_key(said.publisher)):
        yield failed("signature", "the publisher's signature does not hold")
        return
    yield from _check_publisher(said.publisher, trusted)
    yield from _check_approvals(signed, said)
    yield from _check_gate(said)
    papers = list(check_documents(folder, there, signed.digests))
    yield from papers
    if MANIFEST not in signed.digests:
        yield failed("digests", f"{MANIFEST}: was not signed")
    elif all(finding.result == "pass" for finding in papers):
        yield from _check_contents(folder, there, signed, said, decode)


def _check_contents(
    folder: StoragePath, there: Inventory, signed: SignedStatement, said: ReleasePredicate, decode: int | None
) -> Iterator[Finding]:
    """What the manifest says, and whether it is so."""
    try:
        manifest = parquet.open_table(folder / MANIFEST)
        misshapen = list(table.structure_errors(manifest))
    except Exception:  # hostile bytes raise anything at all in a decoder
        misshapen = [f"{MANIFEST}: is no Parquet file that can be read"]
    if misshapen:
        yield from pass_or_fail("schema", misshapen, "")
        return
    undue = list(table.column_errors(manifest, said))
    yield from pass_or_fail("schema", undue, f"{len(manifest.column_names)} columns, none private")
    yield from pass_or_fail("counts", list(table.count_errors(manifest, said)), f"{len(manifest):,} rows, as signed")
    yield from pass_or_fail(
        "names", list(table.name_errors(manifest)), "files are called by their ids, and by nothing else"
    )
    root = merkle.root(merkle.encode_rows(manifest)).hex()
    same = [] if root == said.manifest.merkle_root else ["the rows have another Merkle root than was signed"]
    yield from pass_or_fail("merkle", same, f"root {root[:16]}… over all rows")
    yield from _check_revocations(folder, said, manifest)
    yield from check_files(folder, there, manifest, signed.digests, decode)


def _check_publisher(key: str | None, trusted: Sequence[str]) -> Iterator[Finding]:
    if key is None:
        yield failed("signature", "the statement is not signed: nobody answers for this release")
    elif trusted and key not in trusted:
        yield failed("signature", f"signed by {key}, which is none of the keys that are trusted")
    elif trusted:
        yield passed("signature", f"by {key}, a key that is trusted")
    else:
        yield passed("signature", f"by {key}")
        yield noted("signature", "compare that key with the publisher's, or give it with --trust: anybody can make one")


def _check_approvals(signed: SignedStatement, said: ReleasePredicate) -> Iterator[Finding]:
    """Enough of those who may approve have signed, and nobody else has."""
    asked, held = said.approvals, statement.valid_approvers(signed)
    keys = {name: signing.parse_public_key(text) for name, text in asked.approvers.items()}
    publisher = {signing.parse_public_key(text).keyid for text in [said.publisher] if text is not None}
    known = publisher | {key.keyid for key in keys.values()}
    if strange := signed.key_ids - known:
        yield failed("approvals", f"{len(strange)} signatures by keys that the statement does not list")
    others = {name for name, key in keys.items() if key.keyid in signed.key_ids - publisher}
    if broken := sorted(others - set(held)):
        yield failed("approvals", f"signatures that do not hold: {', '.join(broken)}")
    if len(held) < asked.required:
        yield failed("approvals", f"{len(held)} of {asked.required} that are required ({', '.join(held) or 'none'})")
    else:
        yield passed("approvals", f"{', '.join(held)} ({asked.required} required)" if held else "none required")


def _check_gate(said: ReleasePredicate) -> Iterator[Finding]:
    gate = said.gate
    answered = {waiver.rule for waiver in gate.waivers}
    broken = [f"{r.rule} ({r.bound}) failed" for r in gate.rules if r.result == "fail"]
    broken += [f"{r.rule} was waived by nobody" for r in gate.rules if r.result == "waived" and r.rule not in answered]
    late = [waiver for waiver in gate.waivers if waiver.until < said.created[:10]]
    broken += [f"{waiver.rule} was waived until {waiver.until}, before this was signed" for waiver in late]
    if gate.result != "pass":
        broken.append("the policy did not let this release out")
    kept = sum(rule.result == "pass" for rule in gate.rules)
    waived = f", {len(gate.waivers)} waived" if gate.waivers else ""
    yield from pass_or_fail(
        "gate", broken, f"{kept} rule{'s' * (kept != 1)} kept{waived}" if gate.rules else "no rules were set"
    )
    for waiver in gate.waivers:
        yield noted("gate", f"{waiver.rule} was waived by {waiver.who} until {waiver.until}: {waiver.why}")


def _check_revocations(folder: StoragePath, said: ReleasePredicate, manifest: TableLike) -> Iterator[Finding]:
    try:
        lists = revocation.read(folder)
    except (ValueError, OSError) as problem:
        yield failed("revocations", f"{REVOCATIONS}: {problem}")
        return
    revoked = {name: digest for one in lists for name, digest in one.digests.items()}
    if any(revocation.publisher_of(one) != said.publisher for one in lists):
        yield noted("revocations", "some were signed with another key than this release")
    if lists:
        still = _count_revoked(manifest, revoked)
        back = [f"{still:,} pictures are here that were revoked"] if still else []
        yield from pass_or_fail("revocations", back, f"{len(revoked):,} pictures revoked, none of them here")


def _count_revoked(manifest: TableLike, revoked: Mapping[str, str]) -> int:
    """How many of the pictures that were revoked (output id -> SHA-256) a manifest has, by name or by content."""
    asked, found = {*revoked, *revoked.values()}, set[str]()
    for batch in manifest.select(["output_id", "sha256"]).to_batches(max_chunksize=parquet.BATCH_ROWS):
        found |= asked.intersection(text for column in batch.columns for text in column.to_pylist())
    return sum(name in found or digest in found for name, digest in revoked.items())
