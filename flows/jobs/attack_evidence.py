"""The evidence of an audit or a calibration, read from where its settings say."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
import torch

from anonymizer.backbones import Backbone
from anonymizer.config import AttackerConfig, SourceConfig
from anonymizer.config.base import MATCHED_FILTER
from anonymizer.data import usage_marker
from anonymizer.data.sources import open_source
from anonymizer.data.sources.folder import FolderSource
from anonymizer.errors import ConfigError, SourceError
from anonymizer.records import normalize_subject
from anonymizer.release.audit_sample import ImageSet, draw_images, exclude_insiders, without_columns
from flows.jobs.redaction import in_fresh_thread
from metrics import features
from metrics.audit.mechanisms import Mechanism
from metrics.audit.workbench import Effort, Evidence
from metrics.features import Embedder
from metrics.stats.intervals import as_subjects

MAX_EXTRA_IMAGES = 1000  # outsiders, and training images: enough to see one false alarm in a thousand


@lru_cache(maxsize=1)
def load_embedders(names: tuple[str, ...], device: str) -> Sequence[Embedder]:
    """Load the features that attackers compare, once for each process."""
    networks = [name for name in names if name != MATCHED_FILTER]
    return in_fresh_thread(lambda: features.load_embedders(networks, device))


def check_sources(config: AttackerConfig) -> None:
    """Raise SourceError, which names the setting, where the attackers' own images cannot be read."""
    for name in ("others", "outsiders", "training"):
        if (extra := getattr(config, name)) is not None:
            usage_marker.refuse_marked_source(f"{name}.uri", extra.uri)
            try:
                next(iter(open_source(without_columns(extra)).entries()), None)
            except SourceError as error:
                raise SourceError(str(error).replace("source.", f"{name}.", 1)) from None


def with_attack_columns(source: SourceConfig, config: AttackerConfig) -> SourceConfig:
    """Return a source that also reads the columns that attackers want to know of each record."""
    columns = tuple(dict.fromkeys(config.attributes))
    return without_columns(source).model_copy(update={"label": config.identity, "caption": None, "carry": columns})


def effort_of(config: AttackerConfig) -> Effort:
    """Return the attackers' effort that the settings allow."""
    return Effort(config.pairs, config.outputs, config.averaged, MATCHED_FILTER in config.features)


def gather_evidence(
    config: AttackerConfig,
    originals: ImageSet,
    outputs: torch.Tensor,
    mechanism: Mechanism,
    model: Backbone,
    rng: np.random.Generator,
) -> Evidence:
    """Gather originals and outputs (N, 3, S, S), their people, and what the settings give to attackers besides."""

    def draw(source: SourceConfig | None, limit: int) -> ImageSet | None:
        return None if source is None else draw_images(without_columns(source), model.size, limit, rng)

    people = _people(originals.labels) if config.identity is not None else originals.record_ids
    others = draw(config.others, 10 * config.sample)
    outsiders, note = _read_outsiders(config, config.outsiders, originals, model.size, rng)
    training = draw(config.training, MAX_EXTRA_IMAGES)
    return Evidence(
        originals=originals.images,
        outputs=outputs,
        subjects=np.array([n or f"record {r}" for n, r in zip(people, originals.record_ids, strict=True)]),
        has_identities=config.identity is not None,
        mechanism=mechanism,
        model=model,
        attributes={name: [columns.get(name) for columns in originals.columns] for name in config.attributes},
        others=(others.images, as_subjects(_people(others.labels))) if others else None,
        outsiders=(outsiders.images, as_subjects(_strangers(outsiders.labels))) if outsiders else None,
        note=note,
        training=training.images if training else None,
    )


def _people(labels: Sequence[str | None]) -> list[str]:
    """Return the names of people in their one spelling; "" where there is none."""
    return [normalize_subject(label or "") for label in labels]


def _strangers(labels: Sequence[str | None]) -> list[str]:
    return [f"outsider {name or i}" for i, name in enumerate(_people(labels))]


def _read_outsiders(
    config: AttackerConfig, source: SourceConfig | None, originals: ImageSet, size: int, rng: np.random.Generator
) -> tuple[ImageSet | None, str | None]:
    """Read photos of people outside, without any of the insiders, and a note on what was left out.

    Outsiders in a folder for each person are labelled by it where the release's people are. Raises ConfigError where
    none is left.
    """
    if source is None:
        return None, None
    source = without_columns(source)
    if config.identity == "folder" and source.label is None and isinstance(open_source(source), FolderSource):
        source = source.model_copy(update={"label": "folder"})
    images = draw_images(source, size, MAX_EXTRA_IMAGES, rng)
    is_labelled = len(set(images.labels) - {None}) > 1
    outsiders = exclude_insiders(images, originals, identified=config.identity is not None and is_labelled)
    if not len(outsiders.images):
        raise ConfigError(f"{outsiders.note}: nobody is left: give photos of people who are not in the release")
    if is_labelled:
        return outsiders.images, outsiders.note
    unknown = "outsiders: who they are is not known (outsiders.label), so only equal pictures were looked for"
    unlabelled = replace(outsiders.images, labels=[None] * len(outsiders.images))
    return unlabelled, "; ".join(filter(None, [outsiders.note, unknown]))
