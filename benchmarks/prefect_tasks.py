"""Measure what Prefect costs for each shard: tasks that do nothing, submitted as by a release, on a temporary server.

python benchmarks/prefect_tasks.py --shards 10000
"""

from __future__ import annotations

import argparse
import resource
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from anonymizer.config import build
from anonymizer.records import ShardSummary
from flows.runtime import temporary_server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shards", type=int, default=10_000)
    shards = parser.parse_args().shards
    with temporary_server.ensure_server() as ready:
        ready()
        from prefect import flow

        from flows.jobs import release as release_job
        from flows.runtime import dispatch

        config = build({"source": {"uri": "in"}, "output": {"uri": "out"}})

        @flow(name="nothing", persist_result=False)
        def nothing() -> int:
            return sum(isinstance(result, ShardSummary) for result in dispatch.run_as_tasks(config, range(shards)))

        def no_shard(config: Any, shard: int, progress: Any) -> ShardSummary:
            return ShardSummary(shard, 0, 0, 0, 0, 0.0)

        with patch.object(release_job, "run_shard", no_shard):
            before, started = peak_memory(), time.monotonic()
            own = time.process_time()
            done = nothing()
            seconds, own = time.monotonic() - started, time.process_time() - own
    server = resource.getrusage(resource.RUSAGE_CHILDREN)
    server_ms = 1000 * (server.ru_utime + server.ru_stime) / done
    print(f"{done} tasks in {seconds:.1f} s: {done / seconds:.0f} a second, {1000 * own / done:.1f} ms of CPU for each")
    print(f"memory here: {before} MiB before, {peak_memory()} MiB peak")
    print(f"the server: {server.ru_maxrss // 1024} MiB peak, {server_ms:.1f} ms of CPU for each task")


def peak_memory() -> int:
    """Return the peak memory of this process, in MiB."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) // 1024


if __name__ == "__main__":
    main()
