"""From decoded records to outputs and their scores, a batch at a time; too close an output is drawn again, stronger."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any, Protocol

import torch

from anonymizer.backbones import Backbone
from anonymizer.backbones.tiles import Tiled
from anonymizer.batches import Decoded
from anonymizer.boomerang import Boomerang
from anonymizer.config import RunConfig
from anonymizer.fit import squared
from anonymizer.keys import CustodianKey
from anonymizer.noise import KeyedNoise
from anonymizer.policy import gate
from anonymizer.records import Reason, Scores
from anonymizer.told import condition, unsafe


class Scorer(Protocol):
    """Scores outputs against originals; both (B, 3, H, W) in [-1, 1]."""

    names: Mapping[str, str]  # score column -> the model that made it

    def embed(self, originals: torch.Tensor) -> Any:
        """What is kept of the originals, so that they are embedded once."""
        ...

    def score(self, reference: Any, outputs: torch.Tensor) -> Sequence[Scores]:
        """One ``Scores`` for each row."""
        ...


@dataclass(frozen=True)
class Attempt:
    """One way through Boomerang: at the level that was asked for, or at a stronger one."""

    level: float
    fingerprint: str  # of the settings at this level: an output is what a run at this level would have given
    columns: Mapping[str, Any]  # of the ledger


@dataclass(frozen=True)
class Drawn:
    """Outputs (B, 3, H, W) on the CPU of one attempt, their scores, and the seconds that each record took.

    ``unsafe``: what the model's own safety checker objects to.
    """

    items: Sequence[Decoded]
    attempt: Attempt
    outputs: torch.Tensor
    scores: Sequence[Scores]
    unsafe: Sequence[bool]
    started: datetime
    seconds: float

    def where(self, kept: Sequence[int]) -> Drawn:
        """Some of them."""
        items, scores = [self.items[i] for i in kept], [self.scores[i] for i in kept]
        unsafe = [self.unsafe[i] for i in kept]
        return replace(self, items=items, scores=scores, unsafe=unsafe, outputs=self.outputs[list(kept)])


class Drawing:
    """What the model and the scorer do for one shard."""

    def __init__(self, shard: int, config: RunConfig, backbone: Backbone, scorer: Scorer, key: CustodianKey) -> None:
        self.config, self.scorer, self.key = config, scorer, key
        self.backbone = Tiled(backbone, config.model.tile_overlap) if config.source.fit == "tiles" else backbone
        self.boomerang = Boomerang(self.backbone, config.boomerang.sampler, config.boomerang.steps)
        self.attempts = [self._attempt(shard, level) for level in (config.boomerang.level, *config.policy.escalate)]

    def _attempt(self, shard: int, level: float) -> Attempt:
        t_boom = self.boomerang.t_boom(level)
        fingerprint = self.config.at(level).fingerprint(self.backbone.digest)
        columns = {
            "level": level,
            "t_boom": t_boom,
            "log_snr": self.boomerang.log_snr(t_boom),
            "sampler": self.config.boomerang.sampler,
            "steps": len(self.boomerang.grid(t_boom)) - 1,
            "model": self.config.model.public_name,
            "model_digest": self.backbone.digest,
            "config_fingerprint": fingerprint,
            "code_version": version("anonymizer"),
            "shard": shard,
        }
        return Attempt(level, fingerprint, columns)

    def at_once(self, picture: torch.Tensor) -> int:
        """How many pictures of this shape have about as many pixels as a batch of the model's size."""
        return max(1, self.config.run.batch_size * self.backbone.size**2 // (picture.shape[-2] * picture.shape[-1]))

    def draw(self, batch: Sequence[Decoded]) -> Iterator[Drawn]:
        """Outputs of a batch; those that came too close are drawn again at a stronger level, while there is one."""
        for attempt in self.attempts:
            if not batch:
                return
            drawn = self.sample(batch, attempt)
            close = [
                i
                for i, scores in enumerate(drawn.scores)
                if attempt is not self.attempts[-1] and gate(scores, self.config).reason is Reason.TOO_CLOSE
            ]
            if rest := sorted(set(range(len(batch))) - set(close)):
                yield drawn.where(rest)
            batch = [replace(item, earlier=(*item.earlier, _tried(attempt, drawn.scores[i])))
                     for i, item in enumerate(batch) if i in close]  # fmt: skip

    def sample(self, batch: Sequence[Decoded], attempt: Attempt) -> Drawn:
        started, begun = datetime.now(UTC), time.monotonic()
        x0 = torch.stack([item.picture.tensor for item in batch if item.picture])  # (B, 3, H, W)
        x0 = x0.to(self.backbone.device)
        noise = KeyedNoise([self.key.noise_key(item.source_hmac or "", attempt.fingerprint) for item in batch])
        said = condition(self.backbone, (item.told for item in batch))
        outputs = self.boomerang.sample(x0, attempt.level, noise, said)
        seen = (x0, outputs)
        if self.config.source.fit == "tiles":  # scorers look at squares, or at the middle of what is none
            seen = (squared(x0, self.backbone.size), squared(outputs, self.backbone.size))
        scores = self.scorer.score(self.scorer.embed(seen[0]), seen[1])
        if len(scores) != len(batch):
            raise ValueError(f"scorer: {len(scores)} scores for {len(batch)} outputs: it must give one for each")
        objections = unsafe(self.config.model, self.backbone, outputs)
        return Drawn(
            batch, attempt, outputs.cpu(), scores, objections, started, (time.monotonic() - begun) / len(batch)
        )


def _tried(attempt: Attempt, scores: Scores) -> dict[str, Any]:
    finite = {name: None if value is None or math.isnan(value) else value for name, value in asdict(scores).items()}
    return {"level": attempt.level, "reason": Reason.TOO_CLOSE} | finite
