"""The configuration of a run: frozen, strict, and with one fingerprint of all that changes pixels."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator

from anonymizer.errors import ConfigError

Sampler = Literal["ddpm", "ddim", "dpm++", "sde-dpm++", "unipc"]


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


def _address(value: str) -> str:
    if not value.strip() or "\0" in value:
        raise ValueError(f"must name a folder, file or prefix, got {value!r}")
    return value


Uri = Annotated[str, AfterValidator(_address)]


class Limits(Section):
    """Bounds on what is decoded; beyond them a record fails with a typed reason."""

    max_bytes: int = Field(64 * 2**20, gt=0, description="bytes of one encoded picture")
    max_pixels: int = Field(100_000_000, gt=0, description="width x height of one picture")
    max_frames: int = Field(1000, gt=0, description="frames of an animation; the first one is used")


class SourceConfig(Section):
    """Where the originals lie and what is carried along with them."""

    uri: Uri = Field(description="folder, file or prefix; any fsspec URI")
    format: Literal["auto", "folder", "webdataset", "parquet", "listing"] = "auto"
    image: str = Field("image", description="column of a Parquet file or listing that holds the picture or its path")
    id: str | None = Field(None, description="column that names a record; without it, file and row do")
    label: str | None = Field(None, description="'folder', or the column or key to carry as label; none by default")
    caption: str | None = Field(None, description="column or key to carry as caption; none by default")
    carry: tuple[str, ...] = Field((), description="further columns to carry into the manifest")
    where: dict[str, str] = Field({}, description="keep only rows whose column has this value (Parquet, listing)")
    fit: Literal["crop", "pad"] = Field("crop", description="how a picture of another shape is brought to the model's")
    limits: Limits = Limits()


class OutputConfig(Section):
    """Where the release goes and what it looks like."""

    uri: Uri = Field(description="folder or prefix; any fsspec URI")
    format: Literal["folder", "webdataset", "parquet"] = "folder"
    image: Literal["png", "jpeg", "webp"] = "png"
    quality: int = Field(95, ge=1, le=100, description="of jpeg and webp")
    size: Literal["model", "original"] = Field("model", description="'original' resizes back to the original's size")
    public_scores: Literal["none", "binned", "exact"] = "binned"


class ModelConfig(Section):
    """Which diffusion model samples, and on what."""

    id: str = Field("bundled:faces-64", description="bundled:NAME, a local folder, or a hub id with a revision")
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    allow_pickle: bool = False

    @property
    def public_name(self) -> str:
        """What a manifest calls the model: where a folder lies is nobody's business, and its digest names it."""
        hub = self.revision is not None and self.id.count("/") == 1 and not self.id.startswith((".", "/", "~"))
        known = self.id.startswith("bundled:") or (hub and not Path(self.id).is_dir())
        return self.id if known else "a local model"


class BoomerangConfig(Section):
    """The anonymity level and the sampler of the reverse half."""

    level: float = Field(0.6, description="share of the training schedule, in (0, 1]")
    sampler: Sampler = "sde-dpm++"
    steps: int | None = Field(20, ge=1, description="reverse steps from t_boom to 0; none: every step (ddpm only)")
    samples: int = Field(1, description="outputs for each original; a release takes 1")

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


class RunSettings(Section):
    """How the work is cut up; nothing here changes a picture's noise."""

    shard_size: int = Field(256, ge=1)
    batch_size: int = Field(32, ge=1)
    threads: int = Field(2, ge=1, description="threads that decode and encode beside the model")
    retries: int = Field(1, ge=0, description="retries of a failed shard")


class RunConfig(Section):
    """Everything a release is made from."""

    source: SourceConfig
    output: OutputConfig
    model: ModelConfig = ModelConfig()
    boomerang: BoomerangConfig = BoomerangConfig()
    metrics: MetricsConfig = MetricsConfig()
    run: RunSettings = RunSettings()
    key_env: str = Field(
        "ANONYMIZER_KEY", description="environment variable with the custodian's key (hex, 32 digits or more)"
    )

    @field_validator("key_env")
    @classmethod
    def _key_env(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", value) or re.fullmatch(r"[0-9A-Fa-f]{16,}", value):
            # It may be the key itself: it is not repeated here.
            raise ValueError("must be the name of an environment variable: put the key into that variable, not here")
        return value

    def fingerprint(self, model_digest: str) -> str:
        """SHA-256 (hex) of what changes pixels: model weights, Boomerang settings, fit, and the output's encoding."""
        what = {
            "model": model_digest,
            "dtype": self.model.dtype,
            "boomerang": self.boomerang.model_dump(),
            "fit": self.source.fit,
            "output": self.output.model_dump(include={"image", "quality", "size"}),
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


def load(path: str | Path, overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None) -> RunConfig:
    """A configuration file (YAML), changed as ``build`` does; any problem is one line."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"config: no file {str(path)!r}: name a YAML file, or use --source and --output") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"config: cannot read {str(path)!r} ({type(error).__name__}): check the file") from None
    return build(parse(text, str(path)), overrides, given)


def parse(text: str, name: str) -> dict[str, Any]:
    """The mapping in a YAML text; ``name`` says where it is from."""
    try:
        tree = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}" if mark else ""
        what = f"key {error.args[1]!r} stands twice" if isinstance(error, _DuplicateKeyError) else "is not YAML"
        step = "remove one of them" if isinstance(error, _DuplicateKeyError) else "check indentation and quotes"
        raise ConfigError(f"config: {name!r}: {what}{where}: {step}") from None
    except (RecursionError, ValueError):  # an anchor that holds itself; a date that there is not
        raise ConfigError(f"config: {name!r} cannot be read as values: write them out, and dates in quotes") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"config: {name!r} holds no mapping: it needs at least source.uri and output.uri")
    return tree


def dump(config: RunConfig) -> str:
    """The YAML text that ``parse`` and ``build`` make the same configuration of.

    In ASCII: with ``allow_unicode`` PyYAML writes some line separators as they are and reads them back as others.
    """
    text: str = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    return text


def build(tree: Mapping[str, Any], overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None) -> RunConfig:
    """A configuration from nested mappings.

    ``given`` (``a.b`` -> value) goes over them, and ``a.b=value`` overrides (values read as YAML) over both.
    """
    changes = dict(given or {})
    for override in overrides:
        name, separator, value = override.partition("=")
        if not separator:
            raise ConfigError(f"--set: got {override!r}: write it as section.key=value")
        try:
            changes[name] = yaml.load(value, Loader=_Loader)
        except (yaml.YAMLError, ValueError):
            raise ConfigError(f"--set {name}: the value {value!r} is not YAML: put it in quotes") from None
    try:
        tree = _plain(tree)
        for name, value in changes.items():
            _put(tree, name, value)
        return RunConfig.model_validate(tree)
    except RecursionError:
        raise ConfigError("config: holds itself: write the values out instead of using an anchor") from None
    except ValidationError as error:
        raise ConfigError("; ".join(_line(item) for item in error.errors())) from None


def _put(tree: Any, name: str, value: Any) -> None:
    *sections, key = name.split(".")
    node = tree
    for section in sections:
        node = node.setdefault(section, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set: {name!r} goes through {section!r}, which is a value: check the key")
    node[key] = value


class _DuplicateKeyError(yaml.YAMLError):
    """A key that stands twice, of which YAML would silently take the last; carries its place and itself."""

    def __init__(self, mark: Any, key: str) -> None:
        super().__init__(mark, key)
        self.problem_mark = mark


class _Loader(yaml.SafeLoader):
    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        seen: set[str] = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise _DuplicateKeyError(key.start_mark, key.value)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _plain(node: Any) -> Any:
    return {k: _plain(v) for k, v in node.items()} if isinstance(node, Mapping) else node


def _line(item: Any) -> str:
    """One pydantic error as 'field: what, value: next step'."""
    where = [str(part) for part in item["loc"] if part != "[key]"]
    name = ".".join(where)
    if item["type"] == "extra_forbidden":
        return f"{name}: unknown key: {_nearest(where)}"
    if item["type"] == "missing":
        return f"{name}: missing: give it in the config or as --set {name}=..."
    text = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{name} {text}"
    value = repr(item["input"])
    hint = ": put it in quotes" if item["type"] == "string_type" else ""
    return f"{name}: {text}, got {value if len(value) <= 80 else value[:77] + '...'}{hint}"


def _nearest(where: Sequence[str]) -> str:
    """What an unknown key was probably meant to be: the same key elsewhere, or the most similar one beside it."""
    elsewhere = [name for name in known_keys() if name.split(".")[-1] == where[-1]]
    if len(elsewhere) == 1:
        return f"did you mean {elsewhere[0]!r}?"
    model: Any = RunConfig
    for part in where[:-1]:
        model = model.model_fields[part].annotation
    known = sorted(model.model_fields)
    close = difflib.get_close_matches(where[-1], known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(known)}"


def known_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from known_keys(field.annotation, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
