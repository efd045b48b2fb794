"""The settings of a release, and one fingerprint of all that changes pixels."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Annotated, Literal

from pydantic import Field, WithJsonSchema, field_validator, model_validator

from anonymizer.config.base import KEY_ENV_MESSAGE, Float, Int, PictureKind, Section, Uri, get_setting, safe_repr
from anonymizer.config.calibration_scope import SCOPE_KEYS, CalibrationScope, ChosenLevel, LevelRule
from anonymizer.config.model import PIXEL_SETTINGS, ModelConfig
from anonymizer.config.policy import PolicyConfig
from anonymizer.errors import ConfigError

DEFAULT_BATCH_SIZE = 32
Sampler = Literal["ddpm", "ddim", "dpm++", "sde-dpm++", "unipc", "lcm", "tcd"]


class Limits(Section):
    """Bounds on what is decoded; beyond them a record fails with a typed reason."""

    max_bytes: Int = Field(64 * 2**20, gt=0, description="bytes of one encoded picture")
    max_pixels: Int = Field(100_000_000, gt=0, description="width x height of one picture")
    max_frames: Int = Field(1000, gt=0, description="frames of an animation; the first one is used")


class SourceConfig(Section):
    """Where the originals lie and what is carried along with them."""

    uri: Uri = Field(description="folder, file or prefix; any fsspec URI")
    format: Literal["auto", "folder", "webdataset", "parquet", "listing"] = Field(
        "auto", description="auto (by what lies there), folder, webdataset, parquet, or listing (CSV, JSONL)"
    )
    image: str = Field("image", description="column of a Parquet file or listing that holds the picture or its path")
    id: str | None = Field(None, description="column that names a record; without it, file and row do")
    label: str | None = Field(None, description="'folder', or the column or key to carry as label; none by default")
    caption: str | None = Field(None, description="column or key to carry as caption; none by default")
    carry: tuple[str, ...] = Field((), description="further columns to carry into the manifest")
    drop: tuple[str, ...] = Field((), description="columns that are left behind; '*' for all that are not named")
    restricted: tuple[str, ...] = Field((), description="columns to keep in the ledger, and nowhere else")
    subject: str | None = Field(
        None, description="'folder', or the column that names the person, kept in the ledger so that they can be erased"
    )
    where: dict[str, str] = Field({}, description="keep only rows whose column has this value (Parquet, listing)")
    fit: Literal["crop", "pad", "tiles"] = Field(
        "crop", description="crop or pad any other shape to the model's square; or keep it, in overlapping tiles"
    )
    kind: PictureKind | None = Field(
        None, description="what is on the pictures, in your own words; a calibration holds for one kind"
    )
    limits: Limits = Limits()

    @property
    def square_fit(self) -> Literal["crop", "pad"]:
        """How a picture is made square where only squares will do, as for an attacker's network."""
        return "crop" if self.fit == "crop" else "pad"


def check_condition_columns(model: ModelConfig, source: SourceConfig) -> None:
    """What a model is told of each record must be read from the source. ValueError if it is not."""
    here = ("label", "caption")
    known = {*source.carry, *source.restricted} - set(here)
    known |= {name for name in here if getattr(source, name) is not None}
    for name in model.prompt_fields:
        if name not in known:
            how = f"set source.{name}" if name in here else "name the column in source.carry or source.restricted"
            raise ValueError(f"model.prompt: {{{name}}} is not read from the source: {how}")
    if model.condition == "label" and source.label is None:
        raise ValueError("model.condition: label, and source.label is not set: say where the label stands")


class OutputConfig(Section):
    """Where the release goes and what it looks like."""

    uri: Uri = Field(description="folder or prefix; any fsspec URI")
    format: Literal["folder", "webdataset", "parquet"] = Field("folder", description="folder, webdataset or parquet")
    image: Literal["png", "jpeg", "webp"] = Field("png", description="png, jpeg or webp")
    quality: Int = Field(95, ge=1, le=100, description="of jpeg and webp, 1 to 100")
    size: Literal["model", "original"] = Field(
        "model", description="model, or original: resized to the original's size, which is then published"
    )
    public_scores: Literal["none", "binned", "exact"] = Field(
        "binned", description="none, binned, or exact, which are facts about originals"
    )


class BoomerangConfig(Section):
    """The anonymity level and the sampler of the reverse half."""

    level: Annotated[Float, WithJsonSchema({"anyOf": [{"type": "number"}, LevelRule.model_json_schema()]})] = Field(
        0.6, description="share of the training schedule, in (0, 1]; or a rule, {calibration, max_risk, attacks}"
    )
    sampler: Sampler = Field(
        "sde-dpm++", description="ddpm (the paper's), ddim, dpm++, sde-dpm++, unipc; of few-step models lcm, tcd"
    )
    steps: Int | None = Field(20, ge=1, description="reverse steps from t_boom to 0; null: every step")
    samples: Int = Field(1, description="outputs for each original; a release takes 1 only")
    chosen: ChosenLevel | None = None

    @field_validator("level")
    @classmethod
    def _level(cls, value: float) -> float:
        if not 0 < value <= 1:
            raise ValueError(
                f"must be in (0, 1], got {value:g}: level 0 would release the original, 1 is global sampling"
            )
        return value

    @field_validator("samples")
    @classmethod
    def _samples(cls, value: int) -> int:
        if value != 1:
            raise ValueError(
                f"must be 1 in a release, got {value}: several outputs of one original add up for an attacker"
            )
        return value


class MetricsConfig(Section):
    """Which models score an output against its original; ``none`` leaves a score out."""

    clip: str = Field("bundled:clip-mini", description="bundled:clip-mini, an open_clip 'MODEL/PRETRAINED', or none")
    lpips: str = Field("st-alex", description="st-alex (offline), alex, vgg, squeeze, 'alex:WEIGHTS_FILE', or none")
    identity: str = Field("none", description="dlib or arcface:FILE.onnx, to compare and count faces, or none")


class RunSettings(Section):
    """How the work is cut up; nothing here changes a picture's noise."""

    shard_size: Int = Field(256, ge=1, description="records committed at once; what a stopped run can lose")
    batch_size: int | Literal["auto"] = Field(
        DEFAULT_BATCH_SIZE,
        description="pictures that the model sees at once; auto: found by trial on the device, and remembered",
    )
    threads: Int = Field(2, ge=1, description="threads that decode and encode beside the model")
    compile: Literal["auto", "always", "never"] = Field(
        "auto", description="always, never, or auto: the network is compiled on a GPU if the plan is long enough"
    )
    retries: Int = Field(1, ge=0, description="retries of a failed shard, or of what a worker left undone")
    runner: Literal["local", "ray", "dask"] = Field(
        "local", description="local (this process), or tasks of Ray or Dask: anonymizer[ray], anonymizer[dask]"
    )
    dispatch: Literal["inline", "workers"] = Field(
        "inline", description="inline, or workers: ranges of shards for a deployment's workers (a Prefect server)"
    )
    workers: Int = Field(
        2, ge=1, description="processes of a Ray or Dask cluster that the run starts, or ranges handed out at once"
    )
    timeout: Float = Field(
        3600.0, gt=0, description="seconds in which a worker must finish one more picture; else another one takes over"
    )
    deployment: str = Field(
        "anonymize-shards/anonymize-shards", description="FLOW/DEPLOYMENT that ranges of shards are handed to"
    )

    @field_validator("deployment")
    @classmethod
    def _deployment(cls, value: str) -> str:
        if not re.fullmatch(r"[^/]+/[^/]+", value):
            raise ValueError(f"must be FLOW/DEPLOYMENT, as `prefect deployment ls` prints it, got {value!r}")
        return value

    @model_validator(mode="after")
    def _one_way(self) -> RunSettings:
        if self.dispatch == "workers" and self.runner != "local":
            raise ValueError(f"runner: {self.runner}, and dispatch is workers: choose one way to spread the work")
        return self

    @field_validator("batch_size", mode="before")
    @classmethod
    def _batch_size(cls, value: object) -> object:
        if value != "auto" and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise ValueError(f"must be a number, 1 or more, or auto, got {safe_repr(value)}")
        return value

    @property
    def initial_batch_size(self) -> int:
        """Pictures that the model sees at once, where nobody has tried yet."""
        return DEFAULT_BATCH_SIZE if self.batch_size == "auto" else self.batch_size


class RestrictedConfig(Section):
    """How the half that stays is kept, and for how long."""

    recipients: tuple[str, ...] = Field(
        (), description="age public keys (age1...); what shows an original is then encrypted to them"
    )
    picture_days: Int | None = Field(None, ge=0, description="days after which what shows an original is purged")
    record_days: Int | None = Field(None, ge=0, description="days after which what names a record is purged")

    @field_validator("recipients")
    @classmethod
    def _recipients(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if value:  # the library is loaded where it is used
            from anonymizer.crypto.encryption import Encryptor

            Encryptor(value)  # ConfigError, which names the one that is no key
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
    model: ModelConfig = ModelConfig()
    boomerang: BoomerangConfig = BoomerangConfig()
    metrics: MetricsConfig = MetricsConfig()
    policy: PolicyConfig = PolicyConfig()
    restricted: RestrictedConfig = RestrictedConfig()
    lineage: LineageConfig = LineageConfig()
    run: RunSettings = RunSettings()
    key_env: str = Field(
        "ANONYMIZER_KEY", description="environment variable with the custodian's key (hex, 32 digits or more)"
    )
    signing_key_env: str = Field(
        "ANONYMIZER_SIGNING_KEY", description="environment variable with the publisher's private key, or its file"
    )

    @field_validator("key_env", "signing_key_env")
    @classmethod
    def _key_env(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) or re.fullmatch(r"[0-9A-Fa-f]{16,}", value):
            # It may be the key itself: it is not repeated here.
            raise ValueError(KEY_ENV_MESSAGE)
        return value

    @model_validator(mode="after")
    def _never_weaker(self) -> RunConfig:
        if self.policy.escalate and self.policy.escalate[0] <= self.boomerang.level:
            raise ValueError(
                f"policy.escalate: {self.policy.escalate[0]:g} is not above boomerang.level {self.boomerang.level:g}: "
                "an output that came too close is drawn again at a stronger level only"
            )
        return self

    @model_validator(mode="after")
    def _scores_are_made(self) -> RunConfig:
        """A bound on a score that nobody makes would hold back every record."""
        made_by = {"clip_similarity": "clip", "lpips": "lpips", "identity_distance": "identity", "faces": "identity"}
        for score in self.policy.scores:
            if getattr(self.metrics, name := made_by[score]) == "none":
                raise ValueError(f"policy.scores.{score}: metrics.{name} is none and makes no such score: name a model")
        return self

    @model_validator(mode="after")
    def _condition_is_read(self) -> RunConfig:
        check_condition_columns(self.model, self.source)
        return self

    @model_validator(mode="after")
    def _choice_stands(self) -> RunConfig:
        """A level that was chosen is used with what its calibration belongs to, and is not another one by now."""
        if (chosen := self.boomerang.chosen) is not None:
            problems = self.differences_from(chosen.belongs_to)
            if chosen.level != self.boomerang.level:
                problems.append(
                    f"boomerang.level: is {self.boomerang.level:g}, and boomerang.chosen says that a calibration gave "
                    f"{chosen.level:g}: set boomerang.chosen=null to choose a level by hand"
                )
            if problems:
                raise ValueError("; ".join(problems))
        return self

    def at_level(self, level: float) -> RunConfig:
        """The same settings at another level."""
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
            wanted, got = ("null" if value is None else safe_repr(value) for value in (expected, actual))
            if name == "kind" and actual is None:
                lines.append(f"{key}: missing: the calibration is for {wanted}: set it to that if it is true here")
            elif expected != actual:
                lines.append(f"{key}: the calibration was made with {wanted}, not {got}: use that, or calibrate anew")
        return lines

    def fingerprint(self, model_digest: str) -> str:
        """SHA-256 (hex) of what changes pixels: model weights, Boomerang settings, fit, and the output's encoding."""
        what = {
            "model": model_digest,
            "dtype": self.model.dtype,
            "model_settings": self.model.model_dump(include=PIXEL_SETTINGS),
            "boomerang": self.boomerang.model_dump(exclude={"chosen"}),
            "fit": self.source.fit,
            "output": self.output.model_dump(include={"image", "quality", "size"}),
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()
