"""What goes on beside a GPU, tried on a CPU: the same noise, the same outputs, one batch ahead."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import current_thread

import pytest
import torch

from anonymizer.backbones import Denoised
from anonymizer.boomerang import Boomerang
from anonymizer.errors import GateError
from anonymizer.noise import FORWARD, KeyedNoise
from anonymizer.pipeline import stages
from anonymizer.pipeline.device_overlap import PrefetchedNoise, Sequential, open_overlap
from anonymizer.records import Scores
from anonymizer.storage.layout import Release
from tests.support.ideal_gaussian import IdealGaussian, open_concurrent
from tests.support.releases import NotFinite, PlainScorer, people, public_images, rows, run, settings

CPU = torch.device("cpu")
KEYS = [bytes([i]) * 16 for i in range(3)]


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm++", "sde-dpm++", "lcm"])
@pytest.mark.parametrize("steps", [1, 4])
def test_a_sampler_asks_for_noise_as_it_says(sampler: str, steps: int) -> None:
    asked: list[int] = []

    class Noting(KeyedNoise):
        def __call__(self, step: int, like: torch.Tensor) -> torch.Tensor:
            asked.append(step)
            return super().__call__(step, like)

    boomerang = Boomerang(IdealGaussian(), sampler, steps)
    boomerang.sample(torch.zeros(1, 3, 8, 8), 0.5, Noting(KEYS[:1]))
    assert asked == boomerang.draws(0.5)


@pytest.mark.parametrize("depth", [1, 3, 9])
def test_prefetched_noise_is_the_same_noise(depth: int) -> None:
    boomerang, x0, plain = Boomerang(IdealGaussian(), "ddpm", 6), torch.zeros(3, 3, 8, 8), KeyedNoise(KEYS)
    with ThreadPoolExecutor(2) as pool:
        drawn = PrefetchedNoise(plain, boomerang.draws(0.5), pool, depth)
        assert torch.equal(boomerang.sample(x0, 0.5, drawn), boomerang.sample(x0, 0.5, plain))
        both = [boomerang.samples(x0, 0.5, noise, 2) for noise in (plain, drawn)]
        assert torch.equal(*both)


def test_noise_that_is_asked_for_out_of_order_is_an_error() -> None:
    with ThreadPoolExecutor(1) as pool, pytest.raises(ValueError, match="in the order"):
        PrefetchedNoise(KeyedNoise(KEYS), [FORWARD, 9, 5], pool, 2)(9, torch.zeros(3, 1))


def test_a_cpu_works_sequentially() -> None:
    with open_overlap(CPU, 2) as overlap:
        assert type(overlap) is Sequential


class Near(PlainScorer):
    """Takes every other output of a batch for too close."""

    def score(self, reference: torch.Tensor, outputs: torch.Tensor) -> list[Scores]:
        found = super().score(reference, outputs)
        return [Scores(0.99 if i % 2 else 0.1, s.lpips) for i, s in enumerate(found)]


@pytest.mark.parametrize("escalate", [[], [0.7, 0.9]])
def test_a_release_is_the_same_to_the_byte_however_its_work_overlaps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, escalate: list[float]
) -> None:
    policy = {"scores": {"clip_similarity": {"max": 0.9}}, "escalate": escalate}
    made = []
    for name in ("sequential", "concurrent"):
        if name == "concurrent":
            monkeypatch.setattr(stages, "open_overlap", open_concurrent)
        config = settings(
            people(tmp_path / "in", 11), tmp_path / name, policy=policy,
            run={"batch_size": 3, "shard_size": 11}, boomerang={"level": 0.4, "steps": 3},
        )  # fmt: skip
        made.append(run(config, scorer=Near()))
    (pictures, table), (others, other) = (public_images(release) for release in made)
    assert pictures == others
    assert table.equals(other)
    names = ("record_id", "status", "reason", "attempts", "earlier", "sha256")
    one, two = ([{name: row[name] for name in names} for row in rows(release)] for release in made)
    assert sorted(one, key=str) == sorted(two, key=str)


def test_scores_are_made_while_the_next_batch_is_sampled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, str]] = []

    class Noting(IdealGaussian):
        def encode(self, images: torch.Tensor) -> torch.Tensor:
            order.append(("sample", current_thread().name))
            return super().encode(images)

    class NotingToo(PlainScorer):
        def score(self, reference: torch.Tensor, outputs: torch.Tensor) -> list[Scores]:
            order.append(("score", current_thread().name))
            return super().score(reference, outputs)

    monkeypatch.setattr(stages, "open_overlap", open_concurrent)
    run(settings(people(tmp_path / "in", 8), tmp_path / "out", run={"batch_size": 2, "shard_size": 8}), Noting(),
        NotingToo())  # fmt: skip
    samplers, scorers = ({thread for what, thread in order if what == which} for which in ("sample", "score"))
    assert len(samplers) == 1 and len(scorers) == 1 and samplers != scorers
    assert [what for what, _ in order].count("sample") == 4
    assert [what for what, _ in order][-1] == "score"


def test_an_error_of_the_scorer_is_raised_and_leaves_no_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing(PlainScorer):
        def score(self, reference: torch.Tensor, outputs: torch.Tensor) -> list[Scores]:
            raise RuntimeError("no scores today")

    monkeypatch.setattr(stages, "open_overlap", open_concurrent)
    with pytest.raises(RuntimeError, match="no scores today"):
        run(settings(people(tmp_path / "in", 8), tmp_path / "out"), scorer=Failing())


class NaNOnTheWay(IdealGaussian):
    """Gives NaN for the second row of a batch, in the last step only."""

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        found = super().predict(zt, t, condition)
        if t < 300 and len(zt) > 1:
            found.z0[1] = torch.nan
        return found


@pytest.mark.usefixtures("either_overlap")
def test_nan_in_the_reverse_process_fails_its_record_and_no_other(tmp_path: Path) -> None:
    source = people(tmp_path / "in", 4)
    config = settings(source, tmp_path / "out", run={"batch_size": 4, "shard_size": 4})
    ends = {row["record_id"]: (row["status"], row["reason"]) for row in rows(run(config, NaNOnTheWay()))}
    assert sorted(ends.values(), key=str) == [("failed", "not_finite")] + [("released", None)] * 3
    whole = {row["record_id"]: row["sha256"] for row in rows(run(settings(source, tmp_path / "whole")))}
    found = {row["record_id"]: row["sha256"] for row in rows(run(config)) if row["status"] == "released"}
    assert found.items() <= whole.items() and len(found) == 3


def test_a_model_that_gives_nothing_but_nan_fails_every_record(tmp_path: Path) -> None:
    class Nothing(NotFinite):
        def decode(self, z0: torch.Tensor) -> torch.Tensor:
            return torch.full_like(z0, torch.nan)

    config = settings(people(tmp_path / "in", 3), tmp_path / "out", run={"shard_size": 3})
    with pytest.raises(GateError, match="nothing is published"):
        run(config, Nothing())
    found = rows(Release.at(config.output.uri))
    assert {(row["status"], row["reason"]) for row in found} == {("failed", "not_finite")}


def test_sequences_of_scores_may_be_of_any_kind(tmp_path: Path) -> None:
    class Tuples(PlainScorer):
        def score(self, reference: torch.Tensor, outputs: torch.Tensor) -> Sequence[Scores]:  # type: ignore[override]
            return tuple(super().score(reference, outputs))

    assert len(rows(run(settings(people(tmp_path / "in", 3), tmp_path / "out"), scorer=Tuples()))) == 3
