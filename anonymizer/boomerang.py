"""Boomerang local sampling (Luzi et al., TMLR 2024, arXiv 2210.12100): noise an image up to t_boom, and denoise it.

Letters are the paper's: ``t`` runs from 1 to T, ``abar[t]`` is the cumulative product of ``1 - beta``, ``abar[0] = 1``.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch

from anonymizer.backbones.protocol import Backbone
from anonymizer.noise import FORWARD, Noise
from anonymizer.samplers import NO_SIGNAL, SAMPLERS, make_stepper


class Boomerang:
    """Local sampling with any diffusion model.

    ``sampler`` is ``ddpm`` (Algorithm 1), an accelerated one (``ddim``, ``dpm++``, ``sde-dpm++``, ``unipc``), or that
    of a few-step model (``lcm``, ``tcd``). ``steps`` is the number of reverse steps that are run from ``t_boom`` to 0;
    ``None`` runs every one.
    """

    def __init__(self, backbone: Backbone, sampler: str = "ddpm", steps: int | None = None) -> None:
        if steps is not None and steps < 1:
            raise ValueError(f"steps must be 1 or more, got {steps}: None runs every step")
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler: unknown {sampler!r}: choose one of {', '.join(SAMPLERS)}")
        self.backbone, self.sampler, self.steps = backbone, sampler, steps
        self.abar = torch.cat([torch.ones(1, dtype=torch.float64), backbone.alphas_cumprod.double().cpu()])  # (T + 1,)

    def t_boom(self, level: float) -> int:
        """Return the step that ``level`` in (0, 1] stands for; level 1 is global sampling."""
        if not 0 < level <= 1:
            raise ValueError(f"level must be in (0, 1], got {level:g}: level 0 would release the original")
        return max(1, round(level * self.backbone.T))

    def log_snr(self, t: int) -> float:
        """Return log(abar_t / (1 - abar_t)), which compares levels of different models; no less than at NO_SIGNAL."""
        abar = max(float(self.abar[t]), NO_SIGNAL)
        return math.log(abar) - math.log1p(-abar)

    def grid(self, t_boom: int) -> list[int]:
        """Return the steps visited, t_boom first and 0 last, evenly spaced."""
        n = min(self.steps or t_boom, t_boom)
        return [round(t_boom * (n - i) / n) for i in range(n + 1)]

    def draws(self, level: float) -> list[int]:
        """Return the steps that ``sample`` draws noise for, in order."""
        grid = self.grid(self.t_boom(level))
        stepper = make_stepper(self.sampler, self.abar, grid)
        return [FORWARD, *(t for t, s in pairwise(grid) if stepper.is_stochastic(s))]

    @torch.inference_mode()
    def sample(self, x0: torch.Tensor, level: float, noise: Noise, condition: object = None) -> torch.Tensor:
        """Return one local sample for each row of ``x0`` (B, 3, H, W) in [-1, 1], of the same shape and range.

        ``condition``: what the backbone's ``condition`` returned for prompts or classes, one for each row. Where the
        model returns NaN or infinity the sample is NaN, so that it cannot pass for an image.
        """
        return self.sample_latent(self.backbone.encode(x0), level, noise, condition)

    @torch.inference_mode()
    def mean(self, members: torch.Tensor) -> torch.Tensor:
        """Return the mean z0 (B, ...) of each group of ``members`` (B, k, 3, H, W), in the space that is noised."""
        return torch.stack([self.backbone.encode(x0) for x0 in members.unbind(1)]).mean(0)

    @torch.inference_mode()
    def sample_latent(self, z0: torch.Tensor, level: float, noise: Noise, condition: object = None) -> torch.Tensor:
        """Return one local sample (B, 3, H, W) for each row of ``z0``, images in the space that is noised."""
        grid = self.grid(self.t_boom(level))
        stepper = make_stepper(self.sampler, self.abar, grid)

        zt = self.forward(z0, grid[0], noise(FORWARD, z0))
        for t, s in pairwise(grid):
            denoised = self.backbone.predict(zt, t, condition)
            eta = noise(t, zt) if stepper.is_stochastic(s) else None
            zt = stepper.step(zt, denoised, t, s, eta)
        x = self.backbone.decode(zt)
        return x.clamp(-1, 1).masked_fill(~x.isfinite(), math.nan)

    def samples(self, x0: torch.Tensor, level: float, noise: Noise, n: int, condition: object = None) -> torch.Tensor:
        """Return ``n`` distinct local samples for each row: (B, n, 3, H, W)."""
        return torch.stack([self.sample(x0, level, noise.sample(i), condition) for i in range(n)], dim=1)

    def forward(self, z0: torch.Tensor, t: int, eps: torch.Tensor) -> torch.Tensor:
        """Return the paper's equation 4, in one shot: ``z_t = sqrt(abar_t) z0 + sqrt(1 - abar_t) eps``."""
        return math.sqrt(self.abar[t]) * z0 + math.sqrt(1 - self.abar[t]) * eps
