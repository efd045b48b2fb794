"""What attackers are given, and what they make of it once: embeddings, outputs and pairs of their own."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from anonymizer.backbones.protocol import Backbone
from metrics.attacks import inversion, membership
from metrics.attacks.linkage import draw_across_people
from metrics.attacks.training_pairs import Pairs, finite_pairs
from metrics.audit.mechanisms import Mechanism, apply, generate_people, reencode
from metrics.features import Embedder, embed_in_batches
from metrics.stats.intervals import Bools, Floats, Names, Numbers, as_subjects


@dataclass(frozen=True)
class Evidence:
    """What the attackers are given. Pictures are (N, 3, S, S) float32 in [-1, 1]; row i of all of them is one record.

    ``subjects`` (N,) tell whose picture each is; where nobody said so, each record is a person of its own and
    ``identified`` is false. ``others`` are other photos of the same people, ``outsiders`` photos of people who are not
    in the release, ``training`` pictures that the diffusion ``model`` was trained on; none where there are none.
    ``method`` is what made the outputs, as the attackers can run it too. ``note`` says what of this was left out.
    """

    originals: torch.Tensor
    outputs: torch.Tensor
    subjects: Names
    has_identities: bool
    mechanism: Mechanism
    model: Backbone
    attributes: Mapping[str, Sequence[object]] = field(default_factory=dict)
    others: tuple[torch.Tensor, Names] | None = None
    outsiders: tuple[torch.Tensor, Names] | None = None
    training: torch.Tensor | None = None
    note: str | None = None

    def __len__(self) -> int:
        return len(self.subjects)

    def subset(self, rows: Bools) -> Evidence:
        """Some of the records, with all that attackers have besides."""
        where = torch.from_numpy(rows)
        return replace(
            self,
            originals=self.originals[where],
            outputs=self.outputs[where],
            subjects=self.subjects[rows],
            attributes={
                name: [value for value, row in zip(values, rows, strict=True) if row]
                for name, values in self.attributes.items()
            },
        )


@dataclass(frozen=True)
class Effort:
    """How hard the attackers try: training pairs, outputs of one original, originals for which they make those."""

    pairs: int = 256
    outputs: int = 8
    averaged: int = 40


ArrayStore = MutableMapping[str, npt.NDArray[Any]]


class Workbench:
    """Evidence and what is made of it once, for all attacks: embeddings, pairs, restored pictures.

    What does not depend on the method is kept for all methods and records, the rest goes with the bench. ``who`` tells
    benches of different records apart. ``store`` makes a place to keep arrays by name, in memory unless told.
    """

    def __init__(
        self,
        evidence: Evidence,
        embedders: Sequence[Embedder],
        effort: Effort,
        seed: int,
        progress: Callable[[str], None] = lambda doing: None,
        *,
        scope: str = "",
        make_store: Callable[[], ArrayStore] = dict,
        shared: ArrayStore | None = None,
    ) -> None:
        self.evidence, self.embedders, self.effort, self.seed = evidence, embedders, effort, seed
        self.progress, self.scope, self.make_store = progress, scope, make_store
        self.shared: ArrayStore = make_store() if shared is None else shared
        self.own: ArrayStore = make_store()

    def with_outputs(self, mechanism: Mechanism, outputs: torch.Tensor) -> Workbench:
        """The same records, had their outputs been made by another method."""
        return self._derive(replace(self.evidence, mechanism=mechanism, outputs=outputs), self.scope)

    def subset(self, rows: Bools, scope: str) -> Workbench:
        """Some of the records, on their own; ``who`` names them."""
        return self._derive(self.evidence.subset(rows), scope)

    def _derive(self, evidence: Evidence, who: str) -> Workbench:
        settings = evidence, self.embedders, self.effort, self.seed, self.progress
        return Workbench(*settings, scope=who, make_store=self.make_store, shared=self.shared)

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(f"{self.scope}{purpose}".encode())])

    # -- embeddings, (N, D)

    def embed_images(self, name: str, pictures: torch.Tensor, embedder: Embedder) -> Floats:
        """Of pictures that go by ``name`` and have to do with no method and no record."""
        return self._embed(self.shared, name, pictures, embedder)

    def embed_outputs(self, name: str, pictures: torch.Tensor, embedder: Embedder) -> Floats:
        """Of pictures that go by ``name`` and that the method, or an attacker who knows it, made of these records."""
        return self._embed(self.own, f"{self._cache_scope}, {name}", pictures, embedder)

    def embed_originals(self, embedder: Embedder) -> Floats:
        return self.embed_images(f"originals{self.scope}", self.evidence.originals, embedder)

    def embed_released(self, embedder: Embedder) -> Floats:
        return self.embed_outputs("outputs", self.evidence.outputs, embedder)

    def embed_round_trip(self, embedder: Embedder) -> Floats:
        return self.embed_images(f"originals{self.scope}, encoded and decoded", self.reencoded_originals, embedder)

    def _embed(self, store: ArrayStore, name: str, pictures: torch.Tensor, embedder: Embedder) -> Floats:
        def embed() -> Floats:
            self.progress(f"{embedder.name} of {name}")
            return embed_in_batches(embedder, pictures)

        return _get_or_make(store, f"{name}, by {embedder.versioned_name}", embed)

    def denoising_losses(self, name: str, pictures: torch.Tensor) -> Floats:
        """How well the model itself knows pictures that go by ``name``: denoising losses (N,), all under one noise."""

        def denoise() -> Floats:
            self.progress(f"denoising losses of {name}")
            rng = np.random.default_rng([self.seed, zlib.crc32(b"denoising")])
            return membership.denoising_losses(self.evidence.model, pictures, rng)

        return _get_or_make(self.shared, f"denoising losses of {name}", denoise)

    @property
    def _cache_scope(self) -> str:
        return f"{self.evidence.mechanism.name}{self.scope}"

    # -- pictures

    @cached_property
    def reencoded_originals(self) -> torch.Tensor:
        """Originals after a mere encoding at the model's size."""
        return reencode(self.evidence.originals)

    @cached_property
    def strangers(self) -> tuple[torch.Tensor, Names]:
        """Whom attackers learn from, and their names: outsiders; where these are few, people whom the model invents."""
        evidence, most = self.evidence, self.effort.pairs
        known = evidence.outsiders
        rows = (
            np.empty(0, np.int64)
            if known is None
            else draw_across_people(known[1], most, self.rng("strangers learnt from"))
        )
        missing = most - len(rows)

        def invent() -> npt.NDArray[Any]:
            self.progress("inventing people for the attackers to learn from")
            return generate_people(evidence.model, missing, self.rng("strangers")).cpu().numpy()

        found = [] if known is None else [(known[0][torch.from_numpy(rows)], known[1][rows])]
        if missing:
            made = torch.from_numpy(_get_or_make(self.shared, f"{missing} strangers", invent))
            found.append((made, as_subjects([f"invented {i}" for i in range(missing)])))
        pictures, names = zip(*found, strict=True)
        return torch.cat(pictures), np.concatenate(names)

    @property
    def pairs(self) -> Pairs:
        """The attackers' own training pairs."""
        strangers, names = self.strangers

        def make() -> npt.NDArray[Any]:
            self.progress("the attacker's own pairs")
            made = apply(self.evidence.mechanism, strangers, self.rng("pairs"))
            return torch.stack([strangers, made.cpu()]).numpy()

        originals, outputs = torch.from_numpy(_get_or_make(self.own, f"{self._cache_scope}, pairs", make))
        return finite_pairs(Pairs(originals, outputs, names))

    @property
    def restored(self) -> torch.Tensor:
        """What a network that learnt from the pairs takes the outputs' originals to be."""

        def restore() -> npt.NDArray[Any]:
            pairs = self.pairs
            self.progress("learning to undo the method")
            return inversion.train(pairs, self.rng("inversion")).restore(self.evidence.outputs.cpu()).numpy()

        return torch.from_numpy(_get_or_make(self.own, f"{self._cache_scope}, restored", restore))

    def resample(self, rows: Numbers, count: int, purpose: str) -> torch.Tensor:
        """``count`` further outputs of some originals, under noise of the attacker's own: (n, count, 3, S, S)."""

        def make() -> npt.NDArray[Any]:
            rng, x0 = self.rng(purpose), self.evidence.originals[torch.from_numpy(rows)]
            made = []
            for number in range(count):
                self.progress(f"the attacker's own outputs, {number + 1} of {count}")
                made.append(apply(self.evidence.mechanism, x0, rng).cpu())
            return torch.stack(made, dim=1).nan_to_num(0.0).numpy()

        return torch.from_numpy(_get_or_make(self.own, f"{self._cache_scope}, {len(rows)} x {count} {purpose}", make))


def _get_or_make(store: ArrayStore, name: str, make: Callable[[], npt.NDArray[Any]]) -> npt.NDArray[Any]:
    if name not in store:
        store[name] = make()
    return store[name]
