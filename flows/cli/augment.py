"""The command that makes further training pictures, which are not anonymised."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from anonymizer.errors import AnonymizerError
from flows.cli.options import as_json, build_config, drop_unset, quiet

if TYPE_CHECKING:
    from anonymizer.config import AugmentConfig


@click.command()
@click.argument("config", required=False)
@click.option("--source", help="Folder, file or prefix with the originals; any fsspec URI.")
@click.option("--output", help="A new folder or prefix for the samples; any fsspec URI.")
@click.option("--label", help="'folder', or the column that holds the label: source.label.")
@click.option("--levels", help="Lowest and highest level.  [default: .1:.4]")
@click.option("--samples", type=int, help="Samples of each record.  [default: 2]")
@click.option("--balance", is_flag=True, default=None, help="More samples for smaller classes, until all are as large.")
@click.option("--filter", "of_labels", help="Drop what no longer shows its label: clip, or a classifier's folder.")
@click.option("--model", help="bundled:NAME, a folder or its URI, or a hub id (then --set model.revision=...).")
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Any other setting; repeatable.")
@as_json
@quiet
def augment(
    config: str | None, source: str | None, output: str | None, label: str | None, levels: str | None,
    samples: int | None, balance: bool | None, of_labels: str | None, model: str | None, overrides: tuple[str, ...],
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Make training pictures, not anonymised.

    Draws local samples of each record, with its label. They stay with whoever owns the originals, and no release
    takes them.

    \b
    anonymizer augment --source photos/ --label folder --output augmented/ --levels .1:.4 --samples 2
    anonymizer augment CONFIG.yaml --balance --filter clip
    """
    from anonymizer.config import AugmentConfig

    given = {
        "source.uri": source, "output.uri": output, "source.label": label, "levels": levels, "samples": samples,
        "balance": balance, "model.id": model, **_filter_settings(of_labels),
    }  # fmt: skip
    built = build_config(AugmentConfig, config, drop_unset(given), overrides)
    try:
        _run(built, as_json=as_json, quiet=quiet)
    except KeyboardInterrupt:
        click.echo("stopped: what was drawn stays; begin again in a new folder", err=True)
        sys.exit(130)


def _filter_settings(name: str | None) -> dict[str, Any]:
    """The filter that is named in a word, or by the folder of a classifier."""
    if name in (None, "none", "clip"):
        return {"filter.kind": name}
    return {"filter.kind": "classifier", "filter.classifier": name}


def _run(config: AugmentConfig, *, as_json: bool, quiet: bool) -> None:
    from anonymizer.storage.path import StoragePath
    from flows.cli import console
    from flows.jobs import augment as augment_job
    from flows.runtime import temporary_server

    with console.progress_bar(quiet or as_json):
        augment_job.check(config)
        with temporary_server.ensure_server("ANONYMIZER_KEY", "ANONYMIZER_SIGNING_KEY") as ready:
            ready()
            from flows.augment import augment as flow

            summary = flow(config.model_dump(mode="json"))
    folder = StoragePath.from_uri(config.output.uri)
    if as_json:
        click.echo(json.dumps(summary))
    else:
        _print_summary(summary, config, folder)
    if not summary["kept"]:
        raise AnonymizerError("augment: no sample was kept: see the reasons in summary.json")


def _print_summary(summary: dict[str, Any], config: AugmentConfig, folder: Any) -> None:
    from flows.cli import console

    low, high = config.levels
    console.print_facts(
        f"Kept {summary['kept']} of {summary['drawn']} samples at levels {low:g} to {high:g}",
        {
            "records": f"{summary['usable']} of {summary['read']} could be used",
            **({"failed": console.format_counts(summary["reasons"])} if summary["reasons"] else {}),
            **({"dropped": console.format_counts(summary["dropped"])} if summary["dropped"] else {}),
            **({"classes": summary["classes"]} if config.source.label else {}),
            "most samples of one record": summary["most_of_one"],
            "pictures": folder / "images",
            "a row for each": folder / "manifest.parquet",
            "by class and level": folder / "summary.json",
        },
    )
    console.print_cautions(["these are for training, and not anonymised: they stay with whoever owns the originals"])
