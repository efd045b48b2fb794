"""The benchmarks of speed, at toy sizes: what they compare does the same work, and each prints one table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from tests.support import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

import denoiser
import img2img
import pipeline
import sizes
import timing
import workers

from anonymizer.boomerang import Boomerang
from anonymizer.config import ModelConfig

CPU = torch.device("cpu")
pytestmark = pytest.mark.filterwarnings(
    "ignore:__array__ implementation:DeprecationWarning"
)  # of diffusers' schedulers


def latent(tmp_path: Path, steps: int = 3, guidance: float = 1.0) -> img2img.Contenders:
    config = ModelConfig(id="random/latent", prompt=img2img.PROMPT, guidance=guidance, device="cpu")
    return img2img.latent_contenders(sizes.TOY, config, CPU, 0.5, steps, tmp_path)


def calls(contenders: img2img.Contenders, sampler: img2img.Sampler, count: int) -> list[int]:
    """Rows of each network call."""
    seen: list[int] = []
    handle = contenders.network.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    side = contenders.backbone.size
    made = sampler(torch.rand(count, 3, side, side) * 2 - 1)
    handle.remove()
    assert made.shape == (count, 3, side, side)
    assert made.isfinite().all()
    return seen


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 2), (3.0, 4)])
def test_diffusers_pipeline_and_ours_ask_the_same_network_as_often(tmp_path: Path, guidance: float, rows: int) -> None:
    contenders = latent(tmp_path, guidance=guidance)
    assert calls(contenders, contenders.ours, 2) == calls(contenders, contenders.theirs, 2) == [rows] * 3


def test_the_users_loop_and_ours_ask_the_same_network_as_often() -> None:
    contenders = img2img.pixel_contenders(ModelConfig(device="cpu"), 0.5, 2)
    assert calls(contenders, contenders.ours, 2) == calls(contenders, contenders.theirs, 2) == [2, 2]


@pytest.mark.parametrize("level", [0.2, 0.5, 0.6, 1.0])
@pytest.mark.parametrize("steps", [1, 7, 20])
def test_diffusers_takes_as_many_steps_as_ours(level: float, steps: int) -> None:
    from diffusers import StableDiffusionImg2ImgPipeline

    requested = img2img.steps_to_request(steps, level)

    class Scheduler:
        timesteps, order = torch.arange(requested), 1

    class Pipeline:
        scheduler = Scheduler()

    taken, _ = StableDiffusionImg2ImgPipeline.get_timesteps(Pipeline(), requested, level, "cpu")
    assert len(taken) == steps


def test_the_large_model_has_the_published_size() -> None:
    """Counted without making its weights."""
    with torch.device("meta"):
        made = {
            name: sizes.count_parameters(part)
            for name, part in sizes.make_networks(sizes.SD15).items()
        }  # fmt: skip
    assert made == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}


def test_a_large_matrix_product_is_a_peak_and_data_sheets_are_found() -> None:
    assert denoiser.measure_peak(CPU, torch.float32, 64, repeats=1) > 1e6
    assert denoiser.data_sheet_peak("NVIDIA A100-SXM4-80GB", torch.float16) == 312e12
    assert denoiser.data_sheet_peak("NVIDIA H100 PCIe", torch.float32) == 378e12
    assert denoiser.data_sheet_peak("NVIDIA H100 80GB HBM3", torch.bfloat16) == 989e12
    assert denoiser.data_sheet_peak("NVIDIA L40S", torch.float16) == 362e12
    assert denoiser.data_sheet_peak("NVIDIA L4", torch.float16) == 121e12
    assert denoiser.data_sheet_peak("CPU (x86_64)", torch.float32) is None


def test_contenders_take_turns() -> None:
    order: list[str] = []
    contenders = {name: lambda name=name: float(order.append(name) or len(order)) for name in "abc"}
    found = timing.take_turns(contenders, 2, log=lambda line: None)
    assert order == ["a", "b", "c", "b", "c", "a"]
    assert found == {"a": [1, 6], "b": [2, 4], "c": [3, 5]}
    assert timing.medians(found) == {"a": 3.5, "b": 3, "c": 4}


def one_table(printed: str) -> list[str]:
    lines = [line for line in printed.splitlines() if line.startswith("|")]
    assert sum(set(line) <= set("|-") for line in lines) == 1
    return lines


def test_img2img_prints_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = ["--pictures", "3", "--batch-size", "2", "--steps", "2", "--repeats", "1", "--device", "cpu"]
    img2img.main([*toy, "--model", "latent", "--json", str(tmp_path / "r.json")], shape=sizes.TOY)
    assert len(one_table(capsys.readouterr().out)) == 2 + 4
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["batched"] > 0 and found["device"].startswith("CPU") and found["date"]


def test_denoiser_prints_one_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = ["--batch-size", "2", "--steps", "2", "--calls", "2", "--repeats", "1", "--matrix", "64", "--device", "cpu"]
    denoiser.main([*toy, "--model", "latent", "--guidance", "2", "--json", str(tmp_path / "r.json")], shape=sizes.TOY)
    assert "network calls/s" in "".join(one_table(capsys.readouterr().out))
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["operations"] > 0 and found["peak"] > 0


def test_the_steps_of_a_call_do_not_change_what_is_counted(tmp_path: Path) -> None:
    model = latent(tmp_path).backbone
    found = [denoiser.measure(model, 1, 0.5, steps, 1, 1)["operations"] for steps in (1, 2)]
    assert found[0] == found[1] > 0
    assert Boomerang(model).backbone is model


@pytest.mark.slow
def test_workers_do_every_shard_once_and_print_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("ANONYMIZER_KEY", bytes(range(32)).hex())
    toy = ["--workers", "1", "2", "--pictures", "4", "--shard-size", "1", "--steps", "1", "--repeats", "1"]
    try:
        workers.main([*toy, "--model", str(tiny_model), "--set", "metrics.clip=none", "--set", "metrics.lpips=none",
                      "--json", str(tmp_path / "r.json")])  # fmt: skip
    finally:
        torch.set_num_threads(threads)
    lines = one_table(capsys.readouterr().out)
    assert 3 <= len(lines) <= 4  # as many as there are cores for
    assert json.loads((tmp_path / "r.json").read_text())["records_per_second"]["1"][0] > 0


@pytest.mark.slow
def test_the_job_is_held_against_the_bare_loop(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], prefect_home: Path
) -> None:
    toy = ["--pictures", "4", "--script-pictures", "2", "--repeats", "1", "--steps", "1", "--device", "cpu"]
    pipeline.main([*toy, "--json", str(tmp_path / "r.json")])
    assert len(one_table(capsys.readouterr().out)) == 2 + 3
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["median_job_to_bare"] > 0
    assert found["device"].startswith("CPU")
