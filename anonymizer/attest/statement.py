"""The statement about a release: its files, origin, settings, model, code and counts, and who let it out.

docs/formats.md documents the predicate. The statement is public: it holds no name, path, score or bare hash of an
original, and of an audit only its public summary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import pyarrow.compute as pc

from anonymizer.attest import dsse, merkle
from anonymizer.attest.dsse import SignedStatement
from anonymizer.attest.predicate import Counts, Materials, ReleasePredicate, parse
from anonymizer.config import PolicyConfig, RunConfig
from anonymizer.crypto import signing
from anonymizer.policy.gates import Verdict
from anonymizer.records import Plan, Summary
from anonymizer.storage.layout import IMAGES, STATEMENT
from anonymizer.storage.parquet import TableLike
from anonymizer.storage.path import StoragePath

PREDICATE_TYPES = {n: f"urn:anonymizer:predicate:release:v{n}" for n in (1, 2)}  # by the predicate's version
PREDICATE_TYPE = PREDICATE_TYPES[2]  # of what is written
LIBRARIES = (
    *("torch", "diffusers", "numpy", "pillow", "pyarrow"),
    *("open_clip_torch", "lpips", "stlpips-pytorch", "prefect", "securesystemslib"),
)


def build_predicate(
    plan: Plan, counts: Summary, manifest: TableLike, config: RunConfig, materials: Materials
) -> dict[str, Any]:
    """Return the fields about how a release was made; those of ``build_decision`` and ``events`` are still to come."""
    return {
        "version": 2,
        "release": plan.id,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "manifest": {
            "rows": len(manifest),
            "columns": manifest.column_names,
            "merkle_root": merkle.root(merkle.encode_rows(manifest)).hex(),
            "public_scores": config.output.public_scores,
        },
        "materials": materials.model_dump(),
        "settings": {
            "levels": sorted(pc.unique(manifest["level"]).to_pylist()),
            **{name: getattr(plan, name) for name in ("fingerprint", "level", "t_boom", "T", "log_snr")},
            **{name: getattr(plan, name) for name in ("sampler", "steps", "accept_deterministic")},
        },
        "ceilings": None if plan.ceilings is None else asdict(plan.ceilings),
        "groups": describe_groups(config),
        "model": {"name": plan.model, "sha256": plan.model_digest},
        "code": {"anonymizer": version("anonymizer"), "libraries": dict(_library_versions())},
        "counts": {name: getattr(counts, name) for name in Counts.model_fields},
    }


def describe_groups(config: RunConfig) -> dict[str, Any] | None:
    """Return what a statement tells of the groups of a release; None where there are none."""
    groups, source = config.groups, config.source
    if config.boomerang.k == 1:
        return None
    return {
        "k": config.boomerang.k,
        "outputs": groups.outputs,
        "by": groups.columns(source),
        "features": groups.features,
        "distinct": "subject" if groups.by_subject(source) else "record",
        "generalise": groups.generalise,
    }


@cache
def _library_versions() -> Mapping[str, str]:
    """Return the version of each library that is installed; looked up once, as each look reads a whole file."""
    versions = {}
    for name in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def build_decision(
    policy: PolicyConfig,
    verdict: Verdict,
    audit: Mapping[str, Any] | None,
    publisher: str | None,
    weaker: Sequence[str] = (),
) -> dict[str, Any]:
    """Return the fields about why a release was let out.

    ``audit`` is a public summary, ``publisher`` a public key; ``weaker`` has a line for each rule of the previous
    release that is dropped or loosened.
    """
    return {
        "gate": {
            "result": verdict.result,
            "rules": [{"rule": r.rule, "bound": r.bound, "result": r.result} for r in verdict.rule_results],
            "waivers": [w.model_dump(mode="json") for w in policy.waivers if w.rule in verdict.waived_rules],
            "weaker": list(weaker),
        },
        "policy": policy.model_dump(mode="json"),
        "audit": audit,
        "publisher": publisher,
        "approvals": {"required": policy.approvals, "approvers": dict(sorted(policy.approvers.items()))},
    }


def subject_digests(folder: StoragePath) -> dict[str, str]:
    """Return name -> SHA-256 of all files but the statement and ``images/``, whose digests the manifest holds."""
    files = {path.name: path.list_files() for path in folder.children() if path.name not in (STATEMENT, IMAGES)}
    names = [f"{name}/{file}" if file else name for name, inside in files.items() for file in inside]
    return {name: file_digest(folder / name) for name in names}


def file_digest(path: StoragePath) -> str:
    """Return the SHA-256 (hex) of a file, read block by block."""
    with path.fs.open(path.path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_sizes(folder: StoragePath, names: Iterable[str]) -> dict[str, int]:
    """Return name -> bytes of files."""
    return {name: int(folder.fs.size((folder / name).path)) for name in names}


def read(folder: StoragePath) -> SignedStatement:
    """Return the statement in a public half, its signatures unchecked. Raises as ``loads`` does, or OSError."""
    return loads((folder / STATEMENT).read())


def loads(data: bytes) -> SignedStatement:
    """Return the statement about a release in a file's content, its signatures unchecked.

    Raises ValueError if that holds no statement with a complete predicate, or more than one.
    """
    statements = dsse.loads(data, *PREDICATE_TYPES.values())
    if len(statements) != 1:
        raise ValueError(f"holds {len(statements)} statements and must hold one")
    parse_predicate(statements[0])
    return statements[0]


def parse_predicate(statement: SignedStatement) -> ReleasePredicate:
    """Return the predicate of a release. Raises ValueError if it is not a complete one."""
    predicate = parse(ReleasePredicate, statement.predicate)
    if PREDICATE_TYPES[predicate.version] != statement.predicate_type:
        raise ValueError(f"version: is {predicate.version}, and the statement is of type {statement.predicate_type}")
    return predicate


def valid_approvers(statement: SignedStatement) -> tuple[str, ...]:
    """Return the names of the approvers with a valid signature; the publisher's own key approves nothing."""
    predicate = parse_predicate(statement)
    others = {name: key for name, key in predicate.approvals.approvers.items() if key != predicate.publisher}
    return tuple(name for name, key in others.items() if statement.is_signed_by(signing.parse_public_key(key)))
