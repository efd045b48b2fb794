"""Facts that a release publishes about itself: the only input of the public report, the dataset card and Croissant."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from anonymizer.config import RunConfig
from anonymizer.config.groups import describe_promise
from anonymizer.data.sinks.folder import metadata_columns
from anonymizer.policy.ceilings import describe
from anonymizer.records import Plan
from anonymizer.release.finished_ledger import FinishedLedger
from anonymizer.release.publish import PolicyEvaluation
from anonymizer.report import histograms
from anonymizer.report.glossary import (
    PASSTHROUGH_COLUMN,
    SCORES,
    Score,
    Setting,
    describe_settings,
    describe_sizes,
)
from anonymizer.schema import BIN_SUFFIX, MANIFEST_MEANINGS, SCORE_COLUMNS, read_metric_models
from anonymizer.storage.parquet import TableLike

ENCODING = (
    "Every picture was encoded afresh from pixels: it holds no metadata, thumbnail, comment or name of an original."
)
COPIES = "One original led to one picture, and byte-identical copies of it to the same picture."
ORDER = "Ids are keyed digests; pictures and rows are in the order of ids, which is unrelated to that of the originals."
SIBLINGS = "Pictures of one group look alike, and can be told to belong together."
LIMITS = (
    "A low similarity does not mean a low risk: scores compare pictures, they do not attack them.",
    "A picture may show a real person from elsewhere: diffusion models remember some of their training pictures.",
    "Details may be invented: do not measure, diagnose or identify with these pictures.",
)
TYPE_NAMES = {"string": "text", "double": "number", "float": "number", "bool": "true or false", "null": "empty"}


@dataclass(frozen=True)
class Column:
    """A column of the manifest, explained."""

    name: str
    type: str
    about: str


@dataclass(frozen=True)
class PublicFacts:
    """Everything that the public documents may state; no field holds a source, a record, a path or a time of day."""

    released: int  # pictures
    records: int  # that led to them
    read: int
    k: int  # originals, at least, whose mean each picture is drawn from
    outputs: Literal["one", "each"]  # for each group
    level: str
    model: str
    date: date
    layout: str
    image: str
    bytes: int
    manifest_bytes: int
    manifest_sha256: str
    passthrough: Sequence[str]
    metadata: Sequence[str]  # columns that are repeated for ImageFolder
    settings: Sequence[Setting]
    columns: Sequence[Column]
    scores: Sequence[tuple[Score, histograms.Histogram]]
    has_exact_scores: bool
    ceilings: Mapping[str, str]  # rates that no attacker passes, in words, by name
    no_ceiling: Sequence[str]  # why none is stated
    audit: Mapping[str, Any] | None  # its public summary
    is_signed: bool
    approvals: int
    weaker: Sequence[str]  # rules of the previous release that are dropped or loosened
    weaker_reason: str | None

    @property
    def risks(self) -> list[tuple[str, str]]:
        """Return each question of the audit with the upper bound of its risk above chance."""
        answers = self.audit["answers"] if self.audit else {}
        return [
            (title, f"at most {a['risk_above_chance_at_most']:.0%}" if "attacks_tried" in a else "not measured")
            for title, a in answers.items()
        ]

    @property
    def origin(self) -> str:
        """What each picture is drawn from."""
        return "one original" if self.k == 1 else f"the mean of {self.k} or more originals"

    @property
    def processing(self) -> list[str]:
        """What is done, in sentences."""
        if self.k == 1:
            return [ENCODING, COPIES, ORDER]
        if self.outputs == "one":
            drawn = f"Each group of {self.k} or more alike originals led to one picture, drawn from their mean."
        else:
            drawn = f"Each picture was drawn from the mean of {self.k} or more alike originals, one for each by lot."
        return [ENCODING, drawn, ORDER]

    @property
    def promise(self) -> str | None:
        """What groups promise and what they do not, in a sentence; None without groups."""
        sentence = describe_promise(self.k)
        return None if self.k == 1 else f"{sentence[0].upper()}{sentence[1:]}."

    @property
    def limits(self) -> list[str]:
        """What is not promised, in sentences."""
        if self.k == 1:
            return ["An attacker who holds an original may still pick out the picture made from it.", *LIMITS]
        return [*([SIBLINGS] if self.outputs == "each" else []), *LIMITS]

    @property
    def title(self) -> str:
        return f"Redrawn pictures (Boomerang, level {self.level})"

    @property
    def has_joined_images(self) -> bool:
        """Whether the Croissant file joins images to their rows.

        mlcroissant decodes no WebP files, and unpacks tar files to a folder that releases of one name share.
        """
        return self.layout == "parquet" or (self.layout == "folder" and self.image != "webp")

    @property
    def size(self) -> str:
        return f"{self.bytes / 2**20:,.1f} MiB" if self.bytes >= 2**20 else f"{self.bytes / 2**10:,.0f} KiB"


def collect_facts(
    config: RunConfig, ledger: FinishedLedger, evaluation: PolicyEvaluation, manifest: TableLike, manifest_bytes: int
) -> PublicFacts:
    """Return the facts about a release from its ledger, the policy's evaluation and the manifest."""
    model, score_mode = config.model.public_name, config.output.public_scores
    return PublicFacts(
        released=len(manifest),
        records=ledger.summary.released,
        read=ledger.summary.read,
        k=config.boomerang.k,
        outputs=config.groups.outputs,
        level=_level_range(ledger.plan, manifest),
        model=model,
        date=datetime.now(UTC).date(),
        layout=config.output.format,
        image=config.output.image,
        bytes=pc.sum(manifest["bytes"]).as_py() or 0,
        manifest_bytes=manifest_bytes,
        manifest_sha256=evaluation.manifest_digest,
        passthrough=[
            name for name in ("label", "caption", *config.source.carry) if manifest[name].null_count < len(manifest)
        ],
        metadata=metadata_columns(manifest),
        settings=describe_settings(
            ledger.plan,
            config,
            model,
            {} if score_mode == "none" else read_metric_models(manifest.schema),
            describe_sizes(manifest),
            {item["values"]: item["counts"] for item in pc.value_counts(manifest["level"]).to_pylist()},
        ),
        columns=[
            Column(f.name, _type_name(f.type), MANIFEST_MEANINGS.get(f.name, PASSTHROUGH_COLUMN))
            for f in manifest.schema
        ],
        scores=_score_histograms(manifest),
        has_exact_scores=score_mode == "exact",
        ceilings=describe(ledger.plan.ceilings) if ledger.plan.ceilings else {},
        no_ceiling=ledger.plan.no_ceiling,
        audit=evaluation.audit,
        is_signed=evaluation.publisher is not None,
        approvals=config.policy.approvals,
        weaker=evaluation.weaker,
        weaker_reason=config.policy.weaker_than_previous,
    )


def _level_range(plan: Plan, manifest: TableLike) -> str:
    low, high = pc.min_max(manifest["level"]).as_py().values() if len(manifest) else (plan.level, plan.level)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _score_histograms(manifest: TableLike) -> list[tuple[Score, histograms.Histogram]]:
    """Return the distributions of the manifest's own score columns, binned or exact."""
    shapes: dict[str, histograms.Histogram | None] = {}
    for name in SCORE_COLUMNS:
        if f"{name}{BIN_SUFFIX}" in manifest.column_names:
            counts = pc.value_counts(manifest[f"{name}{BIN_SUFFIX}"].combine_chunks()).to_pylist()
            shapes[name] = histograms.from_bins((item["values"], item["counts"]) for item in counts)
        elif name in manifest.column_names:
            shapes[name] = histograms.from_values(manifest[name].drop_null().to_numpy().astype("float64"))
    return [(SCORES[name], shape) for name, shape in shapes.items() if shape]


def _type_name(kind: pa.DataType) -> str:
    name = str(kind)
    return "integer" if name.startswith(("int", "uint")) else TYPE_NAMES.get(name, name)
