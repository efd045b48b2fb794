"""Public documents of a release: ``report.html``, the dataset card ``README.md`` and ``croissant.json``."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow.compute as pc

from anonymizer.config import RunConfig
from anonymizer.data.sinks.folder import metadata_columns, metadata_lines
from anonymizer.release.finished_ledger import FinishedLedger
from anonymizer.release.publish import PolicyEvaluation
from anonymizer.report import thumbnails
from anonymizer.report.croissant import KEYWORDS, build_croissant
from anonymizer.report.facts import PublicFacts, collect_facts
from anonymizer.report.rendering import render
from anonymizer.storage import parquet
from anonymizer.storage.layout import IMAGE_METADATA, MANIFEST
from anonymizer.storage.parquet import TableLike
from anonymizer.storage.path import StoragePath, translate_storage_errors

SHEET_SIZE = 48  # images on the contact sheet
SIZE_CATEGORIES = ("n<1K", "1K<n<10K", "10K<n<100K", "100K<n<1M", "1M<n<10M", "10M<n<100M", "100M<n<1B", "n>1T")
DATA_FILES = {"folder": "images/**", "webdataset": "data/*.tar", "parquet": "data/*.parquet"}


def write_public(
    folder: StoragePath, config: RunConfig, ledger: FinishedLedger, evaluation: PolicyEvaluation
) -> dict[str, str]:
    """Write the report, the card, ``croissant.json`` and the metadata of an image folder beside the manifest.

    They hold nothing about an individual original but what the manifest has. Returns the SHA-256 of each document.
    """
    manifest = parquet.open_table(folder / MANIFEST)
    facts = collect_facts(config, ledger, evaluation, manifest, len((folder / MANIFEST).read()))
    columns = manifest.select(thumbnails.IMAGE_COLUMNS)
    first: list[dict[str, Any]] = next((b.to_pylist() for b in columns.to_batches(max_chunksize=SHEET_SIZE)), [])
    sheet = list(thumbnails.released_thumbnails(folder, first).values())
    documents = {
        "report.html": render("public.html.j2", sheet=sheet, facts=facts),
        "README.md": render("card.md.j2", front=_front_matter(facts, manifest), facts=facts),
        "croissant.json": build_croissant(facts),
    }
    for name, data in documents.items():
        (folder / name).write_uncommitted(data)
    write_metadata(folder, manifest)
    return {name: hashlib.sha256(data).hexdigest() for name, data in documents.items()}


def write_metadata(folder: StoragePath, manifest: TableLike) -> None:
    """Write the columns of an image folder for ImageFolder; remove a file that lies there, if it needs none."""
    path = folder / IMAGE_METADATA
    path.remove()
    if metadata_columns(manifest):
        with translate_storage_errors(path.fs), path.fs.open(path.path, "wb") as file:
            file.writelines(metadata_lines(manifest))


def _front_matter(facts: PublicFacts, manifest: TableLike) -> str:
    """Return the card's YAML header, as the Hugging Face hub and ``datasets`` read it; it states no licence."""
    from huggingface_hub import DatasetCardData  # type: ignore[attr-defined]

    configs: list[dict[str, Any]] = []
    if facts.released:
        part: dict[str, Any] = {
            "config_name": "default",
            # ``datasets`` caches by the folder's name, which all releases share, and by this text.
            "description": f"SHA-256 of {MANIFEST}: {facts.manifest_sha256}",
            "data_files": [{"split": "train", "path": _data_files(facts, manifest)}],
        }
        if facts.layout == "folder" and not facts.metadata:  # folders are labels only where every image has one
            part["drop_labels"] = not pc.all(pc.fill_null(pc.not_equal(manifest["label"], ""), False)).as_py()
        configs.append(part)
    category = SIZE_CATEGORIES[min(max(len(str(facts.released)) - 3, 0), len(SIZE_CATEGORIES) - 1)]
    card = DatasetCardData(
        pretty_name=facts.title, tags=[*KEYWORDS], size_categories=[category], configs=configs or None
    )
    return f"{card.to_yaml()}\n"


def _data_files(facts: PublicFacts, manifest: TableLike) -> str | list[str]:
    """Return glob patterns of the image files; ``datasets`` skips hidden names unless a pattern spells them."""
    patterns = [DATA_FILES[facts.layout]]
    if facts.layout == "folder":
        batches = manifest.select(["file"]).to_batches(max_chunksize=parquet.BATCH_ROWS)
        labels = {file.split("/")[1] for batch in batches for file in batch["file"].to_pylist()}
        patterns += [f"images/{prefix}*/**" for prefix in ("__", ".") if any(x.startswith(prefix) for x in labels)]
        patterns += [IMAGE_METADATA] if facts.metadata else []
    return patterns if len(patterns) > 1 else patterns[0]
