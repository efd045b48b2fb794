"""Draw a sheet of groups of people that the model made up: members, their mean, and outputs at several levels.

python benchmarks/protection_pictures.py docs/images/groups.png
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from protection_outputs import Pair, draw_outputs

from anonymizer.backbones import load_backbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import ModelConfig
from anonymizer.grouping.groups import group_records
from metrics.features.embedder import embed_in_batches
from metrics.features.image_features import Pixels

SHOWN, GAP, LINE = 5, 6, 14  # members shown of each group; pixels


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--people", type=int, default=240, help="made up by the model, as originals")
    parser.add_argument("--k", type=int, default=10)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--levels", type=float, nargs="*", default=(0.4, 0.65, 0.8, 0.9))
    parser.add_argument("--model", default="bundled:faces-64")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(arguments)
    boomerang = Boomerang(load_backbone(ModelConfig(id=args.model)), "sde-dpm++", args.steps)
    size, everyone = boomerang.backbone.size, np.arange(args.people)[:, None]
    nobody = torch.zeros(args.people, 3, size, size)
    drawn = draw_outputs(boomerang, nobody, everyone, Pair(1, 1.0, "one"), args.seed)[:, 0]
    people = drawn / 127.5 - 1
    digests = np.array([f"{number:06}" for number in range(args.people)], np.bytes_)
    features = embed_in_batches(Pixels(), people)
    groups = np.array(group_records(features, digests, args.k, np.random.default_rng(args.seed)).groups)[: args.groups]
    mean = ((boomerang.backbone.decode(boomerang.mean(people[torch.from_numpy(groups)])) + 1) * 127.5).round().byte()
    outputs = [
        draw_outputs(boomerang, people, groups, Pair(args.k, level, "one"), args.seed)[:, 0] for level in args.levels
    ]
    columns = [*drawn[torch.from_numpy(groups[:, :SHOWN])].unbind(1), mean, *outputs]
    titles = [f"{SHOWN} of {args.k}", *[""] * (SHOWN - 1), "mean", *(f"{level:g}" for level in args.levels)]
    draw_sheet(columns, titles, size).save(args.file, optimize=True)


def draw_sheet(columns: Sequence[torch.Tensor], titles: Sequence[str], size: int) -> Image.Image:
    """Return a picture of columns (G, 3, S, S), uint8, side by side under their titles."""
    rows, step = len(columns[0]), size + GAP
    sheet = Image.new("RGB", (len(columns) * step, LINE + rows * step), "white")
    pen = ImageDraw.Draw(sheet)
    for x, (title, column) in enumerate(zip(titles, columns, strict=True)):
        pen.text((x * step, 0), title, fill="black")
        for y, picture in enumerate(column):
            sheet.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), (x * step, LINE + y * step))
    return sheet


if __name__ == "__main__":
    main()
