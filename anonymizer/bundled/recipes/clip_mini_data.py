"""What ``bundled:clip-mini`` is trained on: pictures with attributes, captions true of them, augmented views."""

from __future__ import annotations

import io
import random
from collections.abc import Sequence
from dataclasses import dataclass

import pyarrow.parquet as pq
import torch
from PIL import Image
from torch.nn import functional as F

SIZE = 64
AGES = ("young", "adult", "middle-aged", "old")  # under 30, 30 to 44, 45 to 64, 65 and more
GENDERS = ("man", "woman")
ETHNICITIES = ("white", "black", "asian", "indian")  # the data set's own coding; its 'other' is left unnamed
OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
FACE_TEMPLATES = ("a photo of {}", "a portrait of {}", "the face of {}", "a close-up of {}")
OBJECT_TEMPLATES = ("a photo of {}", "a picture of {}", "a small photo of {}", "a blurry photo of {}")
ANY = -1  # in an attribute row: does not apply, or has no name; in a caption's row: not mentioned


@dataclass(frozen=True)
class AttributedImages:
    """Pixels uint8 (N, 3, S, S) and attributes int64 (N, 4): age group, gender, ethnicity, object."""

    pixels: torch.Tensor
    attributes: torch.Tensor

    def __len__(self) -> int:
        return len(self.pixels)


def load_faces(path: str, split: str) -> AttributedImages:
    """Faces of one split at 64 x 64."""
    table = pq.read_table(path, columns=["image", "age", "gender", "ethnicity"], filters=[("split", "==", split)])
    rows = table.to_pylist()
    genders, names = ("male", "female"), ETHNICITIES
    attributes = [
        (
            sum(row["age"] >= start for start in (30, 45, 65)),
            genders.index(row["gender"]),
            names.index(row["ethnicity"]) if row["ethnicity"] in names else ANY,
            ANY,
        )
        for row in rows
    ]
    return AttributedImages(_pixels([row["image"] for row in rows], SIZE), torch.tensor(attributes))


def load_cifar(path: str, split: str) -> AttributedImages:
    """CIFAR-10 of one split at its native 32 x 32."""
    rows = pq.read_table(path, columns=["image", "label"], filters=[("split", "==", split)]).to_pylist()
    attributes = [(ANY, ANY, ANY, OBJECTS.index(row["label"])) for row in rows]
    return AttributedImages(_pixels([row["image"] for row in rows], 32), torch.tensor(attributes))


def _pixels(encoded: Sequence[bytes], size: int) -> torch.Tensor:
    out = torch.empty(len(encoded), 3, size, size, dtype=torch.uint8)
    for i, data in enumerate(encoded):
        picture = Image.open(io.BytesIO(data)).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
        out[i] = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(size, size, 3).permute(2, 0, 1)
    return out


def format_caption(mentions: Sequence[int], template: str) -> str:
    """One caption from four codes; ``ANY`` leaves an attribute out."""
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
    """A caption that is true of a picture with these attributes, and what it mentions (4 codes, or ``ANY``)."""
    age, gender, ethnicity, thing = attributes
    if thing != ANY:
        said = [ANY, ANY, ANY, thing]
        return format_caption(said, rng.choice(OBJECT_TEMPLATES)), said
    said = [
        age if rng.random() < 0.5 else ANY,
        gender if rng.random() < 0.8 else ANY,
        ethnicity if rng.random() < 0.6 else ANY,
        ANY,
    ]
    return format_caption(said, rng.choice(FACE_TEMPLATES)), said


def match_captions(attributes: torch.Tensor, mentions: torch.Tensor) -> torch.Tensor:
    """Whether caption j is true of picture i: bool (N, M) from codes (N, 4) and mentions (M, 4)."""
    agrees = (mentions[None] == ANY) | (mentions[None] == attributes[:, None])
    same_kind = (attributes[:, None, 3] == ANY) == (mentions[None, :, 3] == ANY)
    return agrees.all(-1) & same_kind


def augment_views(pixels: torch.Tensor, gen: torch.Generator) -> torch.Tensor:
    """One augmented view of each picture: uint8 (B, 3, S, S) to (B, 3, 64, 64) in [-1, 1].

    A random crop of 55 to 100 % of the area, a flip, brightness, contrast and saturation, and now and then a slight
    blur or noise.
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
