"""The command that makes further training pictures, which are not anonymised: augment."""

from __future__ import annotations

import json

import click

from anonymizer.errors import AnonymizerError
from anonymizer.storage.path import StoragePath
from flows.cli import console
from flows.cli.options import as_json, build_config, config_argument, model_option, quiet, set_option


@click.command()
@config_argument
@click.option("--source", help="Folder, file or prefix with the originals; any fsspec URI.")
@click.option("--output", help="A new folder or prefix for the samples; any fsspec URI.")
@click.option("--label", help="'folder', or the column that holds the label: source.label.")
@click.option("--levels", help="Lowest and highest level.  [default: .1:.4]")
@click.option("--samples", type=int, help="Samples of each record.  [default: 2]")
@click.option("--balance", is_flag=True, default=None, help="More samples for smaller classes, until all are as large.")
@click.option("--filter", "label_filter", help="Drop what no longer shows its label: clip, or a classifier's folder.")
@model_option
@set_option
@as_json
@quiet
def augment(
    config: str | None, source: str | None, output: str | None, label: str | None, levels: str | None,
    samples: int | None, balance: bool | None, label_filter: str | None, model: str | None, overrides: tuple[str, ...],
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Make training pictures, not anonymised.

    Draws local samples of each record, with its label. They stay with the owner of the originals, and no release
    takes them.

    \b
    anonymizer augment --source photos/ --label folder --output augmented/ --levels .1:.4 --samples 2
    anonymizer augment CONFIG.yaml --balance --filter clip
    """
    from anonymizer.config import AugmentConfig
    from flows import api

    is_folder = label_filter not in (None, "none", "clip")  # of a classifier
    options = {
        "source.uri": source, "output.uri": output, "source.label": label, "levels": levels, "samples": samples,
        "balance": balance, "model.id": model, "filter.kind": "classifier" if is_folder else label_filter,
        "filter.classifier": label_filter if is_folder else None,
    }  # fmt: skip
    settings = build_config(AugmentConfig, config, options, overrides)
    with console.progress_bar(quiet or as_json):
        summary = api.augment(settings)
    folder = StoragePath.from_uri(settings.output.uri)
    if as_json:
        click.echo(json.dumps(summary))
    else:
        low, high = settings.levels
        console.print_facts(
            f"Kept {summary['kept']} of {summary['drawn']} samples at levels {low:g} to {high:g}",
            {
                "records": f"{summary['usable']} of {summary['read']} could be used",
                "failed": console.format_counts(summary["reasons"]) or None,
                "dropped": console.format_counts(summary["dropped"]) or None,
                "classes": summary["classes"] if settings.source.label else None,
                "most samples of one record": summary["most_of_one"],
                "pictures": folder / "images",
                "a row for each": folder / "manifest.parquet",
                "by class and level": folder / "summary.json",
            },
        )
        console.print_cautions(
            ["these are for training, and not anonymised: they stay with the owner of the originals"]
        )
    if not summary["kept"]:
        raise AnonymizerError("augment: no sample was kept: see the reasons in summary.json")


COMMANDS = (augment,)
