"""Commands that look things up, without a model and without Prefect: inspect, models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from anonymizer.errors import IntegrityError, UsageError
from anonymizer.storage.layout import Release
from flows.cli import console
from flows.cli.options import as_json

if TYPE_CHECKING:
    from anonymizer.storage.parquet import TableLike

# Manifest columns that usually hold one value for a whole release.
RELEASE_WIDE_COLUMNS = (
    "level", "t_boom", "log_snr", "sampler", "steps", "model", "model_digest", "config_fingerprint", "format",
)  # fmt: skip


@click.command()
@click.argument("release")
@click.argument("output_id", required=False)
@as_json
def inspect(release: str, output_id: str | None, as_json: bool) -> None:
    """Show a release's settings, or one output.

    With an OUTPUT_ID, its row of the manifest.
    """
    manifest, score_models = _read_manifest(release)
    if output_id is not None:
        row = _find_row(manifest, output_id)
        if row is None:
            raise UsageError(f"output_id {output_id!r}: not in the manifest of {release!r}: ids are 32 hex digits")
        title, document = f"Output {output_id}", row
        facts: dict[str, Any] = {n: _format_value(n, value) for n, value in row.items() if value is not None}
    else:
        title, columns = f"Release {release}", manifest.column_names
        values = {name: manifest[name].unique().to_pylist() for name in RELEASE_WIDE_COLUMNS if name in columns}
        same = {name: distinct[0] for name, distinct in values.items() if len(distinct) == 1}
        document = {"released": len(manifest), **same, "score_models": score_models, "columns": columns}
        differing = [name for name in values if name not in same]
        facts = {"released": len(manifest)} | dict.fromkeys(differing, "differs: see the manifest")
        if {"level", "t_boom", "log_snr"} <= set(same):
            facts["level"] = console.format_level(same.pop("level"), same.pop("t_boom"), same.pop("log_snr"))
        if {"sampler", "steps"} <= set(same):
            facts["sampler"] = console.format_sampler(same.pop("sampler"), same.pop("steps"))
        facts |= {name.replace("_", " "): _format_value(name, value) for name, value in same.items()}
        facts["score models"] = ", ".join(f"{name}: {model}" for name, model in score_models.items()) or "none"
        facts["columns"] = ", ".join(columns)
    if as_json:
        click.echo(json.dumps(document, default=str))
    else:
        console.print_facts(title, facts)


@click.command()
@click.argument("name", required=False)
@as_json
def models(name: str | None, as_json: bool) -> None:
    """List the bundled models, or print the card of one.

    A folder in diffusers' format or a hub id works wherever a bundled model does.
    """
    from anonymizer.bundled import read_model_cards

    cards = read_model_cards()
    if name is not None:
        name = name.removeprefix("bundled:")
        if name not in cards:
            raise UsageError(
                f"model {name!r}: not bundled: known: {', '.join(sorted(cards))}; a folder or a hub id goes to "
                "`run --model`, and has no card here"
            )
        click.echo(cards[name].text)
    elif as_json:
        listed = [{"name": f"bundled:{n}", "about": c.summary, "bytes": c.weight_bytes} for n, c in cards.items()]
        click.echo(json.dumps(listed))
    else:
        facts = {f"bundled:{n}": f"{c.summary} ({c.weight_bytes / 2**20:.1f} MiB)" for n, c in cards.items()}
        console.print_facts("Bundled models", facts)
        console.print_line(
            "Any diffusion model in diffusers' format works as well (docs/models.md): --model FOLDER, or from the hub "
            "--model OWNER/NAME --set model.revision=COMMIT."
        )


def _read_manifest(uri: str) -> tuple[TableLike, dict[str, str]]:
    """Return the manifest, wholly validated, and the name of the model of each score."""
    import pyarrow as pa

    from anonymizer.schema import read_metric_models
    from anonymizer.storage import parquet

    path = Release.at(uri).manifest
    if not path.exists():
        raise UsageError(f"release {uri!r}: no public/manifest.parquet: see `anonymizer status {uri}`")
    try:
        manifest = parquet.open_table(path)
        for batch in manifest.to_batches(max_chunksize=parquet.BATCH_ROWS):
            batch.validate(full=True)
        manifest.schema.field("output_id")
        models = read_metric_models(manifest.schema)
    except (pa.ArrowException, OSError, KeyError, ValueError):
        raise IntegrityError(
            f"release {uri!r}: public/manifest.parquet is damaged, or of another version: restore it"
        ) from None
    return manifest, models


def _find_row(manifest: TableLike, output_id: str) -> dict[str, Any] | None:
    import pyarrow.compute as pc

    from anonymizer.storage import parquet

    for batch in manifest.to_batches(max_chunksize=parquet.BATCH_ROWS):
        if rows := batch.filter(pc.equal(batch["output_id"], output_id)).to_pylist():
            row: dict[str, Any] = rows[0]
            return row
    return None


def _format_value(name: str, value: Any) -> str:
    if name == "log_snr":
        return f"{value:+.2f}"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


COMMANDS = (inspect, models)
