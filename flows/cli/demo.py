"""The demo: invent people, plant leaks, release them in groups, look for each leak in the public half, verify it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import click

from anonymizer.errors import OutputError
from flows.cli import console
from flows.cli.options import quiet

MARKER_FILE = ".made-by-anonymizer-demo"
K = 3  # people behind each picture of the release
MIN_PICTURES = 12  # a group in each of the four folders


@click.command()
@click.option(
    "--output", default="demo", show_default=True, type=click.Path(file_okay=False, path_type=Path),
    help="A new folder, or one of an earlier demo, which is replaced.",
)  # fmt: skip
@click.option(
    "--pictures",
    default=48,
    show_default=True,
    type=click.IntRange(MIN_PICTURES, 1000),
    help="How many people to invent.",
)
@click.option("--level", default=0.6, show_default=True, help="Anonymity level in (0, 1].")
@quiet
def demo(output: Path, pictures: int, level: float, quiet: bool) -> None:
    """Release an invented dataset full of leaks.

    Invents people who do not exist, plants leaks in their pictures, releases one picture for each group of three who
    look alike, and looks for each leak in the result.
    """
    from anonymizer import config
    from anonymizer.bundled import demo_data
    from flows.cli.governance import make_keys, verify_release
    from flows.cli.release import run_release
    from flows.jobs import models, redaction
    from flows.jobs.progress import current_progress
    from flows.runtime.prefect_settings import override_environment

    if output.exists() and any(output.iterdir()) and not (output / MARKER_FILE).exists():
        raise OutputError(f"--output {str(output)!r}: exists and was not made by a demo: choose another folder")
    source, release = output / "source", output / "release"
    settings = config.build(
        {
            "source": {"uri": str(source), "label": "folder"},
            "output": {"uri": str(release)},
            "boomerang": {"level": level, "k": K},
            "run": {"batch_size": 16, "shard_size": 32},
        }
    )
    shutil.rmtree(output, ignore_errors=True)
    source.mkdir(parents=True)
    (output / MARKER_FILE).touch()
    console.out.print(f"Inventing {pictures} people with the bundled model ...")
    with console.progress_bar(quiet):
        progress = current_progress()
        progress.begin(pictures, 0)
        progress.stage("inventing")
        backbone = models.backbone_of(settings.model)
        names = redaction.in_fresh_thread(
            lambda: demo_data.write_demo_source(source, pictures, backbone, progress.advance)
        )
    console.out.print("Releasing them, with new keys (starting Prefect takes a moment) ...\n")
    private_file, public_file = make_keys("publisher", output / "keys", "signing")
    custodian_file, _ = make_keys("custodian", output / "keys", "custodian")
    keys = {settings.signing_key_env: str(private_file), settings.key_env: custodian_file.read_text().strip()}
    with override_environment(keys):
        run_release(settings, as_json=False, quiet=quiet)
    console.out.print()
    console.print_table(
        "What was planted, and where it still is (files)",
        {"leak": "left", "source": "right", "public": "right"},
        [
            (leak, str(before), (str(after), "bold red" if after else ""))
            for leak, before, after in count_leaks(source, release / "public", names)
        ],
    )
    verify_release(str(release / "public"), [str(public_file)])


def count_leaks(source: Path, public: Path, names: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return each planted leak, and in how many files of the source and of the public half it is."""
    before, after = (
        [(path, path.read_bytes()) for path in sorted(folder.rglob("*")) if path.is_file()]
        for folder in (source, public)
    )
    return [
        (leak, sum(has(*file) for file in before), sum(has(*file) for file in after))
        for leak, has in _leak_detectors(names).items()
    ]


def _leak_detectors(names: Sequence[str]) -> dict[str, Callable[[Path, bytes], bool]]:
    from anonymizer.bundled import demo_data
    from anonymizer.data.metadata import find_metadata

    def metadata(kind: str) -> Callable[[Path, bytes], bool]:
        return lambda path, data: path.suffix in (".jpg", ".png") and kind in find_metadata(data)

    spellings = [form.encode() for name in names for form in (name, name.replace(" ", "_"))]
    return {
        "a name in the file name": lambda path, data: any(form.decode() in path.name for form in spellings),
        "a name anywhere in the file": lambda path, data: any(form in data for form in spellings),
        "an address": lambda path, data: demo_data.ADDRESS.encode() in data,
        "EXIF (with GPS)": metadata("exif"),
        "XMP": metadata("xmp"),
        "an ICC profile": metadata("icc"),
        "a comment": metadata("comment"),
        "a thumbnail": metadata("thumbnail"),
    }


COMMANDS = (demo,)
