"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): flow matching, told prompts by two CLIPs and maybe T5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from anonymizer.backbones.flow_matching import FlowBackbone, require_parts
from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.prompt_encoder import PromptEmbeddings, PromptEncoder, load_clip_tokenizer
from anonymizer.config import ModelConfig
from anonymizer.errors import ModelError


class SD3Backbone(FlowBackbone):
    """A folder of ``StableDiffusion3Pipeline``.

    ``guidance`` mixes what it says of the prompt and of the negative one, both in one batch (Ho and Salimans 2022).
    Skipping layers, which that pipeline can do besides, is not offered.
    """

    def __init__(self, parts: PipelineFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import SD3Transformer2DModel

        _refuse_negative_prompt(parts.config)
        require_parts(parts, "text_encoder", "text_encoder_2")
        transformer = parts.load_network(SD3Transformer2DModel, "transformer", dtype)
        encoder = _Encoder(_pipeline(parts, transformer, dtype), device)
        own, config = transformer.config, parts.config
        super().__init__(
            parts, transformer, encoder, channels=own.in_channels, latent_size=own.sample_size, patch_size=own.patch_size,  # noqa: E501
            dtype=dtype,
        )  # fmt: skip
        self.negative_embeddings = encoder.encode_negative(config.negative_prompt) if config.guidance != 1 else None
        if self.size > (largest := own.pos_embed_max_size * self.multiple):
            raise ModelError(f"model.size: {self.size} is more than {largest}, the largest that {self.name!r} can take")

    def _velocity(self, xt: torch.Tensor, s: float, told: PromptEmbeddings) -> torch.Tensor:
        if self.negative_embeddings is None:
            return self._network(xt, s, told)
        both = PromptEmbeddings.concat([self.negative_embeddings.repeat(len(xt)), told])
        without, within = self._network(torch.cat([xt, xt]), s, both).chunk(2)
        return without + self.config.guidance * (within - without)

    def _network(self, xt: torch.Tensor, s: float, told: PromptEmbeddings) -> torch.Tensor:
        out: torch.Tensor = self.transformer(
            xt.to(self.dtype),
            encoder_hidden_states=told.hidden,
            pooled_projections=told.pooled,
            timestep=torch.full((len(xt),), s * self.T, device=self.device),
            return_dict=False,
        )[0]
        return out.float()


class _Encoder(PromptEncoder):
    """This pipeline must be told that all of its text encoders are told the same."""

    def _encode(self, text: str, **more: Any) -> Sequence[torch.Tensor]:
        return super()._encode(text, prompt_2=None, prompt_3=None, **more)


def _pipeline(parts: PipelineFolder, transformer: Any, dtype: torch.dtype) -> Any:
    """Text encoders and tokenizers, in the pipeline that knows how they are used; it asks the network for its width."""
    from diffusers import StableDiffusion3Pipeline
    from transformers import CLIPTextModelWithProjection, T5EncoderModel, T5TokenizerFast

    has_t5 = parts.has_part("text_encoder_3")
    return StableDiffusion3Pipeline(
        tokenizer=load_clip_tokenizer(parts, "tokenizer"),
        tokenizer_2=load_clip_tokenizer(parts, "tokenizer_2"),
        tokenizer_3=parts.load(T5TokenizerFast, "tokenizer_3") if has_t5 else None,
        text_encoder=parts.load_network(CLIPTextModelWithProjection, "text_encoder", dtype),
        text_encoder_2=parts.load_network(CLIPTextModelWithProjection, "text_encoder_2", dtype),
        text_encoder_3=parts.load_network(T5EncoderModel, "text_encoder_3", dtype) if has_t5 else None,
        transformer=transformer,
        **dict.fromkeys(("vae", "scheduler")),
    )


def _refuse_negative_prompt(config: ModelConfig) -> None:
    if config.negative_prompt and config.guidance == 1:
        raise ModelError("model.negative_prompt: does nothing at guidance 1: set model.guidance, or leave it out")
