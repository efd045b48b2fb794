"""Training data of ``bundled:clip-mini``: images with attributes, captions true of them, augmented views.

The labels of an ``ImageSplit`` are attributes here, int64 (N, 4): age group, gender, ethnicity, object.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.nn import functional as F

from anonymizer.bundled.recipes.training import ImageSplit, decode_images, load_split

SIZE = 64
AGES = ("young", "adult", "middle-aged", "old")  # under 30, 30 to 44, 45 to 64, 65 and more
GENDERS = ("man", "woman")
ETHNICITIES = ("white", "black", "asian", "indian")  # the data set's own coding; its 'other' is left unnamed
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FACE_TEMPLATES = ("a photo of {}", "a portrait of {}", "the face of {}", "a close-up of {}")
OBJECT_TEMPLATES = ("a photo of {}", "a picture of {}", "a small photo of {}", "a blurry photo of {}")
ANY = -1  # in an attribute row: does not apply, or has no name; in a caption's row: not mentioned


def load_faces(path: str, split: str) -> ImageSplit:
    """Read the faces of one split at 64 x 64."""
    table = pq.read_table(path, columns=["image", "age", "gender", "ethnicity"], filters=[("split", "==", split)])
    rows = table.to_pylist()
    attributes = [
        (
            sum(row["age"] >= start for start in (30, 45, 65)),
            ("male", "female").index(row["gender"]),
            ETHNICITIES.index(row["ethnicity"]) if row["ethnicity"] in ETHNICITIES else ANY,
            ANY,
        )
        for row in rows
    ]
    images = decode_images([row["image"] for row in rows], SIZE, Image.Resampling.BICUBIC)
    return ImageSplit(images, torch.tensor(attributes))


def load_cifar(path: str, split: str) -> ImageSplit:
    """Read CIFAR-10 of one split at its native 32 x 32."""
    data = load_split(path, split, 32, OBJECTS)
    return ImageSplit(data.images, F.pad(data.labels[:, None], (3, 0), value=ANY))


def format_caption(mentions: Sequence[int], template: str) -> str:
    """Return the caption of four codes; ``ANY`` leaves an attribute out."""
    age, gender, ethnicity, thing = mentions
    if thing != ANY:
        words = [OBJECTS[thing]]
    else:
        words = [AGES[age]] if age != ANY else []
        words += [ETHNICITIES[ethnicity]] if ethnicity != ANY else []
        words += [GENDERS[gender] if gender != ANY else "person"]
    article = "an" if words[0][0] in "aeiou" else "a"
    return template.format(" ".join([article, *words]))


def draw_caption(attributes: Sequence[int], rng: random.Random) -> tuple[str, list[int]]:
    """Return a caption that is true of an image with these attributes, and its mentions (4 codes, or ``ANY``)."""
    if attributes[3] != ANY:
        mentions, templates = [ANY, ANY, ANY, attributes[3]], OBJECT_TEMPLATES
    else:
        chances = zip(attributes, (0.5, 0.8, 0.6), strict=False)
        mentions = [code if rng.random() < chance else ANY for code, chance in chances] + [ANY]
        templates = FACE_TEMPLATES
    return format_caption(mentions, rng.choice(templates)), mentions


def match_captions(attributes: torch.Tensor, mentions: torch.Tensor) -> torch.Tensor:
    """Return whether caption j is true of image i: bool (N, M) from codes (N, 4) and mentions (M, 4)."""
    agrees = (mentions[None] == ANY) | (mentions[None] == attributes[:, None])
    same_kind = (attributes[:, None, 3] == ANY) == (mentions[None, :, 3] == ANY)
    return agrees.all(-1) & same_kind


def augment_views(pixels: torch.Tensor, gen: torch.Generator) -> torch.Tensor:
    """Return an augmented view of each image: uint8 (B, 3, S, S) to (B, 3, 64, 64) in [-1, 1].

    A random crop of 55 to 100 % of the area, a flip, brightness, contrast and saturation, and of one in four each a
    slight blur and noise.
    """
    n = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> torch.Tensor:
        return low + (high - low) * torch.rand(n, *shape, generator=gen)

    side = uniform(0.55, 1.0).sqrt()
    theta = torch.zeros(n, 2, 3)
    theta[:, 0, 0] = side * torch.where(uniform(0, 1) < 0.5, 1.0, -1.0)
    theta[:, 1, 1] = side
    theta[:, :, 2] = uniform(-1, 1, 2) * (1 - side)[:, None]
    grid = F.affine_grid(theta, [n, 3, SIZE, SIZE], align_corners=False)
    x = F.grid_sample(pixels.float() / 127.5 - 1, grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    x = x + uniform(-0.2, 0.2, 1, 1, 1)
    mean = x.mean((1, 2, 3), keepdim=True)
    x = mean + (x - mean) * uniform(0.75, 1.25, 1, 1, 1)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * uniform(0.6, 1.4, 1, 1, 1)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    x = torch.where(uniform(0, 1, 1, 1, 1) < 0.25, blurred, x)
    noise = torch.randn(x.shape, generator=gen) * uniform(0, 0.15, 1, 1, 1)
    x = torch.where(uniform(0, 1, 1, 1, 1) < 0.25, x + noise, x)
    return x.clamp(-1, 1)
