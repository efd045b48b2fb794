"""Predicate of the statement about a release, as strict models: a missing, extra or mistyped field is refused."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError, model_validator

from anonymizer.config.policy import PolicyConfig, Waiver
from anonymizer.crypto import signing
from anonymizer.records import Ceilings


class StrictModel(BaseModel):
    """Base of all parts of a predicate."""

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
    """Origin of a release, as keyed digests; ``previous`` is the SHA-256 of the statement of the release before.

    ``sealed``: the key of these digests was kept, and the restricted half is sealed with it.
    """

    originals: Count
    hmac_sha256: Digest
    previous: Digest | None
    sealed: bool | None = None  # in version 1


class Settings(StrictModel):
    fingerprint: Digest
    level: FiniteFloat
    levels: tuple[FiniteFloat, ...]
    t_boom: Count
    T: Count
    log_snr: FiniteFloat
    sampler: str
    steps: Count
    accept_deterministic: str | None = None  # why a sampler that draws no noise on its way back was accepted


class Model(StrictModel):
    name: str
    sha256: Digest


class Code(StrictModel):
    anonymizer: str
    libraries: dict[str, str]


class Counts(StrictModel):
    """Records by their end, and released ``images``, which are fewer where groups share them."""

    read: Count
    released: Count
    quarantined: Count
    failed: Count
    waiting: Count = 0
    images: Count | None = None  # as many as records in statements of earlier versions

    @property
    def released_images(self) -> int:
        return self.released if self.images is None else self.images


class Groups(StrictModel):
    """What each output is drawn from, and what is equal within a group; ``distinct``: what members differ by."""

    k: Annotated[int, Field(ge=2)]
    outputs: Literal["one", "each"]
    by: tuple[str, ...]
    features: str
    distinct: Literal["subject", "record"]
    generalise: dict[str, str]


class Rule(StrictModel):
    rule: str
    bound: str
    result: Literal["pass", "fail", "waived"]


class Gate(StrictModel):
    result: Literal["pass", "fail"]
    rules: tuple[Rule, ...]
    waivers: tuple[Waiver, ...]
    weaker: tuple[str, ...] = ()  # rules of the previous release that are dropped or loosened, one line each


class Approvals(StrictModel):
    required: Count
    approvers: Annotated[dict[str, PublicKey], AfterValidator(_check_distinct_keys)]


class Events(StrictModel):
    """Length and last hash of the event log when the release was sealed."""

    count: Count
    hash: Digest


class ReleasePredicate(StrictModel):
    """The whole predicate; ``audit`` is the content of ``audit.json``.

    ``release`` is the random id of its plan: a statement counts for no other release. ``sizes`` are those of the
    statement's files, in bytes. Version 1 has no ``release``, ``policy`` and ``sizes``.
    """

    version: Literal[1, 2]
    release: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None
    created: str
    manifest: Manifest
    materials: Materials
    settings: Settings
    groups: Groups | None = None
    model: Model
    code: Code
    counts: Counts
    ceilings: Ceilings | None = None  # none hold, or of an earlier version
    gate: Gate
    policy: PolicyConfig | None = None
    sizes: dict[str, Count] | None = None
    audit: dict[str, Any] | None
    publisher: PublicKey | None
    approvals: Approvals
    events: Events

    @model_validator(mode="after")
    def _check_version(self) -> ReleasePredicate:
        is_first, fields = self.version == 1, (self.release, self.policy, self.sizes, self.materials.sealed)
        if {field is None for field in fields} != {is_first} or (is_first and self.gate.weaker):
            raise ValueError(
                "version 2 holds release, policy, sizes of files and materials.sealed, and version 1 does not"
            )
        return self


T = TypeVar("T", bound=StrictModel)


def parse(model: type[T], predicate: Mapping[str, Any]) -> T:
    """Return a predicate as a model. Raises ValueError, in one line, if a field is missing, unknown or invalid."""
    try:
        return model.model_validate_json(json.dumps(predicate))  # as JSON, in which a list may stand for a tuple
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "predicate"
        raise ValueError(f"{where}: {first['msg']}") from None
