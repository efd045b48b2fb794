"""One reverse step from t to s < t, by several methods: the paper's own, accelerated ones, few-step models' own.

Every stepper works on the grid that it is given: it starts exactly at ``grid[0]`` and ends at 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from anonymizer.backbones.protocol import Denoised

# A schedule may end without any signal (alphas_cumprod 0); where its logarithm is needed, this stands for none.
NO_SIGNAL = 2.0**-64


class Stepper(Protocol):
    def is_stochastic(self, s: int) -> bool:
        """Return whether the step that arrives at ``s`` needs noise."""
        ...

    def step(self, zt: torch.Tensor, denoised: Denoised, t: int, s: int, eta: torch.Tensor | None) -> torch.Tensor:
        """Return z at s from ``zt`` at t and the model's estimates; ``eta`` ~ N(0, I) where stochastic."""
        ...


class Ancestral:
    """Algorithm 1 of the paper; over a sub-grid, beta_t is that of the longer step (Nichol and Dhariwal 2021).

    Its mean ``(z_t - beta / sqrt(1 - abar_t) eps) / sqrt(1 - beta)`` is written by z0 here (Ho et al. 2020, equation
    7): the same number, and one that exists where no signal is left (beta = 1). On a sub-grid this is also DDIM with
    eta = 1 and Euler's ancestral method, which Turbo models are sampled with.
    """

    def __init__(self, abar: torch.Tensor, grid: Sequence[int]) -> None:
        self.abar: list[float] = abar.tolist()

    def is_stochastic(self, s: int) -> bool:
        return s > 0

    def step(self, zt: torch.Tensor, denoised: Denoised, t: int, s: int, eta: torch.Tensor | None) -> torch.Tensor:
        abar_t, abar_s = self.abar[t], self.abar[s]
        beta = 1 - abar_t / abar_s
        of_z0, of_zt = math.sqrt(abar_s) * beta / (1 - abar_t), math.sqrt(1 - beta) * (1 - abar_s) / (1 - abar_t)
        mean: torch.Tensor = of_z0 * denoised.z0 + of_zt * zt
        if eta is None:
            return mean
        return mean + math.sqrt((1 - abar_s) / (1 - abar_t) * beta) * eta


class DDIM:
    """The deterministic step of Song et al. 2021 (eta = 0): take z0, and go back to s along the same noise.

    Euler's method in the scale of sigma, and for flow matching, is this step too.
    """

    def __init__(self, abar: torch.Tensor, grid: Sequence[int]) -> None:
        self.abar: list[float] = abar.tolist()

    def is_stochastic(self, s: int) -> bool:
        return False

    def step(self, zt: torch.Tensor, denoised: Denoised, t: int, s: int, eta: torch.Tensor | None) -> torch.Tensor:
        return math.sqrt(self.abar[s]) * denoised.z0 + math.sqrt(1 - self.abar[s]) * denoised.eps


class Consistency:
    """Multistep consistency sampling (LCM: Luo et al. 2023): take z0, and noise it to s afresh.

    The boundary that the models were distilled with holds z_t back near t = 0 (Karras' c_skip and c_out, sigma_data
    0.5, times scaled by 10: the values of diffusers' ``LCMScheduler``, whose times count from 0).
    """

    SIGMA_DATA, SCALE = 0.5, 10.0

    def __init__(self, abar: torch.Tensor, grid: Sequence[int]) -> None:
        self.abar: list[float] = abar.tolist()

    def is_stochastic(self, s: int) -> bool:
        return s > 0

    def step(self, zt: torch.Tensor, denoised: Denoised, t: int, s: int, eta: torch.Tensor | None) -> torch.Tensor:
        time, data = (t - 1) * self.SCALE, self.SIGMA_DATA
        c_skip, c_out = data**2 / (time**2 + data**2), time / math.sqrt(time**2 + data**2)
        z0 = c_skip * zt + c_out * denoised.z0
        return z0 if eta is None else math.sqrt(self.abar[s]) * z0 + math.sqrt(1 - self.abar[s]) * eta


class Trajectory:
    """Strategic stochastic sampling of trajectory consistency models (TCD: Zheng et al. 2024; Hyper-SD).

    Go along the trajectory to s' = (1 - gamma) s, further than s, and noise that to s afresh. gamma 0.3, the default of
    diffusers' ``TCDScheduler``, whose times count from 0; ours ends at z0, and theirs one time before it.
    """

    GAMMA = 0.3

    def __init__(self, abar: torch.Tensor, grid: Sequence[int]) -> None:
        self.abar: list[float] = abar.tolist()

    def is_stochastic(self, s: int) -> bool:
        return s > 0

    def step(self, zt: torch.Tensor, denoised: Denoised, t: int, s: int, eta: torch.Tensor | None) -> torch.Tensor:
        further = math.floor((1 - self.GAMMA) * (s - 1)) + 1 if s else 0
        near: torch.Tensor = (
            math.sqrt(self.abar[further]) * denoised.z0 + math.sqrt(1 - self.abar[further]) * denoised.eps
        )
        if eta is None:
            return near
        signal = self.abar[s] / self.abar[further]
        return math.sqrt(signal) * near + math.sqrt(1 - signal) * eta


class Multistep:
    """A multistep solver of diffusers, put on our grid; it holds state, so one serves one batch."""

    def __init__(self, scheduler: Any, grid: Sequence[int], abar: torch.Tensor, stochastic: bool) -> None:
        self.scheduler, self.stochastic = scheduler, stochastic
        # Our own grid in place of set_timesteps(), whose spacings need not start at t_boom. Its timesteps count from 0.
        visited = torch.tensor(grid[:-1])
        signal = abar[visited].clamp(min=NO_SIGNAL)
        scheduler.num_inference_steps = len(visited)
        scheduler.timesteps = visited - 1
        scheduler.sigmas = torch.cat([((1 - signal) / signal).sqrt(), torch.zeros(1)]).float()
        scheduler.set_begin_index(0)

    def is_stochastic(self, s: int) -> bool:
        return self.stochastic and s > 0

    def step(self, zt: torch.Tensor, denoised: Denoised, t: int, s: int, eta: torch.Tensor | None) -> torch.Tensor:
        if not self.stochastic:
            return self._advance(denoised.z0, t, zt)
        # The last step lands on sigma = 0, where the solver's noise term vanishes.
        eta = torch.zeros_like(zt) if eta is None else eta
        return self._advance(denoised.z0, t, zt, variance_noise=eta)

    def _advance(self, z0: torch.Tensor, t: int, zt: torch.Tensor, **noise: torch.Tensor) -> torch.Tensor:
        zs: torch.Tensor = self.scheduler.step(z0, t - 1, zt, return_dict=False, **noise)[0]
        return zs


def _betas(abar: torch.Tensor) -> list[float]:
    betas: list[float] = (1 - abar[1:] / abar[:-1]).tolist()
    return betas


def _dpm(abar: torch.Tensor, grid: Sequence[int], algorithm: str) -> Stepper:
    from diffusers import DPMSolverMultistepScheduler

    scheduler = DPMSolverMultistepScheduler(
        len(abar) - 1, trained_betas=_betas(abar), algorithm_type=algorithm, prediction_type="sample"
    )
    return Multistep(scheduler, grid, abar, stochastic=algorithm.startswith("sde"))


def _unipc(abar: torch.Tensor, grid: Sequence[int]) -> Stepper:
    from diffusers import UniPCMultistepScheduler

    scheduler = UniPCMultistepScheduler(len(abar) - 1, trained_betas=_betas(abar), prediction_type="sample")
    return Multistep(scheduler, grid, abar, stochastic=False)


SAMPLERS: dict[str, Callable[[torch.Tensor, Sequence[int]], Stepper]] = {
    "ddpm": Ancestral,
    "ddim": DDIM,
    "dpm++": lambda abar, grid: _dpm(abar, grid, "dpmsolver++"),
    "sde-dpm++": lambda abar, grid: _dpm(abar, grid, "sde-dpmsolver++"),
    "unipc": _unipc,
    "lcm": Consistency,
    "tcd": Trajectory,
}


def make_stepper(sampler: str, abar: torch.Tensor, grid: Sequence[int]) -> Stepper:
    """Return a new stepper for one batch; ``abar`` (T + 1,) with ``abar[0] = 1``, ``grid`` falling from t_boom to 0."""
    return SAMPLERS[sampler](abar, grid)
