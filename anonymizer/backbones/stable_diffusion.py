"""Stable Diffusion 1, 2 and XL, and the few-step models that were distilled from them, in diffusers' format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from anonymizer.backbones.compilation import move_channels_last
from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.prompt_encoder import PromptedBackbone, PromptEmbeddings, PromptEncoder, load_text_pipeline
from anonymizer.backbones.safety_checker import load_safety_checker
from anonymizer.errors import ModelError


class StableBackbone(PromptedBackbone):
    """A ``UNet2DConditionModel`` of latents, with epsilon, sample or v prediction.

    A consistency model may have been distilled with guidance as an input (``time_cond_proj_dim``; Luo et al. 2023): it
    takes one pass. Network and text encoder are in the model's dtype; inputs and outputs are in float32.
    """

    text_parts: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder")
    addition_embed_type: ClassVar[str | None] = None  # what the network takes besides the prompt

    def __init__(self, folder: PipelineFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import UNet2DConditionModel

        hint = ": choose a model that makes pictures of text by itself"
        folder.require_parts("unet", "vae", hint=hint)
        folder.require_parts(*self.text_parts, hint=f" (a refiner goes on where a base model ends){hint}")
        unet = folder.load_network(UNet2DConditionModel, "unet", dtype)
        super().__init__(folder, device, dtype)
        scheduler, network = self.load_schedule(folder), unet.config
        self._refuse_other_networks(folder, network)
        if {"beta_start", "trained_betas"} <= set(scheduler.config.get("_use_default_values", ())):
            raise folder.error(
                "its scheduler knows no betas, as those of EDM and of flow matching: such a process is not supported "
                "with this kind of network"
            )
        self.multiple = self.scale * 2 ** (len(network.block_out_channels) - 1)
        self.size = folder.resolve_size(network.sample_size, self.scale, self.multiple)
        self.unet = move_channels_last(unet, device, dtype)
        encoder = PromptEncoder(self._load_text_pipeline(folder), device)
        self.guidance_embedding = _embed_guidance(self.config.guidance, unet, encoder)  # (1, width), or None
        self.use_encoder(folder, encoder, network)
        if self.guidance_embedding is None:
            self.use_negative_prompt(encoder)
        elif self.config.negative_prompt:
            raise ModelError(
                f"model.negative_prompt: the model {self.name!r} was distilled with guidance, and takes none: leave it "
                "out"
            )
        self.safety_checker = load_safety_checker(folder, device)

    def flag_unsafe(self, images: torch.Tensor) -> Sequence[bool]:
        return super().flag_unsafe(images) if self.safety_checker is None else self.safety_checker(images)

    def _network(self, zt: torch.Tensor, t: int, prompts: PromptEmbeddings) -> torch.Tensor:
        guidance = self.guidance_embedding
        out: torch.Tensor = self.unet(
            zt.to(self.dtype),
            self.timesteps(zt, t - 1),
            encoder_hidden_states=prompts.hidden,
            timestep_cond=None if guidance is None else guidance.expand(len(zt), -1),
            added_cond_kwargs=self._added_conditions(zt, prompts),
            return_dict=False,
        )[0]
        return out.float()

    def _added_conditions(self, zt: torch.Tensor, prompts: PromptEmbeddings) -> Mapping[str, torch.Tensor] | None:
        return None

    def _widths(self, prompts: PromptEmbeddings) -> Mapping[str, int]:
        return {"cross_attention_dim": prompts.hidden.shape[-1]}

    def _load_text_pipeline(self, folder: PipelineFolder) -> Any:
        from diffusers import StableDiffusionPipeline
        from transformers import CLIPTextModel

        return load_text_pipeline(
            folder, StableDiffusionPipeline, [CLIPTextModel], self.dtype, requires_safety_checker=False
        )

    def _refuse_other_networks(self, folder: PipelineFolder, network: Any) -> None:
        if (network.in_channels, network.out_channels) != (self.channels, self.channels):
            raise folder.error(
                f"the network takes {network.in_channels} channels and its VAE gives {self.channels}: models for "
                "inpainting, depth and upscaling are not supported: choose a text-to-image model"
            )
        unconditioned = dict.fromkeys(("class_embed_type", "num_class_embeds", "encoder_hid_dim_type"))
        for setting, expected in {"addition_embed_type": self.addition_embed_type, **unconditioned}.items():
            if (value := network.get(setting)) != expected:
                raise folder.error(
                    f"{setting} {value!r}: a network that must be told more than prompts is not supported: choose a "
                    "text-to-image model"
                )


class StableXLBackbone(StableBackbone):
    """The XL network also takes the pooled output of a second text encoder, and sides: the image's own, uncropped."""

    text_parts = (*StableBackbone.text_parts, "tokenizer_2", "text_encoder_2")
    addition_embed_type = "text_time"

    def _added_conditions(self, zt: torch.Tensor, prompts: PromptEmbeddings) -> Mapping[str, torch.Tensor]:
        height, width = (self.scale * cells for cells in zt.shape[-2:])
        # Original size, corner of the crop, target size.
        sides = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
        time_ids = sides.to(self.device, non_blocking=True)
        assert prompts.pooled is not None
        return {"text_embeds": prompts.pooled, "time_ids": time_ids.expand(len(zt), -1)}

    def _widths(self, prompts: PromptEmbeddings) -> Mapping[str, int]:
        assert prompts.pooled is not None
        added = prompts.pooled.shape[-1] + 6 * int(self.unet.config.addition_time_embed_dim)
        return {**super()._widths(prompts), "projection_class_embeddings_input_dim": added}

    def _load_text_pipeline(self, folder: PipelineFolder) -> Any:
        from diffusers import StableDiffusionXLPipeline
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        return load_text_pipeline(
            folder,
            StableDiffusionXLPipeline,
            [CLIPTextModel, CLIPTextModelWithProjection],
            self.dtype,
            force_zeros_for_empty_prompt=folder.index.get("force_zeros_for_empty_prompt", True),
            add_watermarker=False,
        )


def _embed_guidance(guidance: float, unet: Any, encoder: PromptEncoder) -> torch.Tensor | None:
    """Return guidance as the network was distilled with it (1, width), 0 being none; None if it has no such input."""
    if (width := unet.config.time_cond_proj_dim) is None:
        return None
    embedding: torch.Tensor = encoder.pipeline.get_guidance_scale_embedding(torch.tensor([guidance - 1]), width)
    return embedding.to(encoder.device, unet.dtype)
