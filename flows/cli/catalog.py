"""Looking things up: releases that are there, and models that come along. Needs no model and no Prefect."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from anonymizer.errors import IntegrityError, UsageError
from flows.cli import console

if TYPE_CHECKING:
    from anonymizer.storage.parquet import TableLike


# Manifest columns that usually hold one value for a whole release.
RELEASE_WIDE_COLUMNS = (
    "level",
    "t_boom",
    "log_snr",
    "sampler",
    "steps",
    "model",
    "model_digest",
    "config_fingerprint",
    "format",
)


def inspect(uri: str, output_id: str | None, *, as_json: bool) -> None:
    manifest, models = _read_manifest(uri)
    if output_id is not None:
        rows = _rows_of(manifest, output_id)
        if not rows:
            raise UsageError(f"output_id {output_id!r}: not in the manifest of {uri!r}: ids are 32 hex digits")
        _print(
            f"Output {output_id}",
            rows[0],
            {n: _format_value(n, v) for n, v in rows[0].items() if v is not None},
            as_json,
        )
        return
    values = {
        name: manifest[name].unique().to_pylist() for name in RELEASE_WIDE_COLUMNS if name in manifest.column_names
    }
    one = {name: found[0] for name, found in values.items() if len(found) == 1}
    told = {"released": len(manifest), **one, "score_models": models, "columns": manifest.column_names}
    facts = {"released": len(manifest)} | {name: "differs: see the manifest" for name in values if name not in one}
    if {"level", "t_boom", "log_snr"} <= set(one):
        facts |= {"level": console.format_level(one.pop("level"), one.pop("t_boom"), one.pop("log_snr"))}
    if {"sampler", "steps"} <= set(one):
        facts |= {"sampler": console.format_sampler(one.pop("sampler"), one.pop("steps"))}
    facts |= {name.replace("_", " "): _format_value(name, value) for name, value in one.items()}
    facts |= {"score models": ", ".join(f"{name}: {model}" for name, model in models.items()) or "none"}
    _print(f"Release {uri}", told, facts | {"columns": ", ".join(manifest.column_names)}, as_json)


def models(name: str | None, *, as_json: bool) -> None:
    from anonymizer.bundled import read_model_cards

    found = read_model_cards()
    if name is not None:
        name = name.removeprefix("bundled:")
        if name not in found:
            raise UsageError(
                f"model {name!r}: not bundled: known: {', '.join(sorted(found))}; a folder or a hub id goes to "
                "`run --model`, and has no card here"
            )
        click.echo(found[name].text)
        return
    if as_json:
        listed = [
            {"name": f"bundled:{n}", "about": card.summary, "bytes": card.weight_bytes} for n, card in found.items()
        ]
        click.echo(json.dumps(listed))
        return
    rows = {f"bundled:{n}": f"{card.summary} ({card.weight_bytes / 2**20:.1f} MiB)" for n, card in found.items()}
    console.print_facts("Bundled models", rows)
    console.print_line(
        "Any diffusion model in diffusers' format works as well (docs/models.md): --model FOLDER, or from the hub "
        "--model OWNER/NAME --set model.revision=COMMIT."
    )


def _read_manifest(uri: str) -> tuple[TableLike, dict[str, str]]:
    """The manifest, whole and valid, and which models made its scores."""
    import pyarrow as pa

    from anonymizer.storage import parquet
    from anonymizer.storage.layout import Release

    release = Release.at(uri)
    if not release.manifest.exists():
        raise UsageError(f"release {uri!r}: no public/manifest.parquet: see `anonymizer status {uri}`")
    try:
        manifest = parquet.open_table(release.manifest)
        for batch in manifest.to_batches(max_chunksize=parquet.BATCH_ROWS):
            batch.validate(full=True)
        manifest.schema.field("output_id")
        models: dict[str, str] = json.loads((manifest.schema.metadata or {}).get(b"metric_models", b"{}"))
    except (pa.ArrowException, OSError, KeyError, ValueError):
        raise IntegrityError(
            f"release {uri!r}: public/manifest.parquet is damaged, or of another version: restore it"
        ) from None
    return manifest, models


def _rows_of(manifest: TableLike, output_id: str) -> list[dict[str, Any]]:
    import pyarrow.compute as pc

    from anonymizer.storage import parquet

    batches = manifest.to_batches(max_chunksize=parquet.BATCH_ROWS)
    found = (batch.filter(pc.equal(batch["output_id"], output_id)) for batch in batches)
    return [row for batch in found for row in batch.to_pylist()]


def _format_value(name: str, value: Any) -> str:
    if name == "log_snr":
        return f"{value:+.2f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _print(title: str, document: dict[str, Any], facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        click.echo(json.dumps(document, default=str))
    else:
        console.print_facts(title, facts)
