"""Recipe of ``bundled:cifar10-32``: a small class-conditional diffusion model of 32 x 32 pictures, for two CPU cores.

    python -m anonymizer.bundled.recipes.cifar10_32 --data cifar10.parquet --work WORKDIR --minutes 80 [--start FOLDER]

Reads a Parquet file with the columns ``image`` (encoded bytes), ``label`` (a name) and ``split`` (``train`` /
``test``), writes ``WORKDIR/model`` (a diffusers pipeline folder, fp16 safetensors, EMA weights) and
``WORKDIR/training.json``. One label in seven is dropped, so that the model serves without labels and with guidance.
"""

from __future__ import annotations

import torch
from diffusers import UNet2DModel

from anonymizer.bundled.recipes.training import Recipe, load_split, parse_arguments, train

SIZE, PATCH = 32, 2
NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def new_unet() -> UNet2DModel:
    """The network, on pixel-unshuffled input: 8.3 M parameters, attention at 8 x 8 and 4 x 4."""
    return UNet2DModel(
        sample_size=SIZE // PATCH,
        in_channels=3 * PATCH**2,
        out_channels=3 * PATCH**2,
        block_out_channels=(96, 128, 192),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=32,
        norm_num_groups=16,
        num_class_embeds=len(NAMES) + 1,
    )


def main() -> None:
    args = parse_arguments(__doc__, batch=64, rate=8e-4, ema=0.999)
    unet = (
        UNet2DModel.from_pretrained(args.start, subfolder="unet", torch_dtype=torch.float32)
        if args.start
        else new_unet()
    )
    recipe = Recipe(unet, PATCH, NAMES, label_dropout=1 / 7, batch=args.batch, rate=args.rate, ema=args.ema)
    data, test = (load_split(args.data, split, SIZE, NAMES) for split in ("train", "test"))
    train(recipe, data, test, args.work, args.minutes, from_scratch=args.start is None)


if __name__ == "__main__":
    main()
