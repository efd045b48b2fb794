"""The work of an augmentation, without Prefect: sample each record several times, filter the samples and write them."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import version

import torch

from anonymizer.augment import Levels, sample_key, samples_per_record
from anonymizer.backbones import Backbone
from anonymizer.backbones.conditioning import refuse_unused_guidance
from anonymizer.config import AugmentConfig, FilterConfig
from anonymizer.data import image_codec, usage_marker
from anonymizer.data.sinks.folder import label_folder
from anonymizer.data.sources import open_source
from anonymizer.errors import OutputError, RecordError
from anonymizer.pipeline.batch_sampling import BatchSampler
from anonymizer.pipeline.boomerang_job import BoomerangJob
from anonymizer.pipeline.item import Item
from anonymizer.pipeline.stages import open_stages
from anonymizer.records import Decision, Reason, Record, Status
from anonymizer.release import preflight
from anonymizer.release.profiling import Stopwatch
from anonymizer.storage import parquet
from anonymizer.storage.path import StoragePath
from anonymizer.storage.prefetch import chunked
from flows.jobs import augment_manifest
from flows.jobs.augment_manifest import AugmentSummary, Row
from flows.jobs.models import backbone_of
from flows.jobs.progress import NO_PROGRESS, ProgressReporter
from flows.jobs.redaction import in_fresh_thread
from metrics.utility.label_consistency import Classifier, Reader, Reading, ZeroShot, build_reader, load_filter

DISAGREES = "disagrees"  # why a sample was dropped: it does not show what its label says
THREADS = 2  # that decode and encode beside the model
MAX_WAITING_BYTES = 512 * 2**20  # of pictures that wait for others of their level
ENTRIES_PER_READ = 1024  # records listed at once


def run(config: AugmentConfig, progress: ProgressReporter = NO_PROGRESS) -> AugmentSummary:
    """Make ``config.output.uri``: images, manifest, and last of all its summary. UsageError before long work."""
    job = survey_labels(config, progress)
    return write_augmentation(job, draw_samples(job, progress))


def check(config: AugmentConfig) -> None:
    """Raise UsageError for what can be seen before the work: output, source, models. Writes nothing."""
    preflight.check_private_folder("output.uri", config.output.uri, config.source.uri)
    output = StoragePath.from_uri(config.output.uri)
    if not output.is_local and output.exists():
        raise OutputError(f"output.uri {config.output.uri!r}: is there already: name a new folder")
    usage_marker.refuse_marked_source("source.uri", config.source.uri)
    next(iter(open_source(config.source).entries()), None)
    backbone = backbone_of(config.model)
    refuse_unused_guidance(config.model, backbone)
    if backbone.condition_kind == "class" and config.model.condition == "none":
        side = backbone.size // backbone.scale
        blank = torch.zeros(1, backbone.channels, side, side, device=backbone.device)
        backbone.predict(blank, 1)  # ModelError if it has no class that stands for none
    filter_of(config.filter, str(backbone.device))


@lru_cache(maxsize=1)
def _load_filter(config: str, device: str) -> Classifier | ZeroShot | None:
    return in_fresh_thread(lambda: load_filter(FilterConfig.model_validate_json(config), device))


def filter_of(config: FilterConfig, device: str) -> Classifier | ZeroShot | None:
    """Return the model of the filter, loaded once for each process."""
    return _load_filter(config.model_dump_json(), device)


def survey_labels(config: AugmentConfig, progress: ProgressReporter) -> Augmentation:
    """Prepare the output, and read the whole source once where balance or filter need its labels."""
    begun = time.monotonic()
    check(config)
    StoragePath.from_uri(config.output.uri).make_private_folder()
    progress.stage("reading the source")
    job = Augmentation(config, backbone_of(config.model), begun)
    if config.balance or config.filter.kind != "none":
        job.read_labels()
    usage_marker.write_marker(job.folder, "augmentation")
    return job


def draw_samples(job: Augmentation, progress: ProgressReporter) -> list[Row]:
    """Sample, filter and write; return a row for each sample, and for each record that has none."""
    progress.begin(job.count_samples(), 0)
    progress.stage("drawing local samples")
    rows = []
    batch_size, watch = job.config.batch_size, Stopwatch()
    with open_stages(job.backbone.device, THREADS, watch) as stages:
        items = stages.decode(job.decode, enumerate(job.records()), job.prefetch_depth(batch_size))
        sampler = BatchSampler(job, batch_size, stages.overlap, watch)
        for row in stages.write(job.finish, sampler.run(job.samples(items))):
            rows.append(row)
            progress.advance("sample" in row)
    return rows


def write_augmentation(job: Augmentation, rows: Sequence[Row]) -> AugmentSummary:
    """Write the listing that image folders are loaded with, the manifest, and last the summary."""
    metadata = {"purpose": usage_marker.marker_text("augmentation"), "code_version": version("anonymizer")}
    metadata["filter"] = job.reader.versioned_name if job.reader else "none"
    table = augment_manifest.build_table(rows)
    samples = augment_manifest.select_samples(table)
    if samples["kept"].any():
        (job.folder / "images/metadata.csv").write(augment_manifest.build_listing(samples))
    (job.folder / "manifest.parquet").write(parquet.to_bytes(table.replace_schema_metadata(metadata)))
    summary = augment_manifest.summarize(table, samples, job.usable)
    originals, labels = job.count_originals(), sorted(label for label in job.usable if label is not None)
    by_label = augment_manifest.count_by(samples, "label", labels)
    by_level = augment_manifest.count_by(samples, "level", job.levels.values)
    document = metadata | asdict(summary) | job.constants | {
        "balance": job.config.balance,
        "seconds": time.monotonic() - job.begun,
        "by_class": {label: originals[label] | by_label[label] for label in labels},
        "by_level": [job.level_columns(level) | by_level[level] for level in job.levels.values],
    }  # fmt: skip
    (job.folder / "summary.json").write(json.dumps(document, indent=1).encode())
    return summary


@dataclass(slots=True)
class SampleItem(Item):
    """One sample of a record, or a record that is not sampled yet or cannot be."""

    number: int = 0  # of the record, in the source's order
    sample: int | None = None  # which of the record's samples
    digest: bytes = b""  # of the record's encoded bytes
    reading: Reading | None = None  # what the filter takes the output for


class Augmentation(BoomerangJob[SampleItem]):
    """The stages of an augmentation, in the order in which an item meets them."""

    max_waiting_bytes = MAX_WAITING_BYTES

    def __init__(self, config: AugmentConfig, backbone: Backbone, begun: float) -> None:
        super().__init__(config.source, config.model, backbone, config.sampler, config.steps)
        self.config, self.begun = config, begun  # by the monotonic clock
        self.folder = StoragePath.from_uri(config.output.uri).as_private()
        self.levels = Levels(*config.levels)
        self.constants: Row = {"model": config.model.public_name, "model_digest": backbone.digest}
        self.constants |= config.model_dump(include={"sampler", "seed"})
        self.labels: Sequence[str | None] | None = None  # of each record, where they were read; None: cannot be used
        self.sample_counts: Sequence[int] | None = None  # of each record, where they differ
        self.reader: Reader | None = None
        self.usable: Counter[str | None] = Counter()  # records that were sampled, by label
        self.original_readings: dict[
            int, tuple[str | None, bool]
        ] = {}  # record -> its label, and whether the filter agrees

    def read_labels(self) -> None:
        """Read the whole source for its labels. ConfigError if the filter does not know one."""
        with open_stages(self.backbone.device, THREADS, Stopwatch()) as stages:
            items = stages.decode(self.decode, enumerate(self.records()), self.prefetch_depth(self.config.batch_size))
            self.labels = [None if item.decision else item.record.label for item in items]
        if self.config.balance:
            self.sample_counts = samples_per_record(self.labels, self.config.samples)
        labels = sorted({label for label in self.labels if label is not None})
        model = filter_of(self.config.filter, str(self.backbone.device)) if labels else None
        self.reader = None if model is None else build_reader(model, self.config.filter, labels)

    def count_samples(self) -> int:
        """Return how many samples there will be if every record can be used."""
        if self.sample_counts is not None:
            return sum(self.sample_counts)
        return self.config.samples * sum(1 for _ in open_source(self.source).entries())

    def records(self) -> Iterator[Record]:
        """Yield the records of the source."""
        source = open_source(self.source)
        for entries in chunked(source.entries(), ENTRIES_PER_READ):
            yield from source.read(entries)

    def decode(self, numbered: tuple[int, Record]) -> SampleItem:
        """Decode a record; each one must have a label if the source has some."""
        number, record = numbered
        item = SampleItem(replace(record, data=b""), number=number)
        try:
            if record.problem:
                raise RecordError(record.problem)
            if self.source.label is not None and not record.label:
                raise RecordError(Reason.BAD_METADATA)
            self.decode_image(item, record.data)
            item.digest = hashlib.sha256(record.data).digest()
        except RecordError as error:
            item.fail(error.reason)
        return item

    def samples(self, items: Iterable[SampleItem]) -> Iterator[SampleItem]:
        """Yield an item for each sample of each record, and those that cannot be used as they are."""
        for item in items:
            number, label = item.number, item.record.label
            if not item.decision and self.labels is not None and [label] != self.labels[number : number + 1]:
                item.fail(Reason.CHANGED)  # since the labels were read
            if item.decision:
                yield item
                continue
            self.usable[label] += 1
            for sample in range(self.config.samples if self.sample_counts is None else self.sample_counts[number]):
                key = sample_key(self.config.seed, sample, item.record.entry.record_id.encode(), item.digest)
                yield replace(item, sample=sample, noise_key=key, level=self.levels.draw(key))

    def score(self, batch: Sequence[SampleItem], x0: torch.Tensor, outputs: torch.Tensor) -> None:
        """Have the filter read the samples, and each original once, for comparison."""
        if self.reader is None:
            return
        labels = [item.record.label or "" for item in batch]
        if first := [at for at, item in enumerate(batch) if item.sample == 0]:
            readings = self.reader.read(x0[first], [labels[at] for at in first])
            for at, reading in zip(first, readings, strict=True):
                self.original_readings[batch[at].number] = labels[at], reading.agrees
        for item, reading in zip(batch, self.reader.read(outputs.nan_to_num(0.0), labels), strict=True):
            item.reading = reading

    def gate(self, item: SampleItem) -> None:
        """Drop a sample that is unsafe, or that does not show what its label says."""
        reason = Reason.UNSAFE if item.is_unsafe else DISAGREES if item.reading and not item.reading.agrees else None
        item.decision = Decision(Status.QUARANTINED if reason else Status.RELEASED, reason)

    def finish(self, item: SampleItem) -> Row:
        """Write a sample, unless it is dropped, and return its row."""
        record, out = item.record, self.config.output
        row = {"record": item.number, "record_id": record.entry.record_id, "label": record.label, **self.constants}
        if item.sample is not None:
            row |= {"sample": item.sample, **self.level_columns(item.level)}
        try:
            if item.output is not None:
                item.encoded = image_codec.encode(item.output, encoding=out.image, quality=out.quality)
        except RecordError as error:
            item.fail(error.reason)
        assert item.decision is not None
        if item.encoded is not None and item.reading is not None:
            row |= {"predicted": item.reading.predicted, "agrees": item.reading.agrees}
        if item.encoded is None or item.decision.reason:
            return row | {"reason": item.decision.reason}
        group = f"{label_folder(record.label)}/" if record.label else ""
        file = f"images/{group}{item.number:06d}-{item.sample}{image_codec.SUFFIXES[out.image]}"
        (self.folder / file).write_uncommitted(item.encoded.data)
        return row | {"file": file}

    def count_originals(self) -> dict[str | None, dict[str, int]]:
        """Return, by label, counts of originals that were sampled, and what the filter says of them."""
        looked_at = Counter(label for label, _ in self.original_readings.values())
        agreed = Counter(label for label, agrees in self.original_readings.values() if agrees)
        counts = {"originals": self.usable, "originals_looked_at": looked_at, "originals_agreed": agreed}
        return {label: {name: count[label] for name, count in counts.items()} for label in self.usable}
