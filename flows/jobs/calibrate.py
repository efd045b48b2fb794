"""A calibration: draw a sample, attack it at every level, write the curve."""

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
from anonymizer.config import CalibrationConfig, CalibrationScope
from anonymizer.crypto.custodian_key import load_key
from anonymizer.data import usage_marker
from anonymizer.data.sources import open_source
from anonymizer.errors import ConfigError, ModelError, OutputError
from anonymizer.policy import calibration
from anonymizer.policy.calibration import (
    AttackRisk,
    CalibratedLevel,
    Calibration,
    CalibrationAttackers,
    SampleHalf,
    Utility,
)
from anonymizer.policy.ceilings import find_broken_assumptions
from anonymizer.policy.risk_figures import FigureRow, risk_above_chance, select_headlines
from anonymizer.release import audit_sample, preflight
from anonymizer.storage import parquet
from anonymizer.storage.path import StoragePath
from flows.jobs import attack_evidence, ceilings
from flows.jobs.models import backbone_of
from flows.jobs.progress import NO_PROGRESS, ProgressReporter
from flows.jobs.redaction import in_fresh_thread
from metrics.audit.audit import ALL_ATTACKERS
from metrics.audit.calibration_curve import CHOOSING, CONFIRMING, CalibrationCurve, ImageScore, split_halves
from metrics.audit.mechanisms import LocalSampling, RoundTrip, apply
from metrics.audit.workbench import Workbench
from metrics.models.clip import ClipEmbedder, cosine_similarity
from metrics.models.lpips import PerceptualDistance
from metrics.stats import figure_table
from metrics.stats.ceilings import Candidates, compute_ceilings, place
from metrics.stats.risk import MIN_PEOPLE, MIN_TRIALS, Figure

SEED = 2022_10_12100
NOT_RUN: FigureRow = {"measure": "", "attacker": "", "feature": "", "n": 0, "subjects": 0, "note": "not tried"}
POINT_COLUMNS = [("level", pa.float64()), ("t_boom", pa.int32()), ("log_snr", pa.float64()), ("half", pa.string())]
RISK_SCHEMA = pa.schema([*(pa.field(*column) for column in POINT_COLUMNS), *figure_table.FIGURE_SCHEMA])
UTILITY_SCHEMA = pa.schema(
    [("level", pa.float64()), ("log_snr", pa.float64()), ("measure", pa.string())]
    + [(name, pa.float64()) for name in ("value", "low", "high")]
)


@dataclass(frozen=True)
class CalibrationInputs:
    """A sample in two halves, and the attacks on it that every level meets."""

    config: CalibrationConfig
    boomerang: Boomerang
    scope: CalibrationScope
    bench: Workbench
    curve: CalibrationCurve
    halves: Mapping[str, SampleHalf]
    candidates: Mapping[str, Candidates]  # originals of each half as they are noised; none where no ceiling holds


@dataclass(frozen=True)
class MeasuredLevel:
    """A level of the curve, and all figures behind it."""

    level: CalibratedLevel
    figures: Sequence[FigureRow]


@dataclass(frozen=True)
class CalibrationSummary:
    """Counts only: safe to hand to a scheduler."""

    pictures: int
    people: int
    levels: int
    note: str | None  # how many outsiders were left out


def run(config: CalibrationConfig, progress: ProgressReporter = NO_PROGRESS) -> CalibrationSummary:
    """Measure every level and write ``calibration.json``, tables and plots. Raises before long work."""
    inputs = read_sample(config, progress)
    return write_calibration(inputs, [measure_level(inputs, level, progress) for level in config.levels])


def check(config: CalibrationConfig) -> None:
    """Check settings, sources, models and the output folder before the work."""
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


def read_sample(config: CalibrationConfig, progress: ProgressReporter = NO_PROGRESS) -> CalibrationInputs:
    """Draw a sample of the source and split it into halves. Raises ConfigError where it is too small."""
    settings = config.run
    StoragePath.from_uri(config.folder).make_private_folder()  # first, as details of errors go there
    backbone = _load_backbone(config)
    scope = settings.calibration_scope(backbone.digest)
    boomerang = Boomerang(backbone, settings.boomerang.sampler, settings.boomerang.steps)
    embedders = attack_evidence.load_embedders(config.features, str(backbone.device))
    rng = np.random.default_rng(SEED)

    progress.begin(len(config.levels) * 2 * len(config.attacks), 0)
    progress.stage("reading a sample of the source")
    source = attack_evidence.with_attack_columns(settings.source, config)
    images = audit_sample.draw_images(source, backbone.size, config.sample, rng)
    evidence = attack_evidence.gather_evidence(config, images, images.images, RoundTrip(), backbone, rng)
    subjects = evidence.subjects
    rows_by_half = split_halves(subjects, rng)
    halves = {
        half: SampleHalf(pictures=int(rows.sum()), people=len(np.unique(subjects[rows])))
        for half, rows in rows_by_half.items()
    }
    if any(half.people < MIN_PEOPLE or half.pictures < MIN_TRIALS for half in halves.values()):
        raise ConfigError(
            f"source.uri: {len(evidence)} pictures of {len(set(subjects))} people in the sample: a "
            f"calibration needs {MIN_TRIALS} of {MIN_PEOPLE} people to choose a level, and as many to confirm it"
        )
    bench = Workbench(evidence, embedders, attack_evidence.effort_of(config), SEED, progress.stage)
    curve = CalibrationCurve(bench, rows_by_half, config.attacks, _load_scores(config, backbone))
    candidates: Mapping[str, Candidates] = {}
    if not find_broken_assumptions(settings) and settings.boomerang.k == 1:
        everyone = place(ceilings.encode(backbone, images.images), subjects)
        candidates = {half: everyone.take(np.flatnonzero(rows)) for half, rows in rows_by_half.items()}
    return CalibrationInputs(config, boomerang, scope, bench, curve, halves, candidates)


def measure_level(inputs: CalibrationInputs, level: float, progress: ProgressReporter = NO_PROGRESS) -> MeasuredLevel:
    """Make outputs at a level and attack each half. Raises ModelError where the model returns NaN."""
    image = inputs.config.run.output
    mechanism = LocalSampling(inputs.boomerang, level, image.image, image.quality)
    progress.stage(f"outputs, {mechanism.name}")
    outputs = apply(mechanism, inputs.bench.evidence.originals, inputs.bench.rng(mechanism.name))
    if unusable := int((~outputs.isfinite()).flatten(1).any(1).sum()):
        raise ModelError(
            f"levels: at {level:g} the model returns no usable picture for {unusable} of {len(outputs)} originals: "
            "leave that level out, or use model.dtype float32"
        )
    point = inputs.curve.measure(mechanism, outputs, progress.advance)
    t_boom = inputs.boomerang.t_boom(level)
    position = {"level": level, "t_boom": t_boom, "log_snr": inputs.boomerang.log_snr(t_boom)}
    risks = {
        half: tuple(_risk_of(attack, figures) for attack in inputs.config.attacks)
        for half, figures in point.figures.items()
    }
    bounds = {
        f"{half}_ceilings": ceilings.round_up(
            compute_ceilings(candidates, float(inputs.boomerang.abar[t_boom]), inputs.bench.rng("ceilings"))
        )
        for half, candidates in inputs.candidates.items()
    }
    utility = {
        name: Utility(value=None) if estimate is None else Utility(**asdict(estimate))
        for name, estimate in point.utility.items()
    }
    return MeasuredLevel(
        CalibratedLevel(**position, choosing=risks[CHOOSING], confirming=risks[CONFIRMING], utility=utility, **bounds),
        [position | {"half": half} | asdict(f) for half, figures in point.figures.items() for f in figures],
    )


def write_calibration(inputs: CalibrationInputs, measured: Sequence[MeasuredLevel]) -> CalibrationSummary:
    """Write tables and plots, and last ``calibration.json``, whose presence completes the calibration."""
    folder, evidence = StoragePath.from_uri(inputs.config.folder), inputs.bench.evidence
    result = Calibration(
        format=calibration.FORMAT,
        belongs_to=inputs.scope,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        code_version=version("anonymizer"),
        identified=inputs.config.identity is not None,
        attackers=CalibrationAttackers(
            **{name: getattr(inputs.config, name) for name in CalibrationAttackers.model_fields}
        ),
        choosing=inputs.halves[CHOOSING],
        confirming=inputs.halves[CONFIRMING],
        levels=tuple(one.level for one in measured),
    )
    figures = [figure for one in measured for figure in one.figures]
    (folder / "risk.parquet").write(parquet.to_bytes(pa.Table.from_pylist(figures, RISK_SCHEMA)))
    utility = [
        {"level": level.level, "log_snr": level.log_snr, "measure": name} | value.model_dump()
        for level in result.levels
        for name, value in level.utility.items()
    ]
    (folder / "utility.parquet").write(parquet.to_bytes(pa.Table.from_pylist(utility, UTILITY_SCHEMA)))
    report.write_curves(folder, result)
    (folder / "calibration.json").write(calibration.to_json(result, load_key(inputs.config.run.key_env)))
    return CalibrationSummary(len(evidence), len(set(evidence.subjects)), len(measured), evidence.note)


def _load_backbone(config: CalibrationConfig) -> Backbone:
    model = config.run.model
    return backbone_of(model if config.device == "auto" else model.model_copy(update={"device": config.device}))


def _load_scores(config: CalibrationConfig, backbone: Backbone) -> Mapping[str, ImageScore]:
    """Load the release's own scores, without those that are switched off."""
    scores: dict[str, ImageScore] = {}
    if (spec := config.run.metrics.lpips) != "none":
        scores["LPIPS"] = in_fresh_thread(lambda: PerceptualDistance.load(spec, backbone.device))
    if (model := config.run.metrics.clip) != "none":
        clip = in_fresh_thread(lambda: ClipEmbedder.load(model, backbone.device))
        scores["CLIP similarity"] = lambda a, b: cosine_similarity(clip.embed(a), clip.embed(b))
    return scores


def _risk_of(attack: str, figures: Sequence[Figure]) -> AttackRisk:
    """Return the highest measured risk of any attacker, and the highest upper bound, whose attacker is named.

    Without numbers, and with the reason, where none could be measured or one failed.
    """
    rows = [asdict(figure) for figure in figures if figure.attack == attack]
    headlines = [] if any(row["attacker"] == ALL_ATTACKERS for row in rows) else select_headlines(rows, attack)
    row = max(headlines, key=risk_above_chance) if headlines else next(iter(rows), NOT_RUN)
    values = dict.fromkeys(("value", "low", "high"))
    if headlines:
        highest = max(headlines, key=lambda row: risk_above_chance(row, "value"))
        values = {side: risk_above_chance(highest, side) for side in ("value", "low")}
        values["high"] = risk_above_chance(row)
    fields = {name: row[name] for name in ("measure", "attacker", "feature", "n", "subjects", "note")}
    return AttackRisk.model_validate(fields | values | {"attack": attack})
