"""The public page and the dataset card: built from a short list of facts, so that nothing else can get in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from anonymizer import carried, scores
from anonymizer.config import RunConfig
from anonymizer.place import Place
from anonymizer.plan import Plan
from anonymizer.report import figures, pictures
from anonymizer.report.pages import render
from anonymizer.report.words import CARRIED, MANIFEST, SCORES, Fact, Score, day, settings, sizes

if TYPE_CHECKING:
    from anonymizer.assemble import Summary

SHEET = 48  # pictures
CATEGORIES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"),
              (10**8, "10M<n<100M"), (10**9, "100M<n<1B"))  # fmt: skip
DATA_FILES = {"folder": "images/**", "webdataset": "data/*.tar", "parquet": "data/*.parquet"}
TYPES = {"string": "text", "double": "number", "float": "number", "bool": "true or false", "null": "empty"}


@dataclass(frozen=True)
class Column:
    """One column of the manifest, explained."""

    name: str
    type: str
    about: str


@dataclass(frozen=True)
class Facts:
    """All that the public half is told. It has no field for a source, a record, a path or a time of day."""

    released: int
    read: int
    level: str
    model: str
    date: str
    layout: str
    bytes: int
    carried: Sequence[str]
    settings: Sequence[Fact]
    columns: Sequence[Column]
    scores: Sequence[tuple[Score, figures.Histogram]]
    exact: bool

    @property
    def size(self) -> str:
        return f"{self.bytes / 2**20:,.1f} MiB" if self.bytes >= 2**20 else f"{self.bytes / 2**10:,.0f} KiB"


def write_public(folder: Place, plan: Plan, config: RunConfig, summary: Summary, manifest: pa.Table) -> None:
    """``report.html`` and ``README.md`` of the public half: nothing about an individual original."""
    facts = _facts(plan, config, summary, manifest)
    rows = manifest.slice(0, SHEET).select(["output_id", "file", "member", "format", "width", "height"]).to_pylist()
    sheet = list(pictures.released(folder, rows).values())
    (folder / "report.html").put(render("public.html.j2", facts=facts, sheet=sheet))
    (folder / "README.md").put(render("card.md.j2", facts=facts, front=_front_matter(facts, config, manifest)))


def _facts(plan: Plan, config: RunConfig, summary: Summary, manifest: pa.Table) -> Facts:
    model = config.model.public_name
    named = carried.from_json((manifest.schema.metadata or {}).get(b"metric_models", b"{}").decode())
    how = config.output.public_scores
    models = {name: str(value) for name, value in named.items() if how != "none"}
    size = sizes(manifest)
    return Facts(
        released=len(manifest),
        read=summary.read,
        level=f"{plan.level:g}",
        model=model,
        date=day(datetime.now(UTC)),
        layout=config.output.format,
        bytes=pc.sum(manifest["bytes"]).as_py() or 0,
        carried=[
            name for name in ("label", "caption", *config.source.carry) if manifest[name].null_count < len(manifest)
        ],
        settings=settings(plan, config, model, models, size),
        columns=[Column(f.name, _type(f.type), MANIFEST.get(f.name, CARRIED)) for f in manifest.schema],
        scores=_histograms(manifest),
        exact=how == "exact",
    )


def _histograms(manifest: pa.Table) -> list[tuple[Score, figures.Histogram]]:
    """What the manifest's own score columns add up to, and not more."""
    found = []
    for name in scores.COLUMNS:
        histogram = None
        if f"{name}_bin" in manifest.column_names:
            counted = pc.value_counts(manifest[f"{name}_bin"].combine_chunks()).to_pylist()
            histogram = figures.of_bins((item["values"], item["counts"]) for item in counted)
        elif name in manifest.column_names:
            histogram = figures.of_values(manifest[name].drop_null().to_numpy().astype("float64"))
        if histogram:
            found.append((SCORES[name], histogram))
    return found


def _front_matter(facts: Facts, config: RunConfig, manifest: pa.Table) -> str:
    """What the Hugging Face hub and ``datasets`` read at the head of a card. A licence is the publisher's to state."""
    category = next((name for most, name in CATEGORIES if facts.released < most), "n>1T")
    front: dict[str, Any] = {
        "pretty_name": f"Redrawn pictures (Boomerang, level {facts.level})",
        "tags": ["image", "synthetic", "diffusion", "boomerang"],
        "size_categories": [category],
    }
    if facts.released:
        part: dict[str, Any] = {
            "config_name": "default",
            "data_files": [{"split": "train", "path": DATA_FILES[facts.layout]}],
        }
        if facts.layout == "folder":  # folders are labels only where every picture has one
            part["drop_labels"] = config.source.label is None or manifest["label"].null_count > 0
        front["configs"] = [part]
    return yaml.safe_dump(front, sort_keys=False, allow_unicode=True)


def _type(kind: Any) -> str:
    name = str(kind)
    return "integer" if name.startswith(("int", "uint")) else TYPES.get(name, name)
