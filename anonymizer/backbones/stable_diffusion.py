"""Stable Diffusion 1, 2 and XL, and the few-step models that were distilled from them, in diffusers' format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch

from anonymizer.backbones.compilation import move_channels_last
from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.prediction_type import make_output_converter
from anonymizer.backbones.prompt_encoder import (
    CachedPromptEncoder,
    PromptEmbeddings,
    PromptEncoder,
    load_clip_tokenizer,
)
from anonymizer.backbones.protocol import ConditionKind, Denoised
from anonymizer.backbones.safety_checker import load_safety_checker
from anonymizer.backbones.vae import Autoencoder
from anonymizer.config import ModelConfig
from anonymizer.errors import ModelError


class StableBackbone:
    """A ``UNet2DConditionModel`` of latents that is told prompts, with epsilon, sample or v prediction.

    ``guidance`` mixes what it says of the prompt and of the negative one, both in one batch (Ho and Salimans 2022). A
    consistency model may have been distilled with guidance as an input (``time_cond_proj_dim``; Luo et al. 2023): then
    it is asked once. Network and text encoder are in the model's dtype, whatever goes in and comes out in float32.
    """

    condition_kind: ConditionKind = "prompt"
    text_parts: ClassVar[tuple[str, ...]] = ("tokenizer", "text_encoder")
    addition_embed_type: ClassVar[str | None] = None  # what the network must be told besides the prompt

    def __init__(self, parts: PipelineFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel

        config = parts.config
        self.name, self.device, self.dtype, self.config = config.id, device, dtype, config
        _refuse_missing_parts(parts, self.text_parts)
        # The schedule and the prediction type are shared by all schedulers, so DDPM's reads any of their configs. What
        # else there is in one is of its own sampler; pictures are clipped, latents are not.
        scheduler = parts.load(DDPMScheduler, "scheduler")
        unet = parts.load_network(UNet2DConditionModel, "unet", dtype)
        vae = parts.load_network(AutoencoderKL, "vae", torch.float32)
        _refuse_other_kinds(self.name, unet, vae, scheduler, self.addition_embed_type)
        self.T = int(scheduler.config.num_train_timesteps)
        self.alphas_cumprod = scheduler.alphas_cumprod.double().cpu()
        self.convert_output = make_output_converter(self.name, scheduler.config.prediction_type, self.alphas_cumprod)
        self.autoencoder = Autoencoder(vae, device, dtype, config.vae_tiling)
        self.channels, self.scale = self.autoencoder.channels, self.autoencoder.downsampling
        self.multiple = self.scale * 2 ** (len(unet.config.block_out_channels) - 1)
        self.size = parts.resolve_size(int(unet.config.sample_size) * self.scale, self.multiple)
        self.unet = move_channels_last(unet, device, dtype)
        encoder = PromptEncoder(self._pipeline(parts), device)
        self.encode_prompts = CachedPromptEncoder(encoder)
        self.guidance_embedding = _embedded(config.guidance, unet, encoder)  # (1, width), or None
        in_two = config.guidance != 1 and self.guidance_embedding is None
        self.negative_embeddings = encoder.encode_negative(config.negative_prompt) if in_two else None
        _refuse_negative_prompt(config, self.guidance_embedding is None, in_two)
        _refuse_other_widths(self.name, unet, self._widths(self.encode_prompts([""])))
        self.safety_checker = load_safety_checker(parts, device)
        self.digest = parts.digest

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return self.autoencoder.encode(images)

    def condition(self, prompts: Sequence[str]) -> PromptEmbeddings:
        return self.encode_prompts(prompts)

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        told = condition if isinstance(condition, PromptEmbeddings) else self._same(len(zt))
        return self.convert_output(zt, self._guided(zt, t, told), float(self.alphas_cumprod[t - 1]))

    def decode(self, z0: torch.Tensor) -> torch.Tensor:
        return self.autoencoder.decode(z0)

    def flag_unsafe(self, images: torch.Tensor) -> Sequence[bool]:
        return [False] * len(images) if self.safety_checker is None else self.safety_checker(images)

    def _same(self, count: int) -> PromptEmbeddings:
        """What is told where there is no record."""
        return self.encode_prompts([self.config.common_prompt]).repeat(count)

    def _guided(self, zt: torch.Tensor, t: int, told: PromptEmbeddings) -> torch.Tensor:
        if self.negative_embeddings is None:
            return self._network(zt, t, told)
        both = PromptEmbeddings.concat([self.negative_embeddings.repeat(len(zt)), told])
        without, within = self._network(torch.cat([zt, zt]), t, both).chunk(2)
        return without + self.config.guidance * (within - without)

    def _network(self, zt: torch.Tensor, t: int, told: PromptEmbeddings) -> torch.Tensor:
        embedded = self.guidance_embedding
        out: torch.Tensor = self.unet(
            zt.to(self.dtype),
            torch.full((len(zt),), t - 1, device=self.device),  # a number would be copied there, and waited for
            encoder_hidden_states=told.hidden,
            timestep_cond=None if embedded is None else embedded.expand(len(zt), -1),
            added_cond_kwargs=self._added(zt, told),
            return_dict=False,
        )[0]
        return out.float()

    def _added(self, zt: torch.Tensor, told: PromptEmbeddings) -> Mapping[str, torch.Tensor] | None:
        return None

    def _widths(self, told: PromptEmbeddings) -> Mapping[str, int]:
        """Setting of the network -> the width that its text encoders have."""
        return {"cross_attention_dim": told.hidden.shape[-1]}

    def _pipeline(self, parts: PipelineFolder) -> Any:
        """Text encoders and tokenizers, in the pipeline that knows how they are used."""
        from diffusers import StableDiffusionPipeline
        from transformers import CLIPTextModel

        nothing = dict.fromkeys(("vae", "unet", "scheduler", "safety_checker", "feature_extractor"))
        return StableDiffusionPipeline(
            tokenizer=load_clip_tokenizer(parts, "tokenizer"),
            text_encoder=parts.load_network(CLIPTextModel, "text_encoder", self.dtype),
            requires_safety_checker=False,
            **nothing,
        )


class StableXLBackbone(StableBackbone):
    """It has a second text encoder, and is told what that one pools, and sides: those of the picture, uncropped."""

    text_parts = (*StableBackbone.text_parts, "tokenizer_2", "text_encoder_2")
    addition_embed_type = "text_time"

    def _added(self, zt: torch.Tensor, told: PromptEmbeddings) -> Mapping[str, torch.Tensor]:
        height, width = (self.scale * cells for cells in zt.shape[-2:])
        # As it was, where its corner lay, as it shall be.
        sides = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
        times = sides.to(self.device, non_blocking=True)
        assert told.pooled is not None
        return {"text_embeds": told.pooled, "time_ids": times.expand(len(zt), -1)}

    def _widths(self, told: PromptEmbeddings) -> Mapping[str, int]:
        assert told.pooled is not None
        added = told.pooled.shape[-1] + 6 * int(self.unet.config.addition_time_embed_dim)
        return {**super()._widths(told), "projection_class_embeddings_input_dim": added}

    def _pipeline(self, parts: PipelineFolder) -> Any:
        from diffusers import StableDiffusionXLPipeline
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        return StableDiffusionXLPipeline(
            tokenizer=load_clip_tokenizer(parts, "tokenizer"),
            tokenizer_2=load_clip_tokenizer(parts, "tokenizer_2"),
            text_encoder=parts.load_network(CLIPTextModel, "text_encoder", self.dtype),
            text_encoder_2=parts.load_network(CLIPTextModelWithProjection, "text_encoder_2", self.dtype),
            force_zeros_for_empty_prompt=parts.index.get("force_zeros_for_empty_prompt", True),
            add_watermarker=False,
            **dict.fromkeys(("vae", "unet", "scheduler")),
        )


def _embedded(guidance: float, unet: Any, encoder: PromptEncoder) -> torch.Tensor | None:
    """Guidance as a network was distilled with it (1, width), counted from 0: none. None, if it has no such input."""
    if (width := unet.config.time_cond_proj_dim) is None:
        return None
    found: torch.Tensor = encoder.pipeline.get_guidance_scale_embedding(torch.tensor([guidance - 1]), width)
    return found.to(encoder.device, unet.dtype)


def _refuse_missing_parts(parts: PipelineFolder, encoders: Sequence[str]) -> None:
    missing = [name for name in ("unet", "vae", *encoders) if not parts.has_part(name)]
    if missing:
        hint = " (a refiner goes on where a base model ends)" if missing[0] in encoders else ""
        raise ModelError(
            f"model.id {parts.config.id!r}: a {parts.pipeline_class} without {' and '.join(missing)}{hint}: choose a model "  # noqa: E501
            "that makes pictures of text by itself"
        )


def _refuse_other_kinds(name: str, unet: Any, vae: Any, scheduler: Any, addition: str | None) -> None:
    config, channels = unet.config, vae.config.latent_channels
    if (config.in_channels, config.out_channels) != (channels, channels):
        raise ModelError(
            f"model.id {name!r}: the network takes {config.in_channels} channels and its VAE gives {channels}: models "
            "for inpainting, depth and upscaling are not supported: choose a text-to-image model"
        )
    wanted = {
        "addition_embed_type": addition,
        "class_embed_type": None,
        "num_class_embeds": None,
        "encoder_hid_dim_type": None,
    }
    for setting, value in wanted.items():
        if (found := config.get(setting)) != value:
            raise ModelError(
                f"model.id {name!r}: {setting} {found!r}: a network that must be told more than prompts is not "
                "supported: choose a text-to-image model"
            )
    if not isinstance(config.sample_size, int):
        raise ModelError(f"model.id {name!r}: sample_size {config.sample_size!r}: only square models are supported")
    if {"beta_start", "trained_betas"} <= set(scheduler.config.get("_use_default_values", ())):
        raise ModelError(
            f"model.id {name!r}: its scheduler knows no betas, as those of EDM and of flow matching: such a process is "
            "not supported with this kind of network"
        )


def _refuse_negative_prompt(config: ModelConfig, takes_one: bool, is_used: bool) -> None:
    if config.negative_prompt and not takes_one:
        raise ModelError(
            f"model.negative_prompt: the model {config.id!r} was distilled with guidance, and takes none: leave it out"
        )
    if config.negative_prompt and not is_used:
        raise ModelError("model.negative_prompt: does nothing at guidance 1: set model.guidance, or leave it out")


def _refuse_other_widths(name: str, unet: Any, widths: Mapping[str, int]) -> None:
    for setting, width in widths.items():
        if (found := unet.config[setting]) != width:
            raise ModelError(
                f"model.id {name!r}: {setting} {found} of the network, and its text encoders give {width}: they do not "
                "belong together: save the model again"
            )
