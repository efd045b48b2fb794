"""Models of published sizes with random weights, built in memory: speed does not depend on the weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.stable_diffusion import StableBackbone
from anonymizer.config import ModelConfig

SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class Shape:
    """Shape of a latent model with prompts; ``latent_size``: cells of a side."""

    blocks: tuple[int, ...]  # channels of the network
    width: int  # of the text encoder
    layers: int
    vocabulary: int
    vae: tuple[int, ...]  # channels of the autoencoder
    latent_size: int
    groups: int = 32


# Stable Diffusion 1.5: a network of 860 million parameters, an autoencoder of 84, a text encoder of 123.
SD15 = Shape((320, 640, 1280, 1280), 768, 12, 49408, (128, 256, 512, 512), 64)
TOY = Shape((8, 16), 16, 1, 600, (8, 8), 8, groups=4)


class InMemoryPipeline(PipelineFolder):
    """A pipeline folder without files."""

    def __init__(self, made: dict[str, Any], config: ModelConfig, folder: Path) -> None:
        self.parts, self.config, self.folder = made, config, folder
        self.index = {name: ["made", type(part).__name__] for name, part in made.items()}
        self.pipeline_class = "StableDiffusionPipeline"

    @property
    def digest(self) -> str:
        return "0" * 64

    def has_part(self, name: str) -> bool:
        return name in self.parts

    def load(self, kind: Any, name: str) -> Any:
        return self.parts[name]

    def load_network(self, kind: Any, name: str, dtype: torch.dtype) -> Any:
        return torch.nn.Module.to(self.parts[name], dtype).eval().requires_grad_(False)


def make_networks(shape: Shape) -> dict[str, Any]:
    """Return the network, the autoencoder, the text encoder."""
    size = {"in_channels": 4, "out_channels": 4, "sample_size": shape.latent_size, "norm_num_groups": shape.groups}
    unet = UNet2DConditionModel(
        **size, block_out_channels=shape.blocks, cross_attention_dim=shape.width, attention_head_dim=8,
        down_block_types=("CrossAttnDownBlock2D",) * (len(shape.blocks) - 1) + ("DownBlock2D",),
        up_block_types=("UpBlock2D",) + ("CrossAttnUpBlock2D",) * (len(shape.blocks) - 1),
    )  # fmt: skip
    pixels = shape.latent_size * 2 ** (len(shape.vae) - 1)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(shape.vae),
        up_block_types=("UpDecoderBlock2D",) * len(shape.vae),
        block_out_channels=shape.vae, layers_per_block=2, latent_channels=4, sample_size=pixels,
        norm_num_groups=shape.groups, force_upcast=False,
    )  # fmt: skip
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=4 * shape.width,
            num_hidden_layers=shape.layers, num_attention_heads=max(1, shape.width // 64), projection_dim=shape.width,
            max_position_embeddings=77,
        )
    )  # fmt: skip
    return {"unet": unet, "vae": vae, "text_encoder": text}


def make_parts(shape: Shape, folder: Path) -> dict[str, Any]:
    """Return the parts of a StableDiffusionPipeline; write a vocabulary of single bytes to ``folder``."""
    torch.manual_seed(0)
    scheduler = DDPMScheduler(**SCHEDULE, clip_sample=False, steps_offset=1)
    return make_networks(shape) | {"tokenizer": _tokenizer(folder / "tokenizer"), "scheduler": scheduler}


def make_backbone(parts: dict[str, Any], config: ModelConfig, device: torch.device, folder: Path) -> StableBackbone:
    """Return our backbone of such parts; the networks are moved, not copied."""
    return StableBackbone(InMemoryPipeline(parts, config, folder), device=device, dtype=getattr(torch, config.dtype))


def count_parameters(network: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in network.parameters())


def _tokenizer(folder: Path) -> CLIPTokenizer:
    folder.mkdir(parents=True)
    letters = sorted(ByteLevel.alphabet())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77, "pad_token": "<|endoftext|>"} | special
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)
