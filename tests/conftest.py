"""Models in closed form and tiny folders of weights, so that no test needs a trained model or a network."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from anonymizer import shard
from anonymizer.backbones import Denoised
from anonymizer.backbones.prediction import from_noise
from anonymizer.overlap import Beside


class IdealGaussian:
    """The exact noise predictor for pixels that are independent N(mean, spread^2).

    With z_t = sqrt(abar) z0 + sqrt(1 - abar) eps, E[eps | z_t] = sqrt(1 - abar) (z_t - sqrt(abar) mean) / var_t, where
    var_t = abar spread^2 + 1 - abar.
    """

    def __init__(self, mean: float = 0.1, spread: float = 0.25, T: int = 1000, size: int = 8) -> None:
        self.mean, self.spread, self.T, self.size, self.channels = mean, spread, T, size, 3
        betas = torch.linspace(1e-4 * 1000 / T, 0.02 * 1000 / T, T, dtype=torch.float64).clamp(max=0.999)
        self.alphas_cumprod = torch.cumprod(1 - betas, 0)
        self.device, self.name = torch.device("cpu"), "ideal"
        self.multiple, self.scale, self.asks = 1, 1, "nothing"
        self.digest = hashlib.sha256(b"ideal").hexdigest()
        self.calls: list[int] = []

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        return images

    def decode(self, z0: torch.Tensor) -> torch.Tensor:
        return z0

    def condition(self, told: Sequence[str]) -> object:
        raise AssertionError("it knows neither prompts nor classes")

    def unsafe(self, images: torch.Tensor) -> Sequence[bool]:
        return [False] * len(images)

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        self.calls.append(t)
        abar = float(self.alphas_cumprod[t - 1])
        eps = (1 - abar) ** 0.5 * (zt - abar**0.5 * self.mean) / (abar * self.spread**2 + 1 - abar)
        return from_noise(zt, eps, abar)


@contextmanager
def beside(device: torch.device, threads: int) -> Iterator[Beside]:
    """What a GPU gets."""
    with ThreadPoolExecutor(1, "scorer") as scoring, ThreadPoolExecutor(threads, "noise") as drawing:
        yield Beside(device, scoring, drawing, threads)


@pytest.fixture(params=["in turn", "beside"])
def either_overlap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores and noise in the thread that samples, as on a CPU, or beside it."""
    if request.param == "beside":
        monkeypatch.setattr(shard, "overlap", beside)


@pytest.fixture
def ideal() -> IdealGaussian:
    return IdealGaussian()


@pytest.fixture
def store() -> Iterator[Any]:
    """An object store that lasts for one test."""
    memory = fsspec.filesystem("memory")
    yield memory
    memory.store.clear()
    memory.pseudo_dirs[:] = [""]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pipeline folder of an untrained network for pictures of 8 x 8; a file's worth of weights."""
    from diffusers import DDPMScheduler, UNet2DModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("models") / "tiny"
    unet = UNet2DModel(
        sample_size=8, in_channels=3, out_channels=3, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    unet.save_pretrained(folder / "unet")
    DDPMScheduler(1000, beta_schedule="squaredcos_cap_v2", clip_sample=True).save_pretrained(folder / "scheduler")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
    return folder


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One temporary Prefect server for all tests that run flows; where it keeps what it was told."""
    from flows import database, quiet, server

    home = tmp_path_factory.mktemp("prefect")
    place = {"PREFECT_HOME": str(home), database.SETTING: f"sqlite+aiosqlite:///{home / 'prefect.db'}"}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(server.URL, raising=False)
        for name, value in (quiet.ALWAYS | quiet.TEMPORARY | place).items():
            patch.setenv(name, value)
        with server.available("ANONYMIZER_KEY") as ready:
            ready()
            yield home
