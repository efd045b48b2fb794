"""Recipe of ``bundled:faces-64``: a small diffusion model of 64 x 64 faces that two CPU cores can train.

    python -m anonymizer.bundled.recipes.faces_64 --data faces.parquet --work WORKDIR --minutes 120 [--start FOLDER]

Reads a Parquet file with the columns ``image`` (encoded bytes) and ``split`` (``train`` / ``test``), writes
``WORKDIR/model`` (a diffusers pipeline folder, fp16 safetensors, EMA weights) and ``WORKDIR/training.json``.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DModel

from anonymizer.bundled.recipes.training import Recipe, load_split, parse_arguments, train

SIZE, PATCH = 64, 2


def new_unet() -> UNet2DModel:
    """The network, on pixel-unshuffled input: 3.8 M parameters, attention at 8 x 8 only."""
    return UNet2DModel(
        sample_size=SIZE // PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        block_out_channels=(64, 96, 128),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=16,
    )


def main() -> None:
    args = parse_arguments(__doc__, batch=32, rate=6e-4, ema=0.9995)
    unet = (
        UNet2DModel.from_pretrained(args.start, subfolder="unet", torch_dtype=torch.float32)
        if args.start
        else new_unet()
    )
    recipe = Recipe(unet, PATCH, batch=args.batch, rate=args.rate, ema=args.ema)
    data, test = (load_split(args.data, split, SIZE) for split in ("train", "test"))
    train(recipe, data, test, args.work, args.minutes, from_scratch=args.start is None)


if __name__ == "__main__":
    main()
