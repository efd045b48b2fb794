"""FLUX.1 (Black Forest Labs 2024): flow matching on packed latents, told prompts by CLIP and T5."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from anonymizer.backbones.flow_matching import FlowBackbone, require_parts
from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.prompt_encoder import PromptEmbeddings, PromptEncoder, load_clip_tokenizer
from anonymizer.config import ModelConfig
from anonymizer.errors import ModelError

LATENT_SIZE = 128  # of a side: what its pipeline draws, since its configuration names no size
PATCH_SIZE = 2  # cells on each side of a token


class FluxBackbone(FlowBackbone):
    """A folder of ``FluxPipeline``: one with distilled guidance, which is an input (dev), or without (schnell).

    A negative prompt, which that pipeline follows in a second pass, is not offered.
    """

    def __init__(self, parts: PipelineFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import FluxTransformer2DModel

        require_parts(parts, "text_encoder", "text_encoder_2")
        transformer = parts.load_network(FluxTransformer2DModel, "transformer", dtype)
        self.takes_guidance = bool(transformer.config.guidance_embeds)
        _refuse_other_guidance(parts.config, self.takes_guidance)
        encoder = _Encoder(_pipeline(parts, dtype), device, longest=512 if self.takes_guidance else 256)
        channels = transformer.config.in_channels // PATCH_SIZE**2
        super().__init__(
            parts, transformer, encoder, channels=channels, latent_size=LATENT_SIZE, patch_size=PATCH_SIZE, dtype=dtype
        )

    def _velocity(self, xt: torch.Tensor, s: float, told: PromptEmbeddings) -> torch.Tensor:
        packed = F.pixel_unshuffle(xt, PATCH_SIZE)  # (B, 4 channels, h / 2, w / 2)
        height, width = packed.shape[-2:]
        out: torch.Tensor = self.transformer(
            packed.flatten(2).transpose(1, 2).to(self.dtype),  # (B, tokens, 4 channels)
            encoder_hidden_states=told.hidden,
            pooled_projections=told.pooled,
            timestep=torch.full((len(xt),), s * self.T, device=self.device, dtype=self.dtype) / 1000,
            guidance=torch.full((len(xt),), self.config.guidance, device=self.device) if self.takes_guidance else None,
            img_ids=latent_image_ids(height, width).to(self.device, non_blocking=True),
            txt_ids=torch.zeros(told.hidden.shape[1], 3, device=self.device),
            return_dict=False,
        )[0]
        return F.pixel_shuffle(out.float().transpose(1, 2).unflatten(2, (height, width)), PATCH_SIZE)


class _Encoder(PromptEncoder):
    """T5 looks at ``longest`` tokens, padded ones included, so it must be as many as the model was trained with."""

    def __init__(self, pipeline: Any, device: torch.device, longest: int) -> None:
        super().__init__(pipeline, device)
        self.longest = longest

    def __call__(self, text: str) -> PromptEmbeddings:
        hidden, pooled, _ = self._encode(text, max_sequence_length=self.longest)
        return PromptEmbeddings(hidden, pooled)


def latent_image_ids(height: int, width: int) -> torch.Tensor:
    """Where each token is (height * width, 3): 0, its row, its column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).float()


def _pipeline(parts: PipelineFolder, dtype: torch.dtype) -> Any:
    """Text encoders and tokenizers, in the pipeline that knows how they are used."""
    from diffusers import FluxPipeline
    from transformers import CLIPTextModel, T5EncoderModel, T5TokenizerFast

    return FluxPipeline(
        tokenizer=load_clip_tokenizer(parts, "tokenizer"),
        tokenizer_2=parts.load(T5TokenizerFast, "tokenizer_2"),
        text_encoder=parts.load_network(CLIPTextModel, "text_encoder", dtype),
        text_encoder_2=parts.load_network(T5EncoderModel, "text_encoder_2", dtype),
        **dict.fromkeys(("transformer", "vae", "scheduler")),
    )


def _refuse_other_guidance(config: ModelConfig, takes_guidance: bool) -> None:
    if config.negative_prompt:
        raise ModelError(f"model.negative_prompt: the model {config.id!r} takes none: leave it out")
    if config.guidance != 1 and not takes_guidance:
        raise ModelError(f"model.guidance: the model {config.id!r} was distilled to need none: leave it out")
