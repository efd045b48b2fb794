"""Measure what groups of k and a level keep of pictures, and what they guarantee, for each pair and kind of outputs.

    python benchmarks/protection.py --source faces.parquet --output results --k 1 5 10 --levels .6 .8 [--outputs one]
    python benchmarks/protection.py --output results --table

Originals are a sample of a split, grouped within gender and ethnicity as a release does; utility is tested on the rest
of the test split. Of many groups, ``--most-groups`` are drawn from, and ceilings and attackers know those of
``--gallery`` originals. ``outputs``: ``one`` for each group, ``each``: one for each member, with noise of its own, or
``shared``: one for each member, all from one noised mean, so that the ceilings are those of one output. Lines that
``OUTPUT/results.jsonl`` holds are not measured again; outputs are kept in ``OUTPUT/outputs``.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import protection_attackers as attackers
import protection_utility as utility
import torch
from protection_outputs import Pair, digest, draw_outputs, encode_rows
from protection_tables import print_tables

from anonymizer.backbones import load_backbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import ModelConfig, SourceConfig
from anonymizer.grouping.groups import group_records
from anonymizer.release.audit_sample import ImageSet, draw_images
from metrics.attacks.matched_filter import Components, fit_components
from metrics.features.dlib_faces import FaceFinder
from metrics.features.embedder import embed_in_batches
from metrics.features.image_features import Clip, Pixels
from metrics.models.clip import ClipEmbedder
from metrics.stats.ceilings import compute_ceilings, place
from metrics.stats.intervals import Estimate, Floats, Names, Numbers, Trials, as_subjects, rate_interval

STRATA = ("gender", "ethnicity")  # equal within a group
MOST_PICTURES = 10**6  # read of a split
LEVELS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98)
REAL = 0.0  # the level that stands for the originals themselves: what utility is compared with


def main(arguments: Sequence[str] | None = None) -> None:
    args = parse_arguments(arguments)
    args.output.mkdir(parents=True, exist_ok=True)
    results = args.output / "results.jsonl"
    lines = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    if args.table:
        print_tables(lines)
        return
    check_settings(args)
    measured, bench = {line["name"] for line in lines}, None
    for pair in (Pair(k, level, outputs) for k in args.k for level in args.levels for outputs in args.outputs):
        if pair.name in measured or (pair.k == 1 and pair.outputs != "one") or (pair.k > 1 and pair.level == REAL):
            continue
        started, bench = time.monotonic(), bench or Bench.load(args)
        line = bench.measure(pair) | {"seconds": time.monotonic() - started}
        with results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(f"{pair.name}: {line['seconds']:.0f} s", flush=True)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", help="Parquet file with columns image, split, gender, ethnicity and age")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--k", type=int, nargs="*", default=(1, 3, 5, 10, 20))
    parser.add_argument("--levels", type=float, nargs="*", default=LEVELS, help=f"{REAL:g}: originals, with k = 1")
    parser.add_argument("--outputs", nargs="*", default=("one",), choices=("one", "each", "shared"))
    parser.add_argument("--split", default="test", help="of the originals; the model was trained on train")
    parser.add_argument("--originals", type=int, default=900)
    parser.add_argument("--most-groups", type=int, default=900)
    parser.add_argument("--gallery", type=int, default=1500, help="originals that are candidates")
    parser.add_argument("--public", type=int, default=2000, help="pictures that the matched filter learns from")
    parser.add_argument("--model", default="bundled:faces-64")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--sampler", default="sde-dpm++")
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--table", action="store_true", help="print the tables of what was measured")
    return parser.parse_args(arguments)


def check_settings(args: argparse.Namespace) -> None:
    """Exit where the folder's outputs were drawn with other settings; note those of a new folder."""
    names = ("split", "originals", "most_groups", "public", "gallery", "model", "dtype", "sampler", "steps", "seed")
    settings, file = {name: getattr(args, name) for name in names}, args.output / "settings.json"
    if not file.exists():
        file.write_text(json.dumps(settings))
    for name, value in json.loads(file.read_text()).items():
        if settings[name] != value:
            raise SystemExit(f"--{name}: {str(args.output)!r} was begun with {value}: choose another --output")


def load_split(source: str, split: str, size: int, limit: int, seed: int) -> ImageSet:
    """Return a sample of the pictures of one split, copies of one picture once."""
    config = SourceConfig(uri=source, where={"split": split}, carry=(*STRATA, "age"), drop=("*",))
    images = draw_images(config, size, limit, np.random.default_rng(seed))
    return images.take(np.sort(np.unique(images.digests, return_index=True)[1]).tolist())


def divide(images: ImageSet, count: int, seed: int) -> tuple[ImageSet, ImageSet]:
    """Return ``count`` images at random, and the others."""
    order = np.random.default_rng(seed).permutation(len(images))
    first, second = (images.take(np.sort(rows).tolist()) for rows in np.split(order, [count]))
    return first, second


def group(images: ImageSet, k: int, seed: int) -> Numbers:
    """Return the rows (G, k) of each group, as a release forms them; of k = 1, each row by itself."""
    if k == 1:
        return np.arange(len(images))[:, None]
    strata = strata_of(images)
    digests = np.array([digest.hex() for digest in images.digests], np.bytes_)
    rng = np.random.default_rng([seed, k])
    return np.array(group_records(embed_in_batches(Pixels(), images.images), digests, k, rng, strata=strata).groups)


def strata_of(images: ImageSet) -> Numbers:
    values = [" ".join(str(columns[name]) for name in STRATA) for columns in images.columns]
    return np.unique(values, return_inverse=True)[1]


def column(images: ImageSet, name: str) -> Names:
    return as_subjects([columns[name] for columns in images.columns])


@dataclass(frozen=True)
class Bench:
    """Everything that all pairs are measured with: originals, other real pictures, public ones, features."""

    args: argparse.Namespace
    boomerang: Boomerang
    originals: ImageSet
    rest: ImageSet  # real pictures of other people, on which utility is tested; no members
    public: ImageSet
    clip: Clip
    faces: FaceFinder | None
    components: Components
    embedded: Mapping[str, Floats]  # the rest by CLIP, and it and public pictures by their components

    @classmethod
    def load(cls, args: argparse.Namespace) -> Bench:
        boomerang = Boomerang(load_backbone(ModelConfig(id=args.model, dtype=args.dtype)), args.sampler, args.steps)
        size, seed = boomerang.backbone.size, args.seed
        test = load_split(args.source, "test", size, MOST_PICTURES, seed)
        if args.split == "test":
            originals, rest = divide(test, args.originals, seed)
            public = load_split(args.source, "train", size, args.public, seed)
        else:
            train = load_split(args.source, "train", size, args.public + args.originals, seed)
            (public, originals), rest = divide(train, args.public, seed), test
        clip, encode = Clip(ClipEmbedder.load("bundled:clip-mini")), partial(encode_rows, boomerang)
        components = fit_components(encode(public.images))
        embedded = {
            "clip": embed_in_batches(clip, rest.images),
            "rest": components.project(encode(rest.images)),
            "public": components.project(encode(public.images)),
        }
        return cls(args, boomerang, originals, rest, public, clip, utility.load_faces(), components, embedded)

    def rng(self, name: str) -> np.random.Generator:
        return np.random.default_rng([self.args.seed, *digest(name)])

    def measure(self, pair: Pair) -> dict[str, Any]:
        """Return ceilings, attackers and utility of one pair."""
        groups = group(self.originals, pair.k, self.args.seed)
        if len(groups) > self.args.most_groups:
            groups = self.rng("groups").permutation(groups)[: self.args.most_groups]
        outputs = self.load_outputs(pair, groups)
        clip = embed_in_batches(self.clip, outputs.flatten(0, 1))
        gallery, known = self.gallery(groups)
        line = {**asdict(pair), "name": pair.name, "seed": self.args.seed, "split": self.args.split}
        line |= {"originals": len(self.originals), "groups": len(groups), "pictures": len(clip)}
        line |= {"test": len(self.rest), "gallery": len(gallery), "attacked": len(known)}
        if pair.level != REAL:
            line |= self.measure_protection(pair, gallery, known, outputs[: len(known)], clip)
        if pair.k > 1:
            line["knows others within strata"] = asdict(self.bound_within_strata(pair, groups[: len(known)]))
        return line | self.measure_utility(groups, outputs, clip, gallery, known)

    def gallery(self, groups: Numbers) -> tuple[ImageSet, Numbers]:
        """Return the candidates, and the first groups (A, k) as rows of them: all of few, some of many."""
        if len(self.originals) <= self.args.gallery:
            return self.originals, groups
        known = groups[: self.args.gallery // groups.shape[1]]
        return self.originals.take(known.ravel().tolist()), np.arange(known.size).reshape(known.shape)

    def load_outputs(self, pair: Pair, groups: Numbers) -> torch.Tensor:
        """Return (G, n, 3, S, S) in [-1, 1], from the folder where they were drawn before."""
        if pair.level == REAL:
            return self.originals.images[torch.from_numpy(groups)]
        file = self.args.output / "outputs" / f"{pair.name.replace(' ', '-')}.npy"
        if not file.exists():
            file.parent.mkdir(exist_ok=True)
            part = file.with_suffix(".part.npy")
            np.save(part, draw_outputs(self.boomerang, self.originals.images, groups, pair, self.args.seed).numpy())
            part.rename(file)
        return torch.from_numpy(np.load(file)) / 127.5 - 1

    def measure_protection(
        self, pair: Pair, gallery: ImageSet, groups: Numbers, outputs: torch.Tensor, clip: Floats
    ) -> dict[str, Any]:
        """Return the ceilings, and the rates of attackers on outputs (A, n, 3, S, S), by CLIP (A * n or more, D)."""
        forward = pair.k if pair.outputs == "each" else 1  # noised means of each group
        abar = float(self.boomerang.abar[self.boomerang.t_boom(pair.level)])
        noised = encode_rows(self.boomerang, gallery.images)
        is_sample = len(gallery) < len(self.originals)
        candidates = place(noised, as_subjects(gallery.record_ids), is_sample=is_sample)
        ceilings = compute_ceilings(candidates, abar, self.rng("ceilings"), k=pair.k, outputs=forward, groups=groups)
        flat, within = outputs.flatten(0, 1), np.zeros(len(self.components.variances))
        if pair.k > 1:
            public_groups = group(self.public, pair.k, self.args.seed)
            within = attackers.correlation_within(self.embedded["public"], public_groups)
        filters = attackers.Filters(self.components.variances, abar, pair.k, within)
        project, n = self.components.project, len(flat)
        features = {
            "pixels": (attackers.downsample(flat), attackers.downsample(gallery.images)),
            "clip": (clip[:n], embed_in_batches(self.clip, gallery.images)),
            attackers.FILTER: (project(encode_rows(self.boomerang, flat)), project(noised)),
        }
        found = attackers.run_attackers(features, self.embedded["rest"], groups, filters, self.rng("attackers"))
        return {"ceilings": asdict(ceilings), "attackers": {name: asdict(rate) for name, rate in found.items()}}

    def bound_within_strata(self, pair: Pair, groups: Numbers) -> Estimate:
        """Return the ceiling on naming the last member among all originals with the published columns of its group.

        ``groups``: rows of originals. One draw of the noise for each member; the people of a group are one trial.
        """
        strata, rng, hits = strata_of(self.originals), self.rng("strata"), np.zeros(groups.shape, bool)
        abar = float(self.boomerang.abar[self.boomerang.t_boom(pair.level)])
        scale = math.sqrt((pair.k if pair.outputs == "each" else 1) * abar / (1 - abar)) / pair.k
        for stratum in np.unique(strata[groups[:, 0]]):
            rows = np.flatnonzero(strata == stratum)
            x = scale * encode_rows(self.boomerang, self.originals.images[torch.from_numpy(rows)])
            half = np.square(x).sum(1) / 2
            for number in np.flatnonzero(strata[groups[:, 0]] == stratum):
                members = np.searchsorted(rows, groups[number])
                scores = (x[members] + rng.standard_normal((pair.k, x.shape[1]), np.float32)) @ x.T - half
                own = scores[np.arange(pair.k), members]
                scores[:, members] = -np.inf  # known; of each row but its own
                hits[number] = own > scores.max(1, initial=-np.inf)
        names = as_subjects(np.repeat(np.arange(len(groups)), pair.k).tolist())
        return rate_interval(Trials(hits.ravel(), names), rng)

    def measure_utility(
        self, groups: Numbers, outputs: torch.Tensor, clip: Floats, gallery: ImageSet, known: Numbers
    ) -> dict[str, Any]:
        ages, of_rest = (column(images, "age").astype(np.float64) for images in (self.originals, self.rest))
        labels = {name: (column(self.originals, name)[groups[:, 0]], column(self.rest, name)) for name in STRATA}
        middle = (ages[groups].min(1) + ages[groups].max(1)) / 2  # of the range that a release has for a group
        labels["age"] = utility.thirds(middle, of_rest), utility.thirds(of_rest, of_rest)
        n = outputs.shape[1]
        taught = {
            name: utility.measure_taught(clip, np.repeat(of_groups, n), self.embedded["clip"], truth)
            for name, (of_groups, truth) in labels.items()
        }
        real = embed_in_batches(self.clip, gallery.images)
        return {
            "taught": {name: asdict(estimate) for name, estimate in taught.items()},
            "faces": self.faces and asdict(utility.share_with_face(self.faces, outputs.flatten(0, 1))),
            **utility.measure_likeness(real, clip, known, n, self.rng("distances")),
        }


if __name__ == "__main__":
    main()
