"""Devices: what they are called, and what it looks like when one has no memory left."""

from __future__ import annotations

from typing import Literal

import torch

# Libraries below torch, and torch on a CPU, say so in errors of no class of their own.
OUT_OF_MEMORY_SIGNS = (
    "can't allocate memory",
    "CUDA out of memory",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUBLAS_STATUS_ALLOC_FAILED",
)


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in OUT_OF_MEMORY_SIGNS)


def empty_cache(device: torch.device) -> None:
    """Give back what the allocator holds and nobody uses."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def device_name(device: torch.device) -> str:
    """What a device is sold as, where it says so."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def fast_dtype(device: str) -> Literal["float32", "bfloat16"]:
    """bfloat16 on a GPU whose tensor cores compute in it, else float32; ``device`` as in ``model.device``."""
    if not device.startswith(("auto", "cuda")) or not torch.cuda.is_available():
        return "float32"
    major, _ = torch.cuda.get_device_capability(None if device in ("auto", "cuda") else device)
    return "bfloat16" if major >= 8 else "float32"
