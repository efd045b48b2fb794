"""The evidence that attackers are given, and what they derive from it once: embeddings, outputs and pairs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from anonymizer.backbones.protocol import Backbone
from metrics.attacks import inversion, membership
from metrics.attacks.groups import average_by_group
from metrics.attacks.linkage import draw_across_people
from metrics.attacks.matched_filter import FILTER_NAME, Components, fit_components
from metrics.attacks.training_pairs import Pairs, finite_pairs
from metrics.audit.mechanisms import BATCH, Mechanism, apply, generate_people, reencode
from metrics.features import Embedder, embed_in_batches
from metrics.stats.intervals import Bools, Floats, Names, Numbers, as_subjects


@dataclass(frozen=True)
class Evidence:
    """Images (N, 3, S, S) float32 in [-1, 1] and what is known of them; row i of all is one record."""

    originals: torch.Tensor
    outputs: torch.Tensor
    subjects: Names  # (N,); without identities, each record counts as a person
    has_identities: bool
    mechanism: Mechanism  # made the outputs; attackers can run it too
    model: Backbone
    attributes: Mapping[str, Sequence[object]] = field(default_factory=dict)
    others: tuple[torch.Tensor, Names] | None = None  # other photos of the same people
    outsiders: tuple[torch.Tensor, Names] | None = None  # photos of people outside the release
    training: torch.Tensor | None = None  # images that the model was trained on
    note: str | None = None  # what was left out
    published: Names | None = None  # (N,) label of each record that is published with its output
    groups: Names | None = None  # (N,) of whose mean outputs are drawn; None where each is drawn from one original

    def __len__(self) -> int:
        return len(self.subjects)

    def subset(self, rows: Bools) -> Evidence:
        """Return some of the records, with all that attackers have besides."""
        index = np.flatnonzero(rows).tolist()
        return replace(
            self,
            originals=self.originals[index],
            outputs=self.outputs[index],
            subjects=self.subjects[rows],
            published=None if self.published is None else self.published[rows],
            groups=None if self.groups is None else self.groups[rows],
            attributes={name: [values[i] for i in index] for name, values in self.attributes.items()},
        )


@dataclass(frozen=True)
class Effort:
    """The effort of the attackers."""

    pairs: int = 256  # to train on
    outputs: int = 8  # of one original
    averaged: int = 40  # originals that have so many
    matched_filter: bool = False  # whether the attacker who knows how pictures of the kind vary takes part


ArrayStore = MutableMapping[str, npt.NDArray[Any]]


class Workbench:
    """Evidence and arrays that all attacks derive from it once, by name.

    Arrays that do not depend on the mechanism are ``shared`` by all mechanisms and subsets of records, the others are
    the bench's ``own``. ``scope`` distinguishes benches of different records; ``make_store`` makes a place for arrays,
    in memory by default.
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
        """Return a bench of the same records with the outputs of another mechanism."""
        return self._derive(replace(self.evidence, mechanism=mechanism, outputs=outputs), self.scope)

    def subset(self, rows: Bools, scope: str) -> Workbench:
        """Return a bench of some of the records; ``scope`` names them."""
        return self._derive(self.evidence.subset(rows), scope)

    def _derive(self, evidence: Evidence, scope: str) -> Workbench:
        settings = evidence, self.embedders, self.effort, self.seed, self.progress
        return Workbench(*settings, scope=scope, make_store=self.make_store, shared=self.shared)

    @property
    def feature_names(self) -> list[str]:
        """What images are compared by, with digests of the weights."""
        return [e.versioned_name for e in self.embedders] + [FILTER_NAME] * self.effort.matched_filter

    def rng(self, purpose: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, zlib.crc32(f"{self.scope}{purpose}".encode())])

    def embed_images(self, name: str, images: torch.Tensor, embedder: Embedder) -> Floats:
        """Embed images that depend on no mechanism and no record, once for each ``name``: (N, D)."""
        return self._embed(self.shared, name, images, embedder)

    def embed_outputs(self, name: str, images: torch.Tensor, embedder: Embedder) -> Floats:
        """Embed images that the mechanism, or an attacker who knows it, made of these records: (N, D)."""
        return self._embed(self.own, self._own_name(name), images, embedder)

    def embed_originals(self, embedder: Embedder) -> Floats:
        return self.embed_images(f"originals{self.scope}", self.evidence.originals, embedder)

    def embed_released(self, embedder: Embedder) -> Floats:
        return self.embed_outputs("outputs", self.evidence.outputs, embedder)

    def embed_round_trip(self, embedder: Embedder) -> Floats:
        return self.embed_images(f"originals{self.scope}, encoded and decoded", self.reencoded_originals, embedder)

    def _embed(self, store: ArrayStore, name: str, images: torch.Tensor, embedder: Embedder) -> Floats:
        key, doing = f"{name}, by {embedder.versioned_name}", f"{embedder.name} of {name}"
        return self._cached(store, key, doing, lambda: embed_in_batches(embedder, images))

    def components(self, name: str, images: torch.Tensor, embedder: Embedder) -> Components:
        """Return the principal components of public images, fitted once for each ``name``."""
        key, doing = f"components of {name}, by {embedder.versioned_name}", "principal components of public pictures"
        fit = cache(lambda: fit_components(self.embed_images(name, images, embedder)))
        mean = self._cached(self.shared, f"{key}: mean", doing, lambda: fit().mean)
        axes = self._cached(self.shared, f"{key}: axes", doing, lambda: fit().axes)
        return Components(mean, axes, self._cached(self.shared, f"{key}: variances", doing, lambda: fit().variances))

    def denoising_losses(self, name: str, images: torch.Tensor) -> Floats:
        """Return the model's denoising losses (N,) of images, all under one noise, once for each ``name``."""
        rng, doing = np.random.default_rng([self.seed, zlib.crc32(b"denoising")]), f"denoising losses of {name}"
        return self._cached(
            self.shared, doing, doing, lambda: membership.denoising_losses(self.evidence.model, images, rng)
        )

    @cached_property
    def reencoded_originals(self) -> torch.Tensor:
        """Originals that were only encoded and decoded at the model's size."""
        return reencode(self.evidence.originals)

    @cached_property
    def strangers(self) -> tuple[torch.Tensor, Names]:
        """Images and names of people to learn from: outsiders, and where these are few, people that the model makes."""
        images, names, missing = [], [], self.effort.pairs
        if self.evidence.outsiders is not None:
            pictures, subjects = self.evidence.outsiders
            rows = draw_across_people(subjects, missing, self.rng("strangers learnt from"))
            images, names, missing = [pictures[torch.from_numpy(rows)]], [subjects[rows]], missing - len(rows)
        if missing:
            model, rng, doing = (
                self.evidence.model,
                self.rng("strangers"),
                "inventing people for the attackers to learn from",
            )
            made = self._cached(
                self.shared, f"{missing} strangers", doing, lambda: generate_people(model, missing, rng).cpu().numpy()
            )
            images.append(torch.from_numpy(made))
            names.append(as_subjects([f"invented {i}" for i in range(missing)]))
        return torch.cat(images), np.concatenate(names)

    @property
    def pairs(self) -> Pairs:
        """The attackers' own training pairs."""
        strangers, names = self.strangers

        def make() -> npt.NDArray[Any]:
            outputs = apply(self.evidence.mechanism, strangers, self.rng("pairs"))
            return torch.stack([strangers, outputs.cpu()]).numpy()

        pairs = self._cached(self.own, self._own_name("pairs"), "the attacker's own pairs", make)
        originals, outputs = torch.from_numpy(pairs)
        return finite_pairs(Pairs(originals, outputs, names))

    @property
    def restored(self) -> torch.Tensor:
        """The originals of the outputs as guessed by a network that learnt from the pairs."""

        def restore() -> npt.NDArray[Any]:
            inverter = inversion.train(self.pairs, self.rng("inversion"))
            return inverter.restore(self.evidence.outputs.cpu()).numpy()

        return torch.from_numpy(
            self._cached(self.own, self._own_name("restored"), "learning to undo the method", restore)
        )

    @cached_property
    def sources(self) -> torch.Tensor:
        """The pictures (N, 3, S, S) that outputs were drawn of: the originals, or the means of their groups.

        The mean is taken in the space that is noised, and decoded.
        """
        evidence, model = self.evidence, self.evidence.model
        if evidence.groups is None:
            return evidence.originals
        with torch.inference_mode():
            originals = evidence.originals.float().split(BATCH)
            z0 = torch.cat([model.encode(part.to(model.device)).float().cpu() for part in originals])
            means = torch.from_numpy(average_by_group(z0.flatten(1).numpy(), evidence.groups)).reshape(z0.shape)
            return torch.cat([model.decode(part.to(model.device)).float().cpu() for part in means.split(BATCH)])

    def resample(self, rows: Numbers, count: int, purpose: str) -> torch.Tensor:
        """Return ``count`` further outputs of some originals under the attacker's own noise: (n, count, 3, S, S)."""
        doing = "the attacker's own outputs"

        def make() -> npt.NDArray[Any]:
            rng, x0 = self.rng(purpose), self.sources[torch.from_numpy(rows)]
            outputs = []
            for number in range(count):
                self.progress(f"{doing}, {number + 1} of {count}")
                outputs.append(apply(self.evidence.mechanism, x0, rng).cpu())
            return torch.stack(outputs, dim=1).nan_to_num(0.0).numpy()

        name = self._own_name(f"{len(rows)} x {count} {purpose}")
        return torch.from_numpy(self._cached(self.own, name, doing, make))

    def _own_name(self, name: str) -> str:
        return f"{self.evidence.mechanism.name}{self.scope}, {name}"

    def _cached(
        self, store: ArrayStore, name: str, doing: str, make: Callable[[], npt.NDArray[Any]]
    ) -> npt.NDArray[Any]:
        if name not in store:
            self.progress(doing)
            store[name] = make()
        return store[name]
