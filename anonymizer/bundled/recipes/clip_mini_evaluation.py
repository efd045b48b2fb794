"""Held-out figures of ``bundled:clip-mini``'s model card, as Markdown tables.

    python -m anonymizer.bundled.recipes.clip_mini_evaluation --model FOLDER --faces FILE --cifar FILE [--people FOLDER]

``--people``: a folder for each person with that person's photos (AT&T's database of faces, for example).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageOps
from scipy.stats import binomtest
from torch.nn import functional as F
from torchvision.transforms.functional import gaussian_blur, pil_to_tensor

from anonymizer.bundled.recipes import clip_mini_data as data

Z = 1.96  # 95 %


def format_share(hits: int, n: int) -> str:
    """Return a share with its 95 % Wilson interval."""
    interval = binomtest(hits, n).proportion_ci(method="wilson")
    return f"{hits / n:.3f} | {interval.low:.3f} to {interval.high:.3f} | {n}"


def format_mean(values: torch.Tensor) -> str:
    """Return a mean with its 95 % interval (normal), then the middle 90 % of the values."""
    mean, half = values.mean(), Z * values.std() / len(values) ** 0.5
    low, high = values.quantile(torch.tensor([0.05, 0.95])).tolist()
    return f"{mean:.3f} | {mean - half:.3f} to {mean + half:.3f} | {low:.2f} to {high:.2f} | {len(values)}"


@torch.inference_mode()
def embed(model: Any, images: torch.Tensor) -> torch.Tensor:
    """Embed (N, 3, 64, 64) in [-1, 1], the range of the training, to (N, D) of unit norm."""
    return torch.cat([model.encode_image(part, normalize=True) for part in images.split(250)])


@torch.inference_mode()
def embed_classes(model: Any, tokenizer: Any, column: int, count: int, templates: Sequence[str]) -> torch.Tensor:
    """Embed the ``count`` values of an attribute (count, D): for each the mean over templates."""
    rows = [[value if i == column else data.ANY for i in range(4)] for value in range(count)]
    texts = [tokenizer([data.format_caption(row, template) for template in templates]) for row in rows]
    return F.normalize(torch.stack([model.encode_text(text, normalize=True).mean(0) for text in texts]), dim=-1)


def zero_shot(images: torch.Tensor, texts: torch.Tensor, codes: torch.Tensor) -> str:
    """Return the share of images (N, D) whose nearest text (K, D) is the one of their code (N,), where it is known."""
    known = codes != data.ANY
    predicted = (images[known] @ texts.T).argmax(1)
    return format_share(int((predicted == codes[known]).sum()), int(known.sum()))


def pair_strangers(attributes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return disjoint pairs of rows with equal attributes."""
    left: list[int] = []
    right: list[int] = []
    for kind in attributes.unique(dim=0):
        rows = (attributes == kind).all(1).nonzero().flatten().tolist()
        left += rows[0 : len(rows) // 2 * 2 : 2]
        right += rows[1::2]
    return torch.tensor(left), torch.tensor(right)


def compare_people(model: Any, folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the mean similarity of each first photo (P,) to the person's others, and to other people's first ones."""
    same, first = [], []
    for person in sorted(path for path in folder.iterdir() if path.is_dir()):
        photos = [
            pil_to_tensor(
                ImageOps.fit(Image.open(path).convert("RGB"), (data.SIZE, data.SIZE), Image.Resampling.BICUBIC)
            )
            for path in sorted(person.iterdir())
        ]
        embeddings = embed(model, torch.stack(photos) / 127.5 - 1)
        same.append((embeddings[1:] @ embeddings[0]).mean())
        first.append(embeddings[0])
    similarity = torch.stack(first) @ torch.stack(first).T
    return torch.stack(same), (similarity.sum(1) - 1) / (len(first) - 1)


def main() -> None:
    """Print both tables."""
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
    x = faces.images / 127.5 - 1
    small = objects.images / 127.5 - 1
    y = F.interpolate(small, (data.SIZE, data.SIZE), mode="bicubic", antialias=True, align_corners=False).clamp(-1, 1)
    fx, fy, gen = embed(model, x), embed(model, y), torch.Generator().manual_seed(7)

    print("| held out | share right | 95 % interval | n |\n|---|---|---|---|")
    for title, column, images, codes, count, templates in (
        ("class, CIFAR-10 test (10 classes)", 3, fy, objects, len(data.OBJECTS), data.OBJECT_TEMPLATES),
        ("gender, faces test (2 classes)", 1, fx, faces, len(data.GENDERS), data.FACE_TEMPLATES),
        ("ethnicity, faces test (4 named classes)", 2, fx, faces, len(data.ETHNICITIES), data.FACE_TEMPLATES),
    ):
        texts = embed_classes(model, tokenizer, column, count, templates)
        print(f"| zero-shot {title} |", zero_shot(images, texts, codes.labels[:, column]), "|")
    for name, pixels, gallery in (("faces", faces.images, fx), ("CIFAR-10", objects.images[:1500], fy[:1500])):
        queries = torch.cat([embed(model, data.augment_views(part, gen)) for part in pixels.split(250)])
        hits = int(((queries @ gallery.T).argmax(1) == torch.arange(len(gallery))).sum())
        title = f"an augmented picture finds its original among {len(gallery)}, {name} test"
        print(f"| {title} |", format_share(hits, len(gallery)), "|")

    print("\n| faces test, original and | mean similarity | 95 % interval | middle 90 % | n |\n|---|---|---|---|---|")

    def print_similarity(title: str, similarity: torch.Tensor) -> None:
        print(f"| {title} |", format_mean(similarity), "|")

    print_similarity("its mirror image", (fx * embed(model, x.flip(-1))).sum(1))
    for sigma in (1.0, 2.0, 4.0):
        blurred = gaussian_blur(x, 2 * math.ceil(3 * sigma) + 1, sigma)
        print_similarity(f"itself blurred, sigma {sigma:g} pixels", (fx * embed(model, blurred)).sum(1))
    for strength in (0.1, 0.2, 0.4, 0.8):
        noisy = (x + strength * torch.randn(x.shape, generator=gen)).clamp(-1, 1)
        print_similarity(f"itself with noise, sigma {strength:g} on [-1, 1]", (fx * embed(model, noisy)).sum(1))
    left, right = pair_strangers(faces.labels)
    print_similarity("another person of the same age group, gender, ethnicity", (fx[left] * fx[right]).sum(1))
    half = len(fx) // 2
    order = torch.randperm(len(fx), generator=gen)
    print_similarity("another person", (fx[order[:half]] * fx[order[half : 2 * half]]).sum(1))
    print_similarity("a CIFAR-10 picture", (fx * fy[torch.randperm(len(fy), generator=gen)[: len(fx)]]).sum(1))
    if args.people:
        same, others = compare_people(model, args.people)
        print_similarity("(grey photos, one value a person) another photo of the same person", same)
        print_similarity("(grey photos, one value a person) other persons", others)


if __name__ == "__main__":
    main()
