"""Compute devices: their names, their memory, and the dtype that suits them."""

from __future__ import annotations

from typing import Literal

import torch
from accelerate.utils.memory import should_reduce_batch_size

# accelerate misses the last two, and the first two in other wordings; libraries below torch raise plain RuntimeErrors.
ALLOCATION_ERRORS = ["can't allocate memory", "CUDA out of memory", "CUDNN_STATUS_ALLOC_FAILED"]
ALLOCATION_ERRORS += ["CUBLAS_STATUS_ALLOC_FAILED"]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that a smaller batch may fit."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and (
        should_reduce_batch_size(error) or any(text in str(error) for text in ALLOCATION_ERRORS)
    )


def empty_cache(device: torch.device) -> None:
    """Release the allocator's unused memory."""
    if device.type == "cuda":
        torch.cuda.empty_cache()


def device_name(device: torch.device) -> str:
    """Return the product name of a GPU, or the type of any other device."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def fast_dtype(device: str) -> Literal["float32", "bfloat16"]:
    """Return bfloat16 for a GPU whose tensor cores compute in it, else float32; ``device`` as in ``model.device``."""
    if not device.startswith(("auto", "cuda")) or not torch.cuda.is_available():
        return "float32"
    major, _ = torch.cuda.get_device_capability(None if device in ("auto", "cuda") else device)
    return "bfloat16" if major >= 8 else "float32"
