"""What the task of an augmentation does, without Prefect: draw local samples of each record, filter and write them."""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import version
from itertools import islice

import torch

from anonymizer.augment import (
    LabelReader,
    Levels,
    Reading,
    SampleRequest,
    batch_by_level,
    sample_batch,
    sample_key,
    samples_per_record,
)
from anonymizer.backbones import Backbone
from anonymizer.backbones.conditioning import conditioning_text, flag_unsafe, refuse_unused_guidance
from anonymizer.backbones.tiling import TiledBackbone
from anonymizer.boomerang import Boomerang
from anonymizer.config import AugmentConfig, FilterConfig
from anonymizer.data import image_codec, usage_marker
from anonymizer.data.sinks.folder import label_folder
from anonymizer.data.sources import open_source
from anonymizer.errors import OutputError, RecordError, StepError
from anonymizer.records import Reason, Record
from anonymizer.release import preflight
from anonymizer.storage import parquet
from anonymizer.storage.path import StoragePath
from anonymizer.storage.prefetch import prefetch_map
from flows.jobs import augment_manifest
from flows.jobs.augment_manifest import AugmentSummary, Row, source_order
from flows.jobs.progress import NO_PROGRESS, ProgressReporter
from flows.jobs.release import backbone_of, in_fresh_thread, redact_errors
from metrics.utility.label_consistency import Classifier, ZeroShot, build_reader, load_filter

PURPOSE = usage_marker.marker_text("augmentation")
DISAGREES = "disagrees"  # why a sample was dropped: it does not show what its label says
THREADS = 2  # that decode and encode beside the model
ENTRIES_PER_READ = 1024  # records listed at once


@dataclass(frozen=True)
class Original:
    """A record with its picture (3, H, W), or with the reason why there is none."""

    number: int
    record_id: str
    label: str | None
    picture: torch.Tensor | None = None
    digest: bytes = b""
    conditioning_text: str | None = None
    problem: Reason | None = None


def run(config: AugmentConfig, watching: ProgressReporter = NO_PROGRESS) -> AugmentSummary:
    """Make ``config.output.uri``: pictures, manifest, and last of all its summary. UsageError before long work."""
    begun = time.monotonic()
    check(config)
    folder = StoragePath.from_uri(config.output.uri)
    folder.make_private_folder()
    work = _Augmentation(config, backbone_of(config.model), folder.as_private())
    with ThreadPoolExecutor(THREADS, "codec") as pool:
        watching.stage("reading the source")
        labels = work.survey(pool)
        wanted = (
            sum(work.sample_counts) if work.sample_counts else config.samples * sum(1 for _ in work.source.entries())
        )
        if labels:
            work.use_filter(filter_of(config.filter, str(work.backbone.device)), labels)
        usage_marker.write_marker(work.folder, "augmentation")
        watching.begin(wanted, 0)
        watching.stage("drawing local samples")
        rows = work.sample(pool, watching.advance)
    return work.write(sorted(rows, key=source_order), time.monotonic() - begun)


def run_for_scheduler(config: AugmentConfig, watching: ProgressReporter) -> AugmentSummary:
    """``run``, with errors that a scheduler may keep; what they may not tell goes to ``errors/`` there."""
    error = StepError("augment: failed, begin again in a new folder")
    return redact_errors(
        StoragePath.from_uri(config.output.uri).as_private(), "augment", error, lambda: run(config, watching)
    )


def check(config: AugmentConfig) -> None:
    """What can be told before the work: the place to write to, source, models. Writes nothing."""
    preflight.check_private_folder("output.uri", config.output.uri, config.source.uri)
    place = StoragePath.from_uri(config.output.uri)
    if not place.is_local and place.exists():
        raise OutputError(f"output.uri {config.output.uri!r}: is there already: name a new folder")
    usage_marker.refuse_marked_source("source.uri", config.source.uri)
    next(iter(open_source(config.source).entries()), None)
    backbone = backbone_of(config.model)
    refuse_unused_guidance(config.model, backbone)
    if (
        backbone.condition_kind == "class" and config.model.condition == "none"
    ):  # ModelError if it knows no class of none
        side = backbone.size // backbone.scale
        backbone.predict(torch.zeros(1, backbone.channels, side, side, device=backbone.device), 1)
    filter_of(config.filter, str(backbone.device))


@lru_cache(maxsize=1)
def _filter_of(config: str, device: str) -> Classifier | ZeroShot | None:
    return in_fresh_thread(lambda: load_filter(FilterConfig.model_validate_json(config), device))


def filter_of(config: FilterConfig, device: str) -> Classifier | ZeroShot | None:
    """The model of the filter, loaded once for each process."""
    return _filter_of(config.model_dump_json(), device)


class _Augmentation:
    """The steps of one augmentation, in the order in which a record meets them."""

    def __init__(self, config: AugmentConfig, backbone: Backbone, folder: StoragePath) -> None:
        self.config, self.folder = config, folder
        self.backbone: Backbone = (
            TiledBackbone(backbone, config.model.tile_overlap) if config.source.fit == "tiles" else backbone
        )
        self.boomerang = Boomerang(self.backbone, config.sampler, config.steps)
        self.levels = Levels(*config.levels)
        self.source = open_source(config.source)
        self.labels: Sequence[str | None] | None = None  # label of each record that can be used
        self.sample_counts: Sequence[int] | None = None  # samples of each record, where they differ
        self.reader: LabelReader | None = None
        self.usable: Counter[str | None] = Counter()  # records, by label
        self.looked_at: Counter[str | None] = Counter()  # originals that the filter looked at
        self.agreed: Counter[str | None] = Counter()  # and of these, with their label

    def survey(self, pool: Executor) -> list[str]:
        """All labels, from a first reading of the whole source; none where nothing is asked about them."""
        if not self.config.balance and self.config.filter.kind == "none":
            return []
        found = [None if one.problem else one.label for one in self.originals(pool)]
        self.labels = found
        self.sample_counts = samples_per_record(found, self.config.samples) if self.config.balance else None
        return sorted({label for label in found if label is not None})

    def use_filter(self, model: Classifier | ZeroShot | None, labels: Sequence[str]) -> None:
        if model is not None:
            self.reader = build_reader(model, self.config.filter, labels)

    def originals(self, pool: Executor) -> Iterator[Original]:
        with closing(
            prefetch_map(self.decode, enumerate(self.records()), pool, depth=2 * self.config.batch_size)
        ) as decoded:
            yield from decoded

    def records(self) -> Iterator[Record]:
        entries = self.source.entries()
        while chunk := list(islice(entries, ENTRIES_PER_READ)):
            yield from self.source.read(chunk)

    def decode(self, numbered: tuple[int, Record]) -> Original:
        number, record = numbered
        source, model = self.config.source, self.backbone
        found = Original(number, record.entry.record_id, record.label)
        try:
            if record.problem:
                raise RecordError(record.problem)
            if source.label is not None and not record.label:
                raise RecordError(Reason.BAD_METADATA)  # each sample has a label, or none has
            said = conditioning_text(self.config.model, record, model)
            picture = image_codec.decode(record.data, model.size, source.fit, source.limits, model.multiple)
        except RecordError as error:
            return replace(found, problem=error.reason)
        return replace(
            found, picture=picture.tensor, digest=hashlib.sha256(record.data).digest(), conditioning_text=said
        )

    def sample(self, pool: Executor, progress: Callable[[int], None]) -> list[Row]:
        """A row for each sample and for each record that has none; encoding and writing run beside the model."""
        rows: list[Row] = []
        writes: deque[Future[list[Row]]] = deque()
        for batch in batch_by_level(self.requests(pool, rows), self.config.batch_size):
            outputs = sample_batch(self.boomerang, batch)
            readings, objections = self.read(batch, outputs), flag_unsafe(self.config.model, self.backbone, outputs)
            writes.append(pool.submit(self.finish, batch, outputs.cpu(), readings, objections))
            while writes and (len(writes) > THREADS or writes[0].done()):
                rows += writes.popleft().result()
            progress(len(batch))
        while writes:
            rows += writes.popleft().result()
        return rows

    def requests(self, pool: Executor, rows: list[Row]) -> Iterator[SampleRequest]:
        """Every sample that is wanted; records that cannot be used go to ``rows``."""
        for one in self.originals(pool):
            at, problem = one.number, one.problem
            if problem is None and self.labels is not None and (at >= len(self.labels) or self.labels[at] != one.label):
                problem = Reason.CHANGED  # since the labels were read
            if problem is not None or one.picture is None:
                rows.append(Row(at, one.record_id, one.label, reason=problem))
                continue
            self.usable[one.label] += 1
            slim = replace(one, picture=None)
            for sample in range(self.sample_counts[at] if self.sample_counts is not None else self.config.samples):
                key = sample_key(self.config.seed, sample, one.record_id.encode(), one.digest)
                yield SampleRequest(
                    one.picture, key, self.levels.draw(key), one.conditioning_text, origin=(slim, sample)
                )

    def read(self, batch: Sequence[SampleRequest], outputs: torch.Tensor) -> Sequence[Reading | None]:
        if self.reader is None:
            return [None] * len(batch)
        self.read_originals(self.reader, [one for one in batch if one.origin[1] == 0])
        return self.reader.read(outputs.nan_to_num(0.0), [one.origin[0].label for one in batch])

    def read_originals(self, reader: LabelReader, firsts: Sequence[SampleRequest]) -> None:
        """What the filter says of originals is what its figures for samples are read beside."""
        if firsts:
            labels = [one.origin[0].label for one in firsts]
            found = reader.read(torch.stack([one.image for one in firsts]).to(self.backbone.device), labels)
            self.looked_at.update(labels)
            self.agreed.update(label for label, reading in zip(labels, found, strict=True) if reading.agrees)

    def finish(
        self,
        batch: Sequence[SampleRequest],
        outputs: torch.Tensor,
        readings: Sequence[Reading | None],
        unsafe: Sequence[bool],
    ) -> list[Row]:
        return [self._finish_one(*each) for each in zip(batch, outputs, readings, unsafe, strict=True)]

    def _finish_one(self, wanted: SampleRequest, output: torch.Tensor, reading: Reading | None, unsafe: bool) -> Row:
        out, (original, sample) = self.config.output, wanted.origin
        row = Row(original.number, original.record_id, original.label, sample, wanted.level)
        try:
            encoded = image_codec.encode(output, encoding=out.image, quality=out.quality)
        except RecordError as error:
            return replace(row, reason=error.reason)
        if reading is not None:
            row = replace(row, predicted=reading.predicted, agrees=reading.agrees)
        if unsafe:
            return replace(row, reason=Reason.UNSAFE)
        if reading is not None and not reading.agrees:
            return replace(row, reason=DISAGREES)
        group = f"{label_folder(original.label)}/" if original.label else ""
        file = f"images/{group}{original.number:06d}-{sample}{image_codec.SUFFIXES[out.image]}"
        (self.folder / file).write_uncommitted(encoded.data)
        return replace(row, file=file)

    def write(self, rows: Sequence[Row], seconds: float) -> AugmentSummary:
        """The listing that image folders are loaded with, the manifest, and the summary: with it, all is there."""
        config, steps = self.config, {level: self._level_columns(level) for level in self.levels.values}
        made_with: dict[str, object] = {"model": config.model.public_name, "model_digest": self.backbone.digest}
        made_with |= {"sampler": config.sampler, "seed": config.seed}
        said = {"purpose": PURPOSE, "filter": self.reader.versioned_name if self.reader else "none"}
        said |= {"code_version": version("anonymizer")}
        if any(row.file for row in rows):
            (self.folder / "images/metadata.csv").write(augment_manifest.build_listing(rows))
        table = augment_manifest.build_table(rows, steps, made_with).replace_schema_metadata(said)
        (self.folder / "manifest.parquet").write(parquet.to_bytes(table))
        summary = augment_manifest.summarize(rows, self.usable)
        originals = {"originals": self.usable, "originals_looked_at": self.looked_at, "originals_agreed": self.agreed}
        by = {
            "by_class": augment_manifest.count_by_class(rows, originals),
            "by_level": augment_manifest.count_by_level(rows, steps),
        }
        told = said | asdict(summary) | made_with | {"balance": config.balance, "seconds": seconds} | by
        (self.folder / "summary.json").write(json.dumps(told, indent=1).encode())
        return summary

    def _level_columns(self, level: float) -> dict[str, float | int]:
        t_boom = self.boomerang.t_boom(level)
        steps = len(self.boomerang.grid(t_boom)) - 1
        return {"t_boom": t_boom, "log_snr": self.boomerang.log_snr(t_boom), "steps": steps}
