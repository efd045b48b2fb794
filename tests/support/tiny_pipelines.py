"""Pipeline folders of tiny random weights, by the classes of diffusers and transformers: Stable Diffusion and LCM.

Pictures have 16 x 16 pixels, latents 8 x 8 cells of 4 channels. Vocabularies are written as the published folders have
them.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
)

SIDE = 16
LONGEST = 16  # tokens of a prompt
SCHEDULE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
MERGES = [("c", "a"), ("ca", "t</w>"), ("d", "o"), ("do", "g</w>")]
LETTERS = sorted(ByteLevel.alphabet())
VOCABULARY = [
    *LETTERS, *(letter + "</w>" for letter in LETTERS), *(a + b for a, b in MERGES), "<|startoftext|>", "<|endoftext|>"
]  # fmt: skip


def clip_tokenizer(folder: Path, pad: str = "<|endoftext|>", longest: int = LONGEST) -> CLIPTokenizer:
    """The vocabulary in ``folder``, in place of any other, and the tokenizer of it: bytes, a cat and a dog."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(VOCABULARY)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *(f"{a} {b}" for a, b in MERGES)]) + "\n")
    special = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    settings = {"tokenizer_class": "CLIPTokenizer", "model_max_length": longest, "pad_token": pad} | special
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return CLIPTokenizer.from_pretrained(folder)


def text_encoder(kind: type = CLIPTextModel, width: int = 8, projection: int = 8) -> Any:
    return kind(
        CLIPTextConfig(
            vocab_size=len(VOCABULARY), hidden_size=width, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, max_position_embeddings=LONGEST, projection_dim=projection,
            bos_token_id=0, eos_token_id=2, pad_token_id=1,  # what the published folders say, and nobody goes by
        )
    )  # fmt: skip


def autoencoder(scaling_factor: float = 0.18215, **more: Any) -> AutoencoderKL:
    """Two pixels of a side for each cell."""
    shape: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2,
        "block_out_channels": (8, 8), "latent_channels": 4, "norm_num_groups": 4, "layers_per_block": 1,
        "sample_size": SIDE, "scaling_factor": scaling_factor,
    }  # fmt: skip
    return AutoencoderKL(**shape | more)


def network(**more: Any) -> UNet2DConditionModel:
    shape: dict[str, Any] = {
        "sample_size": SIDE // 2, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16),
        "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 8, "attention_head_dim": 2,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**shape | more)


def checker(threshold: float) -> dict[str, Any]:
    """The parts of a safety checker that objects where a cosine is above ``threshold``: always at -2, never at 2."""
    size = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = StableDiffusionSafetyChecker(
        CLIPConfig(text_config=size, vision_config=size | {"image_size": 8, "patch_size": 4}, projection_dim=8)
    )
    torch.nn.init.normal_(model.concept_embeds)
    model.concept_embeds_weights.fill_(threshold)
    model.special_care_embeds_weights.fill_(2)
    extractor = CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    return {"safety_checker": model, "feature_extractor": extractor, "requires_safety_checker": True}


NO_CHECKER: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


def sd1(
    folder: Path, scheduler: Any = None, safety: float | None = None, kind: type = StableDiffusionPipeline, **unet: Any
) -> Path:
    """Predicts noise. ``safety``: threshold of its checker, if it has one."""
    torch.manual_seed(0)
    kind(
        vae=autoencoder(),
        unet=network(**unet),
        text_encoder=text_encoder(),
        tokenizer=clip_tokenizer(folder / "tokenizer"),
        scheduler=scheduler or PNDMScheduler(**SCHEDULE, skip_prk_steps=True, steps_offset=1),
        **NO_CHECKER if safety is None else checker(safety),
    ).save_pretrained(folder)
    clip_tokenizer(folder / "tokenizer")
    return folder


def sd2(folder: Path, zero_snr: bool = False, **unet: Any) -> Path:
    """Predicts v. ``zero_snr``: no signal is left at T."""
    torch.manual_seed(0)
    StableDiffusionPipeline(
        vae=autoencoder(),
        unet=network(**{"use_linear_projection": True, "attention_head_dim": (2, 4), "cross_attention_dim": 12} | unet),
        text_encoder=text_encoder(width=12),
        tokenizer=clip_tokenizer(folder / "tokenizer", pad="!"),
        scheduler=DDIMScheduler(
            **SCHEDULE, prediction_type="v_prediction", clip_sample=False, set_alpha_to_one=False, steps_offset=1,
            rescale_betas_zero_snr=zero_snr,
        ),
        **NO_CHECKER,
    ).save_pretrained(folder)  # fmt: skip
    clip_tokenizer(folder / "tokenizer", pad="!")
    return folder


def sdxl(folder: Path, zeros: bool = True, **unet: Any) -> Path:
    """Two text encoders. ``zeros``: no negative prompt is all zeros, and not an empty text."""
    torch.manual_seed(0)
    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4, "cross_attention_dim": 20}
    StableDiffusionXLPipeline(
        vae=autoencoder(0.13025, force_upcast=True),
        unet=network(
            **added | {"projection_class_embeddings_input_dim": 6 + 6 * 4, "use_linear_projection": True} | unet
        ),
        text_encoder=text_encoder(),
        text_encoder_2=text_encoder(CLIPTextModelWithProjection, width=12, projection=6),
        tokenizer=clip_tokenizer(folder / "tokenizer"),
        tokenizer_2=clip_tokenizer(folder / "tokenizer_2", pad="!"),
        scheduler=EulerDiscreteScheduler(**SCHEDULE, steps_offset=1, timestep_spacing="leading"),
        force_zeros_for_empty_prompt=zeros,
        add_watermarker=False,
    ).save_pretrained(folder)
    clip_tokenizer(folder / "tokenizer")
    clip_tokenizer(folder / "tokenizer_2", pad="!")
    return folder


def lcm(folder: Path, kind: type = LatentConsistencyModelPipeline, **unet: Any) -> Path:
    """Was distilled with guidance as an input."""
    return sd1(folder, LCMScheduler(**SCHEDULE, steps_offset=1), kind=kind, **{"time_cond_proj_dim": 6} | unet)
