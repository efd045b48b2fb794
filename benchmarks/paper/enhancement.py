"""Claim: local sampling after upsampling looks better than interpolation does.

    python benchmarks/paper/enhancement.py --faces faces.parquet --cifar cifar10.parquet --out results --work work

Pictures are reduced (Lanczos) and enlarged again: faces from 16 to 64, CIFAR-10 from 16 to 32, by interpolation, by a
single pass at several levels and by cascades of levels. LPIPS and PSNR to the picture before, and for faces the
identity distance. No label is used. By default 200 test pictures of each: about 9 minutes of one core of a CPU
with AVX-512 BF16.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import common
import numpy as np
import torch
from common import Arrays, BenchmarkResult, Mean, Pictures, Workspace, digest, to_bytes, to_floats

from anonymizer.backbones.protocol import Backbone
from anonymizer.enhance import UPSAMPLINGS, Enhancer, lanczos, resample
from metrics.features import Rows
from metrics.models.lpips import OFFLINE_MODEL, PerceptualDistance
from metrics.scores.identity import FaceRecogniser, identity_distance, load_recogniser, score_models
from metrics.utility.image_quality import psnr

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SCORES = {"lpips": "LPIPS", "psnr": "PSNR, dB", "identity": "identity distance"}
BLOCK = 50  # images enlarged and cached at once


@dataclass(frozen=True)
class Task:
    """``low`` are ``originals`` reduced by ``factor``."""

    name: str
    backbone: Backbone
    originals: Pictures
    low: Pictures
    factor: int
    metrics: Metrics


@dataclass(frozen=True)
class Metrics:
    """Scores against ``originals`` (N, 3, S, S) in [-1, 1], and their faces where there is a recogniser."""

    originals: torch.Tensor
    lpips: PerceptualDistance
    identity: FaceRecogniser | None
    people: Sequence[Rows]

    @classmethod
    def create(cls, originals: torch.Tensor, lpips: PerceptualDistance, identity: FaceRecogniser | None) -> Metrics:
        return cls(originals, lpips, identity, identity.embed_faces(originals.cpu()) if identity else [])

    def __call__(self, pictures: torch.Tensor) -> Arrays:
        """Return scores (N,) of images (N, 3, S, S) uint8; NaN where no face is detected in both."""
        a, b = self.originals, to_floats(pictures)
        scores = {"lpips": self.lpips(a, b).double().cpu().numpy(), "psnr": psnr(a, b).numpy()}
        if self.identity is None:
            return scores
        people = self.identity.embed_faces(b.cpu())
        far = np.array([identity_distance(first, second) for first, second in zip(self.people, people, strict=True)])
        return scores | {"identity": far, "seen": np.array([len(faces) > 0 for faces in people])}


def main(arguments: Sequence[str] | None = None) -> None:
    args = parser().parse_args(arguments)
    work = Workspace(args.work)
    rows = [row for task in load_tasks(args) for row in compare_methods(task, args, work)]
    settings = {
        "pictures": {row["task"]: row["pictures"] for row in rows}, "sampler": args.sampler, "steps": args.steps,
        "upsampling": args.upsampling, "dtype": args.dtype, "seed": args.seed,
        "models": {row["task"]: row["model_digest"] for row in rows},
    }  # fmt: skip
    names = list(dict.fromkeys(row["task"] for row in rows))
    tables = {name: results_table([row for row in rows if row["task"] == name]) for name in names}
    measured = BenchmarkResult("enhancement", settings, rows, summarize(rows), tables, NOTES)
    common.write_result(measured, args, work, plot(rows, names), arguments)


NOTES = (
    "Intervals: 95 %, bootstrap over pictures; differences are of the same pictures. LPIPS: shift-tolerant, AlexNet.",
    "The interpolation with the least LPIPS is what methods are compared with; Lanczos' undoes best what Lanczos' has "
    "reduced. Identity distances are of those pictures alone in which a face is detected before and after.",
)


def parser() -> argparse.ArgumentParser:
    parser = common.argument_parser(__doc__)
    common.add_data_options(parser)
    common.add_sampling_options(parser)
    parser.add_argument("--pictures", type=int, help="of each; 200 by default, 1,500 with --full")
    parser.add_argument("--levels", type=float, nargs="*", default=[0.2, 0.3, 0.4, 0.5, 0.6])
    parser.add_argument(
        "--cascades",
        type=parse_levels,
        nargs="*",
        default=[(0.4, 0.2), (0.6, 0.4, 0.2)],
        help="levels with commas between",
    )
    parser.add_argument("--upsampling", default="bicubic", choices=UPSAMPLINGS, help="before the first pass")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def parse_levels(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def load_tasks(args: argparse.Namespace) -> Iterator[Task]:
    count = args.pictures or (1500 if args.full else 200)
    lpips = PerceptualDistance.load(OFFLINE_MODEL, common.get_device(args))
    for name, file, model, factor in (
        ("faces", args.faces, args.faces_model, 4), ("CIFAR-10", args.cifar, args.cifar_model, 2),
    ):  # fmt: skip
        if file is None:
            continue
        backbone = common.load_model(model, args)
        size = backbone.size
        originals = common.read_pictures(file, "test", size, count)
        low = originals.with_pixels(to_bytes(lanczos(to_floats(originals.pixels), (size // factor, size // factor))))
        title = f"{name}, {size // factor} to {size}"
        identity = load_recogniser("dlib") if name == "faces" else None
        metrics = Metrics.create(to_floats(originals.pixels), lpips, identity)
        yield Task(title, backbone, originals, low, factor, metrics)


def compare_methods(task: Task, args: argparse.Namespace, work: Workspace) -> list[dict[str, Any]]:
    """Return a row for each method; the first ones are interpolations."""
    size = task.backbone.size
    scores: dict[str, Arrays] = {}
    calls: dict[str, int] = {}
    for kind in UPSAMPLINGS:
        pictures = to_bytes(resample(to_floats(task.low.pixels), (size, size), kind))
        scores[kind], calls[kind] = score(task, pictures, work), 0
    for each in (*((level,) for level in args.levels), *args.cascades):
        enhancer = Enhancer(task.backbone, task.factor, each, args.upsampling, args.sampler, args.steps)
        name = ("level " if len(each) == 1 else "cascade ") + ", ".join(f"{level:g}" for level in each)
        scores[name], calls[name] = score(task, enhance(task, enhancer, args, work), work), enhancer.steps
        print(f"{task.name}: {name}", file=sys.stderr, flush=True)
    best = min(UPSAMPLINGS, key=lambda kind: float(scores[kind]["lpips"].mean()))
    return [make_row(task, name, calls[name], scores[name], best, scores[best]) for name in scores]


def enhance(task: Task, enhancer: Enhancer, args: argparse.Namespace, work: Workspace) -> torch.Tensor:
    """Return the product's own enhancement, block by block."""

    def block(first: int) -> Arrays:
        low = task.low[first : first + BLOCK].pixels
        key = {
            "model": task.backbone.digest, "dtype": args.dtype, "sampler": args.sampler, "steps": args.steps,
            "levels": enhancer.levels, "factor": task.factor, "upsampling": args.upsampling, "seed": args.seed,
            "first": first, "low": digest(low),
        }  # fmt: skip
        noise = common.row_noise(args.seed, first, len(low))
        return work.cached_arrays(
            "enhanced", key, lambda: {"pictures": to_bytes(enhancer(to_floats(low), noise)).numpy()}
        )

    blocks = [torch.from_numpy(block(first)["pictures"]) for first in range(0, len(task.low), BLOCK)]
    return torch.cat(blocks)


def score(task: Task, pictures: torch.Tensor, work: Workspace) -> Arrays:
    metrics = task.metrics
    names = [metrics.lpips.versioned_name, *(score_models(metrics.identity).values() if metrics.identity else ())]
    key = {"pictures": digest(pictures), "originals": digest(task.originals.pixels), "metrics": names}
    return work.cached_arrays("scores", key, lambda: metrics(pictures))


def make_row(task: Task, name: str, calls: int, scores: Arrays, best: str, against: Arrays) -> dict[str, Any]:
    """Return means, and differences from the interpolation that is best by LPIPS, on the same images."""
    measured = [of for of in SCORES if of in scores]
    return {
        "task": task.name, "method": name, "calls": calls, "pictures": len(task.originals),
        "model_digest": task.backbone.digest, "compared_with": best,
        **{of: common.mean_over_pictures(scores[of]) for of in measured},
        "difference": {of: common.mean_over_pictures(scores[of] - against[of]) for of in measured},
        **({"faces_seen": int(scores["seen"].sum())} if "seen" in scores else {}),
        **({"people_compared": int(np.isfinite(scores["identity"]).sum())} if "seen" in scores else {}),
    }  # fmt: skip


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return for each task the methods whose LPIPS is below the best interpolation's by its interval, or above it."""
    findings: dict[str, dict[str, Any]] = {}
    for row in rows:
        findings_of_task = findings.setdefault(
            row["task"], {"compared_with": row["compared_with"], "better": [], "worse": []}
        )
        change: Mean = row["difference"]["lpips"]
        if row["calls"] and change.excludes_zero:
            findings_of_task["better" if change.value < 0 else "worse"].append(row["method"])
    return findings


def results_table(rows: Sequence[dict[str, Any]]) -> str:
    best, people = rows[0]["compared_with"], "identity" in rows[0]
    header = ["method", "calls", "LPIPS", f"less {best}'s", "PSNR, dB"]
    cells = [
        [
            row["method"],
            str(row["calls"]),
            row["lpips"].format(),
            "-" if row["method"] == best else row["difference"]["lpips"].format(sign=True),
            row["psnr"].format(2),
            *([row["identity"].format(), f"{row['faces_seen']} of {row['pictures']}"] if people else []),
        ]
        for row in rows
    ]
    return common.markdown_table([*header, *(["identity distance", "faces detected"] if people else [])], cells)


def plot(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> Figure:
    drawn = [(name, of) for name in names for of in SCORES if any(r["task"] == name and of in r for r in rows)]
    figure, panels = common.make_panels(len(drawn))
    for panel, (name, of) in zip(panels, drawn, strict=True):
        task_rows = [row for row in rows if row["task"] == name]
        for at, row in enumerate(task_rows):
            colour = common.COLOURS[0] if row["calls"] else common.COLOURS[1]
            common.plot_point(panel, at, row[of], colour)
        ticks = [row["method"].removeprefix("level ").removeprefix("cascade ") for row in task_rows]
        panel.set_xticks(range(len(task_rows)), ticks, rotation=40, ha="right", rotation_mode="anchor", fontsize=7)
        panel.set(title=name, ylabel=SCORES[of])
    return figure


if __name__ == "__main__":
    main()
