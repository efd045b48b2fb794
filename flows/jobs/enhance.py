"""What the task of an enhancement does, without Prefect: enlarge each picture, compare it, write it and a page."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from importlib.metadata import version

import numpy as np
import torch

from anonymizer.backbones.conditioning import encode_conditions, flag_unsafe, refuse_unused_guidance
from anonymizer.config import EnhanceConfig, Limits
from anonymizer.data import image_codec, usage_marker
from anonymizer.enhance import Enhancer, Upsampling, cautions, resample
from anonymizer.errors import OutputError, RecordError, StepError
from anonymizer.noise import KeyedNoise
from anonymizer.records import Reason
from anonymizer.release import preflight
from anonymizer.report.enhance import Example, Group, build_example, write_enhancement
from anonymizer.storage import parquet
from anonymizer.storage.path import StoragePath
from flows.jobs import enhance_manifest
from flows.jobs.enhance_inputs import MISSING, EnhanceInputs, EnhanceItem
from flows.jobs.enhance_manifest import DIRECTION, ENHANCED, METHODS, USED, EnhanceSummary, Method, Row, column_name
from flows.jobs.models import backbone_of
from flows.jobs.progress import NO_PROGRESS, ProgressReporter
from flows.jobs.redaction import in_fresh_thread, redact_errors
from metrics.models.lpips import PerceptualDistance
from metrics.utility.image_quality import score_images

PURPOSE = usage_marker.marker_text("enhancement")
EXAMPLE_COUNT, WORST_COUNT = (
    12,
    6,
)  # pictures on the page: drawn by chance, and those that are furthest from their references
UNBOUNDED = Limits(max_bytes=2**62, max_pixels=2**62)  # for files of our own
MAX_LISTED_IDS = 5  # records of each reason that the page names


def run(config: EnhanceConfig, watching: ProgressReporter = NO_PROGRESS) -> EnhanceSummary:
    """Make ``config.output.uri``: pictures, manifest, page, and last the summary. UsageError before long work."""
    begun = time.monotonic()
    _check_place(config)
    folder = StoragePath.from_uri(config.output.uri)
    folder.make_private_folder()  # before anything can fail, and say why in there
    watching.stage("reading the source")
    pictures = EnhanceInputs(config)
    job = _Enhancement(config, folder.as_private())
    usage_marker.write_marker(job.folder, "enhancement")
    watching.begin(len(pictures), 0)
    watching.stage("enlarging")
    rows: list[Row] = []
    for batch in job.batches(pictures.read(job.enhancer)):
        rows += job.enhance(batch)
        watching.advance(len(batch))
    rows.sort(key=lambda row: row.number)
    watching.stage("writing the page")
    return job.write(rows, pictures, time.monotonic() - begun)


def run_for_scheduler(config: EnhanceConfig, watching: ProgressReporter) -> EnhanceSummary:
    """``run``, with errors that a scheduler may keep; what they may not tell goes to ``errors/`` there."""
    error = StepError("enhancement: failed")
    return redact_errors(StoragePath.from_uri(config.output.uri), "enhance", error, lambda: run(config, watching))


def check(config: EnhanceConfig) -> None:
    """What can be told before the work: the place to write to, sources, models. Writes nothing. Raises UsageError."""
    _check_place(config)
    EnhanceInputs(config)
    refuse_unused_guidance(config.model, backbone_of(config.model))
    _enhancer_of(config)
    _lpips_of(config)


def _check_place(config: EnhanceConfig) -> None:
    folder = StoragePath.from_uri(config.output.uri)
    for source in filter(None, (config.source, config.references)):
        preflight.check_private_folder("output.uri", config.output.uri, source.uri)
        usage_marker.refuse_marked_source("source.uri" if source is config.source else "references.uri", source.uri)
    if not folder.is_local and next(folder.children(), None) is not None:
        raise OutputError(f"output.uri {config.output.uri!r}: is there already: name a new prefix")


def _enhancer_of(config: EnhanceConfig) -> Enhancer:
    backbone, overlap = backbone_of(config.model), config.model.tile_overlap
    return Enhancer(backbone, config.factor, config.levels, config.upsampling, config.sampler, config.steps, overlap)


def _lpips_of(config: EnhanceConfig) -> PerceptualDistance | None:
    """What compares to the eye, where there is something to compare with and it is not left out."""
    if config.references is None or config.metrics.lpips == "none":
        return None
    return _load_lpips(config.metrics.lpips, str(backbone_of(config.model).device))


@lru_cache(maxsize=1)
def _load_lpips(lpips: str, device: str) -> PerceptualDistance:
    return in_fresh_thread(lambda: PerceptualDistance.load(lpips, device))


class _Enhancement:
    """One enhancement, with what it holds, in the order in which a picture meets it."""

    def __init__(self, config: EnhanceConfig, folder: StoragePath) -> None:
        self.config, self.folder = config, folder
        self.enhancer, self.lpips = _enhancer_of(config), _lpips_of(config)
        self.backbone = self.enhancer.backbone
        self.measures: Sequence[str] = ()
        if config.references is not None:
            self.measures = ("psnr", "ssim") if self.lpips is None else ("lpips", "psnr", "ssim")

    def batches(self, items: Iterator[EnhanceItem]) -> Iterator[list[EnhanceItem]]:
        """Pictures of one shape, as many as the model is to see at once; a record without a picture by itself."""
        batch: list[EnhanceItem] = []
        shape, most = None, 1
        for item in items:
            if item.picture is None:
                yield [item]
                continue
            if batch and (item.picture.shape != shape or len(batch) == most):
                yield batch
                batch = []
            shape, most = item.picture.shape, self._batch_size_for(item.picture)
            batch.append(item)
        if batch:
            yield batch

    def _batch_size_for(self, picture: torch.Tensor) -> int:
        """How many pictures of this shape have about as many pixels as a batch of the model's size."""
        height, width = self.enhancer.working_sides(*(self.config.factor * side for side in picture.shape[-2:]))
        return max(1, self.config.batch_size * self.backbone.size**2 // (height * width))

    def enhance(self, batch: Sequence[EnhanceItem]) -> list[Row]:
        """A row for each, with its picture written, and compared where it has a reference."""
        pictures = [item.picture for item in batch if item.picture is not None]
        if not pictures:
            return [Row(item.number, item.record_id, reason=item.problem) for item in batch]
        low = torch.stack(pictures).to(self.backbone.device)  # (B, 3, h, w)
        said = encode_conditions(self.backbone, (item.conditioning_text for item in batch))
        outputs = self.enhancer(low, KeyedNoise([item.key for item in batch]), said)
        objections = flag_unsafe(self.config.model, self.backbone, outputs)
        rows = [self._write_output(*each) for each in zip(batch, outputs.cpu(), objections, strict=True)]
        return self._compare(batch, rows) if self.measures else rows

    def _write_output(self, item: EnhanceItem, output: torch.Tensor, unsafe: bool) -> Row:
        row = Row(item.number, item.record_id)
        try:
            if unsafe:
                raise RecordError(Reason.UNSAFE)
            encoded = self._encode(output)
        except RecordError as error:
            return replace(row, reason=error.reason)
        file = f"images/{item.number:06d}{image_codec.SUFFIXES[self.config.output.image]}"
        (self.folder / file).write_uncommitted(encoded.data)
        return replace(row, file=file, width=encoded.width, height=encoded.height)

    def _encode(self, picture: torch.Tensor) -> image_codec.EncodedImage:
        return image_codec.encode(picture, encoding=self.config.output.image, quality=self.config.output.quality)

    def _compare(self, batch: Sequence[EnhanceItem], rows: Sequence[Row]) -> list[Row]:
        """With scores of what was written, and of the same picture enlarged without a model and written alike."""
        found = {row.number: row for row in rows}
        pairs = []
        for item in batch:
            row = found[item.number]
            if row.file is not None and isinstance(item.reference, torch.Tensor):
                pairs.append((item, row.file, item.reference))
            elif row.file is not None:
                found[item.number] = replace(row, reference=str(item.reference))  # why there is none
        if pairs:
            wanted = torch.stack([reference for _, _, reference in pairs]).to(self.backbone.device)
            scores: dict[str, Sequence[float | None]] = {}
            for method in METHODS:
                made = torch.stack([self._read_back(method, item, file) for item, file, _ in pairs]).to(wanted.device)
                values = score_images(made, wanted, self.lpips)
                scores |= {column_name(measure, method): some for measure, some in values.items()}
            for at, (item, _, _) in enumerate(pairs):
                own = {name: values[at] for name, values in scores.items()}
                found[item.number] = replace(found[item.number], reference=USED, scores=own)
        return list(found.values())

    def _read_back(self, method: Method, item: EnhanceItem, file: str) -> torch.Tensor:
        """A picture (3, H, W) as it comes back from its file; one that is enlarged without a model from such a file."""
        if method == ENHANCED:
            return _decode((self.folder / file).read())
        return _decode(self._encode(self._upsample(item, method)).data)

    def _upsample(self, item: EnhanceItem, kind: Upsampling) -> torch.Tensor:
        assert item.picture is not None
        height, width = (self.config.factor * side for side in item.picture.shape[-2:])
        return resample(item.picture[None], (height, width), kind)[0]

    def write(self, rows: Sequence[Row], pictures: EnhanceInputs, seconds: float) -> EnhanceSummary:
        """The manifest, the page, and the summary: with it, all is there."""
        config, summary = self.config, enhance_manifest.summarize(rows)
        made_with: dict[str, object] = {"model": config.model.public_name, "model_digest": self.backbone.digest}
        made_with |= {"factor": config.factor, "upsampling": config.upsampling, "sampler": config.sampler}
        made_with |= {"steps": self.enhancer.steps, "seed": config.seed}
        said = {"purpose": PURPOSE, "code_version": version("anonymizer")}
        said |= {"lpips": self.lpips.versioned_name} if self.lpips else {}
        table = enhance_manifest.build_table(rows, self.enhancer, made_with, self.measures).replace_schema_metadata(
            said
        )
        (self.folder / "manifest.parquet").write(parquet.to_bytes(table))
        passes = enhance_manifest.describe_passes(self.enhancer)
        figures = enhance_manifest.compute_figures(rows, self.measures, np.random.default_rng(config.seed))
        told = said | made_with | {"passes": passes} | asdict(summary)
        unmeasured = [
            f"{measure.upper()}: could not be had for any picture: they are too small for it, or too large"
            for measure in self.measures
            if summary.compared and measure not in figures
        ]
        told |= {"cautions": [*cautions(config.levels), *unmeasured], "figures": figures}
        write_enhancement(self.folder / "report.html", told, list(self._groups(rows, pictures)), _failed_ids(rows))
        (self.folder / "summary.json").write(json.dumps(told | {"seconds": seconds}, indent=1).encode())
        return summary

    def _groups(self, rows: Sequence[Row], pictures: EnhanceInputs) -> Iterator[Group]:
        """Pictures for the page: some by chance, and of many the ones that came out worst, so that nobody is misled."""
        made = [row for row in rows if row.file is not None]
        rng = np.random.default_rng(self.config.seed)
        drawn = sorted(rng.choice(len(made), min(EXAMPLE_COUNT, len(made)), replace=False).tolist())
        if drawn:
            about = "In the source's order." if len(drawn) == len(made) else f"{len(drawn)} of {len(made)} pictures."
            title = "Before and after" if len(drawn) == len(made) else "Before and after, drawn by chance"
            yield Group(title, about, self._examples([made[at] for at in drawn], pictures))
        if len(made) > len(drawn) and self.measures:
            first = self.measures[0]
            told = [row for row in made if row.scores.get(first) is not None]
            worst = sorted(told, key=lambda row: DIRECTION[first] * (row.scores[first] or 0.0))[:WORST_COUNT]
            if worst:
                about = f"The {len(worst)} of {len(told)} pictures that came out worst by {first.upper()}."
                yield Group("Furthest from their references", about, self._examples(worst, pictures))

    def _examples(self, rows: Sequence[Row], pictures: EnhanceInputs) -> list[Example]:
        """Some pictures again, with what they were enlarged from. A record that can no longer be read is left out."""
        found = []
        order = sorted(rows, key=lambda row: row.number)
        for row, item in zip(order, pictures.read(self.enhancer, [row.number for row in order]), strict=True):
            if item.picture is not None and row.file is not None:
                after: dict[str, torch.Tensor | str] = {"bicubic": self._upsample(item, "bicubic")}
                after[ENHANCED] = _decode((self.folder / row.file).read())
                if self.measures:
                    after["reference"] = item.reference if item.reference is not None else MISSING
                scores = {measure: row.scores.get(measure) for measure in self.measures}
                found.append(build_example(row.record_id, item.picture, after, scores))
        return sorted(found, key=lambda one: [row.record_id for row in rows].index(one.record_id))


def _decode(data: bytes) -> torch.Tensor:
    """A picture (3, H, W) at its own size."""
    return image_codec.decode(data, 1, "tiles", UNBOUNDED).tensor


def _failed_ids(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Reason -> ids of the first few records of which nothing could be made."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.reason is not None and len(found[row.reason]) < MAX_LISTED_IDS:
            found[row.reason].append(row.record_id)
    return found
