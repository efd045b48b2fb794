"""Measure how the job scales over worker processes on one machine, each with one thread for the model.

    python benchmarks/workers.py [--workers 1 2 4] [--pictures 128] [--shard-size 16] [--repeats 3] [--json FILE]

Each worker is a process of its own that has loaded the models before the clock starts; then it does every n-th shard of
the plan, as a task of the flow would. More workers than there are cores are left out. It needs no network connection.
"""

from __future__ import annotations

import argparse
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import timing
import torch
from pipeline import make_pictures

from anonymizer.config import RunConfig, build
from anonymizer.release import plan
from anonymizer.release.ledger import Ledger
from anonymizer.storage.layout import Release
from flows.jobs import models
from flows.jobs import release as release_job
from flows.runtime import working_directory

LOAD_TIMEOUT = 600.0  # seconds that loading may take


def worker(tree: dict[str, Any], first: int, every: int, ready: Any) -> None:
    """Process shards ``first``, ``first + every`` and so on, once all workers are ready."""
    torch.set_num_threads(1)
    config = RunConfig.model_validate(tree)
    backbone = models.backbone_of(config.model)
    release_job.load_checked_scorer(config.metrics, backbone)
    shards = plan.read(Release.at(config.output.uri)).shards
    ready.wait(LOAD_TIMEOUT)
    for shard in range(first, shards, every):
        release_job.run_shard(config, shard, lambda done: None)


def measure_rate(config: RunConfig, workers: int) -> float:
    """Return records per second, from the moment when all workers are ready to the last commit."""
    the_plan = release_job.prepare(config)
    working_directory.distrust()
    context = get_context("spawn")
    ready = context.Barrier(workers + 1)
    tree = config.model_dump(mode="json")
    processes = [context.Process(target=worker, args=(tree, i, workers, ready)) for i in range(workers)]
    for process in processes:
        process.start()
    ready.wait(LOAD_TIMEOUT)
    started = time.monotonic()
    for process in processes:
        process.join()
    seconds = time.monotonic() - started
    done = sum(len(table) for _, table in Ledger.open(Release.at(config.output.uri)).scan())
    if any(process.exitcode for process in processes) or done != the_plan.records:
        raise SystemExit(f"workers: {done} of {the_plan.records} records were done: nothing to compare")
    return the_plan.records / seconds


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--source", help="where pictures are taken from; random smooth JPEGs by default")
    parser.add_argument("--model", default="bundled:faces-64")
    parser.add_argument("--pictures", type=int, default=128)
    parser.add_argument("--shard-size", type=int, default=16)
    parser.add_argument("--level", type=float, default=0.4)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="any other setting")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(arguments)

    os.environ["OMP_NUM_THREADS"] = "1"
    os.environ.setdefault("ANONYMIZER_KEY", secrets.token_hex(32))  # all processes must have the same
    torch.set_num_threads(1)
    cores = len(os.sched_getaffinity(0))
    counts = [n for n in args.workers if n <= cores]
    with tempfile.TemporaryDirectory() as scratch:
        source = make_pictures(args.source, args.pictures, Path(scratch) / "source")

        def make_contender(workers: int) -> Callable[[], float]:
            def measured() -> float:
                with tempfile.TemporaryDirectory(dir=scratch) as folder:
                    tree = {
                        "source": {"uri": source}, "output": {"uri": f"{folder}/release"},
                        "model": {"id": args.model, "device": "cpu"},
                        "boomerang": {"level": args.level, "steps": args.steps},
                        "run": {"shard_size": args.shard_size, "batch_size": args.shard_size, "threads": 1},
                    }  # fmt: skip
                    return measure_rate(build(tree, args.set), workers)

            return measured

        rates = timing.take_turns({f"{n}": make_contender(n) for n in counts}, args.repeats)
    median = timing.medians(rates)
    per_worker = median[f"{counts[0]}"] / counts[0]
    rows = [[name, value, value / per_worker, value / per_worker / int(name)] for name, value in median.items()]
    text = timing.markdown_table(["workers", "records/s", "of one", "each, of a single one"], rows)
    how = f"level {args.level:g}, {args.steps} steps, {cores} cores"
    title = f"{args.pictures} pictures in shards of {args.shard_size}, {how}"
    timing.report(title, torch.device("cpu"), text, {"settings": title, "records_per_second": rates}, args.json)


if __name__ == "__main__":
    main()
