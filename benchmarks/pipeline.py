"""Compare the whole job with the bare loop, and with what a user would write with diffusers, in one run.

    python benchmarks/pipeline.py [--source URI] [--pictures 512] [--repeats 3] [--device auto] [--json FILE]

Three ways to anonymise the same pictures with the same model, level, sampler and number of steps, on this machine:

* job: `anonymizer run`, from the first shard to the last commit (start-up and assembling are reported apart);
* bare: Boomerang and the scorer on the same batches, decoded and in memory already, with torch's own noise;
* script: one picture at a time, as one would write it with diffusers: open, noise, denoise, score, save.

They take turns, so that a slow minute hits all of them, each in its own process, as commands and scripts run.
Printed: medians and ratios of pictures per second.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import timing
import torch
from PIL import Image

from anonymizer.backbones.load import torch_device
from anonymizer.boomerang import Boomerang
from anonymizer.config import RunConfig, build
from anonymizer.data import image_codec
from anonymizer.data.sources import open_source
from anonymizer.release.ledger import Ledger
from anonymizer.storage.layout import Release
from flows import api
from flows.jobs import models
from flows.jobs import release as release_job
from flows.jobs.progress import report_progress_to
from flows.runtime import working_directory

T = TypeVar("T")


@dataclass
class TorchNoise:
    """Noise of torch's generator, not keyed."""

    def __call__(self, step: int, like: torch.Tensor) -> torch.Tensor:
        return torch.randn_like(like)

    def sample(self, number: int) -> TorchNoise:
        return self


class Clock:
    """Record when a run enters each stage."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def begin(self, records: int, done: int) -> None: ...

    def advance(self, records: int) -> None: ...

    def stage(self, name: str) -> None:
        self.times[name] = time.monotonic()


def run_job(config: RunConfig) -> dict[str, float]:
    """Return the seconds of start-up, of the shards, and of assembling."""
    clock, started = Clock(), time.monotonic()
    with report_progress_to(clock):
        api.run_release(config)
    ended = time.monotonic()
    release = Release.at(config.output.uri)
    result = Ledger.open(release).summarize()
    if result.released != result.read:
        raise SystemExit(f"job: released {result.released} of {result.read}: nothing to compare")
    return {
        "start-up": clock.times["anonymising"] - started,
        "job": clock.times["assembling"] - clock.times["anonymising"],
        "assembling": ended - clock.times["assembling"],
    }


def run_bare_loop(config: RunConfig, encoded: list[bytes]) -> float:
    backbone = models.backbone_of(config.model)
    scorer = release_job.scorer_of(config.metrics, str(backbone.device))
    boomerang = Boomerang(backbone, config.boomerang.sampler, config.boomerang.steps)
    decoded = [image_codec.decode(data, backbone.size).tensor for data in encoded]
    size = config.run.initial_batch_size
    batches = [torch.stack(decoded[i : i + size]) for i in range(0, len(decoded), size)]
    boomerang.sample(batches[0], config.boomerang.level, TorchNoise())  # warm up
    started = time.monotonic()
    for x0 in batches:
        on_device = x0.to(backbone.device)
        outputs = boomerang.sample(on_device, config.boomerang.level, TorchNoise())
        scorer.score(scorer.embed(on_device), outputs)  # numbers on the host: nothing is left to be waited for
    return time.monotonic() - started


def run_script(config: RunConfig, encoded: list[bytes], folder: Path) -> float:
    """Return the seconds of diffusers' scheduler, image by image; the models are loaded already."""
    from diffusers import DPMSolverMultistepScheduler
    from torch.nn import functional as F

    backbone = models.backbone_of(config.model)
    scorer = release_job.scorer_of(config.metrics, str(backbone.device))
    unet, patch, t_boom = backbone.unet, backbone.patch, round(config.boomerang.level * backbone.T)  # type: ignore[attr-defined]
    betas = 1 - backbone.alphas_cumprod / torch.cat([torch.ones(1, dtype=torch.float64), backbone.alphas_cumprod[:-1]])
    n = config.boomerang.steps or t_boom
    started = time.monotonic()
    for i, data in enumerate(encoded):
        picture = (
            Image.open(io.BytesIO(data)).convert("RGB").resize((backbone.size, backbone.size), Image.Resampling.LANCZOS)
        )
        x0 = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(1, backbone.size, backbone.size, 3)
        x0 = (x0.permute(0, 3, 1, 2) / 127.5 - 1).to(backbone.device)
        scheduler = DPMSolverMultistepScheduler(
            backbone.T, trained_betas=betas.tolist(), algorithm_type="sde-dpmsolver++", prediction_type="v_prediction"
        )
        scheduler.set_timesteps(timesteps=[round(t_boom * (n - k) / n) - 1 for k in range(n)])
        with torch.no_grad():
            z0 = F.pixel_unshuffle(x0, patch)
            zt = scheduler.add_noise(z0, torch.randn_like(z0), scheduler.timesteps[:1])
            for t in scheduler.timesteps:
                zt = scheduler.step(unet(zt, t).sample, t, zt).prev_sample
            output = F.pixel_shuffle(zt, patch).clamp(-1, 1)
        scorer.score(scorer.embed(x0), output)
        levels = ((output[0] + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()
        Image.fromarray(levels).save(folder / f"{i}.png")
    return time.monotonic() - started


def make_pictures(source: str | None, count: int, folder: Path) -> str:
    """Return a folder with ``count`` images from ``source``, or smooth random JPEGs of 200 x 200."""
    folder.mkdir()
    if source is None:
        gen = torch.Generator().manual_seed(0)
        for i in range(count):
            small = torch.rand(1, 3, 7, 7, generator=gen)
            big = torch.nn.functional.interpolate(small, (200, 200), mode="bicubic").clamp(0, 1)[0]
            Image.fromarray((big * 255).byte().permute(1, 2, 0).contiguous().numpy()).save(
                folder / f"{i:05d}.jpg", quality=92
            )
        return str(folder)
    reader = open_source(build({"source": {"uri": source, "drop": ["*"]}, "output": {"uri": "unused"}}).source)
    entries = []
    for entry in reader.entries():
        entries.append(entry)
        if len(entries) == count:
            break
    for i, record in enumerate(reader.read(entries)):
        (folder / f"{i:05d}.jpg").write_bytes(record.data)
    return str(folder)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="where pictures are taken from; random smooth JPEGs by default")
    parser.add_argument("--pictures", type=int, default=512)
    parser.add_argument("--script-pictures", type=int, default=64, help="fewer for the slow way; rates are compared")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--level", type=float, default=0.4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--model", default="bundled:faces-64", help="one of pixels, without classes")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="any other setting")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)

    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        source = make_pictures(args.source, args.pictures, root / "source")

        def config(name: str) -> RunConfig:
            return build(
                {
                    "source": {"uri": source},
                    "output": {"uri": str(root / name)},
                    "model": {"id": args.model, "device": args.device},
                    "boomerang": {"level": args.level, "steps": args.steps, "sampler": "sde-dpm++"},
                    "run": {"batch_size": args.batch_size},
                },
                args.set,
            )

        rates: dict[str, list[float]] = {"job": [], "bare": [], "script": []}
        other_seconds: dict[str, list[float]] = {"start-up": [], "assembling": []}
        contenders: list[tuple[str, Callable[[int], float]]] = [
            (
                "bare",
                lambda i: args.pictures / _in_fresh_process(run_bare_loop, config("unused"), _read_encoded(source)),
            ),
            (
                "job",
                lambda i: (
                    args.pictures
                    / _record_other_seconds(_in_fresh_process(run_job, config(f"release-{i}")), other_seconds)
                ),
            ),
            (
                "script",
                lambda i: some / _in_fresh_process(run_script, config("unused"), _read_encoded(source)[:some], root),
            ),
        ]
        some = args.script_pictures
        for i in range(args.repeats):
            for name, run in contenders[i % 3 :] + contenders[: i % 3]:
                rates[name].append(run(i))
                print(f"{name:>8}: {rates[name][-1]:.2f} pictures/s", flush=True)

    median = timing.medians(rates)
    result: dict[str, Any] = {
        "settings": {name: str(value) for name, value in vars(args).items()},
        "pictures_per_second": {name: [round(r, 3) for r in values] for name, values in rates.items()},
        "job_to_bare": [round(j / b, 3) for j, b in zip(rates["job"], rates["bare"], strict=True)],
        "median_job_to_bare": round(median["job"] / median["bare"], 3),
        "median_job_to_script": round(median["job"] / median["script"], 3),
        "median_seconds_apart": {name: round(value, 2) for name, value in timing.medians(other_seconds).items()},
    }
    rows = [[name, median[name], median["job"] / median[name]] for name in ("bare", "job", "script")]
    seconds = ", ".join(f"{value} s {name}" for name, value in result["median_seconds_apart"].items())
    text = timing.markdown_table(["", "pictures/s", "job to it"], rows) + f"\n\nNot in the job's rate: {seconds}"
    title = f"{args.model}, {args.pictures} pictures, level {args.level:g}, {args.steps} steps"
    timing.report(title, torch_device(args.device), text, result, args.json)


def _read_encoded(source: str) -> list[bytes]:
    return [path.read_bytes() for path in sorted(Path(source).iterdir())]


def _in_fresh_process(function: Callable[..., T], *arguments: Any) -> T:
    """Call a function in a fresh process."""
    working_directory.distrust()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _record_other_seconds(seconds: dict[str, float], other_seconds: dict[str, list[float]]) -> float:
    for name, values in other_seconds.items():
        values.append(seconds[name])
    return seconds["job"]


if __name__ == "__main__":
    main()
