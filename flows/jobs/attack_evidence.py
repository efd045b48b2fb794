"""What attackers are given: the evidence of an audit or a calibration, read from where its settings say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from anonymizer.backbones import Backbone
from anonymizer.config import AttackerConfig, SourceConfig
from anonymizer.data import usage_marker
from anonymizer.data.sources import open_source
from anonymizer.data.sources.folder import FolderSource
from anonymizer.errors import ConfigError, SourceError
from anonymizer.release import audit_sample
from anonymizer.release.audit_sample import ImageSet
from flows.jobs.release import in_fresh_thread
from metrics import features
from metrics.audit.mechanisms import Mechanism
from metrics.audit.workbench import Effort, Evidence
from metrics.features import Embedder
from metrics.stats.intervals import Names, as_subjects

MAX_EXTRA_IMAGES = (
    1000  # outsiders, and training pictures, at most: as many as a false alarm in a thousand takes to be seen
)


@lru_cache(maxsize=1)
def load_embedders(names: tuple[str, ...], device: str) -> Sequence[Embedder]:
    """What pictures are compared by, loaded once for each process."""
    return in_fresh_thread(lambda: features.load_embedders(names, device))


def check_sources(config: AttackerConfig) -> None:
    """Whether the attackers' own pictures can be had. SourceError, which names the setting, if not."""
    for name in ("others", "outsiders", "training"):
        if (extra := getattr(config, name)) is not None:
            usage_marker.refuse_marked_source(f"{name}.uri", extra.uri)
            try:
                next(iter(open_source(_read_only(extra)).entries()), None)
            except SourceError as error:
                raise SourceError(str(error).replace("source.", f"{name}.", 1)) from None


def with_attack_columns(source: SourceConfig, config: AttackerConfig) -> SourceConfig:
    """A source, asked for what attackers want to know of each record besides."""
    return _read_only(source).model_copy(
        update={"label": config.identity, "caption": None, "carry": tuple(dict.fromkeys(config.attributes))}
    )


def _read_only(source: SourceConfig) -> SourceConfig:
    """A source of which nothing is released or kept: what is not asked for is left behind, whatever a release does."""
    return source.model_copy(update={"drop": ("*",), "restricted": (), "subject": None})


def effort_of(config: AttackerConfig) -> Effort:
    return Effort(config.pairs, config.outputs, config.averaged)


def gather_evidence(
    config: AttackerConfig,
    originals: ImageSet,
    outputs: torch.Tensor,
    mechanism: Mechanism,
    model: Backbone,
    rng: np.random.Generator,
) -> Evidence:
    """Originals and outputs (N, 3, S, S), whose they are, and what the settings give to attackers besides."""
    names = originals.labels if config.identity is not None else originals.record_ids
    others = (
        audit_sample.draw_images(_read_only(config.others), model.size, 10 * config.sample, rng)
        if config.others
        else None
    )
    outsiders, note = _read_outsiders(config, originals, model.size, rng) if config.outsiders else (None, None)
    training = (
        audit_sample.draw_images(_read_only(config.training), model.size, MAX_EXTRA_IMAGES, rng)
        if config.training
        else None
    )
    return Evidence(
        originals=originals.images,
        outputs=outputs,
        subjects=np.array([n or f"record {r}" for n, r in zip(names, originals.record_ids, strict=True)]),
        has_identities=config.identity is not None,
        mechanism=mechanism,
        model=model,
        attributes={name: [columns.get(name) for columns in originals.columns] for name in config.attributes},
        others=(others.images, np.array([str(label) for label in others.labels])) if others else None,
        outsiders=(outsiders.images, _subject_names(outsiders)) if outsiders else None,
        note=note,
        training=training.images if training else None,
    )


def _read_outsiders(
    config: AttackerConfig, originals: ImageSet, size: int, rng: np.random.Generator
) -> tuple[ImageSet, str | None]:
    """Photos of people outside, without any that turn out to be inside, and what is to be said of that.

    ConfigError where none is left.
    """
    assert config.outsiders is not None
    photos = audit_sample.draw_images(
        _label_by_folder(_read_only(config.outsiders), config), size, MAX_EXTRA_IMAGES, rng
    )
    told = len(set(photos.labels) - {None}) > 1
    found = audit_sample.exclude_insiders(photos, originals, identified=config.identity is not None and told)
    if not len(found.images):
        raise ConfigError(f"{found.note}: nobody is left: give photos of people who are not in the release")
    if told:
        return found.images, found.note
    unknown = "outsiders: who they are is not known (outsiders.label), so only equal pictures were looked for"
    return replace(found.images, labels=[None] * len(found.images)), "; ".join(filter(None, [found.note, unknown]))


def _label_by_folder(outsiders: SourceConfig, config: AttackerConfig) -> SourceConfig:
    """Outsiders in a folder for each person are told apart as the release's people are."""
    in_folders = config.identity == "folder" and isinstance(open_source(outsiders), FolderSource)
    return outsiders.model_copy(update={"label": "folder"}) if in_folders and outsiders.label is None else outsiders


def _subject_names(photos: ImageSet) -> Names:
    """Whose each photo is; without a label, somebody else's."""
    return as_subjects([f"outsider {name or number}" for number, name in enumerate(photos.labels)])
