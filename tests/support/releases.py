"""Whole runs in a few milliseconds, without Prefect: a model and scores in closed form, sources of tiny pictures."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from anonymizer import report
from anonymizer.attest.verify import check_public
from anonymizer.backbones import Denoised
from anonymizer.config import RunConfig
from anonymizer.crypto import signing
from anonymizer.crypto.custodian_key import CustodianKey
from anonymizer.data import released_images
from anonymizer.pipeline.batch_sampling import Scorer
from anonymizer.pipeline.shard import anonymize_shard
from anonymizer.policy.calibration import build_resolved
from anonymizer.records import Scores, ShardSummary, Summary
from anonymizer.release import assemble, history, plan, preflight, publish
from anonymizer.release.finished_ledger import FinishedLedger
from anonymizer.release.ledger import Ledger, ShardWriter
from anonymizer.release.plan import resolve_config
from anonymizer.release.verify_restricted import check_restricted
from anonymizer.report.ledger_summary import LedgerSummary
from anonymizer.storage import parquet
from anonymizer.storage.layout import Release
from flows.jobs import erase as erase_job
from tests.support.ideal_gaussian import IdealGaussian

KEY = CustodianKey(bytes(range(32)))
HEX = KEY.secret.hex()
GARBAGE = b"no picture at all"


class PlainScorer:
    """Scores that can be worked out by hand: 1 - |difference of the means|, and the mean absolute difference."""

    names: Mapping[str, str] = {"clip_similarity": "plain-similarity", "lpips": "plain-distance"}

    def embed(self, originals: torch.Tensor) -> torch.Tensor:
        return originals

    def score(self, reference: torch.Tensor, outputs: torch.Tensor) -> list[Scores]:
        return [self.score_one(a, b) for a, b in zip(reference, outputs, strict=True)]

    def score_pairwise(self, originals: torch.Tensor, outputs: torch.Tensor) -> Mapping[str, torch.Tensor]:
        every = [[self.score_one(a, b) for a in originals] for b in outputs]
        return {name: torch.tensor([[getattr(s, name) for s in row] for row in every]) for name in self.names}

    def score_one(self, original: torch.Tensor, output: torch.Tensor) -> Scores:
        similarity = 1 - (original.mean() - output.mean()).abs()
        return Scores(clip_similarity=float(similarity), lpips=float((original - output).abs().mean()))


class Unscored(PlainScorer):
    """Has no score, or one that is not a number, for an original that is black; the greener, the less of it."""

    def __init__(self, missing: Scores) -> None:
        self.missing = missing

    def score_one(self, original: torch.Tensor, output: torch.Tensor) -> Scores:
        return self.missing if float(original.max()) < -0.9 else super().score_one(original, output)


class NotFinite(IdealGaussian):
    """A model that returns NaN for an original that is white."""

    def encode(self, images: torch.Tensor) -> torch.Tensor:
        white = images.amin((1, 2, 3), keepdim=True) > 0.9
        return torch.where(white, torch.nan, images)


class Broken(IdealGaussian):
    """A model that fails on its ``after``-th call and every one that follows."""

    def __init__(self, after: int = 0, message: str = "out of memory") -> None:
        super().__init__()
        self.after, self.message = after, message

    def predict(self, zt: torch.Tensor, t: int, condition: object = None) -> Denoised:
        if len(self.calls) >= self.after:
            raise RuntimeError(self.message)
        return super().predict(zt, t, condition)


def picture(seed: int, size: tuple[int, int] = (10, 8), kind: str = "PNG") -> bytes:
    """An encoded picture of its own for each seed."""
    pixels = np.random.default_rng(seed).integers(40, 200, (size[1], size[0], 3), dtype=np.uint8)
    return encoded(pixels, kind)


def plain(value: int) -> bytes:
    """A PNG of one grey."""
    return encoded(np.full((8, 8, 3), value, dtype=np.uint8))


def encoded(pixels: Any, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def folder_of(root: Path, files: Mapping[str, bytes]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def people(root: Path, count: int = 5) -> Path:
    """``count`` pictures in two folders."""
    return folder_of(root, {f"{'ab'[i % 2]}/person {i}.png": picture(i) for i in range(count)})


def settings(source: Path | str, output: Path | str, /, *overrides: str, **sections: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "source": {"uri": str(source)},
        "output": {"uri": str(output)},
        "boomerang": {"level": 0.4, "steps": 2},
        "run": {"shard_size": 2, "batch_size": 2},
    }
    for name, section in sections.items():
        tree[name] = tree.get(name, {}) | section
    return build_resolved(RunConfig, tree, overrides)


def begin(config: RunConfig, backbone: Any = None, key: CustodianKey = KEY) -> Release:
    """Write, or take up, the plan of a run."""
    release = Release.at(config.output.uri, key)
    preflight.check_previous(config, key, PlainScorer.names)
    plan.write_or_resume(config, backbone or IdealGaussian(), key, release, history.carry_forward)
    history.stage_images(release)
    return release


def one_shard(
    config: RunConfig,
    shard: int,
    backbone: Any = None,
    scorer: Scorer | None = None,
    key: CustodianKey = KEY,
    progress: Callable[[int], None] = lambda done: None,
) -> ShardSummary:
    release, scorer = Release.at(config.output.uri, key), scorer or PlainScorer()
    ledger = Ledger.open(release)
    writer = ShardWriter(ledger, shard, scorer.names)
    entries = [entry for entry in plan.read_entries(release, ledger.plan, shard) if writer.is_pending(entry)]
    before = history.load(release)
    return anonymize_shard(shard, entries, config, backbone or IdealGaussian(), scorer, key, writer, progress, before)


def run(config: RunConfig, backbone: Any = None, scorer: Scorer | None = None, key: CustodianKey = KEY) -> Release:
    """A whole run, or what is left of one."""
    release = begin(config, backbone, key)
    for shard in range(plan.read(release).shards):
        if Ledger.open(release).read_shard(shard) is None:
            one_shard(config, shard, backbone, scorer, key)
    with finished_ledger(release, config) as finished:
        assemble.assemble(release, config, finished)
        publish.decide_and_publish(release, config, key, finished, report.write_public)
    return release


def release_without_images(folder: Path, patch: pytest.MonkeyPatch, layout: str = "folder") -> Release:
    """A release that everybody was erased from: it carries the revocations, and is the only empty one there can be."""
    patch.setenv("ANONYMIZER_KEY", HEX)
    patch.setenv("ANONYMIZER_SIGNING_KEY", signing.generate_key_pair().private_bytes.decode())
    run(settings(folder_of(folder / "in", {"a.png": picture(0)}), folder / "old", output={"format": layout}))
    (folder / "names.txt").write_text("a.png\n")
    erase_job.run(str(folder / "old"), folder / "names.txt", str(folder / "out"))
    return Release.at(str(folder / "out"))


def finished_ledger(release: Release, config: RunConfig) -> FinishedLedger:
    return FinishedLedger(release, plan.read(release), config)


def assemble_candidate(release: Release, config: RunConfig) -> None:
    with finished_ledger(release, config) as finished:
        assemble.assemble(release, config, finished)


def write_restricted_report(release: Release, config: RunConfig) -> None:
    rows = LedgerSummary(plan.read(release))
    with FinishedLedger(release, plan.read(release), config, rows.add) as finished:
        report.write_restricted(release, config, finished, rows)


def summarize(release: Release) -> Summary:
    """Counts of what is committed."""
    return Ledger.open(release).summarize()


def rows(release: Release) -> list[dict[str, Any]]:
    """All rows of the ledger."""
    return [row for _, table in Ledger.open(release).scan() for row in table.to_pylist()]


def released(release: Release) -> dict[str, str]:
    """Record id -> SHA-256 of what was released."""
    return {row["record_id"]: row["sha256"] for row in rows(release) if row["status"] == "released"}


def manifest(release: Release) -> pa.Table:
    return pq.read_table(release.manifest.path)


def tree(folder: Path | str) -> dict[str, bytes]:
    """Every file below a folder."""
    root = Path(folder)
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def public_images(release: Release) -> tuple[dict[str, bytes], pa.Table]:
    """The public pictures and the manifest; reports, which tell the time it took, apart."""
    files = tree(release.public.path)
    return {name: data for name, data in files.items() if name.startswith("images/")}, manifest(release)


def listing(root: Path, items: Sequence[Mapping[str, Any]], name: str = "list.jsonl") -> Path:
    root.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("".join(json.dumps(item) + "\n" for item in items))
    return root / name


def follow(before: Release | str, source: Path, output: Path | str, /, *overrides: str, **sections: Any) -> RunConfig:
    """Settings of a release with another one as the previous."""
    uri = before if isinstance(before, str) else str(before.root)
    return settings(source, output, f"previous={uri}", *overrides, **sections)


def outputs(release: Release) -> dict[str, tuple[str, bytes]]:
    """Record id -> id and picture, of what was published."""
    table = parquet.read(release.manifest).to_pylist()
    data = {row["output_id"]: data for row, data in released_images.read_images(release.public, table)}
    return {r["record_id"]: (r["output_id"], data[r["output_id"]]) for r in rows(release) if r["status"] == "released"}


def verification_failures(release: Release) -> list[str]:
    """Failed findings of both halves."""
    found = [*check_public(release.public), *check_restricted(release, resolve_config(release), KEY)]
    assert {"signature", "ledger", "materials", "quarantine", "modes"} <= {finding.check for finding in found}
    return [str(finding) for finding in found if finding.result == "fail"]
