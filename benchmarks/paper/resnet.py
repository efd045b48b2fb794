"""Small residual network for images of 32 x 32, and its training recipe: one core, one minute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from common import Pictures, Workspace, digest, to_floats
from torch import nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Recipe:
    """SGD with Nesterov's momentum in one cycle: the rate rises in a line, then falls as a cosine.

    ``base`` steps are taken on 10,000 pictures, and as many times the root of the ratio on other numbers of them.
    ``augmented``: random crops after padding by ``pad`` pixels of grey, and flips.
    """

    widths: tuple[int, ...] = (32, 64, 128)
    base: int = 1600
    batch: int = 128
    rate: float = 0.2
    warm_up: float = 0.2
    momentum: float = 0.9
    decay: float = 2e-3
    pad: int = 4
    augmented: bool = True
    dtype: str = "bfloat16"

    def steps(self, pictures: int) -> int:
        return max(1, round(self.base * math.sqrt(pictures / 10_000)))

    def learning_rate(self, done: float) -> float:
        """The learning rate after a share of the steps."""
        if done < self.warm_up:
            return self.rate * done / self.warm_up
        return self.rate * (1 + math.cos(math.pi * (done - self.warm_up) / (1 - self.warm_up))) / 2

    @property
    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


class Block(nn.Module):
    """Two convolutions and a shortcut (He et al. 2016)."""

    def __init__(self, width: int, wider: int, stride: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            nn.Conv2d(width, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider), nn.ReLU(),
            nn.Conv2d(wider, wider, 3, 1, 1, bias=False), nn.BatchNorm2d(wider),
        )  # fmt: skip
        same = width == wider and stride == 1
        self.shortcut = nn.Identity() if same else nn.Conv2d(width, wider, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = F.relu(self.inner(x) + self.shortcut(x))
        return out


def make_network(classes: int, widths: Sequence[int]) -> nn.Sequential:
    """Return a stem that halves the sides, and a block for each width, of which all but the first halve them again."""
    stem = [nn.Conv2d(3, widths[0], 3, 2, 1, bias=False), nn.BatchNorm2d(widths[0]), nn.ReLU()]
    blocks = [
        Block(width, wider, 1 if number == 0 else 2)
        for number, (width, wider) in enumerate(zip((widths[0], *widths), widths, strict=False))
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[-1], classes)]
    return nn.Sequential(*stem, *blocks, *head).to(memory_format=torch.channels_last)


def train(sets: Sequence[Pictures], recipe: Recipe, steps: int, seed: int, device: torch.device) -> nn.Sequential:
    """Return the network after ``steps``; each batch takes equal shares of all ``sets``."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = make_network(len(sets[0].names), recipe.widths).to(device).train()
    gen = torch.Generator().manual_seed(seed)
    share = recipe.batch // len(sets)
    turns = [draw_rows(len(pictures), share, steps, gen) for pictures in sets]  # (steps, share) each
    optimizer = torch.optim.SGD(
        model.parameters(), recipe.rate, momentum=recipe.momentum, weight_decay=recipe.decay, nesterov=True
    )
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = recipe.learning_rate((step + 1) / steps)
        x = torch.cat([to_floats(pictures.pixels[turn[step]]) for pictures, turn in zip(sets, turns, strict=True)]) * 2
        y = torch.cat([pictures.labels[turn[step]] for pictures, turn in zip(sets, turns, strict=True)]).to(device)
        x = augment(x, recipe.pad, gen) if recipe.augmented else x
        with autocast(device, recipe.dtype):
            out = model(x.to(device, memory_format=torch.channels_last))
        F.cross_entropy(out.float(), y).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def draw_rows(count: int, share: int, steps: int, gen: torch.Generator) -> torch.Tensor:
    """Return indices (steps, share) of ``count`` images, each seen once before any is seen again."""
    turns = -(-share * steps // count)
    return torch.cat([torch.randperm(count, generator=gen) for _ in range(turns)])[: share * steps].view(steps, share)


def augment(x: torch.Tensor, pad: int, gen: torch.Generator) -> torch.Tensor:
    """Pad (B, 3, H, W) with grey, crop and flip at random."""
    count, _, height, width = x.shape
    top, left = (torch.randint(0, 2 * pad + 1, (count, 1), generator=gen) for _ in range(2))
    across = torch.arange(width).expand(count, width)
    across = torch.where(torch.rand(count, 1, generator=gen) < 0.5, across.flip(1), across) + left
    down = torch.arange(height) + top  # (B, H)
    padded = F.pad(x, (pad,) * 4).permute(0, 2, 3, 1)  # (B, H + 2 pad, W + 2 pad, 3)
    cropped = padded[torch.arange(count)[:, None, None], down[:, :, None], across[:, None, :]]
    return cropped.permute(0, 3, 1, 2)


@torch.inference_mode()
def accuracy(model: nn.Module, test: Pictures, recipe: Recipe, device: torch.device) -> float:
    """Return the share of images whose class is the first choice."""
    right = 0
    for x, y in zip(test.pixels.split(500), test.labels.split(500), strict=True):
        with autocast(device, recipe.dtype):
            out = model((to_floats(x) * 2).to(device, memory_format=torch.channels_last))
        right += int((out.argmax(1).cpu() == y).sum())
    return right / len(test)


def autocast(device: torch.device, dtype: str) -> torch.autocast:
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16")


def train_and_test(
    work: Workspace, sets: Sequence[Pictures], test: Pictures, recipe: Recipe, seed: int, device: torch.device
) -> dict[str, Any]:
    """Return ``accuracy`` after training on the sets, in as many steps as for the first set only; cached."""
    steps = recipe.steps(len(sets[0]))
    key = {
        "sets": [digest(pictures.pixels) for pictures in sets], "test": digest(test.pixels), "recipe": recipe.as_dict,
        "steps": steps, "seed": seed, "device": device.type,
    }  # fmt: skip

    def make() -> dict[str, Any]:
        model = train(sets, recipe, steps, seed, device)
        return {"accuracy": accuracy(model, test, recipe, device)}

    return work.cached_result("training", key, make)
