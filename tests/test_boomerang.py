"""The algorithm against closed forms and against diffusers' own loops; no weights."""

from __future__ import annotations

import math

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    LCMScheduler,
    TCDScheduler,
    UniPCMultistepScheduler,
)

from anonymizer.backbones.prediction_type import from_noise
from anonymizer.boomerang import Boomerang
from anonymizer.noise import FORWARD, KeyedNoise
from anonymizer.samplers import SAMPLERS
from tests.support.ideal_gaussian import IdealGaussian

ALL = list(SAMPLERS)
FEW_STEP = {"lcm": LCMScheduler, "tcd": TCDScheduler}  # they keep no distribution but that of models made for them
FAITHFUL = [name for name in ALL if name not in FEW_STEP]
# diffusers' set_timesteps, which only the references here call, trips over numpy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def keys(n: int, salt: int = 0) -> list[bytes]:
    return [(i + 1000 * salt).to_bytes(16, "big") for i in range(n)]


def gaussian(n: int, ideal: IdealGaussian) -> torch.Tensor:
    size = (n, 3, ideal.size, ideal.size)
    return ideal.mean + ideal.spread * torch.randn(size, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("level", [0, -0.1, 1.0001, math.inf, math.nan])
def test_levels_outside_zero_to_one_are_refused(ideal, level):
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\]"):
        Boomerang(ideal).sample(torch.zeros(1, 3, 8, 8), level, KeyedNoise(keys(1)))


@pytest.mark.parametrize("sampler", FAITHFUL)
@pytest.mark.parametrize("level", [0.2, 0.5, 1.0])
def test_mean_and_spread_of_gaussian_data_are_kept(sampler, level):
    ideal = IdealGaussian(size=32)  # few large pictures, as noise is drawn for each one
    x0 = gaussian(8, ideal)
    out = Boomerang(ideal, sampler).sample(x0, level, KeyedNoise(keys(8)))
    n = out.numel()
    assert abs(out.mean() - ideal.mean) < 5 * ideal.spread / n**0.5 + 0.002
    assert abs(out.std() / ideal.spread - 1) < 0.02  # what the last steps, clamping and chance cost


@pytest.mark.parametrize("level", [0.05, 0.2, 0.4, 0.7, 1.0])
def test_correlation_with_the_original_falls_as_computed_on_paper(level):
    # For an exact reverse process, x0 and the output are independent given x_t, and both are correlated with it by
    # rho_t = sqrt(abar) spread / sqrt(abar spread^2 + 1 - abar): so their own correlation is rho_t^2.
    ideal = IdealGaussian(size=32)
    boomerang = Boomerang(ideal)
    x0 = gaussian(7, ideal)
    out = boomerang.sample(x0, level, KeyedNoise(keys(7)))
    abar = float(boomerang.abar[boomerang.t_boom(level)])
    rho2 = abar * ideal.spread**2 / (abar * ideal.spread**2 + 1 - abar)
    measured = torch.corrcoef(torch.stack([x0.flatten(), out.flatten()]))[0, 1]
    assert abs(measured - rho2) < 0.03


@pytest.mark.parametrize("sampler", ALL)
@pytest.mark.parametrize("T", [7, 50])
def test_every_t_boom_is_started_from_exactly(sampler, T):
    ideal = IdealGaussian(T=T)
    x0 = gaussian(2, ideal)
    noise = KeyedNoise(keys(2))
    for t_boom in range(1, T + 1):
        for steps in (None, 1, 3, 20):
            boomerang = Boomerang(ideal, sampler, steps)
            assert boomerang.t_boom(t_boom / T) == t_boom
            ideal.calls.clear()
            out = boomerang.sample(x0, t_boom / T, noise)
            assert ideal.calls[0] == t_boom
            assert ideal.calls == sorted(set(ideal.calls), reverse=True)
            assert len(ideal.calls) == min(steps or t_boom, t_boom)
            assert out.isfinite().all()


def test_the_forward_step_is_the_papers_equation(ideal):
    boomerang = Boomerang(ideal)
    x0, eps = torch.randn(2, 3, 8, 8), torch.randn(2, 3, 8, 8)
    scheduler = DDPMScheduler(1000, beta_start=1e-4, beta_end=0.02)
    for t in (1, 500, 1000):
        expected = scheduler.add_noise(x0, eps, torch.tensor(t - 1))
        torch.testing.assert_close(boomerang.forward(x0, t, eps), expected, atol=1e-4, rtol=1e-4)


def betas_of(ideal: IdealGaussian) -> list[float]:
    abar = torch.cat([torch.ones(1, dtype=torch.float64), ideal.alphas_cumprod])
    return (1 - abar[1:] / abar[:-1]).tolist()


def reference(
    ideal: IdealGaussian, sampler: str, level: float, x0: torch.Tensor, noise: KeyedNoise, steps: int
) -> torch.Tensor:
    """diffusers' own loop, step by step, entered at t_boom: only spacings that diffusers can express itself."""
    betas = betas_of(ideal)
    t_boom = round(level * ideal.T)
    common = {"num_train_timesteps": ideal.T, "trained_betas": betas}
    if sampler == "ddpm":
        scheduler = DDPMScheduler(**common, clip_sample=False)
        visited = torch.arange(t_boom - 1, -1, -1)
    elif sampler == "ddim":
        scheduler = DDIMScheduler(**common, clip_sample=False, set_alpha_to_one=True, timestep_spacing="trailing")
        scheduler.set_timesteps(round(steps / level))
        visited = scheduler.timesteps[scheduler.timesteps < t_boom]
    else:
        algorithm = {"dpm++": "dpmsolver++", "sde-dpm++": "sde-dpmsolver++"}.get(sampler)
        if algorithm:
            scheduler = DPMSolverMultistepScheduler(**common, algorithm_type=algorithm, timestep_spacing="trailing")
        else:
            scheduler = UniPCMultistepScheduler(**common, timestep_spacing="trailing")
        scheduler.set_timesteps(round(steps / level))
        begin = int((scheduler.timesteps >= t_boom).sum())
        scheduler.set_begin_index(begin)  # what diffusers' img2img pipelines do
        visited = scheduler.timesteps[begin:]
    assert int(visited[0]) == t_boom - 1
    zt = scheduler.add_noise(x0, noise(FORWARD, x0), torch.full((len(x0),), t_boom - 1))
    for t in visited.tolist():
        eps = ideal.predict(zt, t + 1).eps
        if sampler == "ddpm":
            zt = ddpm_step(scheduler, eps, t, zt, noise(t + 1, zt))
        elif sampler == "sde-dpm++":
            last = t == int(visited[-1])
            eta = torch.zeros_like(zt) if last else noise(t + 1, zt)
            zt = scheduler.step(eps, t, zt, variance_noise=eta).prev_sample
        else:
            zt = scheduler.step(eps, t, zt).prev_sample
    return zt.clamp(-1, 1)


def ddpm_step(scheduler: DDPMScheduler, eps: torch.Tensor, t: int, zt: torch.Tensor, eta: torch.Tensor) -> torch.Tensor:
    """diffusers' DDPM step with our noise: it draws its own from a generator, so that is taken off again."""
    drawn = torch.randn(zt.shape, generator=torch.Generator().manual_seed(0))
    stepped = scheduler.step(eps, t, zt, generator=torch.Generator().manual_seed(0)).prev_sample
    return stepped if t == 0 else stepped + scheduler._get_variance(t) ** 0.5 * (eta - drawn)


@pytest.mark.parametrize("sampler", FAITHFUL)
@pytest.mark.parametrize("level", [0.2, 0.6, 1.0])
def test_parity_with_diffusers_own_loop(ideal, sampler, level):
    steps = round(50 * level)  # 50 over the whole schedule: a spacing that diffusers' "trailing" can express
    x0, noise = gaussian(4, ideal), KeyedNoise(keys(4))
    expected = reference(ideal, sampler, level, x0, noise, steps)
    ours = Boomerang(ideal, sampler, None if sampler == "ddpm" else steps).sample(x0, level, noise)
    torch.testing.assert_close(ours, expected, atol=2e-4, rtol=0)


class Drawn:
    """Noise in the order in which a generator gives it, as diffusers' schedulers draw theirs."""

    def __init__(self) -> None:
        self.generator = torch.Generator().manual_seed(5)

    def __call__(self, step: int, like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=self.generator)


@pytest.mark.parametrize("sampler", FEW_STEP)
@pytest.mark.parametrize(("level", "steps"), [(0.3, 2), (0.73, 4), (1.0, 8), (0.5, 1)])
def test_few_step_samplers_are_diffusers_on_a_grid_from_t_boom(ideal, sampler, level, steps):
    boomerang, x0, theirs = Boomerang(ideal, sampler, steps), gaussian(4, ideal), Drawn()
    grid = boomerang.grid(boomerang.t_boom(level))
    scheduler = FEW_STEP[sampler](ideal.T, trained_betas=betas_of(ideal), clip_sample=False)
    scheduler.num_inference_steps, scheduler.timesteps = len(grid) - 1, torch.tensor(grid[:-1]) - 1
    zt = scheduler.add_noise(x0, theirs(FORWARD, x0), torch.full((4,), grid[0] - 1))
    for t in scheduler.timesteps:
        eps = ideal.predict(zt, int(t) + 1).eps
        last, here = int(t) + 1 == grid[-2] and sampler == "tcd", zt
        zt = scheduler.step(eps, t, zt, generator=theirs.generator).prev_sample
        if last:  # theirs stops at its time 0, which is our 1
            zt = from_noise(here, eps, float(ideal.alphas_cumprod[t])).z0
    torch.testing.assert_close(boomerang.sample(x0, level, Drawn()), zt.clamp(-1, 1), atol=2e-4, rtol=0)


@pytest.mark.parametrize(
    ("sampler", "euler"), [("ddim", EulerDiscreteScheduler), ("ddpm", EulerAncestralDiscreteScheduler)]
)
def test_turbo_models_euler_steps_are_ddim_and_ddpm_on_the_same_grid(ideal, sampler, euler):
    scheduler = euler(ideal.T, trained_betas=betas_of(ideal), timestep_spacing="trailing")
    scheduler.set_timesteps(4)
    x0, theirs = gaussian(4, ideal), Drawn()
    abar = float(ideal.alphas_cumprod[-1])
    zt = abar**0.5 * x0 + (1 - abar) ** 0.5 * theirs(FORWARD, x0)
    x = zt / abar**0.5  # these schedulers count in x0 + sigma eps
    for t in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, t)
        eps = ideal.predict(seen, int(t) + 1).eps
        x = scheduler.step(eps, t, x, **({"generator": theirs.generator} if sampler == "ddpm" else {})).prev_sample
    ours = Boomerang(ideal, sampler, 4).sample(x0, 1.0, Drawn())
    torch.testing.assert_close(ours, x.clamp(-1, 1), atol=2e-3, rtol=0)


@pytest.mark.parametrize("steps", [5, 10, 50])
def test_respaced_ddpm_is_diffusers_respaced_ddpm(ideal, steps):
    scheduler = DDPMScheduler(ideal.T, trained_betas=betas_of(ideal), clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(steps)
    x0, noise = gaussian(4, ideal), KeyedNoise(keys(4))
    zt = scheduler.add_noise(x0, noise(FORWARD, x0), torch.full((4,), ideal.T - 1))
    for t in scheduler.timesteps.tolist():
        eps = ideal.predict(zt, t + 1).eps
        if t == int(scheduler.timesteps[-1]):  # diffusers adds noise in a last step from t > 0; Algorithm 1 never does
            zt = scheduler.step(eps, t, zt, generator=torch.Generator().manual_seed(0)).pred_original_sample
        else:
            zt = ddpm_step(scheduler, eps, t, zt, noise(t + 1, zt))
    ours = Boomerang(ideal, "ddpm", steps).sample(x0, 1.0, noise)
    torch.testing.assert_close(ours, zt.clamp(-1, 1), atol=5e-4, rtol=0)


@pytest.mark.parametrize("sampler", ALL)
def test_batch_split_and_order_do_not_matter(ideal, sampler):
    x0, boomerang = gaussian(6, ideal), Boomerang(ideal, sampler, 10)
    whole = boomerang.sample(x0, 0.6, KeyedNoise(keys(6)))
    split = torch.cat([boomerang.sample(x0[i : i + 2], 0.6, KeyedNoise(keys(6)[i : i + 2])) for i in (0, 2, 4)])
    order = [3, 0, 5, 1, 4, 2]
    shuffled = boomerang.sample(x0[order], 0.6, KeyedNoise([keys(6)[i] for i in order]))
    torch.testing.assert_close(split, whole, atol=1e-6, rtol=0)
    torch.testing.assert_close(shuffled, whole[order], atol=1e-6, rtol=0)


@pytest.mark.parametrize("sampler", ALL)
def test_samples_of_one_original_are_distinct_and_the_first_is_the_sample(ideal, sampler):
    x0, boomerang = gaussian(2, ideal), Boomerang(ideal, sampler, 10)
    many = boomerang.samples(x0, 0.5, KeyedNoise(keys(2)), 8)
    assert many.shape == (2, 8, 3, 8, 8)
    assert torch.equal(many[:, 0], boomerang.sample(x0, 0.5, KeyedNoise(keys(2))))
    flat = many.flatten(0, 1).flatten(1)
    distances = torch.cdist(flat, flat) + torch.eye(16) * 99
    assert distances.min() > 0.1


def test_level_one_forgets_the_original(ideal):
    noise = KeyedNoise(keys(4))
    a, b = (
        Boomerang(ideal, "ddpm", 50).sample(x, 1.0, noise)
        for x in (torch.full((4, 3, 8, 8), -1.0), torch.ones(4, 3, 8, 8))
    )
    abar = float(ideal.alphas_cumprod[-1])
    assert (a - b).abs().max() < 4 * abar**0.5  # what the schedule leaves of it at t = T


def test_log_snr_compares_schedules(ideal):
    boomerang = Boomerang(ideal)
    assert math.exp(boomerang.log_snr(500)) == pytest.approx(0.085, abs=0.001)  # DDPM's linear schedule at half of T
    assert boomerang.log_snr(1) > boomerang.log_snr(2) > boomerang.log_snr(1000)


def test_zero_steps_are_refused(ideal):
    with pytest.raises(ValueError, match="steps must be 1 or more"):
        Boomerang(ideal, steps=0)


def test_an_unknown_sampler_is_named(ideal):
    with pytest.raises(ValueError, match="unknown 'euler'"):
        Boomerang(ideal, "euler").sample(torch.zeros(1, 3, 8, 8), 0.5, KeyedNoise(keys(1)))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_what_is_not_finite_comes_back_as_nan_and_spoils_no_other_row(ideal, bad):
    x0 = gaussian(3, ideal)
    x0[1] = bad
    out = Boomerang(ideal, "ddim", 5).sample(x0, 0.5, KeyedNoise(keys(3)))
    assert out[1].isnan().all()
    assert out[[0, 2]].isfinite().all()


class Halved(IdealGaussian):
    """A model whose noised space is not that of pixels, and not linear in them."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images.sign() * images.abs().sqrt()

    def decode(self, z0: torch.Tensor) -> torch.Tensor:
        return z0.sign() * z0.square()


@pytest.mark.parametrize("sampler", FAITHFUL)
def test_a_sample_from_a_latent_is_that_of_its_image_to_the_bit(sampler: str) -> None:
    model = Halved()
    x0, boomerang = gaussian(3, model), Boomerang(model, sampler, 5)
    one = boomerang.sample(x0, 0.5, KeyedNoise(keys(3)))
    assert torch.equal(one, boomerang.sample_latent(model.encode(x0), 0.5, KeyedNoise(keys(3))))


def test_the_mean_of_a_group_is_taken_where_noise_is_added() -> None:
    model = Halved()
    members = gaussian(8, model).unflatten(0, (2, 4))
    z0 = Boomerang(model).mean(members)
    expected = sum(model.encode(members[:, i]) for i in range(4)) / 4
    assert torch.allclose(z0, expected, atol=1e-6)
    assert not torch.allclose(z0, model.encode(members.mean(1)), atol=0.01)
    assert torch.equal(Boomerang(model).mean(members[:, :1]), model.encode(members[:, 0]))
