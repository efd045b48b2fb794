"""The command that enlarges pictures, which invents detail and anonymises nobody."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from anonymizer.errors import AnonymizerError
from flows.cli.options import as_json, build_config, drop_unset, quiet

if TYPE_CHECKING:
    from anonymizer.config import EnhanceConfig
    from anonymizer.storage.path import StoragePath


@click.command()
@click.argument("config", required=False)
@click.option("--source", help="Folder, file or prefix with the small pictures; any fsspec URI.")
@click.option("--output", help="A new folder or prefix for the large ones; any fsspec URI.")
@click.option("--references", help="The same pictures at full size, to compare with; of the same names.")
@click.option("--factor", type=int, help="How many times as long a side becomes.  [default: 4]")
@click.option("--levels", help="A level for each pass, with commas; several make a cascade.  [default: .4]")
@click.option("--upsampling", help="Before the first pass: bilinear, bicubic or lanczos.  [default: bicubic]")
@click.option("--model", help="bundled:NAME, a folder or its URI, or a hub id (then --set model.revision=...).")
@click.option("--set", "overrides", multiple=True, metavar="A.B=VALUE", help="Any other setting; repeatable.")
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

    given = {
        "source.uri": source, "output.uri": output, "references.uri": references, "factor": factor, "levels": levels,
        "upsampling": upsampling, "model.id": model,
    }  # fmt: skip
    built = build_config(EnhanceConfig, config, drop_unset(given), overrides)
    try:
        _run(built, as_json=as_json, quiet=quiet)
    except KeyboardInterrupt:
        click.echo("stopped: what was enlarged stays; begin again in a new folder", err=True)
        sys.exit(130)


def _run(config: EnhanceConfig, *, as_json: bool, quiet: bool) -> None:
    from anonymizer.storage.path import StoragePath
    from flows.cli import console
    from flows.jobs import enhance as enhance_job
    from flows.runtime import temporary_server

    with console.progress_bar(quiet or as_json):
        enhance_job.check(config)
        with temporary_server.ensure_server("ANONYMIZER_KEY", "ANONYMIZER_SIGNING_KEY") as ready:
            ready()
            from flows.enhance import enhance as flow

            summary = flow(config.model_dump(mode="json"))
    folder = StoragePath.from_uri(config.output.uri)
    told = json.loads((folder / "summary.json").read())
    if as_json:
        click.echo(json.dumps(told))
    else:
        _print_summary(told, folder)
    if not summary["enhanced"]:
        raise AnonymizerError("enhance: no picture could be enlarged: see the reasons in report.html")


def _print_summary(summary: Mapping[str, Any], folder: StoragePath) -> None:
    from flows.cli import console

    if summary["figures"]:
        _print_comparison(summary["figures"])
    console.print_facts(
        f"Enlarged {summary['enhanced']} of {summary['read']} pictures {summary['factor']} times",
        {
            **({"failed": console.format_counts(summary["reasons"])} if summary["reasons"] else {}),
            **({"compared": summary["compared"]} if summary["compared"] or summary["unusable_references"] else {}),
            **(
                {"no reference": console.format_counts(summary["unusable_references"])}
                if summary["unusable_references"]
                else {}
            ),
            "pictures": folder / "images",
            "a row for each": folder / "manifest.parquet",
            "look at": folder / "report.html",
        },
    )
    console.print_cautions(
        [*summary["cautions"], "the detail is invented, and nobody is anonymised: do not release this"]
    )


def _print_comparison(figures: Mapping[str, Any]) -> None:
    """The mean of each method by each measure, and its interval."""
    from rich.table import Table

    from flows.cli import console

    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("method", no_wrap=True)
    for measure in figures:
        table.add_column(measure.upper(), justify="right", no_wrap=True)
    for method in next(iter(figures.values())):
        if method != "n":
            table.add_row(method, *(_format_interval(found[method]["mean"]) for found in figures.values()))
    count = max(found["n"] for found in figures.values())
    console.print_line(f"Against {count} references: means, and their 95 % intervals", style="bold")
    console.out.print(table)
    console.out.print()


def _format_interval(found: Mapping[str, float | None]) -> str:
    if found["low"] is None:
        return f"{found['value']:.2f}"
    return f"{found['value']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
