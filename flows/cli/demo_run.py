"""The demo: invent people, plant leaks, release them, look for each leak in what would be handed out, and verify it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from rich.table import Table

from anonymizer import config
from anonymizer.bundled import demo_data
from anonymizer.data import image_codec
from anonymizer.errors import OutputError
from anonymizer.storage.layout import Release
from flows.cli import console, governance_reports
from flows.cli import release as release_commands
from flows.jobs import release as release_job
from flows.jobs.progress import current_progress
from flows.runtime.prefect_settings import override_environment

MARKER_FILE = ".made-by-anonymizer-demo"


def run(folder: Path, count: int, level: float, *, quiet: bool) -> None:
    """Make ``folder/source`` and ``folder/release``; a folder of an earlier demo is replaced."""
    if folder.exists() and any(folder.iterdir()) and not (folder / MARKER_FILE).exists():
        raise OutputError(f"--output {str(folder)!r}: exists and was not made by a demo: choose another folder")
    source, output = folder / "source", folder / "release"
    settings = config.build(
        {
            "source": {"uri": str(source), "label": "folder"},
            "output": {"uri": str(output)},
            "boomerang": {"level": level},
            "run": {"batch_size": 16, "shard_size": 32},
        }
    )
    shutil.rmtree(folder, ignore_errors=True)
    source.mkdir(parents=True)
    (folder / MARKER_FILE).touch()
    console.out.print(f"Inventing {count} people with the bundled model ...")
    with console.progress_bar(quiet):
        current_progress().begin(count, 0)
        current_progress().stage("inventing")
        backbone, progress = release_job.backbone_of(settings.model), current_progress().advance
        names = release_job.in_fresh_thread(lambda: demo_data.write_demo_source(source, count, backbone, progress))
    console.out.print("Releasing them, signed with a new key (starting Prefect takes a moment) ...\n")
    private_file, public_file = governance_reports.make_keys("publisher", folder / "keys", "signing")
    with override_environment({settings.signing_key_env: str(private_file)}):
        release_commands.run(settings, as_json=False, quiet=quiet)
    console.out.print()
    console.out.print(_leak_table(source, output, names))
    console.out.print()
    governance_reports.verify(str(output / "public"), [str(public_file)])


def _leak_table(source: Path, output: Path, names: list[str]) -> Table:
    """Each planted leak, in how many files it is in the source and in the public half."""
    before = {p: p.read_bytes() for p in source.rglob("*") if p.is_file()}
    after = {p: p.read_bytes() for p in Path(Release.at(str(output)).public.path).rglob("*") if p.is_file()}
    table = Table(title="What was planted, and where it still is (files)", title_justify="left", title_style="bold")
    for column, align in (("leak", "left"), ("source", "right"), ("public", "right")):
        table.add_column(column, justify=align)  # type: ignore[arg-type]
    for leak, finds in _leak_finders(names).items():
        counts = [sum(finds(path, data) for path, data in files.items()) for files in (before, after)]
        table.add_row(leak, str(counts[0]), str(counts[1]), style="" if counts[1] == 0 else "bold red")
    return table


def _leak_finders(names: list[str]) -> dict[str, Callable[[Path, bytes], bool]]:
    def metadata(kind: str) -> Callable[[Path, bytes], bool]:
        return lambda path, data: path.suffix in (".jpg", ".png") and kind in image_codec.find_metadata(data)

    spelled = [form.encode() for name in names for form in (name, name.replace(" ", "_"))]
    return {
        "a name in the file name": lambda path, data: any(form.decode() in path.name for form in spelled),
        "a name anywhere in the file": lambda path, data: any(form in data for form in spelled),
        "an address": lambda path, data: demo_data.ADDRESS.encode() in data,
        "EXIF (with GPS)": metadata("exif"),
        "XMP": metadata("xmp"),
        "an ICC profile": metadata("icc"),
        "a comment": metadata("comment"),
        "a thumbnail": metadata("thumbnail"),
    }
