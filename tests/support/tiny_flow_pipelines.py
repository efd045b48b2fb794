"""Pipeline folders of tiny random weights, by the classes of diffusers and transformers: SD 3, FLUX and DiT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    T5Config,
    T5EncoderModel,
    T5TokenizerFast,
)

LETTERS = [chr(code) for code in range(ord("a"), ord("z") + 1)]
SIDE = 16  # of the pictures, in pixels; latents have 8 x 8 cells of 4 channels
NAMES = {0: "tench, Tinca tinca", 1: "goldfish", 2: "crane"}


def clip_tokenizer(longest: int = 16) -> CLIPTokenizer:
    """A letter is a token."""
    vocabulary = [*LETTERS, *(letter + "</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer({token: i for i, token in enumerate(vocabulary)}, [], model_max_length=longest)


def t5_tokenizer() -> T5TokenizerFast:
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", -10.0), ("▁", -2.0), *((letter, -3.0) for letter in LETTERS)]
    return T5TokenizerFast(vocab=pieces, extra_ids=0, model_max_length=512)


def clip_encoder(kind: type, width: int = 8) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=54, hidden_size=width, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
            max_position_embeddings=16, projection_dim=width, bos_token_id=52, eos_token_id=53, pad_token_id=53,
        )
    )  # fmt: skip


def t5_encoder(width: int = 16) -> T5EncoderModel:
    return T5EncoderModel(
        T5Config(vocab_size=30, d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2, dense_act_fn="gelu_new")
    )


def autoencoder(scale: float = 1.5, shift: float | None = 0.06, **more: Any) -> AutoencoderKL:
    """Two pixels of a side for each cell."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, layers_per_block=1, sample_size=SIDE,
        scaling_factor=scale, shift_factor=shift, **more,
    )  # fmt: skip


def sd3(folder: Path, t5: bool = True, schedule: dict[str, Any] | None = None, **transformer: Any) -> Path:
    """Shift 3 and no T5-only shortcuts: the parts that Stable Diffusion 3 and 3.5 have."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "sample_size": SIDE // 2, "in_channels": 4, "out_channels": 4, "num_layers": 2, "attention_head_dim": 8,
        "num_attention_heads": 2, "joint_attention_dim": 16, "caption_projection_dim": 16,
        "pooled_projection_dim": 16, "pos_embed_max_size": 16,
    }  # fmt: skip
    StableDiffusion3Pipeline(
        SD3Transformer2DModel(**shape | transformer),
        FlowMatchEulerDiscreteScheduler(**{"shift": 3.0} | (schedule or {})),
        autoencoder(use_quant_conv=False, use_post_quant_conv=False),
        clip_encoder(CLIPTextModelWithProjection), clip_tokenizer(),
        clip_encoder(CLIPTextModelWithProjection), clip_tokenizer(),
        t5_encoder() if t5 else None, t5_tokenizer() if t5 else None,
    ).save_pretrained(folder)  # fmt: skip
    return folder


def flux(folder: Path, distilled: bool = True, schedule: dict[str, Any] | None = None, **transformer: Any) -> Path:
    """``distilled``: FLUX.1 dev, which takes guidance as an input and shifts by size; else schnell, which does not."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "in_channels": 16, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16,
        "num_attention_heads": 1, "joint_attention_dim": 16, "pooled_projection_dim": 8,
        "guidance_embeds": distilled, "axes_dims_rope": (4, 6, 6),
    }  # fmt: skip
    usual = {"shift": 3.0, "use_dynamic_shifting": True} if distilled else {"shift": 1.0}
    FluxPipeline(
        FlowMatchEulerDiscreteScheduler(**usual | (schedule or {})),
        autoencoder(0.36, 0.12, use_quant_conv=False, use_post_quant_conv=False),
        clip_encoder(CLIPTextModel), clip_tokenizer(), t5_encoder(), t5_tokenizer(),
        FluxTransformer2DModel(**shape | transformer),
    ).save_pretrained(folder)  # fmt: skip
    return folder


def dit(
    folder: Path, schedule: dict[str, Any] | None = None, names: dict[int, str] | None = None, **transformer: Any
) -> Path:
    """A learned variance, and 1000 classes, since ``DiTPipeline`` takes number 1000 for none of them."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "sample_size": SIDE // 2, "in_channels": 4, "out_channels": 8, "num_layers": 1, "attention_head_dim": 8,
        "num_attention_heads": 2, "num_embeds_ada_norm": 1000,
    }  # fmt: skip
    DiTPipeline(
        DiTTransformer2DModel(**shape | transformer),
        autoencoder(0.18, None),
        DDIMScheduler(**{"clip_sample": False} | (schedule or {})),
    ).save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = NAMES if names is None else names
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
