"""A pipeline folder of an untrained network that is given classes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch


def class_conditional_model(folder: Path, embeddings: int, names: Sequence[str] = ("cat", "dog")) -> Path:
    """Write the folder; with one embedding more than names, the network also knows a class of none."""
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    unet = UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, num_class_embeds=embeddings,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    DDPMScheduler(1000, clip_sample=True).save_pretrained(folder / "scheduler")
    index = {"_class_name": "DDPMPipeline", "id2label": dict(enumerate(names))}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
