"""The configuration of a run: frozen, strict, and with one fingerprint of all that changes pixels."""

from __future__ import annotations

import difflib
import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from anonymizer.errors import ConfigError

KEY_ENV = "must be the name of an environment variable: put the key into that variable, not here"
Sampler = Literal["ddpm", "ddim", "dpm++", "sde-dpm++", "unipc"]


C = TypeVar("C", bound=BaseModel)


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


# A user name with a password after it, and not a host with a port. Two protocols write ORG:REPO@VERSION there.
CREDENTIALS = re.compile(r"(?<!\bgithub)(?<!\bgit)://[^/:@]*:(?!\d+(?:/|$))[^@]*@")


def _address(value: str) -> str:
    if CREDENTIALS.search(value):  # neither repeated here nor stored with the run
        raise ValueError(
            "holds a password, which would be stored with the run: leave it out of the address, and give it in the "
            "environment or in fsspec's own config file (~/.config/fsspec/)"
        )
    if not value.strip() or "\0" in value:
        raise ValueError(f"must name a folder, file or prefix, got {value!r}")
    return value


def _number(value: Any) -> Any:
    if isinstance(value, bool):  # which Python would take for 0 or 1
        raise ValueError(f"must be a number, got {str(value).lower()}")
    return value


def _kind(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError(f"must say in a few words what is on the pictures, got {value!r}")
    return value.strip()


Uri = Annotated[str, AfterValidator(_address)]
Kind = Annotated[str, AfterValidator(_kind)]
Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number)]


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
    where: dict[str, str] = Field({}, description="keep only rows whose column has this value (Parquet, listing)")
    fit: Literal["crop", "pad"] = Field("crop", description="crop or pad: how any other shape is made square")
    kind: Kind | None = Field(
        None, description="what is on the pictures, in your own words; a calibration holds for one kind"
    )
    limits: Limits = Limits()


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


class ModelConfig(Section):
    """Which diffusion model samples, and on what."""

    id: str = Field("bundled:faces-64", description="bundled:NAME, a local folder, or a hub id with a revision")
    revision: str | None = Field(None, description="commit of a hub model; needed for one, so that it cannot change")
    dtype: Literal["float32", "bfloat16", "float16"] = Field("float32", description="float32, bfloat16 or float16")
    device: str = Field("auto", description="auto (a GPU where there is one), cpu, or cuda:N")
    allow_pickle: bool = Field(False, description="whether pickled weights are loaded; they can run code")

    @property
    def is_hub_id(self) -> bool:
        """Whether the id reads as OWNER/NAME; a folder of that name may still be meant."""
        return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", self.id) is not None

    @property
    def public_name(self) -> str:
        """What a manifest calls the model: where a folder lies is nobody's business, and its digest names it."""
        hub = self.revision is not None and self.is_hub_id
        known = self.id.startswith("bundled:") or (hub and not Path(self.id).is_dir())
        return self.id if known else "a local model"


# Where the settings stand that a calibration belongs to.
BELONGS = {
    "dtype": "model.dtype",
    "sampler": "boomerang.sampler",
    "steps": "boomerang.steps",
    "fit": "source.fit",
    "image": "output.image",
    "quality": "output.quality",
    "size": "output.size",
    "kind": "source.kind",
}


class BelongsTo(Section):
    """What a calibration holds for: all that changes pixels but the level, and what is on the pictures.

    ``model`` is the public name; ``model_digest`` is what counts.
    """

    model_digest: str
    model: str
    dtype: str
    sampler: str
    steps: int | None
    fit: str
    image: str
    quality: int
    size: str
    kind: str

    @classmethod
    def of(cls, config: RunConfig, model_digest: str) -> BelongsTo:
        """What a calibration with these settings will belong to. ConfigError without ``source.kind``."""
        if config.source.kind is None:
            raise ConfigError(
                "source.kind: missing: say in a few words what is on the pictures (--set source.kind='faces of "
                "adults'): a calibration holds for one kind"
            )
        here = {name: setting(config, key) for name, key in BELONGS.items()}
        return cls(model_digest=model_digest, model=config.model.public_name, **here)

    def differences(self, config: RunConfig) -> list[str]:
        """What forbids the calibration to these settings, a line for each; the model's digest is not among them."""
        found = []
        for name, key in BELONGS.items():
            was, now = getattr(self, name), setting(config, key)
            said = "null" if was is None else _shown(was)
            if name == "kind" and now is None:
                found.append(f"{key}: missing: the calibration is for {said}: set it to that if it is true here")
            elif was != now:
                got = "null" if now is None else _shown(now)
                found.append(f"{key}: the calibration was made with {said}, not {got}: use that, or calibrate anew")
        return found


class Chosen(Section):
    """How ``boomerang.level`` was chosen from a calibration: a record that the program makes, and no setting."""

    level: float
    calibration: str = Field(description="SHA-256 of the calibration's file; where that lay is not kept")
    max_risk: float = Field(description="the risk above chance that was to be kept")
    attacks: tuple[str, ...] = Field(description="what this is about")
    choosing_high: float = Field(description="highest upper bound of these attacks, in the half that chose")
    confirming_value: float = Field(description="highest risk of these attacks, in the half that confirmed")
    confirming_high: float = Field(description="and the highest upper bound there")
    belongs_to: BelongsTo

    def __str__(self) -> str:
        return f"chosen from a calibration for a risk of at most {self.max_risk:g} ({', '.join(self.attacks)})"


class BoomerangConfig(Section):
    """The anonymity level and the sampler of the reverse half."""

    level: Float = Field(
        0.6, description="share of the training schedule, in (0, 1]; or a rule, {calibration, max_risk, attacks}"
    )
    sampler: Sampler = Field("sde-dpm++", description="ddpm (the paper's), ddim, dpm++, sde-dpm++ or unipc")
    steps: Int | None = Field(20, ge=1, description="reverse steps from t_boom to 0; null: every step")
    samples: Int = Field(1, description="outputs for each original; a release takes 1 only")
    chosen: Chosen | None = None

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

    shard_size: Int = Field(256, ge=1, description="records committed at once; what a stopped run can lose")
    batch_size: Int = Field(32, ge=1, description="pictures that the model sees at once")
    threads: Int = Field(2, ge=1, description="threads that decode and encode beside the model")
    retries: Int = Field(1, ge=0, description="retries of a failed shard")


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
            raise ValueError(KEY_ENV)
        return value

    @model_validator(mode="after")
    def _choice_stands(self) -> RunConfig:
        """A level that was chosen is used with what its calibration belongs to, and is not another one by now."""
        if (chosen := self.boomerang.chosen) is not None:
            problems = chosen.belongs_to.differences(self)
            if chosen.level != self.boomerang.level:
                problems.append(
                    f"boomerang.level: is {self.boomerang.level:g}, and boomerang.chosen says that a calibration gave "
                    f"{chosen.level:g}: set boomerang.chosen=null to choose a level by hand"
                )
            if problems:
                raise ValueError("; ".join(problems))
        return self

    def fingerprint(self, model_digest: str) -> str:
        """SHA-256 (hex) of what changes pixels: model weights, Boomerang settings, fit, and the output's encoding."""
        what = {
            "model": model_digest,
            "dtype": self.model.dtype,
            "boomerang": self.boomerang.model_dump(exclude={"chosen"}),
            "fit": self.source.fit,
            "output": self.output.model_dump(include={"image", "quality", "size"}),
        }
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()


Attack = Literal["linkage", "reidentification", "parrot", "averaging", "inversion", "membership", "attributes", "leaks"]

Baseline = Literal["round-trip", "blur", "pixelation", "global", "unrelated"]


class Attackers(Section):
    """What attackers have, and how hard they try. Nothing here goes into ``public/``."""

    identity: str | None = Field(
        None, description="what tells people apart in the source: 'folder', or a column; none: each record is a person"
    )
    attributes: tuple[str, ...] = Field((), description="columns of the source that an attacker may want to read off")
    others: SourceConfig | None = Field(None, description="other photos of the same people; its label names the person")
    outsiders: SourceConfig | None = Field(None, description="photos of people who are not in the release")
    training: SourceConfig | None = Field(None, description="pictures that the diffusion model was trained on")
    features: tuple[str, ...] = Field(
        ("pixels", "lpips", "clip", "imagenet", "dlib"),
        description="what pictures are compared by: these, or arcface:FILE.onnx",
    )
    sample: int = Field(300, ge=1, description="records that are attacked, drawn by chance; figures say how many")
    pairs: int = Field(256, ge=0, description="pairs that attackers who learn make for themselves")
    outputs: int = Field(8, ge=1, le=16, description="outputs of one original that an attacker may see")
    averaged: int = Field(40, ge=1, description="originals for which he sees that many")
    device: str = "auto"


class AuditConfig(Attackers):
    """What an audit of one release tries, and with what at hand."""

    release: Uri = Field(description="the release, with its restricted half")
    attacks: tuple[Attack, ...] = Field(get_args(Attack), description="attacks to try")
    skip: tuple[Attack, ...] = Field((), description="attacks to leave out")
    baselines: tuple[Baseline, ...] = Field(
        (), description="what to attack besides: round-trip, blur, pixelation, global, unrelated"
    )


MOST_LEVELS = 100


def _levels(value: Any) -> Any:
    """``.1:.9:.1`` (first, last, step) or ``.2,.4,.6`` as numbers."""
    if not isinstance(value, str):
        return value
    try:
        numbers = [float(part) for part in value.replace(":", ",").split(",")]
        if ":" not in value:
            return numbers
        first, last, step = numbers
        count = int((last - first) / step + 1e-6) + 1
        if not 0 < count <= MOST_LEVELS:
            raise ValueError
        return [round(first + i * step, 6) for i in range(count)]
    except (ValueError, ZeroDivisionError, OverflowError):
        raise ValueError(f"must be FIRST:LAST:STEP, as in .1:.9:.1, or numbers with commas, got {value!r}") from None


class CalibrationConfig(Attackers):
    """What a calibration measures: the levels of a run's settings, on a sample of its source."""

    run: RunConfig
    levels: Annotated[tuple[Float, ...], BeforeValidator(_levels)] = Field(
        (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9), description="levels to measure: FIRST:LAST:STEP, or a list"
    )
    attacks: tuple[Attack, ...] = Field(("linkage", "reidentification", "parrot"), description="attacks to try")
    folder: Uri = Field("calibration", description="where calibration.json, its tables and plots go")

    @field_validator("levels")
    @classmethod
    def _within(cls, value: tuple[float, ...]) -> tuple[float, ...]:
        if not value or len(set(value)) < len(value) or not all(0 < level <= 1 for level in value):
            raise ValueError(f"must be different numbers in (0, 1], got {', '.join(f'{x:g}' for x in value) or 'none'}")
        return tuple(sorted(value))

    @field_validator("attacks")
    @classmethod
    def _on_pictures(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not value or "leaks" in value:
            raise ValueError("must name attacks on pictures: leaks are looked for in a release, by `anonymizer audit`")
        return value


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
    """The configuration of a run from nested mappings, changed as in ``build_as``.

    A ``boomerang.level`` that is a mapping has become a number, with the record of how; see ``calibration.settle``.
    """
    return build_as(RunConfig, tree, overrides, given)


def build_as(
    kind: type[C], tree: Mapping[str, Any], overrides: Sequence[str] = (), given: Mapping[str, Any] | None = None
) -> C:
    """A configuration of some kind from nested mappings.

    ``given`` (``a.b`` -> value) goes over them, and ``a.b=value`` overrides (values read as YAML) over both.
    """
    changes = dict(given or {})
    for override in overrides:
        name, separator, value = override.partition("=")
        if not separator or not all(name.split(".")):
            raise ConfigError(f"--set: got {_shown(override)}: write it as section.key=value")
        try:
            changes[name] = yaml.load(value, Loader=_Loader)
        except (yaml.YAMLError, ValueError):
            got = "" if name == "key_env" else f" {_shown(value)}"
            raise ConfigError(f"--set {name}: the value{got} is not YAML: put it in quotes") from None
    try:
        tree = _plain(tree)
        for name, value in changes.items():
            _put(tree, name, value)
        if kind is RunConfig:
            from anonymizer.calibration import settle  # which knows configurations itself

            tree = settle(tree)
        return kind.model_validate(tree)
    except RecursionError:
        raise ConfigError("config: holds itself: write the values out instead of using an anchor") from None
    except ValidationError as error:
        raise ConfigError("; ".join(_line(item, kind) for item in error.errors())) from None


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


def _line(item: Any, kind: type[BaseModel]) -> str:
    """One pydantic error as 'field: what, value: next step'."""
    where = [str(part) for part in item["loc"] if part != "[key]"]
    name = ".".join(where)
    if item["type"] == "extra_forbidden":
        return f"{name}: unknown key: {_nearest(where, kind)}"
    if item["type"] == "missing":
        return f"{name}: missing: give it in the config or as --set {name}=..."
    if name == "key_env":  # whatever stands there may be the key itself
        return f"{name} {KEY_ENV}"
    text = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error":
        return f"{name} {text}".lstrip()
    got = _shown(item["input"])
    if item["type"] == "model_type":
        return f"{name}: is a section, got {got}: {_inside(where, item['input'], kind)}"
    if item["type"] == "dict_type":
        return f"{name}: is a mapping, got {got}: write {name}.COLUMN: VALUE"
    if item["type"] == "tuple_type":
        return f"{name}: is a list, got {got}: put it in square brackets"
    hint = ": put it in quotes" if item["type"] == "string_type" else ""
    return f"{name}: {text}, got {got}{hint}"


def _shown(value: Any) -> str:
    """A value as it may be repeated: short, and not if it holds a password."""
    if CREDENTIALS.search(text := "nothing" if value is None else repr(value)):
        return "an address with a password"
    return text if len(text) <= 80 else text[:77] + "..."


def _inside(where: Sequence[str], value: Any, kind: type[BaseModel]) -> str:
    """What to write instead of a value that stands where a section belongs."""
    fields, name = _settings(_section(where, kind)), ".".join(where)
    key = fields[0]
    if isinstance(value, str) and key in ("uri", "id"):
        return f"write {name}.{key}: {value if _shown(value) == repr(value) else '...'}"
    return f"its keys are {', '.join(fields)}"


# What is looked for under another name than ours, and what it is called here.
ELSEWHERE = {
    "columns": "source.carry",
    "source.columns": "source.carry",
    "source.path": "source.uri",
    "output.path": "output.uri",
    "model.name": "model.id",
}


def _nearest(where: Sequence[str], kind: type[BaseModel]) -> str:
    """What an unknown key was probably meant to be: the same key elsewhere, or the most similar one beside it.

    At the top, where a section may have been forgotten, all keys are compared.
    """
    *sections, key = where
    beside = sorted(_settings(_section(sections, kind)))
    leaves: dict[str, list[str]] = {}
    for known in known_keys(kind):
        leaves.setdefault(known.split(".")[-1], []).append(known)
    if meant := leaves.get(key) or [*filter(None, [ELSEWHERE.get(".".join(where))])]:
        return f"did you mean {_either(meant)}?"
    close = difflib.get_close_matches(key, [*beside, *(() if sections else leaves)], n=1, cutoff=0.5)
    if not close:
        return f"known keys: {', '.join(beside)}"
    return f"did you mean {_either(close if close[0] in beside else leaves[close[0]])}?"


def _either(names: Sequence[str]) -> str:
    return " or ".join(repr(name) for name in names)


def _section(where: Sequence[str], kind: type[BaseModel]) -> type[BaseModel]:
    for part in where:
        kind = _sections(kind)[part]
    return kind


def _sections(kind: type[BaseModel]) -> dict[str, type[BaseModel]]:
    """Name -> section, of those fields that are one (or may be left out)."""
    of = {name: [field.annotation, *get_args(field.annotation)] for name, field in kind.model_fields.items()}
    return {name: a for name, some in of.items() for a in some if isinstance(a, type) and issubclass(a, BaseModel)}


def _settings(kind: type[BaseModel]) -> list[str]:
    """The names in a section, without the record of a choice, which nobody sets."""
    return [name for name in kind.model_fields if _sections(kind).get(name) is not Chosen]


def setting(config: RunConfig, name: str) -> Any:
    """The value of ``section.key``."""
    return reduce(getattr, name.split("."), config)


def known_keys(kind: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[str]:
    """Dotted names of all settings."""
    sections = _sections(kind)
    for name in _settings(kind):
        if name in sections:
            yield from known_keys(sections[name], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"
