"""What the command line prints: progress, tables, one clear summary."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from anonymizer.release.profiling import STAGES
from flows.jobs.progress import ProgressReporter, report_progress_to

if TYPE_CHECKING:
    from anonymizer.attest.verify import Finding
    from anonymizer.config import ModelConfig
    from anonymizer.data.sources import Field
    from anonymizer.policy.calibration import Calibration
    from anonymizer.release.profiling import Profile

SCORES = ("LPIPS", "CLIP similarity")  # medians that fit beside the risks; the rest is in tables and plots

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class Bar(ProgressReporter):
    """A progress bar fed by the run's watcher."""

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.task = progress.add_task("starting", total=None)

    def begin(self, records: int, done: int) -> None:
        self.progress.update(self.task, total=records, completed=done)

    def advance(self, records: int) -> None:
        self.progress.advance(self.task, records)

    def stage(self, name: str) -> None:
        self.progress.update(self.task, description=name)


@contextmanager
def progress_bar(quiet: bool) -> Iterator[None]:
    """Show the progress of runs in this process on standard error, where a person can see it."""
    if quiet or not err.is_terminal:  # elsewhere it would leave an empty line behind
        yield
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left"),
    )  # fmt: skip
    with Progress(*columns, console=err, transient=True) as progress, report_progress_to(Bar(progress)):
        yield


def print_facts(title: str, rows: Mapping[str, Any]) -> None:
    """A titled list of names and values."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        table.add_row(name, Text(str(value)))  # as it is: a path may look like markup
    print_line(title, style="bold")
    out.print(table)
    out.print()


def print_fields(columns: Sequence[Field]) -> None:
    """What a source holds: each thing, where it was found, and what becomes of it."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("field", "found", "becomes"):
        table.add_column(title, overflow="fold")
    for field in columns:
        table.add_row(Text(field.name), Text(field.location), Text(field.treatment))
    print_line("What becomes of what is in the source", style="bold")
    out.print(table)
    out.print()


def print_curve(calibration: Calibration) -> None:
    """Risk of each attack, at most for those who choose and as measured on those who confirm, and the scores."""
    scores = [name for name in calibration.levels[0].utility if name in SCORES]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title in ("level", "log-SNR", *calibration.attacks, *scores):
        table.add_column(title, justify="right", no_wrap=True)
    for one in calibration.levels:
        sides = ((one.choosing, "high"), (one.confirming, "value"))
        risks = [
            " / ".join(
                next((_format_share(getattr(r, side)) for r in half if r.attack == attack), "-") for half, side in sides
            )
            for attack in calibration.attacks
        ]
        utility = [_format_share(one.utility[name].value) for name in scores]
        table.add_row(f"{one.level:g}", f"{one.log_snr:+.2f}", *risks, *utility)
    print_line("Risk above chance: at most, of those who choose / measured, of those who confirm", style="bold")
    out.print(table)
    out.print()


def print_profile(spent: Profile | None) -> None:
    """Seconds of each stage, over all threads, and their share of the time that passed."""
    if spent is None:
        print_line("No committed shard says where its time went.")
        return
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for title, side in (("stage", "left"), ("seconds", "right"), ("of the time", "right"), ("what", "left")):
        table.add_column(title, justify=cast(Any, side))
    for name, seconds in spent.seconds.items():
        share = f"{seconds / spent.wall:.1%}" if spent.wall else "-"
        table.add_row(name, f"{seconds:.2f}", share, STAGES.get(name, ""))
    print_line(f"Where {format_duration(spent.wall)} of {spent.shards} shards went", style="bold")
    out.print(table)
    halved = f", halved {spent.halved} times for want of memory" if spent.halved else ""
    print_line(
        f"{spent.records / spent.wall if spent.wall else 0:.1f} records a second on {spent.device}, "
        f"{spent.batch_size} pictures at once{halved}. Stages overlap: shares may add up to more than all."
    )


MARKS = {"pass": ("ok", "green"), "fail": ("FAIL", "bold red"), "note": ("note", "yellow")}


def print_findings(title: str, found: Sequence[Finding]) -> None:
    """What was checked, a line for each, however long: good, bad, or worth knowing."""
    print_line(title, style="bold" if all(one.result != "fail" for one in found) else "bold red")
    width = max(len(one.check) for one in found)
    for one in found:
        mark, style = MARKS[one.result]
        out.print(Text.assemble((f"{mark:<5}", style), (f"{one.check:<{width}}  ", "dim"), one.message), soft_wrap=True)
    out.print()


def _format_share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def print_cautions(texts: Sequence[str]) -> None:
    """What should be known before anything is handed out, a line for each."""
    for text in texts:
        print_line(f"Caution: {text}.", style="yellow")


def print_line(text: str, style: str = "") -> None:
    out.print(Text(text, style))


def format_counts(reasons: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count}" for name, count in reasons.items())


def format_level(share: float, t_boom: int | str, log_snr: float) -> str:
    return f"{share:g}: t_boom {t_boom}, log-SNR {log_snr:+.2f}"


def format_sampler(name: str, steps: int) -> str:
    return f"{name}, {steps} steps for each picture"


def format_conditioning(model: ModelConfig) -> str:
    if model.condition == "label":
        what = "the label of each record"
    else:
        what = repr(model.prompt) if model.prompt else "nothing"
    away = f", and away from {model.negative_prompt!r}" if model.negative_prompt else ""
    return f"{what}{away}, guidance {model.guidance:g}"


def format_duration(seconds: float) -> str:
    """``1 h 02 min``, ``3 min 20 s``, ``12 s``."""
    whole = round(seconds)
    hours, minutes, rest = whole // 3600, whole // 60 % 60, whole % 60
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
