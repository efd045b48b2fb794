"""What models of flow matching share: a straight way from picture to noise, and how a velocity along it is read."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.prompt_encoder import CachedPromptEncoder, PromptEmbeddings, PromptEncoder
from anonymizer.backbones.protocol import ConditionKind, Denoised
from anonymizer.backbones.vae import Autoencoder
from anonymizer.errors import ModelError


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
        """x_t, of z_t."""
        s = float(self.s[t - 1])
        return math.hypot(1 - s, s) * zt

    def convert_velocity(self, xt: torch.Tensor, u: torch.Tensor, t: int) -> Denoised:
        s = float(self.s[t - 1])
        return Denoised(xt - s * u, xt + (1 - s) * u)


def make_flow_schedule(scheduler: Any, token_count: int) -> FlowSchedule:
    """The way that a ``FlowMatchEulerDiscreteScheduler`` takes, in as many steps as in training.

    Of the scheduler its shift counts (Esser et al. 2024); one that goes by the size of a picture is taken at so many
    ``tokens``. How a shorter run is spaced (karras, beta, a terminal) is no part of the process: our grid does that.
    """
    config = scheduler.config
    s = torch.arange(1, config.num_train_timesteps + 1, dtype=torch.float64) / config.num_train_timesteps
    if not config.use_dynamic_shifting:
        return FlowSchedule((config.shift * s / (1 + (config.shift - 1) * s)).clamp(max=1))
    slope = (config.max_shift - config.base_shift) / (config.max_image_seq_len - config.base_image_seq_len)
    mu = config.base_shift + slope * (token_count - config.base_image_seq_len)
    return FlowSchedule(scheduler.time_shift(mu, 1.0, s))


class FlowBackbone(ABC):
    """A transformer that says velocities, on latents of an ``AutoencoderKL``, and is told prompts.

    ``cells`` of a side are its own size, ``patch`` of them on each side make a token. Where its shift goes by the size
    of a picture, it is that of ``size``, also for pictures of other sides: a level means the same for all of them.
    Network and text encoders are in the model's dtype, whatever goes in and comes out in float32.
    """

    condition_kind: ConditionKind = "prompt"

    def __init__(
        self, parts: PipelineFolder, transformer: Any, encoder: PromptEncoder, *, channels: int, latent_size: int, patch_size: int,  # noqa: E501
        dtype: torch.dtype,
    ) -> None:  # fmt: skip
        from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler

        scheduler = parts.load(FlowMatchEulerDiscreteScheduler, "scheduler")
        vae = parts.load_network(AutoencoderKL, "vae", torch.float32)
        self.name, self.device, self.dtype, self.config = parts.config.id, encoder.device, dtype, parts.config
        _refuse_other_processes(parts, scheduler)
        self.autoencoder = Autoencoder(vae, self.device, dtype, self.config.vae_tiling)
        self.channels, self.scale = self.autoencoder.channels, self.autoencoder.downsampling
        if channels != self.channels:
            raise ModelError(
                f"model.id {self.name!r}: the network takes {channels} channels and the VAE has {self.channels}: "
                "models for inpainting, depth or control are not supported: choose one of text to image"
            )
        self.multiple = self.scale * patch_size
        self.size = parts.resolve_size(latent_size * self.scale, self.multiple)
        self.schedule = make_flow_schedule(scheduler, token_count=(self.size // self.multiple) ** 2)
        self.T, self.alphas_cumprod = len(self.schedule.s), self.schedule.alphas_cumprod
        # Weights can come in the dtype that they were saved in. (Its own `to` warns of it, without a reason.)
        self.transformer = torch.nn.Module.to(transformer, self.device, dtype)
        self.encode_prompts = CachedPromptEncoder(encoder)
        _refuse_other_widths(self.name, transformer.config, self.encode_prompts([""]))
        self.digest = parts.digest

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.autoencoder.encode(images)

    def condition(self, prompts: Sequence[str]) -> PromptEmbeddings:
        return self.encode_prompts(prompts)

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        told = condition if isinstance(condition, PromptEmbeddings) else self._same(len(zt))
        xt = self.schedule.to_flow_scale(zt, t)
        return self.schedule.convert_velocity(xt, self._velocity(xt, float(self.schedule.s[t - 1]), told), t)

    def decode(self, z0: torch.Tensor) -> torch.Tensor:
        return self.autoencoder.decode(z0)

    def flag_unsafe(self, images: torch.Tensor) -> Sequence[bool]:
        return [False] * len(images)

    def _same(self, count: int) -> PromptEmbeddings:
        """What is told where there is no record."""
        return self.encode_prompts([self.config.common_prompt]).repeat(count)

    @abstractmethod
    def _velocity(self, xt: torch.Tensor, s: float, told: PromptEmbeddings) -> torch.Tensor:
        """What the network says of ``xt`` (B, channels, h, w), guided; of its shape, float32."""


def require_parts(parts: PipelineFolder, *names: str) -> None:
    """ModelError where the pipeline lacks a part that its family cannot do without."""
    if missing := [name for name in names if not parts.has_part(name)]:
        raise ModelError(
            f"model.id {parts.config.id!r}: a {parts.pipeline_class} without {' and '.join(missing)}: save it with what it "  # noqa: E501
            "was trained with"
        )


def _refuse_other_processes(parts: PipelineFolder, scheduler: Any) -> None:
    kind = str((parts.index.get("scheduler") or ["", "missing"])[-1])
    if not kind.startswith("FlowMatch") or scheduler.config.invert_sigmas:
        raise ModelError(
            f"model.id {parts.config.id!r}: its scheduler ({kind}) is of a process that is not supported: save the "
            "model with a FlowMatchEulerDiscreteScheduler that does not invert its sigmas"
        )


def _refuse_other_widths(name: str, network: Any, rows: PromptEmbeddings) -> None:
    assert rows.pooled is not None
    for setting, given in (("joint_attention_dim", rows.hidden), ("pooled_projection_dim", rows.pooled)):
        if (found := network[setting]) != given.shape[-1]:
            raise ModelError(
                f"model.id {name!r}: {setting} {found} of the network, and its text encoders give {given.shape[-1]}: "
                "they do not belong together: save the model again"
            )
