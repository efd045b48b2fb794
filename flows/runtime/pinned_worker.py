"""A process worker that runs the program's own flows, on allowed configurations only, whatever Prefect's API asks.

A worker of Prefect runs any command, with any environment, of any deployment: who reaches the API has what it has.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import sys
from typing import Any

import click
from prefect.client.schemas.objects import FlowRun
from prefect.utilities.processutils import setup_signal_handlers_worker
from prefect.workers import process
from prefect.workers.process import ProcessWorker, ProcessWorkerResult

from flows.runtime import pinned_run

COMMAND = shlex.join([sys.executable, "-P", "-m", pinned_run.__name__])


class PinnedWorker(ProcessWorker):
    """Takes from a flow run its id, and nothing else: command, environment and folder are its own."""

    type = "process"

    async def run(self, flow_run: FlowRun, configuration: Any, task_status: Any = None) -> ProcessWorkerResult:
        configuration.command, configuration._command_configured = COMMAND, True
        configuration.env, configuration.working_dir = {}, None
        return await super().run(flow_run, configuration, task_status)


async def _load_own_flow(flow_run: FlowRun, **settings: Any) -> Any:
    return await asyncio.to_thread(pinned_run.load_flow, flow_run)


def start(pool: str, limit: int, name: str | None) -> None:
    """Run flow runs of a work pool until stopped, at most ``limit`` at once."""
    vars(process)["load_flow_from_flow_run"] = _load_own_flow  # else hooks of any deployment would run in this process
    setup_signal_handlers_worker(os.getpid(), "the worker", click.echo)
    worker = PinnedWorker(pool, name=name, limit=limit, create_pool_if_not_found=False)
    asyncio.run(worker.start(printer=click.echo))
