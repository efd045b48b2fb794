"""FLUX.1 (Black Forest Labs 2024): flow matching on packed latents, with prompts by CLIP and T5."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from anonymizer.backbones.flow_matching import FlowBackbone, require_text_encoders
from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.prompt_encoder import PromptEmbeddings, PromptEncoder, load_text_pipeline
from anonymizer.config import ModelConfig
from anonymizer.errors import ModelError

LATENT_SIZE = 128  # cells of a side: what its pipeline draws, since its configuration names no size
PATCH_SIZE = 2  # cells on each side of a token


class FluxBackbone(FlowBackbone):
    """A folder of ``FluxPipeline``: with distilled guidance, which is an input (dev), or without (schnell).

    A negative prompt, which that pipeline follows in a second pass, is not offered.
    """

    def __init__(self, folder: PipelineFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import FluxPipeline, FluxTransformer2DModel
        from transformers import CLIPTextModel, T5EncoderModel

        require_text_encoders(folder)
        transformer = folder.load_network(FluxTransformer2DModel, "transformer", dtype)
        self.takes_guidance = bool(transformer.config.guidance_embeds)
        _refuse_other_guidance(folder.config, self.takes_guidance)
        pipeline = load_text_pipeline(folder, FluxPipeline, [CLIPTextModel, T5EncoderModel], dtype)
        # T5 attends to padding too, so a prompt has as many tokens as the model was trained with.
        encoder = _FluxPromptEncoder(pipeline, device, max_sequence_length=512 if self.takes_guidance else 256)
        channels = transformer.config.in_channels // PATCH_SIZE**2
        super().__init__(
            folder, transformer, encoder, in_channels=channels, latent_size=LATENT_SIZE, patch_size=PATCH_SIZE,
            dtype=dtype,
        )  # fmt: skip

    def _network(self, xt: torch.Tensor, t: int, prompts: PromptEmbeddings) -> torch.Tensor:
        packed = F.pixel_unshuffle(xt, PATCH_SIZE)  # (B, 4 channels, h / 2, w / 2)
        height, width = packed.shape[-2:]
        out: torch.Tensor = self.transformer(
            packed.flatten(2).transpose(1, 2).to(self.dtype),  # (B, tokens, 4 channels)
            encoder_hidden_states=prompts.hidden,
            pooled_projections=prompts.pooled,
            timestep=self.timesteps(xt, float(self.schedule.s[t - 1]) * self.T, self.dtype) / 1000,
            guidance=self.timesteps(xt, self.config.guidance) if self.takes_guidance else None,
            img_ids=latent_image_ids(height, width).to(self.device, non_blocking=True),
            txt_ids=torch.zeros(prompts.hidden.shape[1], 3, device=self.device),
            return_dict=False,
        )[0]
        return F.pixel_shuffle(out.float().transpose(1, 2).unflatten(2, (height, width)), PATCH_SIZE)


class _FluxPromptEncoder(PromptEncoder):
    """Its pipeline embeds no negative prompt."""

    def __call__(self, text: str) -> PromptEmbeddings:
        hidden, pooled, _ = self._encode(text)
        return PromptEmbeddings(hidden, pooled)


def latent_image_ids(height: int, width: int) -> torch.Tensor:
    """Return the position of each token (height * width, 3): 0, its row, its column."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    return torch.stack([torch.zeros_like(rows), rows, columns], dim=-1).flatten(0, 1).float()


def _refuse_other_guidance(config: ModelConfig, takes_guidance: bool) -> None:
    if config.negative_prompt:
        raise ModelError(f"model.negative_prompt: the model {config.id!r} takes none: leave it out")
    if config.guidance != 1 and not takes_guidance:
        raise ModelError(f"model.guidance: the model {config.id!r} was distilled to need none: leave it out")
