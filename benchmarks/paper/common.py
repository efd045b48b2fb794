"""Helpers of the benchmarks of the paper's claims: images, local samples, cached work, intervals, results.

Results are cached in the folder ``--work`` as soon as they are finished, under a digest of all inputs but the code: a
killed script goes on when the same command is given again, and scripts share local samples. Empty the folder after a
change of the code.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch
from scipy import stats

from anonymizer.backbones import load_backbone
from anonymizer.backbones.load import torch_device
from anonymizer.backbones.protocol import Backbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import ModelConfig
from anonymizer.data import image_codec
from anonymizer.noise import KeyedNoise
from metrics.utility import image_quality

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # Okabe and Ito's
CONFIDENCE = 0.95

Floats = npt.NDArray[np.float64]
Arrays = dict[str, npt.NDArray[Any]]
Key = Mapping[str, Any]

# Pictures


@dataclass(frozen=True)
class Pictures:
    """``pixels`` (N, 3, S, S) uint8; ``labels`` (N,) int64 into ``names``, of which there are none without labels."""

    pixels: torch.Tensor
    labels: torch.Tensor
    names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, rows: slice) -> Pictures:
        return Pictures(self.pixels[rows], self.labels[rows], self.names)

    def with_pixels(self, pixels: torch.Tensor) -> Pictures:
        """Return other images under the same labels."""
        return Pictures(pixels, self.labels, self.names)

    @property
    def label_names(self) -> list[str]:
        """Return the name of each image's class."""
        return [self.names[label] for label in self.labels.tolist()]


def read_pictures(file: Path, split: str, size: int, most: int, seed: int = 0) -> Pictures:
    """Read at most ``most`` images of a split in random order, with all classes alike in every prefix.

    ``file`` is a Parquet file with the columns ``image`` (encoded bytes), ``split`` and, if anything is labelled,
    ``label``.
    """
    labelled = "label" in pq.read_schema(file).names
    table = pq.read_table(file, columns=["image", "split", *(["label"] if labelled else [])])
    table = table.filter(pq.filters_to_expression([("split", "=", split)]))
    if not len(table):
        raise SystemExit(f"{file.name}: holds no picture of the split {split!r}: check the column split")
    class_names = [str(label) for label in table["label"].to_pylist()] if labelled else [""] * len(table)
    names = tuple(sorted(set(class_names)))
    labels = np.array([names.index(name) for name in class_names])
    rows = interleave_classes(labels, np.random.default_rng(seed))[:most]
    encoded = (row["bytes"] if isinstance(row, dict) else row for row in table["image"].take(rows).to_pylist())
    pixels = torch.stack([to_bytes(image_codec.decode(data, size).tensor) for data in encoded])
    return Pictures(pixels, torch.from_numpy(labels[rows]), names if labelled else ())


def interleave_classes(labels: npt.NDArray[Any], rng: np.random.Generator) -> npt.NDArray[np.int64]:
    """Return a random order (N,) of the rows in which the first of each class come first, then the second of each."""
    order = rng.permutation(len(labels))
    turn = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels[order] == label)
        turn[members] = np.arange(len(members))
    return np.asarray(order[np.lexsort((np.arange(len(labels)), turn))], dtype=np.int64)


def to_floats(pixels: torch.Tensor) -> torch.Tensor:
    """Convert uint8 to float32 in [-1, 1]."""
    return pixels.float() / 127.5 - 1


def to_bytes(x: torch.Tensor) -> torch.Tensor:
    """Convert [-1, 1] to uint8 on the CPU, as a file would hold it. ValueError for values that are not finite."""
    if not x.isfinite().all():
        raise ValueError("the model returned NaN or infinity: try --dtype float32")
    return ((x.clamp(-1, 1) + 1) * 127.5).round().byte().cpu()


def digest(pixels: torch.Tensor) -> str:
    return hashlib.sha256(pixels.contiguous().numpy().tobytes()).hexdigest()


# Cached work


@dataclass
class Seconds:
    """``wall`` passed; ``cpu`` were spent by all threads of this process, which is what one core would have needed."""

    wall: float = 0.0
    cpu: float = 0.0


class Workspace:
    """Cache of finished work in a folder, with the time that it took."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.seconds = folder, dict[str, Seconds]()
        (folder / "cache").mkdir(parents=True, exist_ok=True)

    def cached_arrays(self, kind: str, key: Key, make: Callable[[], Arrays]) -> Arrays:
        """Return the arrays of ``make``, from ``cache/`` if they are there."""
        file = self.folder / "cache" / f"{kind}-{_named(key)}.npz"
        if not file.exists():
            result, spent = _timed(make)
            part = file.with_suffix(f".{os.getpid()}.part.npz")
            np.savez_compressed(part, allow_pickle=False, **result, seconds=np.array([spent.wall, spent.cpu]))
            part.replace(file)
            if spent.wall > 5:
                print(f"{kind}: {spent.wall:.0f} s", file=sys.stderr, flush=True)
        with np.load(file) as entry:
            arrays = {name: entry[name] for name in entry.files}
        self._spent(kind, Seconds(*arrays.pop("seconds").tolist()))
        return arrays

    def cached_result(self, kind: str, key: Key, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the result of ``make``, from its line of ``KIND.jsonl`` if it is there."""
        name, file = _named(key), self.folder / f"{kind}.jsonl"
        entry = _lines(file).get(name)
        if entry is None:
            result, spent = _timed(make)
            entry = {"name": name, "key": dict(key), "result": result, "seconds": asdict(spent)}
            torn = file.exists() and not file.read_bytes().endswith(b"\n")
            with file.open("a", encoding="utf-8") as lines:
                lines.write(("\n" if torn else "") + json.dumps(entry) + "\n")
        self._spent(kind, Seconds(**entry["seconds"]))
        result = entry["result"]
        assert isinstance(result, dict)
        return result | {"seconds": round(entry["seconds"]["wall"], 2)}

    def _spent(self, kind: str, spent: Seconds) -> None:
        so_far = self.seconds.setdefault(kind, Seconds())
        so_far.wall, so_far.cpu = so_far.wall + spent.wall, so_far.cpu + spent.cpu


def _timed(make: Callable[[], Any]) -> tuple[Any, Seconds]:
    wall, cpu = time.monotonic(), time.process_time()
    return make(), Seconds(time.monotonic() - wall, time.process_time() - cpu)


def _named(key: Key) -> str:
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:20]


def _lines(file: Path) -> dict[str, dict[str, Any]]:
    """Return the whole lines of a file by name, without one that was being written when the script was killed."""
    entries = {}
    for line in file.read_text(encoding="utf-8").splitlines() if file.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        entries[entry["name"]] = entry
    return entries


# Models and local samples


def public_name(model: str) -> str:
    return str(ModelConfig(id=model).public_name)


def load_model(name: str, args: argparse.Namespace) -> Backbone:
    return load_backbone(ModelConfig(id=name, device=args.device, dtype=args.dtype))


@dataclass(frozen=True)
class LocalSampler:
    """Local samples in cached blocks of rows; the noise of a row depends on ``seed``, its position and ``number``.

    A killed script repeats only the block that it was sampling.
    """

    boomerang: Boomerang
    work: Workspace
    is_conditional: bool  # whether a class-conditional model gets each image's class
    dtype: str
    seed: int = 0
    block: int = 250
    batch: int = 125

    def sample(self, originals: Pictures, level: float, number: int = 0) -> torch.Tensor:
        """Return one local sample for each original, at the rounding of a file: (N, 3, S, S) uint8."""
        parts = [
            self._block(originals[first : first + self.block], first, level, number)
            for first in range(0, len(originals), self.block)
        ]
        return torch.cat(parts)

    def _block(self, originals: Pictures, first: int, level: float, number: int) -> torch.Tensor:
        backbone = self.boomerang.backbone
        labels = originals.label_names if self.is_conditional and backbone.condition_kind == "class" else None
        key = {
            "model": backbone.digest, "dtype": self.dtype, "sampler": self.boomerang.sampler,
            "steps": self.boomerang.steps, "level": level, "seed": self.seed, "number": number, "first": first,
            "originals": digest(originals.pixels), "labels": labels,
        }  # fmt: skip

        def make() -> Arrays:
            rows = range(0, len(originals), self.batch)
            return {
                "samples": torch.cat([self._batch(originals, labels, first, at, level, number) for at in rows]).numpy()
            }

        return torch.from_numpy(self.work.cached_arrays("samples", key, make)["samples"])

    def _batch(
        self, originals: Pictures, labels: Sequence[str] | None, first: int, at: int, level: float, number: int
    ) -> torch.Tensor:
        x0 = to_floats(originals.pixels[at : at + self.batch])
        backbone = self.boomerang.backbone
        condition = None if labels is None else backbone.condition(labels[at : at + self.batch])
        noise = row_noise(self.seed, first + at, len(x0)).sample(number)
        return to_bytes(self.boomerang.sample(x0, level, noise, condition))


def row_noise(seed: int, first: int, count: int) -> KeyedNoise:
    """Return noise for ``count`` rows from ``first`` on, the same in any batch."""
    return KeyedNoise([hashlib.sha256(f"{seed} {first + row}".encode()).digest()[:16] for row in range(count)])


# Intervals


@dataclass(frozen=True)
class Mean:
    """A mean and its 95 % interval; none where there is one value only."""

    value: float
    low: float | None
    high: float | None

    def format(self, digits: int = 3, sign: bool = False) -> str:
        bounds = [f"{bound:{'+' if sign else ''}.{digits}f}" for bound in (self.low, self.high) if bound is not None]
        return f"{self.value:{'+' if sign else ''}.{digits}f}" + (f" ({' to '.join(bounds)})" if bounds else "")

    def format_percent(self, sign: bool = False) -> str:
        bounds = (None if bound is None else 100 * bound for bound in (self.low, self.high))
        return Mean(100 * self.value, *bounds).format(1, sign)

    @property
    def is_above_zero(self) -> bool:
        return self.excludes_zero and self.value > 0

    @property
    def excludes_zero(self) -> bool:
        return self.low is not None and self.high is not None and not self.low <= 0 <= self.high


def mean_over_seeds(values: Sequence[float]) -> Mean:
    """Return the mean by Student's t over a few runs."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return Mean(mean, None, None)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values)))
    return Mean(mean, mean - half, mean + half)


def mean_over_pictures(values: npt.ArrayLike, seed: int = 0) -> Mean:
    """Return the mean by a bootstrap over images (N,); differences of two methods on one image make it a paired one.

    Values that are not finite (no face was detected) are left out; without any other the mean is NaN.
    """
    rows = np.asarray(values, dtype=np.float64)
    rows = rows[np.isfinite(rows)]
    if not len(rows):
        return Mean(float("nan"), None, None)
    estimate = image_quality.mean_with_interval(rows, np.random.default_rng(seed))
    return Mean(estimate.value, estimate.low, estimate.high)


# Options and results


def argument_parser(about: str | None) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the JSON and the plot")
    parser.add_argument("--work", type=Path, required=True, help="folder for what is finished, to go on with")
    parser.add_argument("--full", action="store_true", help="larger sizes, for hours of a GPU")
    parser.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu or cuda:N")
    parser.add_argument(
        "--dtype", default="bfloat16", choices=["bfloat16", "float32"],
        help="of the networks; bfloat16 is the faster one on a GPU and on a CPU with AVX-512 BF16",
    )  # fmt: skip
    return parser


def add_sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sampler", default="sde-dpm++")
    parser.add_argument("--steps", type=int, default=20, help="network calls for each local sample")
    parser.add_argument("--batch", type=int, default=125, help="pictures sampled at once")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--faces", type=Path, help="Parquet file with image and split")
    parser.add_argument("--cifar", type=Path, help="Parquet file with image, label and split")
    parser.add_argument("--faces-model", default="bundled:faces-64")
    parser.add_argument("--cifar-model", default="bundled:cifar10-32")


def get_device(args: argparse.Namespace) -> torch.device:
    return torch_device(args.device)


def command_line(name: str, arguments: Sequence[str] | None) -> str:
    """Return the command line without folders, which are private."""
    words = sys.argv[1:] if arguments is None else arguments
    stripped = [re.sub("[^=]*/", "", word.rstrip("/")) for word in words]
    return shlex.join(["python", f"benchmarks/paper/{name}.py", *stripped])


def describe_machine(on: torch.device) -> dict[str, Any]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "cpu": _cpu(), "architecture": platform.machine(), "cores": cores, "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name(on) if on.type == "cuda" else None,
        "python": platform.python_version(), "torch": str(torch.__version__),
    }  # fmt: skip


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


@dataclass(frozen=True)
class BenchmarkResult:
    """Result of a benchmark: ``rows`` for a program, ``tables`` and ``notes`` for a reader."""

    name: str
    settings: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    findings: Mapping[str, Any]
    tables: Mapping[str, str]
    notes: Sequence[str]


def write_result(
    result: BenchmarkResult, args: argparse.Namespace, work: Workspace, plot: Figure, arguments: Sequence[str] | None
) -> None:
    """Write ``NAME.json``, ``NAME.svg`` and ``NAME.png`` to ``--out``, the tables and notes to standard output."""
    args.out.mkdir(parents=True, exist_ok=True)
    spent = {kind: {"wall": round(s.wall, 1), "cpu": round(s.cpu, 1)} for kind, s in work.seconds.items()}
    document = {
        "benchmark": result.name,
        "command": command_line(result.name, arguments),
        "date": datetime.now(UTC).date().isoformat(),
        "machine": describe_machine(get_device(args)),
        "settings": result.settings,
        "seconds": spent,  # of the last run and of those that it went on from
        "results": result.rows,
        "findings": result.findings,
        "notes": result.notes,
    }
    (args.out / f"{result.name}.json").write_text(
        json.dumps(document, indent=2, default=_plain) + "\n", encoding="utf-8"
    )
    for kind, about in (("svg", {"Date": None}), ("png", {"Software": None})):
        plot.savefig(args.out / f"{result.name}.{kind}", dpi=150, metadata=about)
    for title, text in result.tables.items():
        print(f"\n**{title}**\n\n{text}")
    print("\n".join(result.notes))
    total = Seconds(*(sum(getattr(s, of) for s in work.seconds.values()) for of in ("wall", "cpu")))
    print(f"\n{total.wall / 60:.1f} minutes, {total.cpu / 60:.1f} of one core")


def _plain(value: object) -> Any:
    if isinstance(value, Mean):
        return {name: None if x is None or math.isnan(x) else x for name, x in asdict(value).items()}
    raise TypeError(f"{type(value).__name__} is not plain")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def make_panels(count: int) -> tuple[Figure, Sequence[Axes]]:
    from matplotlib.figure import Figure

    across = min(3, count)
    down = -(-count // across)
    figure = Figure(figsize=(4.4 * across, 3.4 * down), layout="constrained")
    axes = [figure.add_subplot(down, across, at + 1) for at in range(count)]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
        panel.tick_params(labelsize=8)
    return figure, axes


def plot_line(
    panel: Axes, x: Sequence[float], means: Sequence[Mean], colour: str, label: str, style: str = "-"
) -> None:
    """Plot means over x with their intervals."""
    low, high = ([m.value if (bound := getattr(m, side)) is None else bound for m in means] for side in ("low", "high"))
    panel.plot(x, [m.value for m in means], style, color=colour, marker="o", markersize=3.5, label=label)
    panel.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)


def plot_level_line(panel: Axes, mean: Mean, label: str, colour: str = "#999999") -> None:
    """Plot a mean that does not depend on x, and its interval."""
    panel.axhline(mean.value, color=colour, linestyle="--", linewidth=1.2, label=label)
    if mean.low is not None and mean.high is not None:
        panel.axhspan(mean.low, mean.high, color=colour, alpha=0.08, linewidth=0)


def plot_point(panel: Axes, x: float, mean: Mean, colour: str) -> None:
    low, high = (mean.value if bound is None else bound for bound in (mean.low, mean.high))
    span = [[mean.value - low], [high - mean.value]]
    panel.errorbar([x], [mean.value], yerr=span, fmt="o", color=colour, capsize=2, markersize=4)
