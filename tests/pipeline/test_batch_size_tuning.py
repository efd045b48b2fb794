"""The size of a batch: found by trial, remembered, and never asked for where it was named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from anonymizer.config import ModelConfig, RunConfig, build
from anonymizer.errors import ConfigError
from anonymizer.pipeline import batch_size_tuning
from flows.jobs import release as release_job
from tests.support.ideal_gaussian import IdealGaussian
from tests.support.releases import PlainScorer, begin, people, public_images, run, settings

FULL = torch.OutOfMemoryError("CUDA out of memory")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "anonymizer" / "batch-sizes.json"


class Device:
    """Pictures per second by the size of a batch, and room for so many."""

    def __init__(self, rates: dict[int, float], room: int = 10**6) -> None:
        self.rates, self.room = rates, room
        self.asked: list[int] = []

    def __call__(self, size: int) -> float:
        self.asked.append(size)
        if size > self.room:
            raise FULL
        return self.rates[size]


def measure_rates(device: Device, most: int = 512) -> dict[int, float]:
    return batch_size_tuning.benchmark_batch_sizes(device, most, IdealGaussian())


def test_sizes_double_until_more_brings_nothing() -> None:
    device = Device({1: 10, 2: 19, 4: 35, 8: 50, 16: 48, 32: 47, 64: 46})
    assert batch_size_tuning.fastest_batch_size(measure_rates(device)) == 8
    assert device.asked == [1, 2, 4, 8, 16, 32]


def test_the_smallest_size_that_is_nearly_as_fast_is_taken() -> None:
    assert batch_size_tuning.fastest_batch_size({1: 10, 2: 19, 4: 35, 8: 50, 16: 51}) == 8
    assert batch_size_tuning.fastest_batch_size({1: 10, 2: 19, 4: 35, 8: 50, 16: 60}) == 16


def test_running_out_of_memory_ends_the_benchmark() -> None:
    device = Device({1: 10, 2: 20, 4: 40, 8: 80}, room=4)
    assert batch_size_tuning.fastest_batch_size(measure_rates(device)) == 4
    assert device.asked == [1, 2, 4, 8]
    assert batch_size_tuning.fastest_batch_size(measure_rates(Device({}, room=0))) == 1


def test_no_size_beyond_the_shards_is_measured() -> None:
    device = Device({2**i: float(2**i) for i in range(12)})
    assert batch_size_tuning.fastest_batch_size(measure_rates(device, most=20)) == 16


def test_any_other_error_of_a_benchmark_is_raised() -> None:
    def broken(size: int) -> float:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        batch_size_tuning.benchmark_batch_sizes(broken, 8, IdealGaussian())


def configure(tmp_path: Path, *overrides: str, **more: Any) -> RunConfig:
    return settings(people(tmp_path / "in", 6), tmp_path / "out", *overrides,
                    run={"batch_size": "auto", "shard_size": 4}, **more)  # fmt: skip


def test_a_size_is_cached_for_the_same_work_only(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials: list[int] = []

    def once(*_: Any) -> dict[int, float]:
        trials.append(1)
        return {1: 1.0, 2: 2.0, 4: 8.0}

    monkeypatch.setattr(batch_size_tuning, "benchmark_batch_sizes", once)
    config = configure(tmp_path)
    for _ in range(3):
        assert batch_size_tuning.resolve_batch_size(config, IdealGaussian(), PlainScorer()).run.batch_size == 4
    assert len(trials) == 1
    for changed in ("model.dtype=bfloat16", "run.shard_size=9", "model.guidance=2", "source.fit=tiles"):
        batch_size_tuning.resolve_batch_size(configure(tmp_path, changed), IdealGaussian(), PlainScorer())
    assert len(trials) == 5
    other = IdealGaussian()
    other.digest = "1" * 64
    batch_size_tuning.resolve_batch_size(config, other, PlainScorer())
    assert len(trials) == 6
    assert len(json.loads(cache.read_text())) == 6
    assert "in" not in {part for key in json.loads(cache.read_text()) for part in key.split("/")}


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"a": 1}', '{"a": {"batch_size": 0}}'])
def test_a_damaged_cache_costs_a_benchmark_and_no_run(tmp_path: Path, cache: Path, damage: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(damage)
    assert batch_size_tuning.resolve_batch_size(configure(tmp_path), IdealGaussian(), PlainScorer()).run.batch_size in (
        1,
        2,
        4,
    )
    assert all(entry["batch_size"] >= 1 for entry in json.loads(cache.read_text()).values())


def test_a_given_size_is_used(tmp_path: Path, cache: Path) -> None:
    config = settings(people(tmp_path / "in", 2), tmp_path / "out")
    assert batch_size_tuning.resolve_batch_size(config, IdealGaussian(), PlainScorer()) is config
    assert not cache.exists()


def test_a_benchmarked_size_gives_the_same_release(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(tmp_path)
    found = batch_size_tuning.resolve_batch_size(config, IdealGaussian(), PlainScorer())
    named = settings(tmp_path / "in", tmp_path / "named", run={"batch_size": 3, "shard_size": 4})
    assert public_images(run(found))[0] == public_images(run(named))[0]


def test_a_shard_resolves_the_size_before_it_begins(
    tmp_path: Path, cache: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANONYMIZER_KEY", bytes(range(32)).hex())
    config = configure(
        tmp_path, f"model.id={tiny_model}", "model.device=cpu", "metrics.clip=none", "metrics.lpips=none"
    )
    release_job.prepare(config)
    release_job.run_shard(config, 0, lambda done: None)
    assert len(json.loads(cache.read_text())) == 1


@pytest.mark.parametrize("wrong", ["0", "-1", "1.5", "true", "many", "null"])
def test_any_other_size_is_refused_in_one_line(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"^run.batch_size must be a number, 1 or more, or auto, got [^\n]+$"):
        build({"source": {"uri": "a"}, "output": {"uri": "b"}}, [f"run.batch_size={wrong}"])


@pytest.mark.parametrize(
    ("capability", "device", "found"),
    [
        ((8, 0), "auto", "bfloat16"),
        ((9, 0), "cuda:0", "bfloat16"),
        ((7, 5), "auto", "float32"),
        ((9, 0), "cpu", "float32"),
    ],
)
def test_auto_is_bfloat16_where_a_gpu_is_made_for_it(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], device: str, found: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert ModelConfig(dtype="auto", device=device).dtype == found


def test_auto_dtype_is_resolved_when_the_run_is_configured(tmp_path: Path) -> None:
    config = build({"source": {"uri": "a"}, "output": {"uri": "b"}, "model": {"dtype": "auto", "device": "cpu"}})
    assert config.model_dump()["model"]["dtype"] == "float32"
    assert begin(settings(people(tmp_path / "in", 2), tmp_path / "out", "model.dtype=auto", "model.device=cpu"))
