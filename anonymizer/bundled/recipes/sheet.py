"""The sheet in a model card: people the model invented, and local samples of them at rising levels.

    python -m anonymizer.bundled.recipes.sheet --model bundled:faces-64 --out sheet.png

The originals are inventions of the same model (level 1), so the sheet shows nobody who exists.
"""

from __future__ import annotations

import argparse

import torch
from PIL import Image, ImageDraw, ImageFont

from anonymizer.backbones import load_backbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import ModelConfig
from anonymizer.noise import KeyedNoise

LEVELS = (0.2, 0.4, 0.6, 0.8, 1.0)
MARGIN = 110  # pixels, for the names of the rows


def rows(model: str, people: int, steps: int) -> dict[str, torch.Tensor]:
    """Name of each row -> pictures (people, 3, H, W) in [-1, 1]."""
    backbone = load_backbone(ModelConfig(id=model))
    boomerang = Boomerang(backbone, "sde-dpm++", steps)
    inventions = KeyedNoise([i.to_bytes(16, "big") for i in range(people)])
    blank = torch.zeros(people, 3, backbone.size, backbone.size)
    originals = boomerang.sample(blank, 1.0, inventions)
    sheet = {"invented": originals}
    for level in LEVELS:
        sheet[f"level {level:g}"] = boomerang.sample(originals, level, inventions.sample(1))
    return sheet


def draw(sheet: dict[str, torch.Tensor], scale: int = 2) -> Image.Image:
    """One picture: a row for each entry, its name on the left."""
    people, size = len(next(iter(sheet.values()))), next(iter(sheet.values())).shape[-1] * scale
    out = Image.new("RGB", (MARGIN + people * size, len(sheet) * size), "white")
    pen, font = ImageDraw.Draw(out), ImageFont.load_default(18)
    for r, (name, pictures) in enumerate(sheet.items()):
        pen.text((10, r * size + size // 2), name, "black", font, anchor="lm")
        for c, picture in enumerate(pictures):
            levels = ((picture.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().numpy()
            out.paste(
                Image.fromarray(levels).resize((size, size), Image.Resampling.BICUBIC), (MARGIN + c * size, r * size)
            )
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled:faces-64")
    parser.add_argument("--out", required=True)
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    draw(rows(args.model, args.people, args.steps)).save(args.out)


if __name__ == "__main__":
    main()
