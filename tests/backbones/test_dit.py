"""DiT: against the loop of diffusers' own pipeline, and its class conditions."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline

from anonymizer.backbones import load_backbone
from anonymizer.backbones.tiling import TiledBackbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import ModelConfig
from anonymizer.errors import ModelError, RecordError
from anonymizer.noise import FORWARD, KeyedNoise
from anonymizer.records import Reason
from tests.support import tiny_flow_pipelines
from tests.support.tiny_flow_pipelines import SIDE

CLASSES = [1, 207]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_flow_pipelines.dit(tmp_path_factory.mktemp("dit") / "model")


def load(path: Path, **more: Any) -> Any:
    return load_backbone(ModelConfig(id=str(path), device="cpu", **more))


def class_names(classes: list[int]) -> list[str]:
    return [str(number) for number in classes]


def noise(rows: int) -> KeyedNoise:
    return KeyedNoise([bytes([row]) * 16 for row in range(rows)])


def test_a_folder_loads_and_says_what_it_is(folder):
    backbone = load(folder)
    assert (backbone.T, backbone.size, backbone.multiple, backbone.scale) == (1000, SIDE, 4, 2)
    assert (backbone.channels, backbone.condition_kind, len(backbone.digest)) == (4, "class", 64)
    assert torch.equal(backbone.alphas_cumprod, DDIMScheduler().alphas_cumprod.double())
    assert list(backbone.flag_unsafe(torch.zeros(3, 3, SIDE, SIDE))) == [False] * 3


def unrolled(path: Path, zt: torch.Tensor, t_boom: int, guidance: float, steps: int) -> torch.Tensor:
    """DiTPipeline's loop, with its own transformer and DDIM, from t_boom instead of T; latents at 0."""
    pipeline = DiTPipeline.from_pretrained(path, low_cpu_mem_usage=False)
    scheduler, channels = pipeline.scheduler, zt.shape[1]
    scheduler.set_timesteps(steps)
    stride = 1000 // steps
    scheduler.timesteps = torch.arange(t_boom - 1, -1, -stride)
    null = torch.full((len(zt),), 1000)
    with torch.no_grad():
        for time in scheduler.timesteps:
            labels = torch.cat([torch.tensor(CLASSES), null])
            out = pipeline.transformer(torch.cat([zt, zt]), timestep=time.expand(2 * len(zt)), class_labels=labels)
            within, without = out.sample[:, :channels].chunk(2)
            zt = scheduler.step(without + guidance * (within - without), time, zt).prev_sample
        return pipeline.vae.decode(zt / pipeline.vae.config.scaling_factor).sample


@pytest.mark.parametrize("guidance", [1.0, 4.0])
@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("t_boom", [300, 1000])
def test_ddim_is_the_pipelines_loop_from_t_boom(tmp_path, t_boom, prediction, guidance):
    path = tiny_flow_pipelines.dit(tmp_path / "model", {"prediction_type": prediction})
    x0 = torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    backbone = load(path, guidance=guidance)
    boomerang, z0 = Boomerang(backbone, "ddim", t_boom // 100), backbone.encode(x0)
    zt = boomerang.forward(z0, t_boom, noise(2)(FORWARD, z0))
    ours = boomerang.sample(x0, t_boom / 1000, noise(2), backbone.condition(class_names(CLASSES)))
    theirs = unrolled(path, zt, t_boom, guidance, steps=10).clamp(-1, 1)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 4.0])
def test_level_one_is_what_the_pipeline_draws_from_noise(folder, guidance, monkeypatch):
    backbone, x0 = load(folder, guidance=guidance), torch.rand(2, 3, SIDE, SIDE) * 2 - 1
    boomerang, z0 = Boomerang(backbone, "ddim", 10), backbone.encode(x0)
    zt = boomerang.forward(z0, 1000, noise(2)(FORWARD, z0))  # the schedule leaves 0.6 % of a picture at T
    monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda shape, **more: zt)
    pipeline = DiTPipeline.from_pretrained(folder, low_cpu_mem_usage=False)
    pipeline.scheduler.register_to_config(timestep_spacing="trailing")
    pipeline.set_progress_bar_config(disable=True)
    theirs = pipeline(CLASSES, guidance_scale=guidance, num_inference_steps=10, output_type="pt").images
    ours = boomerang.sample(x0, 1.0, noise(2), backbone.condition(class_names(CLASSES)))
    torch.testing.assert_close((ours + 1) / 2, theirs, atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "sde-dpm++", "unipc"])
def test_level_one_stays_finite(folder, sampler):
    out = Boomerang(load(folder), sampler, 6).sample(torch.zeros(1, 3, SIDE, SIDE), 1.0, noise(1))
    assert out.isfinite().all()


def test_guidance_leads_from_no_class_past_the_class(folder):
    zt = torch.randn(2, 4, 8, 8)
    plain, guided = load(folder), load(folder, guidance=3.0)
    within = plain.predict(zt, 500, plain.condition(class_names(CLASSES))).eps
    without = plain.predict(zt, 500).eps
    assert torch.equal(without, plain.predict(zt, 500, torch.tensor([1000, 1000])).eps)
    guided_eps = guided.predict(zt, 500, guided.condition(class_names(CLASSES))).eps
    torch.testing.assert_close(guided_eps, without + 3.0 * (within - without), atol=1e-5, rtol=1e-5)
    assert (within - without).abs().amax(dim=(0, 2, 3)).min() > 1e-4  # in all channels


def test_a_row_does_not_depend_on_its_batch(folder):
    backbone, zt = load(folder, guidance=2.0), torch.randn(2, 4, 8, 8)
    both = backbone.predict(zt, 600, backbone.condition(class_names(CLASSES)))
    for row, label in enumerate(class_names(CLASSES)):
        separate = backbone.predict(zt[row : row + 1], 600, backbone.condition([label]))
        torch.testing.assert_close(both.z0[row : row + 1], separate.z0, atol=1e-5, rtol=1e-5)


def test_classes_go_by_name_synonym_and_number(folder):
    condition = load(folder).condition
    assert condition(["tench", "Tinca Tinca", "tench, Tinca tinca", " goldfish ", "999"]).tolist() == [0, 0, 0, 1, 999]


@pytest.mark.parametrize("label", ["unicorn", "1000", "-1", ""])
def test_a_class_that_it_does_not_know_is_a_reason(folder, label):
    """1000 is the class that stands for none: nobody's label."""
    with pytest.raises(RecordError) as caught:
        load(folder).condition(["0", label])
    assert caught.value.reason is Reason.NO_CONDITION


def test_a_folder_without_names_knows_numbers(tmp_path):
    backbone = load(tiny_flow_pipelines.dit(tmp_path / "model", names={}))
    assert backbone.condition(["0", "999"]).tolist() == [0, 999]
    assert backbone.predict(torch.zeros(1, 4, 8, 8), 500).z0.isfinite().all()


def test_networks_are_in_the_models_dtype_and_answers_in_float32(folder):
    exact, half = load(folder), load(folder, dtype="bfloat16")
    assert {p.dtype for p in half.transformer.parameters()} == {torch.bfloat16}
    zt = torch.randn(2, 4, 8, 8)
    guided_eps, reference = (model.predict(zt, 200, model.condition(class_names(CLASSES))) for model in (half, exact))
    assert (guided_eps.z0.dtype, guided_eps.eps.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(guided_eps.eps, reference.eps, atol=0.1, rtol=0)


def test_a_large_picture_is_seen_in_tiles_of_its_only_size(folder):
    tiled = TiledBackbone(load(folder), 0.25)
    z0 = tiled.encode(torch.zeros(1, 3, SIDE, SIDE + 12))
    assert tiled.predict(z0, 500).z0.shape == (1, 4, 8, 14)


def test_a_network_saved_before_it_had_a_class_of_its_own_loads(tmp_path):
    """As facebook/DiT-XL-2-256: a Transformer2DModel, with settings that its successor does not know."""
    path = tiny_flow_pipelines.dit(tmp_path / "model")
    before = load(path)
    for file, more in (
        (path / "model_index.json", {"transformer": ["diffusers", "Transformer2DModel"]}),
        (path / "transformer/config.json", {"_class_name": "Transformer2DModel", "num_vector_embeds": None}),
    ):
        file.write_text(json.dumps(json.loads(file.read_text()) | more))
    zt = torch.randn(1, 4, 8, 8)
    assert torch.equal(load(path).predict(zt, 500).z0, before.predict(zt, 500).z0)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"size": 32}, "works at 16 only: leave it out, or set source.fit to tiles"),
        ({"prompt": "a cat"}, "takes no prompt"),
    ],
)
def test_settings_that_it_can_make_nothing_of_are_refused_in_a_line(folder, config, line):
    with pytest.raises(ModelError) as caught:
        load(folder, **config)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda path: tiny_flow_pipelines.dit(path, out_channels=12), "a transformer from 4 to 12 channels"),
        (lambda path: tiny_flow_pipelines.dit(path, in_channels=8), "on 4 of latents"),
        (
            lambda path: tiny_flow_pipelines.dit(path, {"rescale_betas_zero_snr": True}),
            "no signal or no noise at step 1000",
        ),
    ],
)
def test_folders_of_another_kind_are_refused_in_a_line(tmp_path, make: Callable[[Path], Path], line):
    with pytest.raises(ModelError, match=line) as caught:
        load(make(tmp_path / "model"))
    assert "\n" not in str(caught.value)


def test_a_folder_without_its_autoencoder_is_refused(tmp_path):
    path = tiny_flow_pipelines.dit(tmp_path / "model")
    shutil.rmtree(path / "vae")
    with pytest.raises(ModelError, match="its vae cannot be loaded"):
        load(path)
