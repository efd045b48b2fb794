"""Helpers of the speed benchmarks: turns, medians, the machine, tables."""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from anonymizer.devices import device_name


def argument_parser(description: str | None) -> argparse.ArgumentParser:
    """Return the options of a benchmark of the network by itself."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=["pixel", "latent"], default="pixel")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--size", type=int, help="side of a picture in pixels; the model's own by default")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--level", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=1.0, help="of the latent model")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--json", type=Path)
    return parser


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished all submitted work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_call(function: Callable[[], Any], device: torch.device) -> float:
    synchronize(device)
    started = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - started


def take_turns(
    contenders: Mapping[str, Callable[[], float]], repeats: int, log: Callable[[str], None] = print
) -> dict[str, list[float]]:
    """Call each contender ``repeats`` times; they take turns, so that a slow minute hits all of them."""
    measurements: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for i in range(repeats):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            measurements[name].append(contenders[name]())
            log(f"  {name}: {measurements[name][-1]:.3g}")
    return measurements


def medians(measurements: Mapping[str, Sequence[float]]) -> dict[str, float]:
    return {name: statistics.median(values) for name, values in measurements.items()}


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the conditions that figures depend on."""
    return {
        "date": date.today().isoformat(),
        "device": device_name(device) if device.type == "cuda" else f"CPU ({platform.machine()})",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def markdown_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return a table in Markdown."""
    cells = [[_format_cell(cell) for cell in row] for row in rows]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}", *(f"| {' | '.join(row)} |" for row in cells)]
    return "\n".join(lines)


def report(title: str, device: torch.device, text: str, result: Mapping[str, Any], file: Path | None) -> None:
    """Print one table, and write its figures where a file is named."""
    record = describe_machine(device)
    print(f"\n{title}\n{', '.join(f'{name} {value}' for name, value in record.items())}\n\n{text}")
    if file is not None:
        file.write_text(json.dumps(record | dict(result), indent=2) + "\n")


def _format_cell(cell: Any) -> str:
    return f"{cell:.3g}" if isinstance(cell, float) else str(cell)
