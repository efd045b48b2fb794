"""Every fast path against the plain one, within a stated tolerance; pixels are 1/255 = 0.0078 of [-1, 1] apart."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn import functional as F

from anonymizer.backbones import compilation, load_backbone
from anonymizer.backbones.conditioning import encode_conditions, placeholder_condition
from anonymizer.boomerang import Boomerang
from anonymizer.config import ModelConfig, RunConfig, build
from anonymizer.noise import KeyedNoise
from anonymizer.release import plan
from flows.jobs import release as release_job
from tests.support import tiny_flow_pipelines, tiny_pipelines
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import KEY

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PIXEL = 2 / 255
FAMILIES: dict[str, Callable[[Path], Path]] = {
    "sd1": tiny_pipelines.sd1, "sd2": tiny_pipelines.sd2, "sdxl": tiny_pipelines.sdxl, "lcm": tiny_pipelines.lcm,
    "sd3": tiny_flow_pipelines.sd3, "flux": tiny_flow_pipelines.flux, "dit": tiny_flow_pipelines.dit,
}  # fmt: skip


def load(path: Path | str, **more: Any) -> Any:
    return load_backbone(ModelConfig(id=str(path), device="cpu", **more))


def photos(count: int, side: int) -> torch.Tensor:
    """Smooth pictures (B, 3, side, side), as a trained model knows them."""
    small = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return F.interpolate(small, (side, side), mode="bicubic").clamp(-1, 1)


def noise(count: int) -> KeyedNoise:
    return KeyedNoise([i.to_bytes(16, "big") for i in range(count)])


def outputs(backbone: Any, count: int = 2, condition: object = None) -> torch.Tensor:
    return Boomerang(backbone, "sde-dpm++", 4).sample(photos(count, backbone.size), 0.4, noise(count), condition)


@pytest.fixture(scope="module")
def faces() -> Any:
    return load("bundled:faces-64")


# -- layout -----------------------------------------------------------------------------------------------------------


def test_channels_last_changes_rounding_and_nothing_else(faces: Any) -> None:
    assert faces.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    plain = load("bundled:faces-64")
    plain.unet.to(memory_format=torch.contiguous_format)
    assert plain.unet.conv_in.weight.is_contiguous()
    torch.testing.assert_close(outputs(faces), outputs(plain), atol=PIXEL / 20, rtol=0)


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_channels_last_leaves_latent_models_as_they_were(family: str, tmp_path: Path) -> None:
    path = FAMILIES[family](tmp_path / family)
    laid, plain = load(path, guidance=3.0), load(path, guidance=3.0)
    for network in (plain.unet, plain.vae):
        network.to(memory_format=torch.contiguous_format)
    assert laid.unet.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    assert laid.vae.decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(outputs(laid), outputs(plain), atol=PIXEL / 20, rtol=0)


def test_on_a_cpu_half_precision_keeps_its_layout() -> None:
    network = torch.nn.Conv2d(8, 8, 3)
    assert compilation.move_channels_last(network, CPU, torch.bfloat16).weight.is_contiguous()


# -- bfloat16 ---------------------------------------------------------------------------------------------------------


def test_bfloat16_stays_within_four_levels_of_float32_on_average(faces: Any) -> None:
    """Of 255; single pixels may be further off. The noise is the same."""
    found = (outputs(load("bundled:faces-64", dtype="bfloat16")) - outputs(faces)).abs()
    assert found.mean() < 4 * PIXEL
    assert found.quantile(0.99) < 16 * PIXEL


# -- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_size_of_a_batch_changes_rounding_and_nothing_else(faces: Any, size: int) -> None:
    x0, keys = photos(4, 64), noise(4).keys
    boomerang = Boomerang(faces, "sde-dpm++", 4)
    together = boomerang.sample(x0, 0.4, KeyedNoise(keys))
    parts = [
        boomerang.sample(x0[i : i + size], 0.4, KeyedNoise(keys[i : i + size])) for i in range(0, 4, size)
    ]  # fmt: skip
    torch.testing.assert_close(torch.cat(parts), together, atol=PIXEL / 20, rtol=0)


# -- attention --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_attention_goes_through_the_fused_kernel_and_never_the_slow_way(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the network, the text encoders and the VAE; the slow way multiplies queries by keys itself."""
    from diffusers.models.attention_processor import Attention

    fused: list[int] = []
    real = F.scaled_dot_product_attention

    def counting(*args: Any, **more: Any) -> torch.Tensor:
        fused.append(1)
        return real(*args, **more)

    def slow(*_: Any, **__: Any) -> torch.Tensor:
        raise AssertionError("the slow way")

    monkeypatch.setattr(F, "scaled_dot_product_attention", counting)
    monkeypatch.setattr(Attention, "get_attention_scores", slow)
    backbone = load(FAMILIES[family](tmp_path / family))
    outputs(
        backbone, condition=encode_conditions(backbone, ["a cat"] * 2) if backbone.condition_kind == "prompt" else None
    )
    assert len(fused) > 4
    processors = {type(module.processor).__name__ for module in compilation.get_network(backbone).modules()
                  if hasattr(module, "processor")}  # fmt: skip
    assert processors and not processors & {"AttnProcessor", "SlicedAttnProcessor", "JointAttnProcessor"}
    if hasattr(backbone, "encode_prompts"):
        encoders = [part for part in backbone.encode_prompts.embed.__wrapped__.pipeline.components.values()
                    if isinstance(part, torch.nn.Module) and hasattr(part.config, "_attn_implementation")]  # fmt: skip
        kinds = {(type(part).__name__, part.config._attn_implementation) for part in encoders}
        assert {kind for name, kind in kinds if name.startswith("CLIP")} == {"sdpa"}


def test_the_bundled_models_attend_through_the_fused_kernel(faces: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fused: list[int] = []
    real = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: (fused.append(1), real(*a, **k))[1])
    faces.predict(faces.encode(photos(1, 64)), 400)
    assert fused


# -- compilation ------------------------------------------------------------------------------------------------------


class Counted:
    """Counts what is compiled, and runs it as it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.counter = CompileCounter()
        real = torch.compile
        monkeypatch.setattr(torch, "compile", lambda f, dynamic: real(f, dynamic=dynamic, backend=self.counter))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    torch._dynamo.reset()
    return tmp_path / "cache" / "anonymizer"


def test_full_batches_are_compiled_once_whatever_the_step_and_others_not_at_all(
    tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, plain, backbone = Counted(monkeypatch), load(tiny_model), load(tiny_model)
    compilation.compile_network(backbone, 4)
    compilation.compile_network(backbone, 4)
    for count in (4, 3, 4, 1):
        torch.testing.assert_close(outputs(backbone, count), outputs(plain, count), atol=PIXEL / 20, rtol=0)
    assert counted.counter.frame_count == 1
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(cache / "inductor")
    assert cache.stat().st_mode & 0o777 == 0o700


def test_a_cache_that_the_user_names_is_used(tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_cache = str(cache.parent / "mine")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", own_cache)
    compilation.compile_network(load(tiny_model), 4)
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == own_cache


def test_with_guidance_two_rows_for_each_picture_are_compiled(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted, path = Counted(monkeypatch), tiny_pipelines.sd1(tmp_path / "sd1")
    backbone, plain = load(path, guidance=3.0), load(path, guidance=3.0)
    compilation.compile_network(backbone, 2)
    torch.testing.assert_close(outputs(backbone), outputs(plain), atol=PIXEL / 20, rtol=0)
    assert counted.counter.frame_count == 1


@pytest.mark.slow
def test_a_compiled_network_says_the_same(tiny_model: Path, cache: Path) -> None:
    """By the real compiler, with its cache in the user's folder."""
    backbone = load(tiny_model)
    compilation.compile_network(backbone, 4)
    torch.testing.assert_close(outputs(backbone, 4), outputs(load(tiny_model), 4), atol=PIXEL / 20, rtol=0)
    assert any((cache / "inductor").rglob("*.py")) or any((cache / "inductor").rglob("*.so"))


def test_a_network_that_cannot_be_compiled_is_run_as_it_is_and_the_log_says_so_once(
    tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_compiler(*given: Any, **named: Any) -> Any:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(torch, "compile", lambda f, dynamic: no_compiler)
    backbone = load(tiny_model)
    compilation.compile_network(backbone, 4)
    torch.testing.assert_close(outputs(backbone, 4), outputs(load(tiny_model), 4), atol=0, rtol=0)
    assert [record.message for record in caplog.records] == [
        "run.compile: the network could not be compiled (RuntimeError) and is run as it is"
    ]


def test_a_compiled_network_without_memory_says_so(
    tiny_model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*given: Any, **named: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(torch, "compile", lambda f, dynamic: full)
    backbone = load(tiny_model)
    compilation.compile_network(backbone, 4)
    with pytest.raises(torch.OutOfMemoryError):
        outputs(backbone, 4)


def test_auto_compiles_on_a_gpu_and_for_long_plans_only() -> None:
    def backbone(device: torch.device) -> Any:
        found = IdealGaussian()
        found.device = device
        return found

    long, short = (lambda: compilation.MIN_FLOPS_TO_COMPILE), (lambda: compilation.MIN_FLOPS_TO_COMPILE / 2)
    assert compilation.is_worth_compiling("auto", backbone(CUDA), long)
    assert not compilation.is_worth_compiling("auto", backbone(CUDA), short)
    assert compilation.is_worth_compiling("always", backbone(CPU), lambda: pytest.fail("nobody needs to know"))
    for mode, device in (("auto", CPU), ("never", CUDA)):
        assert not compilation.is_worth_compiling(mode, backbone(device), lambda: pytest.fail("nobody needs to know"))  # type: ignore[arg-type]


def test_a_network_of_another_kind_is_not_compiled() -> None:
    compilation.compile_network(IdealGaussian(), 4)


def test_operations_are_those_of_the_network(tiny_model: Path) -> None:
    """A convolution of c to d channels of 3 x 3 takes 2 * 9 c d operations for each cell; the first one is 3 to 8."""
    backbone = load(tiny_model)
    found = compilation.count_flops(backbone)
    assert found > 2 * 9 * 3 * 8 * 8 * 8
    backbone.unet = torch.nn.Conv2d(3, 3, 3, padding=1)
    backbone._network = lambda zt, t, labels: backbone.unet(zt)
    assert compilation.count_flops(backbone) == 2 * 9 * 3 * 3 * 8 * 8


def test_guidance_takes_twice_the_operations(tmp_path: Path) -> None:
    path = tiny_pipelines.sd1(tmp_path / "sd1")
    one, two = load(path), load(path, guidance=2.0)
    assert compilation.count_flops(two) == 2 * compilation.count_flops(one)


# -- in a run ---------------------------------------------------------------------------------------------------------


def config_of(tmp_path: Path, model: Path, *overrides: str) -> RunConfig:
    return build({"source": {"uri": "in"}, "output": {"uri": str(tmp_path / "out")},
                  "model": {"id": str(model), "device": "cpu"}}, overrides)  # fmt: skip


@pytest.mark.parametrize(("mode", "compiles"), [("auto", False), ("always", True), ("never", False)])
def test_a_shard_compiles_as_its_mode_says(
    tmp_path: Path, tiny_model: Path, cache: Path, mode: str, compiles: bool
) -> None:
    config = config_of(tmp_path, tiny_model, f"run.compile={mode}")
    backbone: Any = load(tiny_model)
    release_job.compile_if_worthwhile(config, backbone, plan.build_plan(config, backbone, KEY, 4))
    assert isinstance(backbone.unet.forward, compilation.CompiledForward) == compiles


def test_what_stands_for_a_record_where_time_is_measured() -> None:
    assert placeholder_condition(ModelConfig(condition="label")) == "0"
    assert placeholder_condition(ModelConfig(prompt="a photo of {label}")) == "a photo of {label}"
    assert placeholder_condition(ModelConfig(prompt="a photo")) is None
