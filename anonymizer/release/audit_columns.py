"""What attackers know of each original, from the sealed ledger: a source may have been rewritten since."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from anonymizer.config import SourceConfig
from anonymizer.data.passthrough_columns import from_json
from anonymizer.data.sources import open_source
from anonymizer.data.sources.folder import FolderSource
from anonymizer.release.audit_sample import AuditSample, Row

FOLDER = "folder"


def with_sealed_columns(
    sample: AuditSample, released: SourceConfig, asked: SourceConfig
) -> tuple[AuditSample, Sequence[str]]:
    """Return a sample with the ledger's values for the columns that ``asked`` reads, and the columns that it lacks.

    ``released`` names what the run read, ``asked`` what attackers ask for: who is shown as its label, and attributes.
    The values of columns that the ledger lacks stay those of the source as it is today.
    """
    rows = [_sealed_values(row, released) for row in sample.ledger]
    asked_for = [*([] if asked.label is None else [asked.label]), *asked.carry]
    held = {released.label, released.caption, released.subject, *released.carry, *released.restricted}
    if isinstance(open_source(asked), FolderSource):
        held.add(FOLDER)  # which is part of a record's id
    originals = sample.originals
    labels: Sequence[str | None] = originals.labels
    if (name := asked.label) is not None and name in held - {FOLDER}:
        labels = [None if row.get(name) is None else str(row[name]) for row in rows]
    columns = [
        {name: row.get(name) if name in held else value for name, value in values.items()}
        for row, values in zip(rows, originals.columns, strict=True)
    ]
    lacking = [name for name in asked_for if name not in held]
    return replace(sample, originals=replace(originals, labels=labels, columns=columns)), lacking


def _sealed_values(row: Row, source: SourceConfig) -> dict[str, Any]:
    """Return the values of a row of the ledger by the names of the source's columns."""
    own = {source.label: row["label"], source.caption: row["caption"], source.subject: row["subject"]}
    named = {name: value for name, value in own.items() if name is not None}
    return {**from_json(row["carried"]), **from_json(row["restricted"]), **named}
