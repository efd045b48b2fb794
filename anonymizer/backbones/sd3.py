"""Stable Diffusion 3 and 3.5 (Esser et al. 2024): flow matching, with prompts by two CLIPs and perhaps T5."""

from __future__ import annotations

import torch

from anonymizer.backbones.flow_matching import FlowBackbone, require_text_encoders
from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.prompt_encoder import PromptEmbeddings, PromptEncoder, load_text_pipeline
from anonymizer.errors import ModelError


class SD3Backbone(FlowBackbone):
    """A folder of ``StableDiffusion3Pipeline``. Skipping layers, which that pipeline can do, is not offered."""

    def __init__(self, folder: PipelineFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import SD3Transformer2DModel, StableDiffusion3Pipeline
        from transformers import CLIPTextModelWithProjection, T5EncoderModel

        require_text_encoders(folder)
        transformer = folder.load_network(SD3Transformer2DModel, "transformer", dtype)
        encoders = [CLIPTextModelWithProjection] * 2 + [T5EncoderModel] * folder.has_part("text_encoder_3")
        # The pipeline asks the network for its width.
        pipeline = load_text_pipeline(folder, StableDiffusion3Pipeline, encoders, dtype, transformer=transformer)
        encoder = PromptEncoder(pipeline, device, prompt_2=None, prompt_3=None)  # None: the same prompt for all
        network = transformer.config
        super().__init__(
            folder, transformer, encoder, in_channels=network.in_channels, latent_size=network.sample_size,
            patch_size=network.patch_size, dtype=dtype,
        )  # fmt: skip
        self.use_negative_prompt(encoder)
        if self.size > (largest := network.pos_embed_max_size * self.multiple):
            raise ModelError(f"model.size: {self.size} is more than {largest}, the largest that {self.name!r} can take")

    def _network(self, xt: torch.Tensor, t: int, prompts: PromptEmbeddings) -> torch.Tensor:
        out: torch.Tensor = self.transformer(
            xt.to(self.dtype),
            encoder_hidden_states=prompts.hidden,
            pooled_projections=prompts.pooled,
            timestep=self.timesteps(xt, float(self.schedule.s[t - 1]) * self.T),
            return_dict=False,
        )[0]
        return out.float()
