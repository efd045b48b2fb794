"""Memory layout and compilation: faster networks with the same outputs, rounding apart."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import Any, Literal

import torch

from anonymizer.backbones.protocol import Backbone
from anonymizer.devices import is_out_of_memory
from anonymizer.storage.download import cache_folder

log = logging.getLogger(__name__)

CompileMode = Literal["auto", "always", "never"]
# Operations in a plan from which compiling should pay, on a GPU: ten minutes at 50 TFLOP/s. It takes one or two.
MIN_FLOPS_TO_COMPILE = 3e16


def move_channels_last(network: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Move a convolutional network to the device, its channels last in memory where that is faster.

    On a CPU it is in float32, and not always in bfloat16; on a GPU tensor cores work on that layout.
    """
    network = network.to(device)
    if device.type == "cuda" or (device.type == "cpu" and dtype == torch.float32):
        network = network.to(memory_format=torch.channels_last)
    return network


def get_network(backbone: Backbone) -> Any:
    """Return the network of ``predict``, or None where it is of another kind."""
    return getattr(backbone, "unet", None) or getattr(backbone, "transformer", None)


def count_flops(backbone: Backbone, condition: object = None) -> int:
    """Return the floating-point operations of ``predict`` for one image (a multiplication and an addition are two)."""
    from torch.utils.flop_counter import FlopCounterMode  # 75 MiB, imported where operations are counted

    with torch.inference_mode():
        zt = backbone.encode(torch.zeros(1, 3, backbone.size, backbone.size))
        with FlopCounterMode(display=False) as counter:
            backbone.predict(zt, backbone.T, condition)
    return int(counter.get_total_flops())


def is_worth_compiling(mode: CompileMode, backbone: Backbone, planned_flops: Callable[[], float]) -> bool:
    """Return whether to compile; ``planned_flops``, of the whole plan, is called only where it decides.

    The plan decides, and not a clock, so that all workers of one kind do the same.
    """
    if mode == "auto":
        return backbone.device.type == "cuda" and planned_flops() >= MIN_FLOPS_TO_COMPILE
    return mode == "always"


def compile_network(backbone: Backbone, batch_size: int) -> None:
    """Compile the network in place for full batches; once for each network and size.

    Other batches, as the last one of a shard, are not compiled: that takes longer than it saves. With guidance a
    network gets two rows for each image.
    """
    if (network := get_network(backbone)) is None:
        return
    cache = cache_folder()
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache / "inductor"))
    if not isinstance(network.forward, CompiledForward):
        network.forward = CompiledForward(network.forward)
    network.forward.batch_sizes |= {batch_size, 2 * batch_size}


class CompiledForward:
    """The forward pass of a network, compiled for batches of certain sizes at the first of them.

    Where compilation fails, as without a C compiler, the pass stays eager, with a warning in the log.
    """

    def __init__(self, eager: Callable[..., Any]) -> None:
        self.eager_forward, self.batch_sizes = eager, set[int]()
        self.compiled_forward: Callable[..., Any] = torch.compile(eager, dynamic=False)

    def __call__(self, sample: torch.Tensor, *rest: Any, **more: Any) -> Any:
        if len(sample) in self.batch_sizes and self.compiled_forward is not self.eager_forward:
            try:
                return self.compiled_forward(sample, *rest, **more)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                log.warning(
                    "run.compile: the network could not be compiled (%s) and is run as it is", type(error).__name__
                )
                self.compiled_forward = self.eager_forward
        return self.eager_forward(sample, *rest, **more)
