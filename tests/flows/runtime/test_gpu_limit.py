"""Shards take turns on a GPU that has a concurrency limit."""

from __future__ import annotations

import threading
import time

import pytest


@pytest.mark.usefixtures("prefect_home")
def test_a_gpu_has_a_limit_of_its_own_name_and_a_cpu_none(monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.runtime import gpu_limit

    monkeypatch.setattr(gpu_limit.socket, "gethostname", lambda: "node7")
    monkeypatch.setattr(gpu_limit.torch.cuda, "is_available", lambda: False)
    assert gpu_limit.limit_name("auto") is None
    monkeypatch.setattr(gpu_limit.torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [gpu_limit.limit_name(name) for name in ("cpu", "auto", "cuda:1")] == [
        None, "anonymizer-gpu-node7-0", "anonymizer-gpu-node7-1",
    ]  # fmt: skip
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert [gpu_limit.limit_name(name) for name in ("auto", "cuda:1")] == [
        "anonymizer-gpu-node7-2",
        "anonymizer-gpu-node7-5",
    ]


@pytest.mark.slow
@pytest.mark.usefixtures("prefect_home")
def test_shards_take_turns_on_a_gpu_that_has_a_limit_and_do_not_without_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client

    from flows.runtime import gpu_limit

    monkeypatch.setattr(gpu_limit, "limit_name", lambda device: "anonymizer-gpu-test-0")

    def together() -> int:
        """How many of three have the GPU at the same time, at most."""
        now, most, lock = 0, 0, threading.Lock()

        def shard() -> None:
            nonlocal now, most
            with gpu_limit.gpu_slot("auto"):
                with lock:
                    now += 1
                    most = max(most, now)
                time.sleep(0.5)
                with lock:
                    now -= 1

        threads = [threading.Thread(target=shard) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return most

    assert together() > 1
    with get_client(sync_client=True) as client:
        client.upsert_global_concurrency_limit_by_name("anonymizer-gpu-test-0", 1)
    assert together() == 1
