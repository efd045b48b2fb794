"""The held-out figures of ``bundled:clip-mini``'s model card, as Markdown tables.

    python -m anonymizer.bundled.recipes.clip_mini_evaluation --model FOLDER --faces faces.parquet
        --cifar cifar10.parquet [--people FOLDER]

``--people``: a folder for each person with that person's photos (AT&T's database of faces, for example).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from anonymizer.bundled.recipes import clip_mini_data as data

Z = 1.96  # 95 %


def format_share(hits: int, n: int) -> str:
    """A share with its 95 % Wilson interval."""
    p, centre = hits / n, (hits + Z**2 / 2) / (n + Z**2)
    half = Z / (n + Z**2) * math.sqrt(n * p * (1 - p) + Z**2 / 4)
    return f"{p:.3f} | {centre - half:.3f} to {centre + half:.3f} | {n}"


def format_mean(values: torch.Tensor) -> str:
    """A mean with its 95 % interval (normal), then the middle 90 % of the values."""
    half = Z * values.std() / len(values) ** 0.5
    low, high = values.quantile(torch.tensor([0.05, 0.95])).tolist()
    mean = values.mean()
    return f"{mean:.3f} | {mean - half:.3f} to {mean + half:.3f} | {low:.2f} to {high:.2f} | {len(values)}"


@torch.inference_mode()
def embed(model: Any, images: torch.Tensor) -> torch.Tensor:
    """(N, 3, 64, 64) in [-1, 1] to (N, D) of unit norm; the model was trained on that range."""
    return torch.cat([model.encode_image(part, normalize=True) for part in images.split(250)])


@torch.inference_mode()
def embed_classes(model: Any, tokenizer: Any, rows: Sequence[Sequence[int]], templates: Sequence[str]) -> torch.Tensor:
    """One text embedding (D,) for each row of codes: the mean over templates."""
    parts = [
        model.encode_text(tokenizer([data.format_caption(row, t) for t in templates]), normalize=True) for row in rows
    ]
    return F.normalize(torch.stack([part.mean(0) for part in parts]), dim=-1)


def zero_shot(images: torch.Tensor, texts: torch.Tensor, codes: torch.Tensor) -> str:
    known = codes != data.ANY
    found = (images[known] @ texts.T).argmax(1)
    return format_share(int((found == codes[known]).sum()), int(known.sum()))


def blur(x: torch.Tensor, sigma: float) -> torch.Tensor:
    radius = math.ceil(3 * sigma)
    row = torch.exp(-(torch.arange(-radius, radius + 1) ** 2) / (2 * sigma**2))
    kernel = (torch.outer(row, row) / row.sum() ** 2).expand(3, 1, -1, -1)
    return F.conv2d(F.pad(x, (radius,) * 4, mode="reflect"), kernel, groups=3)


def pair_strangers(attributes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Disjoint pairs of rows with equal attributes."""
    left: list[int] = []
    right: list[int] = []
    for kind in attributes.unique(dim=0):
        rows = (attributes == kind).all(1).nonzero().flatten().tolist()
        left += rows[0 : len(rows) // 2 * 2 : 2]
        right += rows[1::2]
    return torch.tensor(left), torch.tensor(right)


def compare_people(model: Any, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean similarity of each person's first photo to that person's others, and to other first photos; (P,) each."""
    same, first = [], []
    for person in sorted(p for p in folder.iterdir() if p.is_dir()):
        photos = []
        for path in sorted(person.iterdir()):
            picture = Image.open(path).convert("RGB")
            side, (w, h) = min(picture.size), picture.size
            box = ((w - side) // 2, (h - side) // 2, (w + side) // 2, (h + side) // 2)
            picture = picture.crop(box).resize((data.SIZE, data.SIZE), Image.Resampling.BICUBIC)
            pixels = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).view(data.SIZE, data.SIZE, 3)
            photos.append(pixels.permute(2, 0, 1) / 127.5 - 1)
        found = embed(model, torch.stack(photos))
        same.append((found[1:] @ found[0]).mean())
        first.append(found[0])
    others = torch.stack(first) @ torch.stack(first).T
    return torch.stack(same), (others.sum(1) - 1) / (len(first) - 1)


def main() -> None:
    import open_clip

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="a folder in open_clip's format")
    parser.add_argument("--faces", required=True)
    parser.add_argument("--cifar", required=True)
    parser.add_argument("--people", type=Path)
    args = parser.parse_args()
    model, _, _ = open_clip.create_model_and_transforms(f"local-dir:{args.model}")
    tokenizer = open_clip.get_tokenizer(f"local-dir:{args.model}")
    model.eval().requires_grad_(False)
    faces, objects = data.load_faces(args.faces, "test"), data.load_cifar(args.cifar, "test")
    x = faces.pixels / 127.5 - 1
    small = objects.pixels / 127.5 - 1
    y = F.interpolate(small, (data.SIZE, data.SIZE), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    fx, fy, gen = embed(model, x), embed(model, y), torch.Generator().manual_seed(7)
    no = data.ANY

    print("| held out | share right | 95 % interval | n |\n|---|---|---|---|")
    texts = embed_classes(model, tokenizer, [(no, no, no, i) for i in range(len(data.OBJECTS))], data.OBJECT_TEMPLATES)
    print("| zero-shot class, CIFAR-10 test (10 classes) |", zero_shot(fy, texts, objects.attributes[:, 3]), "|")
    texts = embed_classes(model, tokenizer, [(no, i, no, no) for i in range(len(data.GENDERS))], data.FACE_TEMPLATES)
    print("| zero-shot gender, faces test (2 classes) |", zero_shot(fx, texts, faces.attributes[:, 1]), "|")
    texts = embed_classes(
        model, tokenizer, [(no, no, i, no) for i in range(len(data.ETHNICITIES))], data.FACE_TEMPLATES
    )
    print("| zero-shot ethnicity, faces test (4 named classes) |", zero_shot(fx, texts, faces.attributes[:, 2]), "|")
    for name, pixels, gallery in (("faces", faces.pixels, fx), ("CIFAR-10", objects.pixels[:1500], fy[:1500])):
        queries = torch.cat([embed(model, data.augment_views(part, gen)) for part in pixels.split(250)])
        hits = int(((queries @ gallery.T).argmax(1) == torch.arange(len(gallery))).sum())
        print(
            f"| an augmented picture finds its original among {len(gallery)}, {name} test |",
            format_share(hits, len(gallery)),
            "|",
        )

    print("\n| faces test, original and | mean similarity | 95 % interval | middle 90 % | n |\n|---|---|---|---|---|")
    print("| its mirror image |", format_mean((fx * embed(model, x.flip(-1))).sum(1)), "|")
    for sigma in (1.0, 2.0, 4.0):
        print(
            f"| itself blurred, sigma {sigma:g} pixels |", format_mean((fx * embed(model, blur(x, sigma))).sum(1)), "|"
        )
    for strength in (0.1, 0.2, 0.4, 0.8):
        spoilt = (x + strength * torch.randn(x.shape, generator=gen)).clamp(-1, 1)
        print(
            f"| itself with noise, sigma {strength:g} on [-1, 1] |",
            format_mean((fx * embed(model, spoilt)).sum(1)),
            "|",
        )
    left, right = pair_strangers(faces.attributes)
    print(
        "| another person of the same age group, gender, ethnicity |", format_mean((fx[left] * fx[right]).sum(1)), "|"
    )
    half = len(fx) // 2
    order = torch.randperm(len(fx), generator=gen)
    print("| another person |", format_mean((fx[order[:half]] * fx[order[half : 2 * half]]).sum(1)), "|")
    print(
        "| a CIFAR-10 picture |", format_mean((fx * fy[torch.randperm(len(fy), generator=gen)[: len(fx)]]).sum(1)), "|"
    )
    if args.people:
        same, others = compare_people(model, args.people)
        print("| (grey photos, one value a person) another photo of the same person |", format_mean(same), "|")
        print("| (grey photos, one value a person) other persons |", format_mean(others), "|")


if __name__ == "__main__":
    main()
