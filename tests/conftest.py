"""Models in closed form and tiny folders of weights, so that no test needs a trained model or a network."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from anonymizer.pipeline import stages
from tests.support.ideal_gaussian import IdealGaussian, open_concurrent

os.environ["COLUMNS"] = "200"  # read once by what prints on a terminal, when the first test imports it


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Tests end processes and never the machine, after which alone it matters that files were synced."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(params=["sequential", "concurrent"])
def either_overlap(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores and noise in the thread that samples, as on a CPU, or beside it."""
    if request.param == "concurrent":
        monkeypatch.setattr(stages, "open_overlap", open_concurrent)


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
def server() -> Iterator[str]:
    """The address of a server that speaks S3."""
    from tests.support.object_store import serving

    with serving() as url:
        yield url


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URI of a prefix for one test in a bucket of that server, which the environment names."""
    from tests.support.object_store import BUCKET, reach

    reach(monkeypatch, server).makedirs(BUCKET, exist_ok=True)
    return f"s3://{BUCKET}/{uuid.uuid4().hex[:8]}"


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
    from flows.runtime import prefect_settings, server_database, temporary_server

    home = tmp_path_factory.mktemp("prefect")
    place = {"PREFECT_HOME": str(home), server_database.URL_SETTING: f"sqlite+aiosqlite:///{home / 'prefect.db'}"}
    values = prefect_settings.DEFAULTS | prefect_settings.TEMPORARY_SERVER | place
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(temporary_server.API_URL_SETTING, raising=False)
        # Prefect reads its settings again, which an earlier test may have had it read before these were there.
        with prefect_settings.override_settings(values), temporary_server.ensure_server("ANONYMIZER_KEY") as ready:
            ready()
            yield home
