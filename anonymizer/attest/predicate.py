"""What the statement about a release says, field by field; what is missing, more, or of another kind is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from anonymizer.crypto import signing


class StrictModel(BaseModel):
    """Part of a predicate."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, protected_namespaces=())


def _check_public_key(text: str) -> str:
    signing.parse_public_key(text)
    return text


def _check_distinct_keys(approvers: dict[str, str]) -> dict[str, str]:
    if len(set(approvers.values())) < len(approvers):
        raise ValueError("one key stands for two names")
    return approvers


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]
PublicKey = Annotated[str, AfterValidator(_check_public_key)]


class Manifest(StrictModel):
    rows: Count
    columns: tuple[str, ...]
    merkle_root: Digest
    public_scores: Literal["none", "binned", "exact"]


class Materials(StrictModel):
    """Keyed digests, which say nothing without the custodian's key; ``previous``: the statement before."""

    originals: Count
    hmac_sha256: Digest
    previous: Digest | None


class Settings(StrictModel):
    fingerprint: Digest
    level: FiniteFloat
    levels: tuple[FiniteFloat, ...]
    t_boom: Count
    T: Count
    log_snr: FiniteFloat
    sampler: str
    steps: Count


class Model(StrictModel):
    name: str
    sha256: Digest


class Code(StrictModel):
    anonymizer: str
    libraries: dict[str, str]


class Counts(StrictModel):
    read: Count
    released: Count
    quarantined: Count
    failed: Count


class Rule(StrictModel):
    rule: str
    bound: str
    result: Literal["pass", "fail", "waived"]


class Waiver(StrictModel):
    rule: str
    who: str
    why: str
    until: str


class Gate(StrictModel):
    result: Literal["pass", "fail"]
    rules: tuple[Rule, ...]
    waivers: tuple[Waiver, ...]


class Approvals(StrictModel):
    required: Count
    approvers: Annotated[dict[str, PublicKey], AfterValidator(_check_distinct_keys)]


class Events(StrictModel):
    """Where the event log ended when the release was sealed."""

    count: Count
    hash: Digest


class ReleasePredicate(StrictModel):
    """All that is said of a release; ``audit`` is what ``audit.json`` holds."""

    version: Literal[1]
    created: str
    manifest: Manifest
    materials: Materials
    settings: Settings
    model: Model
    code: Code
    counts: Counts
    gate: Gate
    audit: dict[str, Any] | None
    publisher: PublicKey | None
    approvals: Approvals
    events: Events


T = TypeVar("T", bound=StrictModel)


def parse(model: type[T], predicate: Mapping[str, Any]) -> T:
    """A predicate as what it should be. ValueError, in one line, where it is anything else."""
    try:
        return model.model_validate_json(json.dumps(predicate))  # as JSON, in which a list may stand for a tuple
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "predicate"
        raise ValueError(f"{where}: {first['msg']}") from None
