"""Inversion: a small network learns from other people's pairs to undo the level (Fantomas, arXiv 2210.10651).

Restored images are attacked like any output; where that succeeds more often, the method was partly reversible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from metrics.attacks.training_pairs import Pairs, hold_out

WIDTHS = (32, 64, 128)  # channels at a half, a quarter and an eighth of the image's side
GROUPS = 8
BATCH = 16
LEARNING_RATE, WEIGHT_DECAY = 2e-3, 1e-4
EVALUATIONS = 10  # of the held-out loss
RESTORE_BATCH = 64  # images restored at once; bounds memory


class Block(nn.Module):
    """Two 3 x 3 convolutions with a residual connection (He et al. 2016)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(
            *[nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)],
            *[nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, channels, 3, padding=1)],
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.as_tensor(self.inner(x))


class Restorer(nn.Module):
    """A residual U-Net (Ronneberger et al. 2015) of 0.9 M parameters, the identity before it is trained.

    Pixels are first folded 2 x 2 into channels: convolutions at full resolution would be costly.
    """

    def __init__(self) -> None:
        super().__init__()
        fine, middle, coarse = WIDTHS
        self.enter = nn.Conv2d(3 * 4, fine, 3, padding=1)
        self.fine_in, self.fine_out = Block(fine), Block(fine)
        self.middle_in, self.middle_out = Block(middle), Block(middle)
        self.coarse = nn.Sequential(Block(coarse), Block(coarse))
        self.down1 = nn.Conv2d(fine, middle, 3, stride=2, padding=1)
        self.down2 = nn.Conv2d(middle, coarse, 3, stride=2, padding=1)
        self.up2, self.up1 = nn.Conv2d(coarse, middle, 1), nn.Conv2d(middle, fine, 1)
        self.leave = nn.Conv2d(fine, 3 * 4, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(torch.as_tensor(self.leave.bias))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (B, 3, H, W) to the same shape; H and W divisible by 4."""
        h1 = self.fine_in(self.enter(F.pixel_unshuffle(x, 2)))  # (B, 32, H / 2, W / 2)
        h2 = self.middle_in(self.down1(h1))  # (B, 64, H / 4, W / 4)
        h3 = self.coarse(self.down2(h2))  # (B, 128, H / 8, W / 8), rounded up
        h2 = self.middle_out(h2 + F.interpolate(self.up2(h3), h2.shape[-2:]))
        h1 = self.fine_out(h1 + F.interpolate(self.up1(h2), h1.shape[-2:]))
        return x + F.pixel_shuffle(self.leave(F.silu(h1)), 2)


@dataclass(frozen=True)
class Inverter:
    """A trained attacker. ``losses``: mean absolute error on held-out pairs by step; step 0 is the output as it is."""

    network: Restorer
    losses: Mapping[int, float]

    @property
    def has_improved(self) -> bool:
        """Whether training brought outputs closer to originals; if not, the network is the identity."""
        return min(self.losses.values()) < self.losses[0]

    @torch.inference_mode()
    def restore(self, outputs: torch.Tensor) -> torch.Tensor:
        """Return guessed originals of outputs (N, 3, H, W) in [-1, 1], sides divisible by 4. Raises ValueError."""
        _check_shape(outputs)
        device = next(self.network.parameters()).device
        parts = [self.network(x.to(device, torch.float32)).clamp(-1, 1) for x in outputs.split(RESTORE_BATCH)]
        return torch.cat(parts).to(outputs.device)


def train(
    pairs: Pairs, rng: np.random.Generator, steps: int = 400, progress: Callable[[int], None] = lambda done: None
) -> Inverter:
    """Train a network to map the outputs of ``pairs`` to their originals: L1 loss, batches of 16, random flips.

    Nobody is both trained on and held out. The network with the lowest held-out loss of ten evaluations, the first of
    which is the identity, is returned. ``progress`` receives 1 after each step. Runs on the device of the pairs. At
    64 x 64 with 256 pairs, 400 steps take 51 s and 0.9 GB on one thread of a server processor.
    """
    _check_shape(pairs.outputs)
    if steps < 1:
        raise ValueError(f"steps must be 1 or more, got {steps}: leave the attack out instead")
    held_out = hold_out(range(len(pairs)) if pairs.people is None else pairs.people, rng)  # (n,)
    learn, judge = pairs[~held_out], pairs[held_out]
    network = _initialise(rng).to(pairs.outputs.device)
    adam = torch.optim.AdamW(network.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    rates = torch.optim.lr_scheduler.OneCycleLR(adam, LEARNING_RATE, total_steps=steps + 1)

    losses, best = {0: _loss(network, judge)}, deepcopy(network.state_dict())
    for step in range(1, steps + 1):
        batch = _flip_at_random(learn[rng.integers(0, len(learn), BATCH)], rng)
        adam.zero_grad()
        F.l1_loss(network(batch.outputs), batch.originals).backward()
        adam.step()
        rates.step()
        if step % math.ceil(steps / EVALUATIONS) == 0 or step == steps:
            losses[step] = _loss(network, judge)
            if losses[step] == min(losses.values()):
                best = deepcopy(network.state_dict())
        progress(1)
    network.load_state_dict(best)
    return Inverter(network.eval().requires_grad_(False), losses)


def _check_shape(images: torch.Tensor) -> None:
    if images.ndim != 4 or images.shape[1] != 3 or any(side % 4 for side in images.shape[2:]):
        raise ValueError(f"outputs must be (N, 3, H, W) with sides divisible by 4, got {tuple(images.shape)}: pad them")


def _initialise(rng: np.random.Generator) -> Restorer:
    """Return a network with weights drawn from ``rng``; torch's global generator is restored."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(rng.integers(2**62)))
        return Restorer()


def _flip_at_random(pairs: Pairs, rng: np.random.Generator) -> Pairs:
    """Mirror both images of each pair with probability 1/2."""
    turn = torch.from_numpy(rng.random(len(pairs)) < 0.5).to(pairs.outputs.device)[:, None, None, None]
    originals, outputs = (torch.where(turn, x.flip(-1), x) for x in (pairs.originals, pairs.outputs))
    return Pairs(originals, outputs, pairs.people)


@torch.no_grad()
def _loss(network: Restorer, pairs: Pairs) -> float:
    """Return the mean absolute error of restored images."""
    parts = zip(pairs.outputs.split(RESTORE_BATCH), pairs.originals.split(RESTORE_BATCH), strict=True)
    return sum(float((network(y).clamp(-1, 1) - x).abs().mean()) * len(x) for y, x in parts) / len(pairs)
