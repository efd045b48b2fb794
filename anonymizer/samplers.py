"""One reverse step from t to s < t, by several methods: the paper's own, and diffusers' accelerated ones.

Every stepper works on the grid that it is given: it starts exactly at ``grid[0]`` and ends at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch


class Stepper(Protocol):
    def is_stochastic(self, s: int) -> bool:
        """Whether the step that arrives at ``s`` needs noise."""
        ...

    def step(self, zt: torch.Tensor, eps: torch.Tensor, t: int, s: int, eta: torch.Tensor | None) -> torch.Tensor:
        """``zt`` at t and the model's noise ``eps`` (same shape) give z at s; ``eta`` ~ N(0, I) where stochastic."""
        ...


class Ancestral:
    """Algorithm 1 of the paper; over a sub-grid, beta_t is that of the longer step (Nichol and Dhariwal 2021)."""

    def __init__(self, abar: torch.Tensor, grid: Sequence[int]) -> None:
        self.abar: list[float] = abar.tolist()

    def is_stochastic(self, s: int) -> bool:
        return s > 0

    def step(self, zt: torch.Tensor, eps: torch.Tensor, t: int, s: int, eta: torch.Tensor | None) -> torch.Tensor:
        abar_t, abar_s = self.abar[t], self.abar[s]
        beta = 1 - abar_t / abar_s
        mean: torch.Tensor = (zt - beta / math.sqrt(1 - abar_t) * eps) / math.sqrt(1 - beta)
        if eta is None:
            return mean
        return mean + math.sqrt((1 - abar_s) / (1 - abar_t) * beta) * eta


class DDIM:
    """The deterministic step of Song et al. 2021 (eta = 0): predict z0, then go back to s along the same noise."""

    def __init__(self, abar: torch.Tensor, grid: Sequence[int]) -> None:
        self.abar: list[float] = abar.tolist()

    def is_stochastic(self, s: int) -> bool:
        return False

    def step(self, zt: torch.Tensor, eps: torch.Tensor, t: int, s: int, eta: torch.Tensor | None) -> torch.Tensor:
        abar_t, abar_s = self.abar[t], self.abar[s]
        z0: torch.Tensor = (zt - math.sqrt(1 - abar_t) * eps) / math.sqrt(abar_t)
        return math.sqrt(abar_s) * z0 + math.sqrt(1 - abar_s) * eps


class Multistep:
    """A multistep solver of diffusers, put on our grid; it holds state, so one serves one batch."""

    def __init__(self, scheduler: Any, grid: Sequence[int], abar: torch.Tensor, stochastic: bool) -> None:
        self.scheduler, self.stochastic = scheduler, stochastic
        # Our own grid in place of set_timesteps(), whose spacings need not start at t_boom. Its timesteps count from 0.
        visited = torch.tensor(grid[:-1])
        scheduler.num_inference_steps = len(visited)
        scheduler.timesteps = visited - 1
        scheduler.sigmas = torch.cat([((1 - abar[visited]) / abar[visited]).sqrt(), torch.zeros(1)]).float()
        scheduler.set_begin_index(0)

    def is_stochastic(self, s: int) -> bool:
        return self.stochastic and s > 0

    def step(self, zt: torch.Tensor, eps: torch.Tensor, t: int, s: int, eta: torch.Tensor | None) -> torch.Tensor:
        if not self.stochastic:
            return self._advance(eps, t, zt)
        # The last step lands on sigma = 0, where the solver's noise term vanishes.
        eta = torch.zeros_like(zt) if eta is None else eta
        return self._advance(eps, t, zt, variance_noise=eta)

    def _advance(self, eps: torch.Tensor, t: int, zt: torch.Tensor, **noise: torch.Tensor) -> torch.Tensor:
        zs: torch.Tensor = self.scheduler.step(eps, t - 1, zt, return_dict=False, **noise)[0]
        return zs


def _betas(abar: torch.Tensor) -> list[float]:
    return [float(beta) for beta in 1 - abar[1:] / abar[:-1]]


def _dpm(abar: torch.Tensor, grid: Sequence[int], algorithm: str) -> Stepper:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(len(abar) - 1, trained_betas=_betas(abar), algorithm_type=algorithm)
    return Multistep(scheduler, grid, abar, stochastic=algorithm.startswith("sde"))


def _unipc(abar: torch.Tensor, grid: Sequence[int]) -> Stepper:
    from diffusers import UniPCMultistepScheduler

    return Multistep(UniPCMultistepScheduler(len(abar) - 1, trained_betas=_betas(abar)), grid, abar, stochastic=False)


SAMPLERS: dict[str, Callable[[torch.Tensor, Sequence[int]], Stepper]] = {
    "ddpm": Ancestral,
    "ddim": DDIM,
    "dpm++": lambda abar, grid: _dpm(abar, grid, "dpmsolver++"),
    "sde-dpm++": lambda abar, grid: _dpm(abar, grid, "sde-dpmsolver++"),
    "unipc": _unipc,
}


def make_stepper(sampler: str, abar: torch.Tensor, grid: Sequence[int]) -> Stepper:
    """A fresh stepper for one batch; ``abar`` (T + 1,) with ``abar[0] = 1``, ``grid`` falling from t_boom to 0."""
    if sampler not in SAMPLERS:
        raise ValueError(f"sampler: unknown {sampler!r}: choose one of {', '.join(SAMPLERS)}")
    return SAMPLERS[sampler](abar, grid)
