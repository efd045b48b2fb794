"""Model files are downloaded from an object store into the cache."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anonymizer.backbones import load_backbone
from anonymizer.backbones.load import resolve
from anonymizer.backbones.pipeline_folder import digest
from anonymizer.config import ModelConfig
from anonymizer.errors import ModelError
from anonymizer.storage import download
from anonymizer.storage.path import StoragePath
from metrics.models import weights
from tests.support.object_store import (
    reach,
    unreliable,
    upload,
)
from tests.support.releases import (
    GARBAGE,
)


def test_a_model_in_a_store_equals_the_one_on_a_disk_and_is_downloaded_once(
    bucket: str, server: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path / "cache"))
    uri = upload(tiny_model, f"{bucket}/model")
    (StoragePath.from_uri(uri) / "unet/other.ckpt").write_uncommitted(GARBAGE)
    config = ModelConfig(id=uri)
    with unreliable(server, every=10) as proxy:
        reach(monkeypatch, proxy.url)
        model = load_backbone(config)
        assert model.digest == load_backbone(ModelConfig(id=str(tiny_model))).digest
        proxy.sent = 0
        load_backbone(config)
        assert proxy.sent < 10_000  # a listing, no weights
    assert not list((tmp_path / "cache").rglob("*.ckpt"))
    (StoragePath.from_uri(uri) / "scheduler/scheduler_config.json").write_uncommitted(b"{}")
    assert resolve(config) != resolve(ModelConfig(id=str(tiny_model))) and len(cached(tmp_path)) == 2


def test_several_processes_download_a_model_once(bucket: str, tiny_model: Path, tmp_path: Path) -> None:
    config = ModelConfig(id=upload(tiny_model, f"{bucket}/model"))
    script = f"from anonymizer.storage import download; download.download_folder('model.id', {config.id!r}, list)"
    env = os.environ | {download.CACHE_VARIABLE: str(tmp_path / "cache")}
    running = [subprocess.Popen([sys.executable, "-c", script], env=env) for _ in range(2)]
    assert [process.wait() for process in running] == [0, 0]
    (folder,) = cached(tmp_path)
    assert digest(folder) == digest(tiny_model)


@pytest.mark.parametrize("name", ["../../outside.json", "unet/..\\outside.json", "/outside.json"])
def test_no_object_name_leads_out_of_the_cache(bucket: str, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="leads out"):
        download._path_inside(tmp_path, name)


def test_pickled_weights_in_a_store_are_refused(
    bucket: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path / "cache"))
    uri = upload(tiny_model, f"{bucket}/model")
    weights = StoragePath.from_uri(uri) / "unet/diffusion_pytorch_model.safetensors"
    (StoragePath.from_uri(uri) / "unet/diffusion_pytorch_model.bin").write_uncommitted(weights.read())
    weights.remove()
    with pytest.raises(ModelError, match="safetensors"):
        load_backbone(ModelConfig(id=uri))


def test_weights_of_a_score_are_downloaded_from_a_store(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(download.CACHE_VARIABLE, str(tmp_path / "cache"))
    (StoragePath.from_uri(bucket) / "face.onnx").write_uncommitted(b"weights")
    assert weights.resolve_file("metrics.identity", f"{bucket}/face.onnx").read_bytes() == b"weights"
    with pytest.raises(ModelError, match="no file of a model lies there"):
        weights.resolve_file("metrics.identity", f"{bucket}/none.onnx")


def cached(tmp_path: Path) -> list[Path]:
    return [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]
