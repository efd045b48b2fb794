"""What the command line prints: progress, tables, one clear summary."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

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

from anonymizer.storage.layout import ENCRYPTED_SUFFIX
from flows.jobs.progress import ProgressReporter, report_progress_to

if TYPE_CHECKING:
    from anonymizer.attest.verify import Finding
    from anonymizer.config import CeilingName, ModelConfig
    from anonymizer.policy.calibration import Calibration
    from anonymizer.release.profiling import Profile
    from anonymizer.storage.path import StoragePath

# Ceiling -> its column.
CEILING_COLUMNS: Mapping[CeilingName, str] = {"linkage_rank1": "links at most", "membership_tpr_at_1": "tells at most"}
SCORES = ("LPIPS", "CLIP similarity")  # medians that fit beside the risks; the rest is in tables and plots
MARKS = {"pass": ("ok", "green"), "fail": ("FAIL", "bold red"), "note": ("note", "yellow")}

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


class Bar(ProgressReporter):
    """A progress bar on the terminal."""

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
    """Show the progress of jobs in this process on standard error, where that is a terminal."""
    if quiet or not err.is_terminal:  # elsewhere it would leave an empty line behind
        yield
        return
    columns = (
        SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
        TimeElapsedColumn(), TextColumn("elapsed,"), TimeRemainingColumn(), TextColumn("left"),
    )  # fmt: skip
    with Progress(*columns, console=err, transient=True) as progress, report_progress_to(Bar(progress)):
        yield


def print_line(text: str, style: str = "") -> None:
    """Print a text as it is, without markup."""
    out.print(Text(printable(text), style))


def printable(text: str) -> str:
    """Return a text with control characters percent-encoded: files may hold such as move a terminal's cursor."""
    return "".join(c if c.isprintable() or c in "\n\t" else quote(c, errors="surrogateescape") for c in text)


def print_cautions(texts: Sequence[str]) -> None:
    """Print what should be known before anything is handed out, a line for each."""
    for text in texts:
        print_line(f"Caution: {text}.", style="yellow")


def print_facts(title: str, facts: Mapping[str, Any]) -> None:
    """Print a titled list of names and values, without those that are None."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in facts.items():
        if value is not None:
            table.add_row(printable(name), Text(printable(str(value))))  # not as markup, which a path may look like
    print_line(title, style="bold")
    out.print(table)
    out.print()


def print_table(title: str, columns: Mapping[str, str], rows: Iterable[Sequence[str | tuple[str, str]]]) -> None:
    """Print a titled table of ``columns``, name -> side that it is aligned to; a cell may be a text with its style."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name, side in columns.items():
        table.add_column(name, justify=cast(Any, side), overflow="fold", no_wrap=side == "right")
    for row in rows:
        table.add_row(*(_cell(cell) for cell in row))
    print_line(title, style="bold")
    out.print(table)
    out.print()


def _cell(cell: str | tuple[str, str]) -> Text:
    text, style = (cell, "") if isinstance(cell, str) else cell
    return Text(printable(text), style)


def print_curve(calibration: Calibration) -> None:
    """Print, for each level, the risk of each attack in either half of the people, and the scores."""
    from anonymizer.policy.ceilings import upper_end

    scores = [name for name in calibration.levels[0].utility if name in SCORES]
    rows = []
    for level in calibration.levels:
        high = {risk.attack: risk.high for risk in level.choosing}
        value = {risk.attack: risk.value for risk in level.confirming}
        risks = [f"{_share(high.get(name))} / {_share(value.get(name))}" for name in calibration.attacks]
        ceilings = level.choosing_ceilings
        bounds = [_share(None if ceilings is None else upper_end(ceilings, name)) for name in CEILING_COLUMNS]
        utility = [_share(level.utility[name].value) for name in scores]
        rows.append([f"{level.level:g}", f"{level.log_snr:+.2f}", *risks, *bounds, *utility])
    columns = dict.fromkeys(["level", "log-SNR", *calibration.attacks, *CEILING_COLUMNS.values(), *scores], "right")
    print_table("Risk above chance: at most, of those who choose / measured, of those who confirm", columns, rows)


def print_profile(total: Profile | None) -> None:
    """Print the seconds of each stage, over all threads, and their share of the time that passed."""
    from anonymizer.release.profiling import STAGES

    if total is None:
        print_line("No committed shard says where its time went.")
        return
    rows = [
        (name, f"{seconds:.2f}", f"{seconds / total.wall:.1%}" if total.wall else "-", STAGES.get(name, ""))
        for name, seconds in total.seconds.items()
    ]
    columns = {"stage": "left", "seconds": "right", "of the time": "right", "what": "left"}
    print_table(f"Where {format_duration(total.wall)} of {total.shards} shards went", columns, rows)
    halved = f", halved {total.halved} times for want of memory" if total.halved else ""
    print_line(
        f"{total.records / total.wall if total.wall else 0:.1f} records a second on {total.device}, "
        f"{total.batch_size} pictures at once{halved}. Stages overlap: shares may add up to more than all."
    )


def print_findings(title: str, findings: Sequence[Finding]) -> None:
    """Print a line for each check, however long it is: passed, failed, or worth knowing."""
    print_line(title, style="bold" if all(finding.result != "fail" for finding in findings) else "bold red")
    width = max(len(finding.check) for finding in findings)
    for finding in findings:
        mark, style = MARKS[finding.result]
        check = (f"{finding.check:<{width}}  ", "dim")
        out.print(Text.assemble((f"{mark:<5}", style), check, finding.message), soft_wrap=True)
    out.print()


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def format_counts(reasons: Mapping[str, int]) -> str:
    """Return ``truncated: 2, empty: 1``."""
    return ", ".join(f"{name}: {count}" for name, count in reasons.items())


def format_level(level: float, t_boom: int | str, log_snr: float) -> str:
    """Return ``0.4: t_boom 400, log-SNR -1.20``."""
    return f"{level:g}: t_boom {t_boom}, log-SNR {log_snr:+.2f}"


def format_sampler(name: str, steps: int) -> str:
    """Return ``ddpm, 20 steps for each picture``."""
    return f"{name}, {steps} steps for each picture"


def format_conditioning(model: ModelConfig) -> str:
    """Return what guides a model besides the picture."""
    if model.condition == "label":
        text = "the label of each record"
    else:
        text = repr(model.prompt) if model.prompt else "nothing"
    away = f", and away from {model.negative_prompt!r}" if model.negative_prompt else ""
    return f"{text}{away}, guidance {model.guidance:g}"


def format_page(page: StoragePath) -> str:
    """Return where a page is, as it is or encrypted."""
    return str(page) if page.exists() else f"{page}{ENCRYPTED_SUFFIX} (`anonymizer unseal`)"


def format_duration(seconds: float) -> str:
    """Return ``1 h 02 min``, ``3 min 20 s`` or ``12 s``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
