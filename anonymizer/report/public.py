"""The public page and the dataset card: built from a short list of facts, so that nothing else can get in."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc
import yaml

from anonymizer.config import RunConfig
from anonymizer.data import passthrough_columns
from anonymizer.policy import public_scores
from anonymizer.release.plan import Plan
from anonymizer.report import histograms, thumbnails
from anonymizer.report.croissant import KEYWORDS, build_croissant
from anonymizer.report.glossary import (
    MANIFEST_COLUMNS,
    PASSTHROUGH_COLUMN,
    SCORES,
    Score,
    Setting,
    describe_settings,
    describe_sizes,
    format_date,
)
from anonymizer.report.rendering import render
from anonymizer.storage import parquet
from anonymizer.storage.layout import MANIFEST as MANIFEST_FILE
from anonymizer.storage.parquet import TableLike
from anonymizer.storage.path import StoragePath

if TYPE_CHECKING:
    from anonymizer.release.assemble import Summary

SHEET_SIZE = 48  # pictures
SIZE_CATEGORIES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),  # noqa: E501
              (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))  # fmt: skip
DATA_FILES = {"folder": "images/**", "webdataset": "data/*.tar", "parquet": "data/*.parquet"}
TYPE_NAMES = {"string": "text", "double": "number", "float": "number", "bool": "true or false", "null": "empty"}


@dataclass(frozen=True)
class Column:
    """One column of the manifest, explained."""

    name: str
    type: str
    about: str


@dataclass(frozen=True)
class PublicFacts:
    """All that the public half is told. It has no field for a source, a record, a path or a time of day."""

    released: int
    read: int
    level: str
    model: str
    date: str
    day: str  # the same in ISO 8601
    layout: str
    image: str
    bytes: int
    manifest_bytes: int
    manifest_sha256: str
    passthrough: Sequence[str]
    settings: Sequence[Setting]
    columns: Sequence[Column]
    scores: Sequence[tuple[Score, histograms.Histogram]]
    has_exact_scores: bool
    audit: Mapping[str, Any] | None  # its public summary
    is_signed: bool
    approvals: int

    @property
    def risks(self) -> Sequence[tuple[str, str]]:
        """Each of the audit's questions, and the risk above chance that was not exceeded, in words."""
        answers = self.audit["answers"] if self.audit else {}
        return [
            (title, f"at most {a['risk_above_chance_at_most']:.0%}" if "attacks_tried" in a else "not measured")
            for title, a in answers.items()
        ]

    @property
    def title(self) -> str:
        return f"Redrawn pictures (Boomerang, level {self.level})"

    @property
    def has_joined_images(self) -> bool:
        """Whether mlcroissant is told to read the pictures with their rows.

        It decodes no WebP files, and tar files it unpacks to a place where it takes one release's for another's.
        """
        return self.layout == "parquet" or (self.layout == "folder" and self.image != "webp")

    @property
    def size(self) -> str:
        return f"{self.bytes / 2**20:,.1f} MiB" if self.bytes >= 2**20 else f"{self.bytes / 2**10:,.0f} KiB"


def write_public(
    folder: StoragePath,
    plan: Plan,
    config: RunConfig,
    summary: Summary,
    manifest: TableLike,
    audit: Mapping[str, Any] | None,
    *,
    is_signed: bool,
) -> None:
    """Report, card and ``croissant.json`` of the public half: nothing about an individual original.

    ``manifest`` is what lies in ``folder``, with all pictures; ``audit`` is its public summary, if there is one.
    """
    facts = _collect_facts(folder, plan, config, summary, manifest, audit, is_signed)
    first = manifest.select(["output_id", "file", "member", "format", "width", "height"]).to_batches(
        max_chunksize=SHEET_SIZE
    )
    rows: list[dict[str, Any]] = next((batch.to_pylist() for batch in first), [])
    sheet = list(thumbnails.released_thumbnails(folder, rows).values())
    (folder / "report.html").write_uncommitted(render("public.html.j2", facts=facts, sheet=sheet))
    (folder / "README.md").write_uncommitted(render("card.md.j2", facts=facts, front=_front_matter(facts, manifest)))
    (folder / "croissant.json").write_uncommitted(build_croissant(facts))


def _collect_facts(
    folder: StoragePath,
    plan: Plan,
    config: RunConfig,
    summary: Summary,
    manifest: TableLike,
    audit: Mapping[str, Any] | None,
    is_signed: bool,
) -> PublicFacts:
    model = config.model.public_name
    named = passthrough_columns.from_json((manifest.schema.metadata or {}).get(b"metric_models", b"{}").decode())
    how = config.output.public_scores
    models = {name: str(value) for name, value in named.items() if how != "none"}
    size = describe_sizes(manifest)
    now, file = datetime.now(UTC), (folder / MANIFEST_FILE).read()
    return PublicFacts(
        released=len(manifest),
        read=summary.read,
        level=_level_range(plan, manifest),
        model=model,
        date=format_date(now),
        day=now.date().isoformat(),
        layout=config.output.format,
        image=config.output.image,
        bytes=pc.sum(manifest["bytes"]).as_py() or 0,
        manifest_bytes=len(file),
        manifest_sha256=hashlib.sha256(file).hexdigest(),
        passthrough=[
            name for name in ("label", "caption", *config.source.carry) if manifest[name].null_count < len(manifest)
        ],
        settings=describe_settings(
            plan,
            config,
            model,
            models,
            size,
            dict(zip(*(side.to_pylist() for side in pc.value_counts(manifest["level"]).flatten()), strict=True)),
        ),
        columns=[
            Column(f.name, _type_name(f.type), MANIFEST_COLUMNS.get(f.name, PASSTHROUGH_COLUMN))
            for f in manifest.schema
        ],
        scores=_score_histograms(manifest),
        has_exact_scores=how == "exact",
        audit=audit,
        is_signed=is_signed,
        approvals=config.policy.approvals,
    )


def _level_range(plan: Plan, manifest: TableLike) -> str:
    """The level of the pictures, or from which to which theirs go."""
    low, high = pc.min_max(manifest["level"]).as_py().values() if len(manifest) else (plan.level, plan.level)
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"


def _score_histograms(manifest: TableLike) -> list[tuple[Score, histograms.Histogram]]:
    """What the manifest's own score columns add up to, and not more."""
    found = []
    for name in public_scores.SCORE_COLUMNS:
        histogram = None
        if f"{name}_bin" in manifest.column_names:
            counted = pc.value_counts(manifest[f"{name}_bin"].combine_chunks()).to_pylist()
            histogram = histograms.from_bins((item["values"], item["counts"]) for item in counted)
        elif name in manifest.column_names:
            histogram = histograms.from_values(manifest[name].drop_null().to_numpy().astype("float64"))
        if histogram:
            found.append((SCORES[name], histogram))
    return found


def _front_matter(facts: PublicFacts, manifest: TableLike) -> str:
    """What the Hugging Face hub and ``datasets`` read at the head of a card. A licence is the publisher's to state."""
    category = next((name for most, name in SIZE_CATEGORIES if facts.released < most), "n>1T")
    front: dict[str, Any] = {
        "pretty_name": facts.title,
        "tags": [*KEYWORDS],
        "size_categories": [category],
    }
    if facts.released:
        part: dict[str, Any] = {
            "config_name": "default",
            # All releases lie in folders of one name, and ``datasets`` keeps what it loaded by the name and this.
            "description": f"SHA-256 of {MANIFEST_FILE}: {facts.manifest_sha256}",
            "data_files": [{"split": "train", "path": _data_files(facts, manifest)}],
        }
        if facts.layout == "folder":  # folders are labels only where every picture has one
            part["drop_labels"] = not pc.all(pc.fill_null(pc.not_equal(manifest["label"], ""), False)).as_py()
        front["configs"] = [part]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _data_files(facts: PublicFacts, manifest: TableLike) -> str | list[str]:
    """Where pictures are; ``datasets`` passes over folders that begin so, unless a pattern names them."""
    found = [DATA_FILES[facts.layout]]
    if facts.layout == "folder":
        files = manifest.select(["file"]).to_batches(max_chunksize=parquet.BATCH_ROWS)
        names = {file.split("/")[1] for batch in files for file in batch["file"].to_pylist()}
        found += [f"images/{odd}*/**" for odd in ("__", ".") if any(name.startswith(odd) for name in names)]
    return found if len(found) > 1 else found[0]


def _type_name(kind: Any) -> str:
    name = str(kind)
    return "integer" if name.startswith(("int", "uint")) else TYPE_NAMES.get(name, name)
