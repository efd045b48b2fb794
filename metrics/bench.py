"""What attackers are given, and what they make of it once: embeddings, outputs and pairs of their own."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch

from anonymizer.boomerang import Boomerang
from anonymizer.images import decode, encode
from anonymizer.noise import KeyedNoise
from metrics.attacks import inversion
from metrics.attacks.linkage import Floats, Names, Numbers
from metrics.attacks.pairs import Pairs, make_pairs
from metrics.features import Embedder, embed_all

BATCH = 32


@dataclass(frozen=True)
class Evidence:
    """What the attackers are given. Pictures are (N, 3, S, S) float32 in [-1, 1]; row i of all of them is one record.

    ``subjects`` (N,) tell whose picture each is; where nobody said so, each record is a person of its own and
    ``identified`` is false. ``others`` are other photos of the same people, ``outsiders`` photos of people who are not
    in the release, ``training`` pictures that the diffusion model was trained on; none where there are none.
    """

    originals: torch.Tensor
    outputs: torch.Tensor
    subjects: Names
    identified: bool
    boomerang: Boomerang
    level: float
    attributes: Mapping[str, Sequence[object]] = field(default_factory=dict)
    others: tuple[torch.Tensor, Names] | None = None
    outsiders: torch.Tensor | None = None
    training: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.subjects)


@dataclass(frozen=True)
class Effort:
    """How hard the attackers try: training pairs, outputs of one original, originals for which they make those."""

    pairs: int = 256
    outputs: int = 8
    averaged: int = 40


class Workbench:
    """Evidence and what is made of it once, for all attacks: embeddings, pairs, restored pictures."""

    def __init__(
        self,
        evidence: Evidence,
        embedders: Sequence[Embedder],
        effort: Effort,
        seed: int,
        progress: Callable[[str], None] = lambda doing: None,
    ) -> None:
        self.evidence, self.embedders, self.effort, self.seed, self.progress = (
            evidence, embedders, effort, seed, progress,
        )  # fmt: skip
        self._embedded: dict[tuple[str, str], Floats] = {}

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(purpose.encode())])

    def embedded(self, name: str, pictures: torch.Tensor, embedder: Embedder) -> Floats:
        """Embeddings (N, D) of the pictures that go by ``name``, made once."""
        key = (name, embedder.reported)
        if key not in self._embedded:
            self.progress(f"{embedder.name} of {name}")
            self._embedded[key] = embed_all(embedder, pictures)
        return self._embedded[key]

    def originals(self, embedder: Embedder) -> Floats:
        return self.embedded("originals", self.evidence.originals, embedder)

    def outputs(self, embedder: Embedder) -> Floats:
        return self.embedded("outputs", self.evidence.outputs, embedder)

    def round_trip(self, embedder: Embedder) -> Floats:
        return self.embedded("originals, encoded and decoded", self.encoded, embedder)

    @cached_property
    def encoded(self) -> torch.Tensor:
        """Originals after a mere encoding at the model's size."""
        size = self.evidence.originals.shape[-1]
        return torch.stack([decode(encode(x).data, size).tensor for x in self.evidence.originals])

    @cached_property
    def pairs(self) -> Pairs:
        """The attacker's training pairs: of outsiders where there are some, else of people whom the model invents."""
        outsiders = self.evidence.outsiders
        count = self.effort.pairs if outsiders is None else min(self.effort.pairs, len(outsiders))
        self.progress("the attacker's own pairs")
        return make_pairs(self.evidence.boomerang, self.evidence.level, count, self.rng("pairs"), outsiders)

    @cached_property
    def inverter(self) -> inversion.Inverter:
        pairs = self.pairs
        self.progress("learning to undo the level")
        return inversion.train(pairs, self.rng("inversion"))

    @cached_property
    def restored(self) -> torch.Tensor:
        return self.inverter.restore(self.evidence.outputs)

    def again(self, rows: Numbers, count: int, purpose: str) -> torch.Tensor:
        """``count`` further outputs of some originals, under noise of the attacker's own: (n, count, 3, S, S)."""
        rng, made = self.rng(purpose), []
        for x0 in self.evidence.originals[torch.from_numpy(rows)].split(BATCH):
            self.progress("the attacker's own outputs")
            noise = KeyedNoise([rng.bytes(16) for _ in x0])
            made.append(self.evidence.boomerang.samples(x0, self.evidence.level, noise, count).cpu())
        return torch.cat(made).nan_to_num(0.0)
