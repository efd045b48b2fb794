"""DiT (Peebles and Xie 2023): class-conditional transformers on the latents of an autoencoder."""

from __future__ import annotations

import torch

from anonymizer.backbones.class_labels import ClassConditionalBackbone, ClassLabels
from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.protocol import ConditionKind
from anonymizer.backbones.vae import LatentBackbone
from anonymizer.errors import ModelError


class DiTBackbone(ClassConditionalBackbone, LatentBackbone):
    """A ``DiTTransformer2DModel`` and an ``AutoencoderKL``, in a folder of ``DiTPipeline``.

    One embedding beyond those of the classes stands for none of them. Guidance acts on all channels of the noise, as in
    that pipeline (the authors' own code mixes the first three of four). It works at one size only.
    """

    condition_kind: ConditionKind = "class"

    def __init__(self, folder: PipelineFolder, *, device: torch.device, dtype: torch.dtype) -> None:
        from diffusers import DiTTransformer2DModel

        transformer = folder.load_network(DiTTransformer2DModel, "transformer", dtype)
        super().__init__(folder, device, dtype)
        self.load_schedule(folder)
        config = transformer.config
        in_channels, out_channels = config.in_channels, config.out_channels or config.in_channels
        if in_channels != self.channels or out_channels not in (in_channels, 2 * in_channels):
            raise folder.error(
                f"a transformer from {in_channels} to {out_channels} channels on {self.channels} of latents: it must "
                "give back as many as it takes, or twice as many with a learned variance"
            )
        self.transformer = torch.nn.Module.to(transformer, device, dtype)
        self.multiple = self.scale * int(config.patch_size)
        self.size = folder.native_size(config.sample_size, self.scale)
        if self.config.size not in (None, self.size):
            raise ModelError(
                f"model.size: {self.config.size}: the model {self.name!r} works at {self.size} only: leave it out, or "
                "set source.fit to tiles"
            )
        null = int(config.num_embeds_ada_norm)
        names = ClassLabels.from_config(null + 1, folder.index.get("id2label")).names
        self.classes = ClassLabels(null, names, null)

    def _network(self, zt: torch.Tensor, t: int, labels: torch.Tensor | None) -> torch.Tensor:
        out: torch.Tensor = self.transformer(
            zt.to(self.dtype), timestep=self.timesteps(zt, t - 1), class_labels=labels
        ).sample
        return out[:, : self.channels].float()
