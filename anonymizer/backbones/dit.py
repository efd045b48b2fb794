"""DiT (Peebles and Xie 2023): transformers that know classes, on latents of an autoencoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from anonymizer.backbones.class_labels import ClassLabels
from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.prediction_type import make_output_converter
from anonymizer.backbones.protocol import ConditionKind, Denoised
from anonymizer.backbones.vae import Autoencoder
from anonymizer.errors import ModelError


class DiTBackbone:
    """A ``DiTTransformer2DModel`` and an ``AutoencoderKL``, in a folder of ``DiTPipeline``.

    Beyond the classes that it has names for there is one that stands for none of them. ``guidance`` mixes what it says
    with and without a class, in all channels of the noise, as that pipeline does (the authors' own code mixes the
    first three of four). It works at one size only.
    """

    condition_kind: ConditionKind = "class"

    def __init__(self, parts: PipelineFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import AutoencoderKL, DDPMScheduler, DiTTransformer2DModel

        # The schedule and the prediction type are shared by all schedulers, so DDPM's reads any of their configs. What
        # else there is in one is of its own sampler; pictures are clipped, latents are not.
        scheduler = parts.load(DDPMScheduler, "scheduler")
        transformer = parts.load_network(DiTTransformer2DModel, "transformer", dtype)
        vae = parts.load_network(AutoencoderKL, "vae", torch.float32)
        self.name, self.device, self.dtype = parts.config.id, device, dtype
        _refuse_other_kinds(self.name, transformer.config, vae.config)
        self.transformer = torch.nn.Module.to(transformer, device, dtype)
        self.autoencoder = Autoencoder(vae, device, dtype, parts.config.vae_tiling)
        self.digest = parts.digest
        self.T = int(scheduler.config.num_train_timesteps)
        self.alphas_cumprod = scheduler.alphas_cumprod.double().cpu()
        self.convert_output = make_output_converter(self.name, scheduler.config.prediction_type, self.alphas_cumprod)
        self.channels, self.scale = self.autoencoder.channels, self.autoencoder.downsampling
        self.multiple = self.scale * int(transformer.config.patch_size)
        self.size = _only_size(int(transformer.config.sample_size) * self.scale, parts)
        self.null = int(transformer.config.num_embeds_ada_norm)  # an embedding beyond those of the classes
        self.classes = replace(
            ClassLabels.from_config(self.null + 1, parts.index.get("id2label")), count=self.null, null=self.null
        )
        self.guidance = parts.config.guidance

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.autoencoder.encode(images)

    def condition(self, labels: Sequence[str]) -> torch.Tensor:
        return self.classes.indices_of(labels).to(self.device, non_blocking=True)  # (B,)

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        return self.convert_output(zt, self._guided(zt, t, condition), float(self.alphas_cumprod[t - 1]))

    def decode(self, z0: torch.Tensor) -> torch.Tensor:
        return self.autoencoder.decode(z0)

    def flag_unsafe(self, images: torch.Tensor) -> Sequence[bool]:
        return [False] * len(images)

    def _guided(self, zt: torch.Tensor, t: int, condition: object) -> torch.Tensor:
        none = torch.full((len(zt),), self.null, device=self.device)
        if not isinstance(condition, torch.Tensor):
            return self._network(zt, t, none)
        if self.guidance == 1:
            return self._network(zt, t, condition)
        without, within = self._network(torch.cat([zt, zt]), t, torch.cat([none, condition])).chunk(2)
        return without + self.guidance * (within - without)

    def _network(self, zt: torch.Tensor, t: int, labels: torch.Tensor) -> torch.Tensor:
        time = torch.full((len(zt),), t - 1, device=self.device)
        out: torch.Tensor = self.transformer(zt.to(self.dtype), timestep=time, class_labels=labels).sample
        return out[:, : self.channels].float()  # a learned variance, where there is one, is not used


def _only_size(own: int, parts: PipelineFolder) -> int:
    if parts.config.size not in (None, own):
        raise ModelError(
            f"model.size: {parts.config.size}: the model {parts.config.id!r} works at {own} only: leave it out, or set "
            "source.fit to tiles"
        )
    return own


def _refuse_other_kinds(name: str, network: Any, vae: Any) -> None:
    cells, out = network.in_channels, network.out_channels or network.in_channels
    if cells != vae.latent_channels or out not in (cells, 2 * cells):
        raise ModelError(
            f"model.id {name!r}: a transformer from {cells} to {out} channels on {vae.latent_channels} of latents: it "
            "must give back as many as it takes, or twice as many with a learned variance"
        )
    if not isinstance(network.sample_size, int):
        raise ModelError(f"model.id {name!r}: sample_size {network.sample_size!r}: only square models are supported")
