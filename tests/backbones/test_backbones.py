"""Loading pipeline folders of tiny random weights, and the prediction of each kind of model."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from anonymizer.backbones import load_backbone
from anonymizer.backbones.load import bundled_models
from anonymizer.backbones.pipeline_folder import digest
from anonymizer.boomerang import Boomerang
from anonymizer.config import ModelConfig
from anonymizer.errors import ModelError
from anonymizer.noise import FORWARD, KeyedNoise


def tiny_unet(channels: int = 3, out: int | None = None, **more: object) -> UNet2DModel:
    torch.manual_seed(0)
    return UNet2DModel(
        sample_size=8,
        in_channels=channels,
        out_channels=out or channels,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        **more,
    )


@pytest.fixture
def folder(tmp_path: Path):
    def make(
        prediction: str = "epsilon", channels: int = 3, clip: bool = False, scheduler: type = DDPMScheduler, **more
    ) -> Path:
        schedule = scheduler(1000, prediction_type=prediction, clip_sample=clip, beta_schedule="squaredcos_cap_v2")
        DDPMPipeline(tiny_unet(channels, **more), schedule).save_pretrained(tmp_path / "model")
        return tmp_path / "model"

    return make


def load(path: Path, **more: object):
    return load_backbone(ModelConfig(id=str(path), device="cpu", **more))


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_predict_returns_the_noise_whatever_the_model_says(folder, prediction):
    path = folder(prediction)
    backbone = load(path)
    unet, scheduler = (
        UNet2DModel.from_pretrained(path / "unet", low_cpu_mem_usage=False),
        DDPMScheduler.from_pretrained(path / "scheduler"),
    )
    zt, t = torch.randn(2, 3, 8, 8), 400
    out = unet(zt, t - 1).sample
    abar = scheduler.alphas_cumprod[t - 1]
    # diffusers' own estimate of x0 from each kind of output; the noise is what is left.
    x0 = scheduler.step(out, t - 1, zt, generator=torch.Generator()).pred_original_sample
    torch.testing.assert_close(
        backbone.predict(zt, t).eps, (zt - abar**0.5 * x0) / (1 - abar) ** 0.5, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", [False, True])
def test_algorithm_1_is_diffusers_loop_for_each_kind_of_model(folder, prediction, clip):
    path = folder(prediction, clip=clip)
    backbone, noise = load(path), KeyedNoise([bytes([i]) * 16 for i in range(2)])
    scheduler = DDPMScheduler.from_pretrained(path / "scheduler")
    x0 = torch.rand(2, 3, 8, 8) * 2 - 1
    t_boom = 60
    zt = scheduler.add_noise(x0, noise(FORWARD, x0), torch.full((2,), t_boom - 1))
    with torch.no_grad():
        for t in range(t_boom - 1, -1, -1):
            out = backbone.unet(zt, t).sample
            seed = torch.Generator().manual_seed(t)
            z = torch.randn(zt.shape, generator=torch.Generator().manual_seed(t))
            deviation = scheduler._get_variance(t) ** 0.5 if t > 0 else 0.0
            mean = scheduler.step(out, t, zt, generator=seed).prev_sample - deviation * z
            zt = mean + deviation * noise(t + 1, zt)
    ours = Boomerang(backbone).sample(x0, t_boom / 1000, noise)
    torch.testing.assert_close(ours, zt.clamp(-1, 1), atol=1e-3, rtol=0)


@pytest.mark.parametrize("patch", [2, 4])
def test_a_patched_model_sees_pixel_unshuffled_pictures(folder, patch):
    backbone = load(folder(channels=3 * patch**2))
    images = torch.rand(2, 3, 8 * patch, 8 * patch)
    assert backbone.size == 8 * patch
    assert torch.equal(backbone.encode(images), F.pixel_unshuffle(images, patch))
    assert torch.equal(backbone.decode(backbone.encode(images)), images)
    assert Boomerang(backbone, "ddim", 3).sample(images, 0.5, KeyedNoise([b"a" * 16, b"b" * 16])).shape == images.shape


def test_a_ddim_folder_has_the_same_schedule(folder):
    a, b = load(folder()), load(folder(scheduler=DDIMScheduler))
    assert torch.equal(a.alphas_cumprod, b.alphas_cumprod)


def test_a_learned_variance_is_left_out(folder):
    backbone = load(folder(out=6))
    assert backbone.predict(torch.randn(1, 3, 8, 8), 10).eps.shape == (1, 3, 8, 8)


def test_level_one_stays_finite_on_a_cosine_schedule(folder):
    backbone = load(folder("v_prediction"))
    for sampler in ("ddpm", "ddim", "dpm++", "sde-dpm++", "unipc"):
        assert (
            Boomerang(backbone, sampler, 10)
            .sample(torch.zeros(1, 3, 8, 8), 1.0, KeyedNoise([b"k" * 16]))
            .isfinite()
            .all()
        )


def test_the_digest_names_the_weights(folder):
    path = folder()
    before = digest(path)
    assert digest(path) == before
    config = path / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace("epsilon", "sample"))
    assert digest(path) != before


def test_bundled_models_are_there_and_load():
    assert "faces-64" in bundled_models()
    backbone = load_backbone(ModelConfig(device="cpu"))
    assert (backbone.size, backbone.T, backbone.condition_kind) == (64, 1000, "nothing")


def test_the_model_with_classes_draws_another_picture_for_each_of_them():
    backbone = load_backbone(ModelConfig(id="bundled:cifar10-32", device="cpu", guidance=2.0))
    assert (backbone.size, backbone.condition_kind, backbone.channels) == (32, "class", 12)
    noise = KeyedNoise([bytes(16)] * 3)
    condition = backbone.condition(["ship", "horse", "8"])
    ship, horse, again = Boomerang(backbone, "ddim", 6).sample(torch.zeros(3, 3, 32, 32), 1.0, noise, condition)
    assert (ship - again).abs().max() < 1e-4
    assert ship[2].mean() - ship[0].mean() > horse[2].mean() - horse[0].mean()  # there is more blue on the sea
    without = Boomerang(backbone, "ddim", 2).sample(torch.zeros(1, 3, 32, 32), 0.5, KeyedNoise([bytes(16)]))
    assert without.isfinite().all()


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ({"id": "bundled:cats"}, "unknown bundled model 'bundled:cats': known: bundled:cifar10-32, bundled:faces-64"),
        ({"id": "/no/such/folder"}, "no such folder"),
        ({"id": "nodir/"}, "model.id 'nodir/': no such folder"),
        ({"id": "some\\folder"}, "no such folder"),
        ({"id": "./owner/name"}, "no such folder"),
        ({"id": "owner/name"}, "(there is no such folder)"),
        ({"id": "owner/name"}, "model.revision: missing for hub model 'owner/name'"),
        ({"device": "cuda:99"}, "model.device: 'cuda:99' cannot be used"),
        ({"device": "warp"}, "model.device: 'warp' cannot be used"),
        ({"device": "cpu", "dtype": "float16"}, "float16 is not usable on a CPU"),
    ],
)
def test_a_model_that_cannot_be_used_is_one_line_that_says_what_to_do(config, line):
    with pytest.raises(ModelError) as caught:
        load_backbone(ModelConfig(**config))
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hub_model_without_network_says_which_files_to_place(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"unet/diffusion_pytorch_model\.safetensors in a folder"):
        load_backbone(ModelConfig(id="owner/name", revision="0" * 40))


def test_pickled_weights_are_refused_unless_allowed(folder):
    path = folder()
    unet = UNet2DModel.from_pretrained(path / "unet", low_cpu_mem_usage=False)
    shutil.rmtree(path / "unet")
    unet.save_pretrained(path / "unet", safe_serialization=False)
    with pytest.raises(ModelError, match=r"its unet cannot be loaded .*pickled weights only with model\.allow_pickle"):
        load(path)
    assert load(path, allow_pickle=True).size == 8


def test_a_pickle_is_not_touched_where_there_are_safetensors(folder):
    path = folder()
    (path / "unet/diffusion_pytorch_model.bin").write_bytes(b"no weights at all")
    assert load(path, allow_pickle=True).size == 8


@pytest.mark.slow
def test_loading_leaves_standard_error_to_us(folder, tmp_path):
    """diffusers logs to the standard error of the process, so a process of its own tells."""
    pickled, empty = folder(), tmp_path / "empty"
    empty.mkdir()
    unet = UNet2DModel.from_pretrained(pickled / "unet", low_cpu_mem_usage=False)
    shutil.rmtree(pickled / "unet")
    unet.save_pretrained(pickled / "unet", safe_serialization=False)
    code = (
        "import sys; from anonymizer.backbones import load_backbone; from anonymizer.config import ModelConfig\n"
        "from anonymizer.errors import ModelError\n"
        "load_backbone(ModelConfig(id=sys.argv[1], device='cpu', allow_pickle=True))\n"
        "for path in sys.argv[1:]:\n"
        "    try: load_backbone(ModelConfig(id=path, device='cpu'))\n"
        "    except ModelError: print('refused')\n"
        "import logging; print(logging.getLogger('diffusers').level)"
    )
    done = subprocess.run([sys.executable, "-c", code, pickled, empty], capture_output=True, text=True, check=True)
    assert (done.stdout.split(), done.stderr) == (["refused", "refused", str(logging.WARNING)], "")


def test_weights_that_lack_a_part_are_refused_and_not_drawn_at_random(folder):
    path = folder() / "unet/diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    del weights["conv_in.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(ModelError, match="the weights lack 1 of the tensors"):
        load(path.parents[1])


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        (lambda c: c | {"in_channels": 4}, "4 input channels"),
        (lambda c: c | {"class_embed_type": "timestep"}, "class_embed_type 'timestep'"),
    ],
)
def test_models_of_another_kind_are_refused(folder, edit, line):
    path = folder()
    config = path / "unet" / "config.json"
    edited = edit(json.loads(config.read_text()))
    unet = UNet2DModel.from_config(edited)
    shutil.rmtree(path / "unet")
    unet.save_pretrained(path / "unet")
    with pytest.raises(ModelError, match=line):
        load(path)


@pytest.mark.parametrize(
    ("edit", "line"),
    [
        ({"rescale_betas_zero_snr": True}, r"leaves no signal or no noise at step 1000 \(alphas_cumprod 0\)"),
        ({"trained_betas": [0.0] + [0.01] * 999}, "at step 1 "),
        ({"trained_betas": [0.01] * 10 + [float("nan")] * 990}, "at step 11 "),
        ({"thresholding": True}, "dynamic thresholding is not supported"),
    ],
)
def test_schedules_that_boomerang_cannot_follow_are_refused(folder, edit, line):
    path = folder()
    config = path / "scheduler/scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | edit))
    with pytest.raises(ModelError, match=line) as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_another_pipeline_is_named(folder):
    path = folder()
    index = json.loads((path / "model_index.json").read_text())
    (path / "model_index.json").write_text(json.dumps(index | {"_class_name": "StableCascadeDecoderPipeline"}))
    with pytest.raises(ModelError, match="StableCascadeDecoderPipeline is not supported"):
        load(path)


def test_an_empty_folder_says_what_is_needed(tmp_path):
    with pytest.raises(ModelError, match=r"it needs scheduler/scheduler_config\.json"):
        load(tmp_path)
