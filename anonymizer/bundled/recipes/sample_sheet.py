"""The sheet in a model card: what the model invented, and local samples of that at rising levels.

    python -m anonymizer.bundled.recipes.sample_sheet --model bundled:faces-64 --out sheet.png

The originals are inventions of the same model (level 1), so the sheet shows nothing that exists. A
model that knows classes is told another one in each column.
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


def sample_rows(model: str, columns: int, steps: int, guidance: float) -> dict[str, torch.Tensor]:
    """Name of each row -> pictures (columns, 3, H, W) in [-1, 1]."""
    backbone = load_backbone(ModelConfig(id=model, guidance=guidance))
    told = backbone.condition([str(i) for i in range(columns)]) if backbone.condition_kind == "class" else None
    boomerang = Boomerang(backbone, "sde-dpm++", steps)
    inventions = KeyedNoise([i.to_bytes(16, "big") for i in range(columns)])
    blank = torch.zeros(columns, 3, backbone.size, backbone.size)
    originals = boomerang.sample(blank, 1.0, inventions, told)
    sheet = {"invented": originals}
    for level in LEVELS:
        sheet[f"level {level:g}"] = boomerang.sample(originals, level, inventions.sample(1), told)
    return sheet


def draw_sheet(sheet: dict[str, torch.Tensor], scale: int = 2) -> Image.Image:
    """One picture: a row for each entry, its name on the left."""
    columns, size = len(next(iter(sheet.values()))), next(iter(sheet.values())).shape[-1] * scale
    out = Image.new("RGB", (MARGIN + columns * size, len(sheet) * size), "white")
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
    parser.add_argument("--columns", type=int, default=12)
    parser.add_argument("--guidance", type=float, default=1.0)
    parser.add_argument("--scale", type=int, default=2)
    parser.add_argument("--steps", type=int, default=40)
    args = parser.parse_args()
    draw_sheet(sample_rows(args.model, args.columns, args.steps, args.guidance), args.scale).save(args.out)


if __name__ == "__main__":
    main()
