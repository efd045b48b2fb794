"""Devices: what they are called, and what it looks like when one has no memory left."""

from __future__ import annotations

import torch

# Libraries below torch, and torch on a CPU, say so in errors of no class of their own.
SIGNS = ("can't allocate memory", "CUDA out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def free(device: torch.device) -> None:
    """Give back what the allocator holds and nobody uses."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def name_of(device: torch.device) -> str:
    """What a device is sold as, where it says so."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
