"""Reports of small releases, made by the real code with a model in closed form and a toy scorer."""

from __future__ import annotations

from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from anonymizer import config, report
from anonymizer.crypto import custodian_key
from anonymizer.pipeline.shard import anonymize_shard
from anonymizer.records import Scores
from anonymizer.release import ledger, plan, publish
from anonymizer.storage.layout import Release
from tests.support.releases import assemble_candidate, finished_ledger, write_restricted_report

HOSTILE = '<img src=x onerror=alert(1)> & "quoted" \' -->'
SECRET_FOLDER = "people-of-lisbon"
LOADS = ("src", "href", "srcset", "data", "poster", "action", "background", "xlink:href")


class ToyScorer:
    """Scores by mean difference, so that those of all pairs differ."""

    names: Mapping[str, str] = {"clip_similarity": "toy-clip sha256:00", "lpips": "toy-lpips sha256:11"}

    def embed(self, originals: torch.Tensor) -> torch.Tensor:
        return originals

    def score(self, reference: torch.Tensor, outputs: torch.Tensor) -> list[Scores]:
        far = (reference - outputs).abs().mean((1, 2, 3)).tolist()
        return [Scores(clip_similarity=1 - d, lpips=d) for d in far]


def release_of(tmp_path: Path, ideal: Any, good: int = 6, **settings: Any) -> tuple[Release, config.RunConfig]:
    """Return a release of ``good`` images, one with a hostile name, and of two files that are no images."""
    source = tmp_path / SECRET_FOLDER
    (source / "site").mkdir(parents=True)
    draw = np.random.default_rng(3)
    for i in range(good):
        pixels = draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        name = "jane_doe" if i else HOSTILE.replace("/", "")
        Image.fromarray(pixels).save(source / "site" / f"{name}_{i}.png")
    (source / "empty_scan.jpg").write_bytes(b"")
    (source / f"broken {HOSTILE.replace('/', '')}\n.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    tree: dict[str, Any] = {
        "source": {"uri": str(source)},
        "output": {"uri": str(tmp_path / "release")},
        "boomerang": {"level": 0.5, "steps": 2},
        "run": {"shard_size": 4},
    }
    for section, values in settings.items():
        tree.setdefault(section, {}).update(values)
    run = config.build(tree)
    release, key = Release.at(run.output.uri), custodian_key.load_key("NO_SUCH_VARIABLE")
    the_plan = plan.write_or_resume(run, ideal, key, release)
    for shard in range(the_plan.shards):
        writer = ledger.ShardWriter(ledger.Ledger(release, the_plan), shard, ToyScorer.names)
        anonymize_shard(shard, plan.read_entries(release, the_plan, shard), run, ideal, ToyScorer(), key, writer)
    assemble_candidate(release, run)
    write_restricted_report(release, run)
    with finished_ledger(release, run) as finished:
        publish.decide_and_publish(release, run, key, finished, report.write_public)
    return release, run


def text(release: Release, name: str) -> str:
    return Path(release.root.path, name).read_text(encoding="utf-8")


def manifest(release: Release) -> pa.Table:
    return pq.read_table(Path(release.manifest.path))


class Page(HTMLParser):
    """Tags, ids and addresses that a browser would load, of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.loads: list[str] = []
        self.ids: list[str] = []
        self.handlers: list[str] = []
        self.pictures = 0
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.pictures += tag == "img"
        for name, value in attrs:
            if name in LOADS:
                self.loads.append(value or "")
            if name == "id":
                self.ids.append(value or "")
            if name.startswith("on"):
                self.handlers.append(name)


@pytest.fixture
def made(tmp_path: Path, ideal: Any) -> tuple[Release, config.RunConfig]:
    return release_of(tmp_path, ideal)
