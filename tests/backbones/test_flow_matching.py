"""Flow matching in Boomerang's own process: against closed forms, and against diffusers' pipelines number by number."""

from __future__ import annotations

import json
import logging
import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusion3Pipeline,
)
from diffusers.pipelines.flux.pipeline_flux import calculate_shift

from anonymizer.backbones import Denoised, load_backbone
from anonymizer.backbones.flow_matching import FlowSchedule, make_flow_schedule
from anonymizer.backbones.flux import latent_image_ids
from anonymizer.boomerang import Boomerang
from anonymizer.config import ModelConfig
from anonymizer.errors import ModelError
from anonymizer.noise import FORWARD, KeyedNoise
from tests.support import tiny_flow_pipelines
from tests.support.tiny_flow_pipelines import SIDE

FOLDERS: dict[str, Callable[[Path], Path]] = {
    "sd3": tiny_flow_pipelines.sd3,
    "sd3-without-t5": lambda folder: tiny_flow_pipelines.sd3(folder, t5=False),
    "sd3-dynamic": lambda folder: tiny_flow_pipelines.sd3(folder, schedule={"use_dynamic_shifting": True}),
    "flux-dev": tiny_flow_pipelines.flux,
    "flux-schnell": lambda folder: tiny_flow_pipelines.flux(folder, distilled=False),
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sd3": {"guidance": 4.0, "negative_prompt": "blurred"},
    "sd3-without-t5": {},
    "sd3-dynamic": {"guidance": 2.0},
    "flux-dev": {"guidance": 3.5, "size": SIDE},
    "flux-schnell": {"size": SIDE},
}
PROMPTS = ["a cat", "the dogs"]
SAMPLERS = ("ddpm", "ddim", "dpm++", "sde-dpm++", "unipc")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("flow"), {}

    def folder(name: str) -> Path:
        made[name] = made[name] if name in made else FOLDERS[name](root / name)
        return made[name]

    return folder


@pytest.fixture
def own(folders: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A copy to write in."""
    return lambda name: FOLDERS[name](tmp_path / name)


def load(path: Path, **more: Any) -> Any:
    return load_backbone(ModelConfig(id=str(path), device="cpu", **more))


def noise(rows: int) -> KeyedNoise:
    return KeyedNoise([bytes([row]) * 16 for row in range(rows)])


def edit(path: Path, **more: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


class IdealFlow:
    """The exact velocity for pixels that are independent N(mean, spread^2), behind the protocol."""

    def __init__(self, shift: float = 3.0, mean: float = 0.1, spread: float = 0.25) -> None:
        self.flow = make_flow_schedule(FlowMatchEulerDiscreteScheduler(shift=shift), token_count=1)
        self.T, self.alphas_cumprod, self.mean, self.spread = 1000, self.flow.alphas_cumprod, mean, spread

    def velocity(self, xt: torch.Tensor, s: float) -> torch.Tensor:
        """E[eps - x0 | x_t]: x_t is N((1 - s) mean, (1 - s)^2 spread^2 + s^2)."""
        off = (xt - (1 - s) * self.mean) / ((1 - s) ** 2 * self.spread**2 + s**2)
        return s * off - self.mean - (1 - s) * self.spread**2 * off

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def decode(self, z0: torch.Tensor) -> torch.Tensor:
        return z0

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        xt = self.flow.to_flow_scale(zt, t)
        return self.flow.convert_velocity(xt, self.velocity(xt, float(self.flow.s[t - 1])), t)


def test_a_velocity_says_what_the_picture_and_the_noise_are():
    way, x0, eps = (
        FlowSchedule(torch.tensor([0.25, 1.0], dtype=torch.float64)),
        torch.rand(2, 3, 4, 4),
        torch.randn(2, 3, 4, 4),
    )
    for t, s in ((1, 0.25), (2, 1.0)):
        xt = (1 - s) * x0 + s * eps
        found = way.convert_velocity(xt, eps - x0, t)
        torch.testing.assert_close(found.z0, x0)
        torch.testing.assert_close(found.eps, eps)
        abar = float(way.alphas_cumprod[t - 1])
        torch.testing.assert_close(way.to_flow_scale(math.sqrt(abar) * x0 + math.sqrt(1 - abar) * eps, t), xt)


@pytest.mark.parametrize("shift", [1.0, 1.15, 3.0])
@pytest.mark.parametrize("level", [0.2, 0.6, 1.0])
def test_eulers_method_along_the_flow_is_ddim(shift: float, level: float) -> None:
    ideal, x0 = IdealFlow(shift), torch.rand(2, 3, 8, 8) * 0.5
    boomerang = Boomerang(ideal, "ddim", 7)
    grid = boomerang.grid(boomerang.t_boom(level))
    times = [float(ideal.flow.s[t - 1]) if t else 0.0 for t in grid]
    x = (1 - times[0]) * x0 + times[0] * noise(2)(FORWARD, x0)
    for s, following in pairwise(times):
        x = x + (following - s) * ideal.velocity(x, s)
    torch.testing.assert_close(boomerang.sample(x0, level, noise(2)), x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("level", [0.3, 0.7, 1.0])
def test_all_steps_lead_where_the_exact_flow_leads(level: float) -> None:
    """A flow between Gaussians keeps how many deviations a point is from the mean."""
    ideal, x0 = IdealFlow(), torch.rand(2, 3, 8, 8) * 0.5
    boomerang = Boomerang(ideal, "ddim")
    s = float(ideal.flow.s[boomerang.t_boom(level) - 1])
    xt = (1 - s) * x0 + s * noise(2)(FORWARD, x0)
    deviations = (xt - (1 - s) * ideal.mean) / math.hypot((1 - s) * ideal.spread, s)
    exact = (ideal.mean + ideal.spread * deviations).clamp(-1, 1)
    torch.testing.assert_close(boomerang.sample(x0, level, noise(2)), exact, atol=5e-3, rtol=0)


def test_the_papers_algorithm_keeps_the_distribution_of_a_flow():
    ideal = IdealFlow()
    x0 = ideal.mean + ideal.spread * torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for level in (0.5, 1.0):
        out = Boomerang(ideal, "ddpm").sample(x0, level, noise(4))
        assert float(out.mean()) == pytest.approx(ideal.mean, abs=0.01)
        assert float(out.std()) == pytest.approx(ideal.spread, abs=0.01)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_the_schedule_is_the_schedulers_own_with_its_shift(shift: float) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=shift)
    found = make_flow_schedule(scheduler, token_count=1)
    torch.testing.assert_close(found.s.float().flip(0), scheduler.sigmas)
    assert found.alphas_cumprod.dtype == torch.float64
    assert float(found.alphas_cumprod[-1]) == 0
    assert (found.alphas_cumprod.diff() < 0).all()


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [16, 1024, 4096])
def test_a_shift_that_goes_by_size_is_that_of_as_many_tokens(kind: str, tokens: int) -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0, time_shift_type=kind)
    scheduler.set_timesteps(sigmas=[t / 1000 for t in range(1000, 0, -1)], mu=calculate_shift(tokens))
    found = make_flow_schedule(scheduler, tokens)
    torch.testing.assert_close(found.s.float().flip(0), scheduler.sigmas[:-1])
    assert float(found.s[-1]) == 1


def test_the_backbones_size_decides_on_the_shift(folders):
    small, large = (load(folders("flux-dev"), size=side) for side in (SIDE, 4 * SIDE))
    assert (small.alphas_cumprod[:-1] > large.alphas_cumprod[:-1]).all()
    assert load(folders("flux-dev")).size == 128 * 2  # what its pipeline draws, by this folder's VAE
    same = [load(folders("flux-schnell"), size=side).alphas_cumprod for side in (SIDE, 4 * SIDE)]
    assert torch.equal(*same)


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_loads_and_says_what_it_is(folders, name):
    backbone = load(folders(name), **SETTINGS[name])
    assert (backbone.T, backbone.size, backbone.multiple, backbone.scale) == (1000, SIDE, 4, 2)
    assert (backbone.channels, backbone.condition_kind, len(backbone.digest)) == (4, "prompt", 64)
    assert list(backbone.flag_unsafe(torch.zeros(3, 3, SIDE, SIDE))) == [False] * 3


def reference(name: str, folder: Path, sigmas: list[float], latents: torch.Tensor, **more: Any) -> torch.Tensor:
    """Pictures in [0, 1], by the pipeline's own call."""
    kind = StableDiffusion3Pipeline if name.startswith("sd3") else FluxPipeline
    absent = dict.fromkeys(("text_encoder_3", "tokenizer_3")) if name == "sd3-without-t5" else {}
    pipeline = kind.from_pretrained(folder, low_cpu_mem_usage=False, **absent)
    pipeline.set_progress_bar_config(disable=True)
    settings = SETTINGS[name]
    options = {"prompt": PROMPTS, "guidance_scale": settings.get("guidance", 1.0), "height": SIDE, "width": SIDE}
    if kind is StableDiffusion3Pipeline:
        options["negative_prompt"] = [settings.get("negative_prompt", "")] * len(PROMPTS)
    else:
        latents = pipeline._pack_latents(latents, *latents.shape)
        options["max_sequence_length"] = 256 if name == "flux-schnell" else 512
    return pipeline(sigmas=sigmas, latents=latents, output_type="pt", **options).images


@pytest.mark.parametrize("name", FOLDERS)
@pytest.mark.parametrize("level", [0.35, 0.8, 1.0])
def test_ddim_is_the_pipelines_own_loop_from_t_boom(folders, name, level):
    backbone, x0 = load(folders(name), **SETTINGS[name]), torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    boomerang = Boomerang(backbone, "ddim", 4)
    grid = boomerang.grid(boomerang.t_boom(level))
    z0 = backbone.encode(x0)
    eps, s = noise(2)(FORWARD, z0), float(backbone.schedule.s[grid[0] - 1])
    xt = (1 - s) * z0 + s * eps  # at level 1: pure noise, where drawing begins
    theirs = reference(name, folders(name), [t / 1000 for t in grid[:-1]], xt)
    ours = boomerang.sample(x0, level, noise(2), backbone.condition(PROMPTS))
    torch.testing.assert_close((ours + 1) / 2, theirs, atol=2e-5, rtol=0)
    assert ours.std() > 0.05


@pytest.mark.parametrize("name", ["sd3", "flux-dev"])
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_level_one_stays_finite_though_no_signal_is_left(folders, name, sampler):
    backbone = load(folders(name), **SETTINGS[name])
    out = Boomerang(backbone, sampler, 6).sample(torch.zeros(1, 3, SIDE, SIDE), 1.0, noise(1))
    assert out.isfinite().all()


@pytest.mark.parametrize("name", FOLDERS)
def test_a_row_does_not_depend_on_its_batch(folders, name):
    backbone, zt = load(folders(name), **SETTINGS[name]), torch.randn(2, 4, 8, 8)
    both = backbone.predict(zt, 600, backbone.condition(PROMPTS))
    for row, prompt in enumerate(PROMPTS):
        separate = backbone.predict(zt[row : row + 1], 600, backbone.condition([prompt]))
        torch.testing.assert_close(both.z0[row : row + 1], separate.z0, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(both.eps[row : row + 1], separate.eps, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", FOLDERS)
def test_without_a_condition_it_uses_the_prompt_that_it_was_loaded_with(folders, name):
    backbone, zt = load(folders(name), prompt="a cat", **SETTINGS[name]), torch.randn(2, 4, 8, 8)
    prompted = backbone.predict(zt, 300, backbone.condition(["a cat"] * 2))
    assert torch.equal(backbone.predict(zt, 300).z0, prompted.z0)
    other = backbone.predict(zt, 300, backbone.condition(["dogs"] * 2))
    assert (other.z0 - prompted.z0).abs().max() > 1e-4


def test_without_a_record_a_template_is_used_without_its_placeholders(folders):
    zt = torch.zeros(1, 4, 8, 8)
    template, shortened = (load(folders("sd3"), prompt=prompt).predict(zt, 300) for prompt in ("a {label}", "a"))
    assert torch.equal(template.z0, shortened.z0)


def test_guidance_leads_from_the_negative_prompt_past_the_prompt(folders):
    zt, at = torch.randn(2, 4, 8, 8), 700

    def found(**more: Any) -> torch.Tensor:
        return load(folders("sd3"), **more).predict(zt, at).eps

    without, within = found(prompt="blurred"), found(prompt="a cat")
    guided = found(prompt="a cat", negative_prompt="blurred", guidance=3.0)
    torch.testing.assert_close(guided, without + 3.0 * (within - without), atol=1e-5, rtol=1e-5)


def test_distilled_guidance_is_an_input(folders):
    zt = torch.randn(1, 4, 8, 8)
    one, other = (load(folders("flux-dev"), size=SIDE, guidance=g).predict(zt, 500).z0 for g in (1.0, 3.5))
    assert (one - other).abs().max() > 1e-4


@pytest.mark.parametrize("name", FOLDERS)
def test_networks_are_in_the_models_dtype_and_answers_in_float32(folders, name):
    exact, half = load(folders(name), **SETTINGS[name]), load(folders(name), dtype="bfloat16", **SETTINGS[name])
    assert {p.dtype for p in half.transformer.parameters()} == {torch.bfloat16}
    assert half.condition(PROMPTS).hidden.dtype == torch.bfloat16
    zt = torch.randn(2, 4, 8, 8)
    half_answer, exact_answer = (model.predict(zt, 400, model.condition(PROMPTS)) for model in (half, exact))
    assert (half_answer.z0.dtype, half_answer.eps.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(half_answer.z0, exact_answer.z0, atol=0.1, rtol=0)
    assert half.decode(half.encode(torch.zeros(1, 3, SIDE, SIDE))).dtype == torch.float32


def test_weights_in_several_files_are_put_together(folders, own):
    """As the published ones of FLUX are."""
    path = own("flux-schnell")
    network = FluxTransformer2DModel.from_pretrained(path / "transformer", low_cpu_mem_usage=False)
    shutil.rmtree(path / "transformer")
    network.save_pretrained(path / "transformer", max_shard_size="30KB")
    assert len(list((path / "transformer").glob("*.safetensors"))) > 1
    zt = torch.randn(1, 4, 8, 8)
    whole, parts = (load(one, size=SIDE).predict(zt, 500).z0 for one in (folders("flux-schnell"), path))
    torch.testing.assert_close(parts, whole, atol=1e-5, rtol=1e-5)


def test_latents_are_the_mode_less_the_shift_times_the_scale(folders):
    backbone, images = load(folders("flux-schnell"), size=SIDE), torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    vae = AutoencoderKL.from_pretrained(folders("flux-schnell") / "vae", low_cpu_mem_usage=False)
    with torch.no_grad():
        z0 = (vae.encode(images).latent_dist.mode() - 0.12) * 0.36
        torch.testing.assert_close(backbone.encode(images), z0, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(backbone.decode(z0), vae.decode(z0 / 0.36 + 0.12).sample, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ["sd3", "flux-dev"])
def test_pictures_need_not_be_square(folders, name):
    backbone = load(folders(name), **SETTINGS[name])
    z0 = backbone.encode(torch.zeros(1, 3, SIDE, 2 * SIDE))
    assert backbone.predict(z0, 500).z0.shape == (1, 4, 8, 16)


def test_tokens_lie_where_the_pipeline_says():
    theirs = FluxPipeline._prepare_latent_image_ids(1, 3, 5, "cpu", torch.float32)
    assert torch.equal(latent_image_ids(3, 5), theirs)


def test_the_log_snr_makes_levels_comparable(folders, ideal):
    """At the same level, a shift of 3 leaves less of a picture than no shift, and nothing at level 1."""
    shifted = Boomerang(load(folders("sd3")))
    plain = Boomerang(load(folders("flux-schnell"), size=SIDE))
    variance_preserving = Boomerang(ideal)
    for t in range(1, 1000, 37):
        assert all(math.isfinite(model.log_snr(t)) for model in (shifted, plain, variance_preserving))
        assert shifted.log_snr(t) < plain.log_snr(t)
    assert plain.log_snr(500) == pytest.approx(0, abs=1e-9)  # half picture, half noise
    assert shifted.log_snr(500) == pytest.approx(-2 * math.log(3))  # s = 3 / 4
    assert shifted.log_snr(1000) == plain.log_snr(1000) < variance_preserving.log_snr(1000)


@pytest.mark.parametrize("name", ["sd3", "flux-dev"])
def test_prompts_are_in_no_log(folders, name):
    """Both pipelines quote what they cut off a text."""
    lines: list[str] = []

    class Recorder(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    recorder, loggers = Recorder(), [logging.getLogger(library) for library in ("diffusers", "transformers")]
    backbone = load(folders(name), **SETTINGS[name])
    for logger in loggers:
        logger.addHandler(recorder)
    try:
        logging.getLogger("diffusers.utils").warning("they are listened to")
        backbone.condition([" ".join(["secretly"] * 300)])
    finally:
        for logger in loggers:
            logger.removeHandler(recorder)
    assert "they are listened to" in lines
    assert not [line for line in lines if "secret" in line or "s e c" in line]


@pytest.mark.parametrize(
    ("name", "config", "line"),
    [
        ("flux-dev", {"negative_prompt": "blurred"}, "model.negative_prompt: the model"),
        ("flux-schnell", {"guidance": 3.5}, "model.guidance: the model"),
        ("sd3", {"negative_prompt": "blurred"}, "model.negative_prompt: does nothing at guidance 1"),
        ("sd3", {"size": 18}, "model.size: 18 is no multiple of 4"),
        ("flux-dev", {"size": 18}, "model.size: 18 is no multiple of 4"),
        ("sd3", {"size": 68}, "model.size: 68 is more than 64"),
        ("sd3", {"condition": "label"}, "knows no classes"),
    ],
)
def test_settings_that_it_can_make_nothing_of_are_refused_in_a_line(folders, name, config, line):
    with pytest.raises(ModelError) as caught:
        load(folders(name), **config)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def _without(part: str) -> Callable[[Path], None]:
    return lambda path: edit(path / "model_index.json", **{part: [None, None]})


@pytest.mark.parametrize(
    ("name", "spoil", "line"),
    [
        ("sd3", _without("text_encoder_2"), "a StableDiffusion3Pipeline without text_encoder_2"),
        ("flux-dev", _without("text_encoder"), "a FluxPipeline without text_encoder"),
        (
            "sd3",
            lambda path: edit(path / "model_index.json", scheduler=["diffusers", "UniPCMultistepScheduler"]),
            r"its scheduler \(UniPCMultistepScheduler\) is of a process that is not supported",
        ),
        (
            "sd3",
            lambda path: edit(path / "scheduler/scheduler_config.json", invert_sigmas=True),
            "is of a process that is not supported",
        ),
    ],
)
def test_folders_of_another_kind_are_refused_in_a_line(own, name, spoil, line):
    path = own(name)
    spoil(path)
    with pytest.raises(ModelError, match=line) as caught:
        load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda path: tiny_flow_pipelines.flux(path, in_channels=32), "takes 8 channels and the VAE has 4"),
        (lambda path: tiny_flow_pipelines.sd3(path, in_channels=8), "takes 8 channels and the VAE has 4"),
        (
            lambda path: tiny_flow_pipelines.flux(path, pooled_projection_dim=4),
            "pooled_projection_dim 4 of the network",
        ),
        (lambda path: tiny_flow_pipelines.sd3(path, joint_attention_dim=24), "joint_attention_dim 24 of the network"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused_in_a_line(tmp_path, make, line):
    with pytest.raises(ModelError, match=line):
        load(make(tmp_path / "model"))


@pytest.mark.parametrize("name", ["sd3", "flux"])
def test_a_tokenizer_without_a_vocabulary_is_refused(tmp_path, name):
    path = getattr(tiny_flow_pipelines, name)(tmp_path / "model")
    for file in (path / "tokenizer").iterdir():
        if file.name != "tokenizer_config.json":
            file.unlink()
    with pytest.raises(ModelError, match="tokenizer has no vocabulary"):
        load(path)
