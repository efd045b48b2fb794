"""What the task of a calibration does, without Prefect: draw a sample, attack it at every level, write the curve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import pyarrow as pa

from anonymizer import report
from anonymizer.backbones import Backbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import CalibrationConfig
from anonymizer.data import usage_marker
from anonymizer.data.sources import open_source
from anonymizer.errors import ConfigError, ModelError, OutputError, StepError
from anonymizer.policy import calibration
from anonymizer.policy.calibration import AttackRisk, CalibratedLevel, Calibration, SampleHalf, Utility
from anonymizer.policy.risk_figures import FigureRow, risk_above_chance, select_headlines
from anonymizer.release import audit_sample, preflight
from anonymizer.storage import parquet
from anonymizer.storage.path import StoragePath
from flows.jobs import attack_evidence
from flows.jobs.progress import NO_PROGRESS, ProgressReporter
from flows.jobs.release import backbone_of, in_fresh_thread, redact_errors
from metrics.audit.audit import ALL_ATTACKERS
from metrics.audit.calibration_curve import CHOOSING, CONFIRMING, CalibrationCurve, CurvePoint, ImageScore, split_halves
from metrics.audit.mechanisms import LocalSampling, RoundTrip, apply
from metrics.audit.workbench import Evidence, Workbench
from metrics.models.clip import ClipEmbedder, cosine_similarity
from metrics.models.lpips import PerceptualDistance
from metrics.stats import figure_table
from metrics.stats.intervals import Bools
from metrics.stats.risk import MIN_PEOPLE, MIN_TRIALS, Figure

SEED = 2022_10_12100
NOT_RUN: FigureRow = {"measure": "", "attacker": "", "feature": "", "n": 0, "subjects": 0, "note": "not tried"}


@dataclass(frozen=True)
class CalibrationSummary:
    """Counts only: safe to hand to a scheduler."""

    pictures: int
    people: int
    levels: int
    note: str | None  # how many outsiders were left out


def run(config: CalibrationConfig, watching: ProgressReporter = NO_PROGRESS) -> CalibrationSummary:
    """Measure every level and write ``calibration.json``, tables and plots. Raises before long work."""
    settings, folder = config.run, StoragePath.from_uri(config.folder)
    folder.make_private_folder()  # before anything can fail, and say why in there
    backbone = _load_backbone(config)
    belongs_to = settings.calibration_scope(backbone.digest)
    boomerang = Boomerang(backbone, settings.boomerang.sampler, settings.boomerang.steps)
    embedders = attack_evidence.load_embedders(config.features, str(backbone.device))
    rng = np.random.default_rng(SEED)

    watching.begin(len(config.levels) * 2 * len(config.attacks), 0)
    watching.stage("reading a sample of the source")
    source = attack_evidence.with_attack_columns(settings.source, config)
    photos = audit_sample.draw_images(source, backbone.size, config.sample, rng)
    evidence = attack_evidence.gather_evidence(config, photos, photos.images, RoundTrip(), backbone, rng)
    parts = split_halves(evidence.subjects, rng)
    sizes = {half: _half_size(evidence, rows) for half, rows in parts.items()}
    if any(size.people < MIN_PEOPLE or size.pictures < MIN_TRIALS for size in sizes.values()):
        raise ConfigError(
            f"source.uri: {len(evidence)} pictures of {len(set(evidence.subjects))} people in the sample: a "
            f"calibration needs {MIN_TRIALS} of {MIN_PEOPLE} people to choose a level, and as many to confirm it"
        )

    bench = Workbench(evidence, embedders, attack_evidence.effort_of(config), SEED, watching.stage)
    curve = CalibrationCurve(bench, parts, config.attacks, _load_scores(config, backbone))
    levels: list[CalibratedLevel] = []
    lines: list[FigureRow] = []
    for level in config.levels:
        method = LocalSampling(boomerang, level, settings.output.image, settings.output.quality)
        watching.stage(f"outputs, {method.name}")
        outputs = apply(method, evidence.originals, bench.rng(method.name))
        if spoilt := int((~outputs.isfinite()).flatten(1).any(1).sum()):
            raise ModelError(
                f"levels: at {level:g} the model returns no usable picture for {spoilt} of {len(outputs)} originals: "
                "leave that level out, or use model.dtype float32"
            )
        point = curve.measure(method, outputs, watching.advance)
        t_boom = boomerang.t_boom(level)
        levels.append(_level_row(level, t_boom, boomerang.log_snr(t_boom), point, config.attacks))
        lines += _risk_rows(levels[-1], point)
    found = Calibration(
        format=calibration.FORMAT,
        belongs_to=belongs_to,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=version("anonymizer"),
        identified=config.identity is not None,
        choosing=sizes[CHOOSING],
        confirming=sizes[CONFIRMING],
        levels=tuple(levels),
    )
    _write(folder, found, lines)
    return CalibrationSummary(len(evidence), len(set(evidence.subjects)), len(levels), evidence.note)


def run_for_scheduler(config: CalibrationConfig, watching: ProgressReporter) -> CalibrationSummary:
    """``run``, with errors that a scheduler may keep; what they may not tell goes to ``errors/`` there."""
    error = StepError("calibration: failed")
    return redact_errors(StoragePath.from_uri(config.folder), "calibrate", error, lambda: run(config, watching))


def check(config: CalibrationConfig) -> None:
    """What can be told before the work: settings, sources, models, the place to write to."""
    folder = StoragePath.from_uri(config.folder)
    if (folder / "calibration.json").exists():
        raise OutputError(f"folder {config.folder!r}: holds a calibration already: name another, or remove that one")
    preflight.check_private_folder("folder", config.folder, config.run.source.uri)
    usage_marker.refuse_marked_source("source.uri", config.run.source.uri)
    if "attributes" in config.attacks and not config.attributes:
        raise ConfigError("attributes: none named, and attacks has 'attributes': name columns, or leave the attack out")
    if config.run.source.fit == "tiles" or config.run.model.has_record_condition:
        raise ConfigError(
            "run: a calibration measures squares, of which the model is told nothing by record: leave out "
            "source.fit=tiles, model.condition and columns in model.prompt"
        )
    backbone = _load_backbone(config)
    config.run.calibration_scope(backbone.digest)
    next(iter(open_source(attack_evidence.with_attack_columns(config.run.source, config)).entries()), None)
    attack_evidence.check_sources(config)
    attack_evidence.load_embedders(config.features, str(backbone.device))


def _load_backbone(config: CalibrationConfig) -> Backbone:
    model = config.run.model
    return backbone_of(model if config.device == "auto" else model.model_copy(update={"device": config.device}))


def _half_size(evidence: Evidence, rows: Bools) -> SampleHalf:
    return SampleHalf(pictures=int(rows.sum()), people=len(np.unique(evidence.subjects[rows])))


def _load_scores(config: CalibrationConfig, backbone: Backbone) -> Mapping[str, ImageScore]:
    """The release's own scores; none where they are switched off."""
    found: dict[str, ImageScore] = {}
    if (spec := config.run.metrics.lpips) != "none":
        found["LPIPS"] = in_fresh_thread(lambda: PerceptualDistance.load(spec, backbone.device))
    if (model := config.run.metrics.clip) != "none":
        clip = in_fresh_thread(lambda: ClipEmbedder.load(model, backbone.device))
        found["CLIP similarity"] = lambda a, b: cosine_similarity(clip.embed(a), clip.embed(b))
    return found


def _level_row(level: float, t_boom: int, log_snr: float, point: CurvePoint, attacks: Sequence[str]) -> CalibratedLevel:
    risks = {half: tuple(_risk_of(attack, figures) for attack in attacks) for half, figures in point.figures.items()}
    utility = {
        name: Utility(value=None) if found is None else Utility(value=found.value, low=found.low, high=found.high)
        for name, found in point.utility.items()
    }
    return CalibratedLevel(
        level=level,
        t_boom=t_boom,
        log_snr=log_snr,
        choosing=risks[CHOOSING],
        confirming=risks[CONFIRMING],
        utility=utility,
    )


def _risk_of(attack: str, figures: Sequence[Figure]) -> AttackRisk:
    """One attack: the highest measured risk of any attacker, and the highest upper bound, whose attacker is named.

    Without numbers, and with the reason, where none could be measured or one failed.
    """
    lines = [asdict(figure) for figure in figures if figure.attack == attack]
    found = [] if any(line["attacker"] == ALL_ATTACKERS for line in lines) else select_headlines(lines, attack)
    line = max(found, key=risk_above_chance) if found else next(iter(lines), NOT_RUN)
    told = {name: line[name] for name in ("measure", "attacker", "feature", "n", "subjects", "note")}
    if not found:
        return AttackRisk.model_validate(told | {"attack": attack, "value": None, "low": None, "high": None})
    highest = max(found, key=lambda line: risk_above_chance(line, "value"))
    sides = {
        "value": risk_above_chance(highest, "value"),
        "low": risk_above_chance(highest, "low"),
        "high": risk_above_chance(line),
    }
    return AttackRisk.model_validate(told | sides | {"attack": attack})


def _risk_rows(level: CalibratedLevel, point: CurvePoint) -> list[FigureRow]:
    """Every figure of a level, with where it stands on the curve."""
    where = {"level": level.level, "t_boom": level.t_boom, "log_snr": level.log_snr}
    return [where | {"half": half} | asdict(f) for half, figures in point.figures.items() for f in figures]


def _write(folder: StoragePath, found: Calibration, lines: Sequence[FigureRow]) -> None:
    """Tables and plots first: the calibration stands when its JSON does."""
    (folder / "risk.parquet").write(parquet.to_bytes(pa.Table.from_pylist(list(lines), RISK_SCHEMA)))
    utility = [
        {"level": one.level, "log_snr": one.log_snr, "measure": name} | measured.model_dump()
        for one in found.levels
        for name, measured in one.utility.items()
    ]
    (folder / "utility.parquet").write(parquet.to_bytes(pa.Table.from_pylist(utility, UTILITY_SCHEMA)))
    report.write_curves(folder, found)
    (folder / "calibration.json").write(calibration.to_json(found))


POINT_COLUMNS = [("level", pa.float64()), ("t_boom", pa.int32()), ("log_snr", pa.float64()), ("half", pa.string())]
RISK_SCHEMA = pa.schema([*(pa.field(*column) for column in POINT_COLUMNS), *figure_table.FIGURE_SCHEMA])
UTILITY_SCHEMA = pa.schema(
    [("level", pa.float64()), ("log_snr", pa.float64()), ("measure", pa.string())]
    + [(name, pa.float64()) for name in ("value", "low", "high")]
)
