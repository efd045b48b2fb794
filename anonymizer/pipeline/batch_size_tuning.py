"""The number of pictures that a device should see at once: benchmarked, and remembered for the next run."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from anonymizer.backbones import Backbone
from anonymizer.backbones.conditioning import encode_conditions, placeholder_condition
from anonymizer.boomerang import Boomerang
from anonymizer.config import RunConfig
from anonymizer.devices import device_name, empty_cache, is_out_of_memory
from anonymizer.pipeline.batch_sampling import Scorer
from anonymizer.storage.download import cache_folder

MAX_BATCH_SIZE = 512
SUFFICIENT_RATE = 0.97  # of the best rate: a smaller batch that reaches it leaves memory for what runs beside


def resolve_batch_size(config: RunConfig, backbone: Backbone, scorer: Scorer) -> RunConfig:
    """Return the same settings with a number for ``run.batch_size`` where that is ``auto``.

    A batch's size moves single pixels by rounding, so with ``auto`` machines, and processes that benchmark at the same
    time, may differ in the last digit.
    """
    if config.run.batch_size != "auto":
        return config
    key, cache = _cache_key(config, backbone, scorer), _read_cache()
    if key not in cache:
        max_size = min(MAX_BATCH_SIZE, config.run.shard_size)
        rates = benchmark_batch_sizes(lambda size: _measure_rate(size, config, backbone, scorer), max_size, backbone)
        entry = {"batch_size": fastest_batch_size(rates), "pictures_per_second": rates}
        cache = _read_cache() | {key: entry}  # others may have written meanwhile
        _write_cache(cache)
    batch_size = int(cache[key]["batch_size"])
    return config.model_copy(update={"run": config.run.model_copy(update={"batch_size": batch_size})})


def benchmark_batch_sizes(rate: Callable[[int], float], max_size: int, backbone: Backbone) -> dict[int, float]:
    """Return pictures per second by size; sizes double until memory is short or two in a row gain next to nothing."""
    rates: dict[int, float] = {}
    size = 1
    while size <= max_size:
        try:
            rates[size] = rate(size)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
        if size not in rates:  # the error, which holds on to what it left on the device, is gone by now
            empty_cache(backbone.device)
            break
        smaller = [rates[n] for n in rates if n < size // 2]
        if smaller and max(rates[size], rates[size // 2]) * SUFFICIENT_RATE < max(smaller):
            break
        size *= 2
    return rates


def fastest_batch_size(rates: dict[int, float]) -> int:
    """Return the smallest size that is nearly as fast as the fastest; 1 where not even one picture fits."""
    best = max(rates.values(), default=0.0)
    return min((size for size, rate in rates.items() if rate >= SUFFICIENT_RATE * best), default=1)


def _measure_rate(size: int, config: RunConfig, backbone: Backbone, scorer: Scorer) -> float:
    """Return pictures per second of sampling and scoring, estimated from two network calls."""
    boomerang = Boomerang(backbone, config.boomerang.sampler, config.boomerang.steps)
    t_boom = boomerang.t_boom(config.boomerang.level)
    x0 = torch.zeros(size, 3, backbone.size, backbone.size)
    with torch.inference_mode():
        condition = encode_conditions(backbone, [placeholder_condition(config.model)] * size)
        zt = backbone.encode(x0.to(backbone.device))

        def encode_decode_score() -> None:
            z0 = backbone.encode(x0.to(backbone.device))
            scorer.score(scorer.embed(x0), backbone.decode(z0))

        def predict() -> None:
            float(backbone.predict(zt, t_boom, condition).z0.sum())  # a number on the host: the device is done

        predict()  # the first call also prepares
        steps = len(boomerang.grid(t_boom)) - 1
        return size / (_measure_seconds(encode_decode_score) + steps * _measure_seconds(predict))


def _measure_seconds(work: Callable[[], None]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def _cache_key(config: RunConfig, backbone: Backbone, scorer: Scorer) -> str:
    """Return a digest of all that the fastest size depends on."""
    is_cuda = backbone.device.type == "cuda"
    conditions = {
        "model": backbone.digest,
        "size": backbone.size,
        "dtype": config.model.dtype,
        "guidance": config.model.guidance != 1,
        "tiles": config.source.fit == "tiles",
        "sampler": config.boomerang.sampler,
        "scorer": dict(scorer.names),
        "device": device_name(backbone.device),
        "memory": torch.cuda.get_device_properties(backbone.device).total_memory if is_cuda else None,
        "threads": None if is_cuda else torch.get_num_threads(),
        "torch": torch.__version__,
        "most": min(MAX_BATCH_SIZE, config.run.shard_size),
    }
    return hashlib.sha256(json.dumps(conditions, sort_keys=True).encode()).hexdigest()


def _cache_file() -> Path:
    return cache_folder() / "batch-sizes.json"


def _read_cache() -> dict[str, Any]:
    """Return the sizes by key; none of a damaged file, which costs another benchmark."""
    with suppress(OSError, ValueError, TypeError, KeyError, AttributeError):
        entries = json.loads(_cache_file().read_text())
        return {key: entry for key, entry in entries.items() if int(entry["batch_size"]) >= 1}
    return {}


def _write_cache(cache: dict[str, Any]) -> None:
    with suppress(OSError):  # a folder that cannot be written costs another benchmark, and no run
        scratch = _cache_file().with_suffix(f".{os.getpid()}.tmp")
        scratch.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        scratch.write_text(json.dumps(cache, indent=1))
        scratch.replace(_cache_file())
