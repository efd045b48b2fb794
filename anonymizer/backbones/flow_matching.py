"""Base of the flow-matching models: a straight path from image to noise, and a network that predicts its velocity."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.prompt_encoder import PromptedBackbone, PromptEmbeddings, PromptEncoder
from anonymizer.backbones.protocol import Denoised


@dataclass(frozen=True)
class FlowSchedule:
    """``x_t = (1 - s_t) x0 + s_t eps``, with the velocity ``u = eps - x0`` (Lipman et al. 2023; Liu et al. 2023).

    Divided by ``c_t = sqrt((1 - s_t)^2 + s_t^2)`` this is ``z_t = sqrt(abar_t) z0 + sqrt(1 - abar_t) eps``, with
    ``abar_t = (1 - s_t)^2 / c_t^2``: at t = T nothing is left of x0. ``s`` (T,) float64 rises to 1.
    """

    s: torch.Tensor

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """(T,) float64."""
        return (1 - self.s) ** 2 / ((1 - self.s) ** 2 + self.s**2)

    def to_flow_scale(self, zt: torch.Tensor, t: int) -> torch.Tensor:
        """Return x_t of z_t."""
        s = float(self.s[t - 1])
        return math.hypot(1 - s, s) * zt

    def convert_velocity(self, xt: torch.Tensor, u: torch.Tensor, t: int) -> Denoised:
        s = float(self.s[t - 1])
        return Denoised(xt - s * u, xt + (1 - s) * u)


def make_flow_schedule(scheduler: Any, token_count: int) -> FlowSchedule:
    """Return the path of a ``FlowMatchEulerDiscreteScheduler``, in as many steps as in training.

    Its shift is applied (Esser et al. 2024), a dynamic one for ``token_count`` tokens. Its spacings of shorter runs
    (karras, beta, a terminal) are no part of the process: the sampling grid is our own.
    """
    config = scheduler.config
    s = torch.arange(1, config.num_train_timesteps + 1, dtype=torch.float64) / config.num_train_timesteps
    if not config.use_dynamic_shifting:
        return FlowSchedule((config.shift * s / (1 + (config.shift - 1) * s)).clamp(max=1))
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = config.base_shift + slope * (token_count - config.base_image_seq_len)
    return FlowSchedule(scheduler.time_shift(mu, 1.0, s))


class FlowBackbone(PromptedBackbone):
    """A transformer that predicts velocities of latents, ``patch_size`` cells of a side to a token.

    A dynamic shift is that of ``size``, also for images of other sides, so that a level means the same for all of them.
    Network and text encoders are in the model's dtype; inputs and outputs are in float32.
    """

    def __init__(
        self, folder: PipelineFolder, transformer: Any, encoder: PromptEncoder, *, in_channels: int, latent_size: int,
        patch_size: int, dtype: torch.dtype,
    ) -> None:  # fmt: skip
        from diffusers import FlowMatchEulerDiscreteScheduler

        scheduler = folder.load(FlowMatchEulerDiscreteScheduler, "scheduler")
        kind = str((folder.index.get("scheduler") or ["", "missing"])[-1])
        if not kind.startswith("FlowMatch") or scheduler.config.invert_sigmas:
            raise folder.error(
                f"its scheduler ({kind}) is of a process that is not supported: save the model with a "
                "FlowMatchEulerDiscreteScheduler that does not invert its sigmas"
            )
        super().__init__(folder, encoder.device, dtype)
        if in_channels != self.channels:
            raise folder.error(
                f"the network takes {in_channels} channels and the VAE has {self.channels}: models for inpainting, "
                "depth or control are not supported: choose one of text to image"
            )
        self.multiple = self.scale * patch_size
        self.size = folder.resolve_size(latent_size, self.scale, self.multiple)
        self.schedule = make_flow_schedule(scheduler, (self.size // self.multiple) ** 2)
        self.T, self.alphas_cumprod = len(self.schedule.s), self.schedule.alphas_cumprod
        # Weights can come in the dtype that they were saved in. (Its own `to` warns of it, without a reason.)
        self.transformer = torch.nn.Module.to(transformer, self.device, dtype)
        self.use_encoder(folder, encoder, transformer.config)

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        xt = self.schedule.to_flow_scale(zt, t)
        return self.schedule.convert_velocity(xt, self._guided(xt, t, condition), t)

    def _widths(self, prompts: PromptEmbeddings) -> Mapping[str, int]:
        assert prompts.pooled is not None
        return {"joint_attention_dim": prompts.hidden.shape[-1], "pooled_projection_dim": prompts.pooled.shape[-1]}


def require_text_encoders(folder: PipelineFolder) -> None:
    """Raise ModelError if the pipeline lacks one of the text encoders that both families need."""
    folder.require_parts("text_encoder", "text_encoder_2", hint=": save it with what it was trained with")
