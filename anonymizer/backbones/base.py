"""Base class of the backbones: a network with a training schedule, and classifier-free guidance."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch

from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.prediction_type import make_output_converter
from anonymizer.backbones.protocol import ConditionKind, Denoised


class BaseBackbone(ABC):
    """Network output, guided where a condition is given, converted to ``Denoised``."""

    condition_kind: ConditionKind

    def __init__(self, folder: PipelineFolder, device: torch.device, dtype: torch.dtype) -> None:
        self.name, self.device, self.dtype, self.config = folder.config.id, device, dtype, folder.config
        self.digest = folder.digest

    def load_schedule(self, folder: PipelineFolder) -> Any:
        """Set ``T``, ``alphas_cumprod`` and the output converter from the folder's scheduler, and return that.

        All schedulers share the schedule and the prediction type, so a ``DDPMScheduler`` reads any of their configs.
        The rest of a config belongs to its own sampler.
        """
        from diffusers import DDPMScheduler

        scheduler = folder.load(DDPMScheduler, "scheduler")
        self.T = int(scheduler.config.num_train_timesteps)
        self.alphas_cumprod: torch.Tensor = scheduler.alphas_cumprod.double().cpu()
        self.convert_output = make_output_converter(self.name, scheduler.config.prediction_type, self.alphas_cumprod)
        return scheduler

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        return self.convert_output(zt, self._guided(zt, t, condition), float(self.alphas_cumprod[t - 1]))

    def flag_unsafe(self, images: torch.Tensor) -> Sequence[bool]:
        return [False] * len(images)

    def timesteps(self, zt: torch.Tensor, t: float, dtype: torch.dtype | None = None) -> torch.Tensor:
        """Return ``t`` for each row (B,), on the device: a number would be copied there, and waited for."""
        return torch.full((len(zt),), t, device=self.device, dtype=dtype)

    @abstractmethod
    def _guided(self, zt: torch.Tensor, t: int, condition: Any) -> torch.Tensor:
        """Return the network's output for ``zt`` at step ``t``, float32."""


def guide(
    network: Callable[[torch.Tensor, Any], torch.Tensor], zt: torch.Tensor, both: Any, scale: float
) -> torch.Tensor:
    """Return classifier-free guidance (Ho and Salimans 2022) of ``zt`` (B, ...), from one batch of 2B rows.

    ``both``: the conditions of the 2B rows, the unconditional (or negative) ones first.
    """
    without, within = network(torch.cat([zt, zt]), both).chunk(2)
    return without + scale * (within - without)
