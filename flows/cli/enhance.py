"""The command that enlarges pictures, which invents detail and does not anonymise: enhance."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import click

from anonymizer.errors import AnonymizerError
from anonymizer.storage.path import StoragePath
from flows.cli import console
from flows.cli.options import as_json, build_config, config_argument, model_option, quiet, set_option


@click.command()
@config_argument
@click.option("--source", help="Folder, file or prefix with the small pictures; any fsspec URI.")
@click.option("--output", help="A new folder or prefix for the large ones; any fsspec URI.")
@click.option("--references", help="The same pictures at full size, to compare with; of the same names.")
@click.option("--factor", type=int, help="How many times as long a side becomes.  [default: 4]")
@click.option("--levels", help="A level for each pass, with commas; several make a cascade.  [default: .4]")
@click.option("--upsampling", help="Before the first pass: bilinear, bicubic or lanczos.  [default: bicubic]")
@model_option
@set_option
@as_json
@quiet
def enhance(
    config: str | None, source: str | None, output: str | None, references: str | None, factor: int | None,
    levels: str | None, upsampling: str | None, model: str | None, overrides: tuple[str, ...],
    as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Enlarge small pictures, not anonymised.

    Upsamples each and redraws it by Boomerang. The detail is invented, and no release takes the result.

    \b
    anonymizer enhance --source small/ --output large/ --factor 4 --levels .4
    anonymizer enhance --source small/ --output large/ --references full-size/ --levels .5,.3
    anonymizer enhance CONFIG.yaml
    """
    from anonymizer.config import EnhanceConfig
    from flows import api

    options = {
        "source.uri": source, "output.uri": output, "references.uri": references, "factor": factor, "levels": levels,
        "upsampling": upsampling, "model.id": model,
    }  # fmt: skip
    settings = build_config(EnhanceConfig, config, options, overrides)
    with console.progress_bar(quiet or as_json):
        api.enhance(settings)
    folder = StoragePath.from_uri(settings.output.uri)
    summary = json.loads((folder / "summary.json").read())
    if as_json:
        click.echo(json.dumps(summary))
    else:
        if summary["figures"]:
            _print_comparison(summary["figures"])
        unusable = console.format_counts(summary["unusable_references"]) or None
        console.print_facts(
            f"Enlarged {summary['enhanced']} of {summary['read']} pictures {summary['factor']} times",
            {
                "failed": console.format_counts(summary["reasons"]) or None,
                "compared": summary["compared"] if summary["compared"] or unusable else None,
                "no reference": unusable,
                "pictures": folder / "images",
                "a row for each": folder / "manifest.parquet",
                "look at": folder / "report.html",
            },
        )
        console.print_cautions(
            [*summary["cautions"], "the detail is invented, and nobody is anonymised: do not release this"]
        )
    if not summary["enhanced"]:
        raise AnonymizerError("enhance: no picture could be enlarged: see the reasons in report.html")


def _print_comparison(figures: Mapping[str, Any]) -> None:
    """Print the mean of each method by each measure, with its 95 % interval."""

    def interval(mean: Mapping[str, float | None]) -> str:
        bounds = "" if mean["low"] is None else f" ({mean['low']:.2f} to {mean['high']:.2f})"
        return f"{mean['value']:.2f}{bounds}"

    methods = [method for method in next(iter(figures.values())) if method != "n"]
    console.print_table(
        f"Against {max(figure['n'] for figure in figures.values())} references: means, and their 95 % intervals",
        {"method": "left"} | {measure.upper(): "right" for measure in figures},
        [[method, *(interval(figure[method]["mean"]) for figure in figures.values())] for method in methods],
    )


COMMANDS = (enhance,)
