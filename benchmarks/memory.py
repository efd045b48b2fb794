"""Measure peak memory against the size of the dataset: each size in its own process, by the command line.

    python benchmarks/memory.py [--sizes 500 2000] [--json FILE]

Pictures are 200 x 200 JPEGs; one reverse step each, because memory does not depend on their number.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from pipeline import make_pictures

CHILD_SCRIPT = """
import resource, sys
from flows.cli import main
try:
    main(sys.argv[1:])
except SystemExit as stop:
    assert not stop.code, stop.code
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


def measure_peak(source: str, output: Path) -> float:
    """Return the peak resident memory in MiB of one `anonymizer run`, without the Prefect server's process."""
    arguments = [
        "run",
        "--source",
        source,
        "--output",
        str(output),
        "--level",
        "0.4",
        "--set",
        "boomerang.steps=1",
        "--quiet",
    ]
    done = subprocess.run(
        [sys.executable, "-P", "-c", CHILD_SCRIPT, *arguments], check=True, capture_output=True, text=True
    )
    return int(done.stdout.rsplit("peak", 1)[1]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[500, 2000])
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    result = {}
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as scratch:
            source = make_pictures(None, size, Path(scratch) / "source")
            result[str(size)] = round(measure_peak(source, Path(scratch) / "release"), 1)
            print(f"{size} pictures: {result[str(size)]} MiB", flush=True)
    result["largest_to_smallest"] = round(max(result.values()) / min(result.values()), 4)
    print(json.dumps(result, indent=2))
    if args.json:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
