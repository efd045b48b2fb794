"""Settings of a release, and the fingerprint of those that change pixels."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from anonymizer.config.base import (
    DETERMINISTIC_SAMPLERS,
    KEY_ENV_MESSAGE,
    Float,
    ImageFormat,
    Int,
    Quality,
    Sampler,
    Section,
    Uri,
    ensure,
    get_setting,
    safe_repr,
)
from anonymizer.config.calibration_scope import SCOPE_KEYS, CalibrationScope, ChosenLevel, LevelRule
from anonymizer.config.groups import GroupsConfig, check_groups
from anonymizer.config.model import PIXEL_SETTINGS, ModelConfig
from anonymizer.config.policy import PolicyConfig, Words
from anonymizer.config.source import SourceConfig, check_condition_columns
from anonymizer.errors import ConfigError

DEFAULT_BATCH_SIZE = 32
# The message does not repeat the value, which may be the key itself.
KeyEnv = Annotated[
    str,
    ensure(lambda name: re.fullmatch(r"(?![0-9A-Fa-f]{16,}$)[A-Za-z_][A-Za-z0-9_]*", name), KEY_ENV_MESSAGE),
]
SCORE_MODELS = {"clip_similarity": "clip", "lpips": "lpips", "identity_distance": "identity", "faces": "identity"}


Sha256 = Annotated[
    str, ensure(lambda text: re.fullmatch(r"[0-9a-f]{64}", text), "must be 64 lower-case hex digits, got {!r}")
]


class OutputConfig(Section):
    """Where the release goes, and its format."""

    uri: Uri = Field(description="folder or prefix; any fsspec URI")
    format: Literal["folder", "webdataset", "parquet"] = Field("folder", description="folder, webdataset or parquet")
    image: ImageFormat = "png"
    quality: Quality = 95
    size: Literal["model", "original"] = Field(
        "model", description="model, or original: resized to the original's size, which is then published"
    )
    public_scores: Literal["none", "binned", "exact"] = Field(
        "binned", description="none, binned, or exact, which reveal facts about originals that no ceiling covers"
    )


class BoomerangConfig(Section):
    """The anonymity level and the sampler of the reverse half."""

    level: Annotated[
        Float,
        WithJsonSchema({"anyOf": [{"type": "number"}, LevelRule.model_json_schema()]}),
        ensure(
            lambda level: 0 < level <= 1,
            "must be in (0, 1], got {:g}: level 0 would release the original, 1 is global sampling",
        ),
    ] = Field(
        0.6,
        description="share of the training schedule, in (0, 1]; or a rule, {calibration, max_risk, attacks} or "
        "{calibration, promise: ceiling, ceilings: {linkage_rank1: 0.05}}",
    )
    sampler: Sampler = "sde-dpm++"
    steps: Int | None = Field(20, ge=1, description="reverse steps from t_boom to 0; null: every step")
    samples: Annotated[
        Int,
        ensure(
            lambda count: count == 1,
            "must be 1 in a release, got {}: several outputs of one original add up for an attacker",
        ),
    ] = Field(1, description="outputs for each original; a release takes 1 only")
    k: Int = Field(
        1, ge=1, description="originals in a group, whose mean each output is a local sample of; 1: no groups"
    )
    accept_deterministic: Words | None = Field(
        None, description="why a release takes a sampler that draws no noise on its way back; signed and published"
    )
    chosen: ChosenLevel | None = None

    @property
    def is_deterministic(self) -> bool:
        """Whether the sampler draws no noise on its way back, so that an output keeps nearly all that z_t tells."""
        return self.sampler in DETERMINISTIC_SAMPLERS

    @model_validator(mode="after")
    def _check_deterministic(self) -> BoomerangConfig:
        if self.accept_deterministic is not None and not self.is_deterministic:
            raise ValueError(f"accept_deterministic: {self.sampler} draws noise on its way back: leave it out")
        return self


class MetricsConfig(Section):
    """Which models score an output against its original; ``none`` leaves a score out."""

    clip: str = Field("bundled:clip-mini", description="bundled:clip-mini, an open_clip 'MODEL/PRETRAINED', or none")
    lpips: str = Field("st-alex", description="st-alex (offline), alex, vgg, squeeze, 'alex:WEIGHTS_FILE', or none")
    gallery: Int = Field(
        1000, ge=0, description="originals from which ceilings are computed, drawn by chance if there are more; 0: none"
    )
    identity: str = Field("none", description="dlib or arcface:FILE.onnx, to compare and count faces, or none")


class RunSettings(Section):
    """How the work is divided and where it runs; nothing here changes a picture's noise."""

    shard_size: Int = Field(256, ge=1, description="records committed at once, which a stopped run can lose")
    batch_size: int | Literal["auto"] = Field(
        DEFAULT_BATCH_SIZE,
        description="pictures in one batch; auto: measured on the device, and cached",
    )
    threads: Int = Field(2, ge=1, description="threads that decode and encode beside the model")
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="always, never, or auto: the network is compiled on a GPU if the plan is long enough"
    )
    retries: Int = Field(1, ge=0, description="retries of a failed shard, or of shards that a worker left undone")
    runner: Literal["local", "ray", "dask"] = Field(
        "local", description="local (this process), or tasks of Ray or Dask: anonymizer[ray], anonymizer[dask]"
    )
    dispatch: Literal["inline", "workers"] = Field(
        "inline", description="inline, or workers: ranges of shards for a deployment's workers (a Prefect server)"
    )
    workers: Int = Field(
        2, ge=1, description="processes of a Ray or Dask cluster that the run starts, or concurrent ranges of shards"
    )
    timeout: Float = Field(
        3600.0,
        gt=0,
        description="seconds for a worker to finish one more picture; then its range is given to another",
    )
    deployment: Annotated[
        str,
        ensure(
            lambda name: re.fullmatch(r"[^/]+/[^/]+", name),
            "must be FLOW/DEPLOYMENT, as `prefect deployment ls` prints it, got {!r}",
        ),
    ] = Field("anonymize-shards/anonymize-shards", description="FLOW/DEPLOYMENT that runs ranges of shards")

    @model_validator(mode="after")
    def _check_dispatch(self) -> RunSettings:
        if self.dispatch == "workers" and self.runner != "local":
            raise ValueError(f"runner: {self.runner}, and dispatch is workers: choose one way to spread the work")
        return self

    @field_validator("batch_size", mode="before")
    @classmethod
    def _check_batch_size(cls, value: object) -> object:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"must be a number, 1 or more, or auto, got {safe_repr(value)}")
        return value

    @property
    def initial_batch_size(self) -> int:
        """The batch size before any trial."""
        return DEFAULT_BATCH_SIZE if self.batch_size == "auto" else self.batch_size


class RestrictedConfig(Section):
    """How the restricted half is encrypted, and how long it is kept."""

    recipients: tuple[str, ...] = Field(
        (), description="age public keys (age1...) that files which show an original are encrypted to"
    )
    picture_days: Int | None = Field(None, ge=0, description="days after which files that show an original are purged")
    record_days: Int | None = Field(None, ge=0, description="days after which files that name a record are purged")

    @field_validator("recipients")
    @classmethod
    def _check_recipients(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value:
            from anonymizer.crypto.encryption import Encryptor

            Encryptor(value)  # raises ConfigError, which names the malformed key
        return value


class LineageConfig(Section):
    """Where OpenLineage events go."""

    to: Uri | None = Field(None, description="file to append events to, or http(s) address of a lineage server")
    namespace: str = Field("anonymizer", min_length=1, description="namespace of the jobs")


class RunConfig(Section):
    """Everything a release is made from."""

    source: SourceConfig
    output: OutputConfig
    previous: Uri | None = Field(
        None, description="the release before this one: unchanged originals keep the output that was published"
    )
    previous_statement: Sha256 | None = Field(
        None, description="SHA-256 of the previous release's statement, which pins it; needed if it was moved or copied"
    )
    trust: tuple[str, ...] = Field(
        (), description="public keys, or files with one, of other publishers whose releases may be `previous`"
    )
    model: ModelConfig = ModelConfig()
    boomerang: BoomerangConfig = BoomerangConfig()
    groups: GroupsConfig = GroupsConfig()
    metrics: MetricsConfig = MetricsConfig()
    policy: PolicyConfig = PolicyConfig()
    restricted: RestrictedConfig = RestrictedConfig()
    lineage: LineageConfig = LineageConfig()
    run: RunSettings = RunSettings()
    key_env: KeyEnv = Field(
        "ANONYMIZER_KEY", description="environment variable with the custodian's key (hex, 32 digits or more)"
    )
    signing_key_env: KeyEnv = Field(
        "ANONYMIZER_SIGNING_KEY", description="environment variable with the publisher's private key, or its file"
    )

    @model_validator(mode="after")
    def _check_escalation(self) -> RunConfig:
        if self.policy.escalate and self.policy.escalate[0] <= self.boomerang.level:
            raise ValueError(
                f"policy.escalate: {self.policy.escalate[0]:g} is not above boomerang.level {self.boomerang.level:g}: "
                "an output that came too close is drawn again at a stronger level only"
            )
        return self

    @model_validator(mode="after")
    def _check_ceilings(self) -> RunConfig:
        """A promise about any attacker cannot be kept where more than the noised original is published of it."""
        chosen = self.boomerang.chosen
        name = "policy.ceilings" if self.policy.ceilings else "boomerang.level.ceilings"
        if not self.policy.ceilings and (chosen is None or not chosen.ceilings):
            return self
        if self.output.public_scores != "none":
            raise ValueError(
                f"{name}: output.public_scores is {self.output.public_scores}, and a score is computed from the "
                "original: set output.public_scores=none"
            )
        if self.policy.scores:
            raise ValueError(
                f"{name}: policy.scores is set, and decides by the original which outputs are released: leave one out"
            )
        if self.source.caption is not None or self.groups.generalise:
            setting = "groups.generalise" if self.groups.generalise else "source.caption"
            raise ValueError(f"{name}: {setting} is set, and what it publishes may name an original: leave one out")
        if chosen is not None and chosen.ceilings and (self.source.label is not None or self.source.carry):
            raise ValueError(
                "boomerang.level.ceilings: a calibration does not know what is published with pictures, and "
                "source.label or source.carry is set: use policy.ceilings, which does"
            )
        return self

    @model_validator(mode="after")
    def _check_score_models(self) -> RunConfig:
        """A bound on a score that no model computes would quarantine every record."""
        for score in self.policy.scores:
            if getattr(self.metrics, name := SCORE_MODELS[score]) == "none":
                raise ValueError(f"policy.scores.{score}: metrics.{name} is none and makes no such score: name a model")
        return self

    @model_validator(mode="after")
    def _check_previous(self) -> RunConfig:
        if self.previous_statement is not None and self.previous is None:
            raise ValueError("previous_statement: there is no previous release: leave it out")
        if self.policy.weaker_than_previous is not None and self.previous is None:
            raise ValueError("policy.weaker_than_previous: there is no previous release: leave it out")
        return self

    @model_validator(mode="after")
    def _check_condition(self) -> RunConfig:
        check_condition_columns(self.model, self.source)
        return self

    @model_validator(mode="after")
    def _check_groups(self) -> RunConfig:
        if self.boomerang.k > 1:
            check_groups(self.groups, self.source, self.model)
            if self.output.size == "original":
                raise ValueError("output.size: original, and a group has several sizes: use model")
            if self.groups.features == "clip" and self.metrics.clip == "none":
                raise ValueError("groups.features: clip, and metrics.clip is none: name a model there, or use pixels")
        elif self.groups != GroupsConfig():
            raise ValueError("groups: boomerang.k is 1, so that there are none: set boomerang.k, or leave groups out")
        return self

    @model_validator(mode="after")
    def _check_group_rules(self) -> RunConfig:
        k, least = self.boomerang.k, self.policy.groups.min_k
        if least is not None and k < least and not self.policy.waives("groups.min_k"):
            raise ValueError(f"policy.groups.min_k: {least}, and boomerang.k is {k}: set boomerang.k={least}")
        return self

    @model_validator(mode="after")
    def _check_chosen_level(self) -> RunConfig:
        """A chosen level must be unchanged, and used within its calibration's scope."""
        level, chosen = self.boomerang.level, self.boomerang.chosen
        if chosen is None:
            return self
        problems = self.differences_from(chosen.belongs_to)
        if chosen.level != level:
            problems.append(
                f"boomerang.level: is {level:g}, and boomerang.chosen says that a calibration gave {chosen.level:g}: "
                "set boomerang.chosen=null to choose a level by hand"
            )
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def at_level(self, level: float) -> RunConfig:
        """Return the same settings at another level."""
        return self.model_copy(update={"boomerang": self.boomerang.model_copy(update={"level": level})})

    def calibration_scope(self, model_digest: str) -> CalibrationScope:
        """Return what a calibration with these settings applies to. ConfigError without ``source.kind``."""
        if self.source.kind is None:
            raise ConfigError(
                "source.kind: missing: say in a few words what is on the pictures (--set source.kind='faces of "
                "adults'): a calibration holds for one kind"
            )
        settings = {name: get_setting(self, key) for name, key in SCOPE_KEYS.items()}
        return CalibrationScope(model_digest=model_digest, model=self.model.public_name, **settings)

    def differences_from(self, scope: CalibrationScope) -> list[str]:
        """Return a line for each setting that a calibration does not apply to; the model's digest is not compared."""
        lines = []
        for name, key in SCOPE_KEYS.items():
            expected, actual = getattr(scope, name), get_setting(self, key)
            before, now = ("null" if value is None else safe_repr(value) for value in (expected, actual))
            if name == "kind" and actual is None:
                lines.append(f"{key}: missing: the calibration is for {before}: set it to that if it is true here")
            elif expected != actual:
                lines.append(f"{key}: the calibration was made with {before}, not {now}: use that, or calibrate anew")
        return lines

    def fingerprint(self, model_digest: str) -> str:
        """Return the SHA-256 (hex) of what changes pixels: weights, Boomerang settings, fit, and the encoding."""
        settings = {
            "model": model_digest,
            "dtype": self.model.dtype,
            "model_settings": self.model.model_dump(include=PIXEL_SETTINGS),
            "boomerang": self.boomerang.model_dump(exclude={"chosen", "k", "accept_deterministic"}),
            "fit": self.source.fit,
            "output": self.output.model_dump(include={"image", "quality", "size"}),
        }
        if self.boomerang.k > 1:  # else as in versions without groups
            settings["groups"] = self.groups.model_dump(mode="json") | {"k": self.boomerang.k}
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()
