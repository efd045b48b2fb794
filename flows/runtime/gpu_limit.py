"""One shard at a time on a GPU, where a global concurrency limit of Prefect is defined."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from prefect.client.orchestration import get_client
from prefect.concurrency.sync import concurrency
from prefect.exceptions import ObjectNotFound


@contextmanager
def gpu_slot(device: str) -> Iterator[None]:
    """Hold the limit of this GPU, if there is a GPU and such a limit."""
    name = limit_name(device)
    if name is None or not _is_defined(name):
        yield
        return
    # A lease that could not be renewed (the server is away) stops no shard: at worst two share the GPU for a while.
    with concurrency(name, raise_on_lease_renewal_failure=False):
        yield


def limit_name(device: str) -> str | None:
    """Return ``anonymizer-gpu-HOST-N``, N as CUDA_VISIBLE_DEVICES has it; None without a GPU."""
    if not torch.cuda.is_available() or not (device == "auto" or device.startswith("cuda")):
        return None
    index = int(device.partition(":")[2] or 0)
    visible = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return f"anonymizer-gpu-{socket.gethostname()}-{visible[index] if index < len(visible) else index}"


def _is_defined(name: str) -> bool:
    with get_client(sync_client=True) as client:
        try:
            client.read_global_concurrency_limit_by_name(name)
        except ObjectNotFound:
            return False
    return True
