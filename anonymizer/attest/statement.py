"""The statement about a release: what was published, from what, by which code and model, and who let it out.

The predicate is documented field by field in docs/formats.md. It goes into ``public/``: it holds no name, path, score
or bare hash of an original, and no figure of an audit that is not public anyway.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyarrow.compute as pc

from anonymizer.attest import dsse, merkle, predicate
from anonymizer.attest.dsse import SignedStatement
from anonymizer.attest.predicate import ReleasePredicate
from anonymizer.config import PolicyConfig
from anonymizer.crypto import signing
from anonymizer.policy.gates import ReleaseCounts, Verdict
from anonymizer.records import Plan
from anonymizer.storage.layout import IMAGES, STATEMENT
from anonymizer.storage.parquet import TableLike
from anonymizer.storage.path import StoragePath

PREDICATE_TYPE = "urn:anonymizer:predicate:release:v1"
LIBRARIES = (
    *("torch", "diffusers", "numpy", "pillow", "pyarrow"),
    *("open_clip_torch", "lpips", "stlpips-pytorch", "prefect", "securesystemslib"),
)
BLOCK_SIZE = 2**20


@dataclass(frozen=True)
class Origin:
    """What a release was made from, as keyed digests, which say nothing without the custodian's key."""

    originals: int
    hmac_sha256: str
    previous: str | None  # SHA-256 of the statement of the release before


def build_predicate(
    plan: Plan, counts: ReleaseCounts, manifest: TableLike, public_scores: str, origin: Origin
) -> dict[str, Any]:
    """What is said of how a release was made."""
    return {
        "version": 1,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "manifest": {
            "rows": len(manifest),
            "columns": manifest.column_names,
            "merkle_root": merkle.root(merkle.encode_rows(manifest)).hex(),
            "public_scores": public_scores,
        },
        "materials": {"originals": origin.originals, "hmac_sha256": origin.hmac_sha256, "previous": origin.previous},
        "settings": {
            "fingerprint": plan.fingerprint,
            "level": plan.level,
            "levels": sorted(pc.unique(manifest["level"]).to_pylist()),
            "t_boom": plan.t_boom,
            "T": plan.T,
            "log_snr": plan.log_snr,
            "sampler": plan.sampler,
            "steps": plan.steps,
        },
        "model": {"name": plan.model, "sha256": plan.model_digest},
        "code": {"anonymizer": version("anonymizer"), "libraries": dict(_library_versions())},
        "counts": {name: getattr(counts, name) for name in ("read", "released", "quarantined", "failed")},
    }


def build_decision(
    policy: PolicyConfig, verdict: Verdict, audit: Mapping[str, Any] | None, publisher: str | None
) -> dict[str, Any]:
    """What is said of why it was let out, and by whom. ``audit`` is public; ``publisher`` is a public key."""
    return {
        "gate": {
            "result": verdict.result,
            "rules": [{"rule": r.rule, "bound": r.bound, "result": r.result} for r in verdict.rule_results],
            "waivers": [w.model_dump(mode="json") for w in policy.waivers if w.rule in verdict.waived_rules],
        },
        "audit": audit,
        "publisher": publisher,
        "approvals": {"required": policy.approvals, "approvers": dict(sorted(policy.approvers.items()))},
    }


def subject_digests(folder: StoragePath) -> dict[str, str]:
    """Name -> SHA-256 of every file but the statement itself, and pictures that are files, whose digests the manifest
    holds."""
    inside = (
        {place.name: place.list_files() for place in folder.children() if place.name not in (STATEMENT, IMAGES)}
    ).items()
    names = [f"{name}/{file}" if file else name for name, files in inside for file in files]
    return {name: file_digest(folder / name) for name in names}


def file_digest(place: StoragePath) -> str:
    """SHA-256 (hex) of a file, read block by block."""
    found = hashlib.sha256()
    with place.fs.open(place.path, "rb") as file:
        while block := file.read(BLOCK_SIZE):
            found.update(block)
    return found.hexdigest()


def read(folder: StoragePath) -> SignedStatement:
    """The statement in a public half; its signatures are not checked here.

    OSError; ValueError where it is none, or says what no statement says.
    """
    found = dsse.loads((folder / STATEMENT).read(), PREDICATE_TYPE)
    if len(found) != 1:
        raise ValueError(f"holds {len(found)} statements and must hold one")
    parse_predicate(found[0])
    return found[0]


def parse_predicate(signed: SignedStatement) -> ReleasePredicate:
    """What a statement says. ValueError where it is not what a statement says."""
    return predicate.parse(ReleasePredicate, signed.predicate)


def valid_approvers(signed: SignedStatement) -> tuple[str, ...]:
    """Names of the approvers whose signatures hold. The publisher's own is none: nobody approves what they publish."""
    told = parse_predicate(signed)
    others = {name: text for name, text in told.approvals.approvers.items() if text != told.publisher}
    return tuple(name for name, text in others.items() if signed.is_signed_by(signing.parse_public_key(text)))


def _library_versions() -> Iterable[tuple[str, str]]:
    for name in LIBRARIES:
        try:
            yield name, version(name)
        except PackageNotFoundError:
            continue
