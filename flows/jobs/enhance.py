"""The work of an enhancement, without Prefect: enlarge each picture, write it, compare it, and write a page."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib.metadata import version

import numpy as np
import torch

from anonymizer.backbones.conditioning import conditioning_text, refuse_unused_guidance
from anonymizer.config import EnhanceConfig, Limits
from anonymizer.data import image_codec, usage_marker
from anonymizer.enhance import Enhancer, Upsampling, cautions, noise_key, resample
from anonymizer.errors import OutputError, RecordError
from anonymizer.noise import Noise
from anonymizer.pipeline.batch_sampling import BatchSampler, SamplingJob
from anonymizer.pipeline.item import Item
from anonymizer.pipeline.stages import open_stages
from anonymizer.records import Decision, Reason, Record, Status
from anonymizer.release import preflight
from anonymizer.release.profiling import Stopwatch
from anonymizer.report import enhance as page
from anonymizer.storage import parquet
from anonymizer.storage.path import StoragePath
from flows.jobs import enhance_manifest
from flows.jobs.enhance_inputs import EnhanceInputs, Pair
from flows.jobs.enhance_manifest import DIRECTION, ENHANCED, METHODS, USED, EnhanceSummary, Row, column_name
from flows.jobs.models import backbone_of
from flows.jobs.progress import NO_PROGRESS, ProgressReporter
from flows.jobs.redaction import in_fresh_thread
from metrics.models.lpips import PerceptualDistance
from metrics.utility.image_quality import score_images

MISSING, WRONG_SIZE = "missing", "wrong_size"  # why a reference cannot be used, beside reasons of records
THREADS = 2  # that decode and encode beside the model
PREFETCH_DEPTH = 2  # pictures that are decoded before their turn; they may be large
EXAMPLE_COUNT, WORST_COUNT = 12, 6  # pictures on the page: drawn by chance, and furthest from their references
UNBOUNDED = Limits(max_bytes=2**62, max_pixels=2**62)  # for files of our own
MAX_LISTED_IDS = 5  # records of each reason that the page names


def run(config: EnhanceConfig, progress: ProgressReporter = NO_PROGRESS) -> EnhanceSummary:
    """Make ``config.output.uri``: images, manifest, page, and last the summary. UsageError before long work."""
    job = read_pairs(config, progress)
    return write_enhancement(job, enlarge(job, progress), progress)


def check(config: EnhanceConfig) -> None:
    """Raise UsageError for what can be seen before the work: output, sources, models. Writes nothing."""
    _check_folders(config)
    EnhanceInputs(config)
    refuse_unused_guidance(config.model, backbone_of(config.model))
    _build_enhancer(config)
    _lpips_of(config)


def _check_folders(config: EnhanceConfig) -> None:
    folder = StoragePath.from_uri(config.output.uri)
    for source in filter(None, (config.source, config.references)):
        preflight.check_private_folder("output.uri", config.output.uri, source.uri)
        usage_marker.refuse_marked_source("source.uri" if source is config.source else "references.uri", source.uri)
    if not folder.is_local and next(folder.children(), None) is not None:
        raise OutputError(f"output.uri {config.output.uri!r}: is there already: name a new prefix")


def _build_enhancer(config: EnhanceConfig) -> Enhancer:
    backbone, overlap = backbone_of(config.model), config.model.tile_overlap
    return Enhancer(backbone, config.factor, config.levels, config.upsampling, config.sampler, config.steps, overlap)


def _lpips_of(config: EnhanceConfig) -> PerceptualDistance | None:
    """Return the perceptual distance; None where there is nothing to compare with, or it is left out."""
    if config.references is None or config.metrics.lpips == "none":
        return None
    return _load_lpips(config.metrics.lpips, str(backbone_of(config.model).device))


@lru_cache(maxsize=1)
def _load_lpips(lpips: str, device: str) -> PerceptualDistance:
    return in_fresh_thread(lambda: PerceptualDistance.load(lpips, device))


def read_pairs(config: EnhanceConfig, progress: ProgressReporter) -> Enhancement:
    """Prepare the output, list the source, and match its records with their references."""
    begun = time.monotonic()
    _check_folders(config)
    StoragePath.from_uri(config.output.uri).make_private_folder()  # before anything can fail, and say why in there
    progress.stage("reading the source")
    job = Enhancement(config, EnhanceInputs(config), begun)
    usage_marker.write_marker(job.folder, "enhancement")
    return job


def enlarge(job: Enhancement, progress: ProgressReporter) -> list[Row]:
    """Enlarge, write and compare; return a row for each record, in the source's order."""
    progress.begin(len(job.inputs), 0)
    progress.stage("enlarging")
    rows, watch = [], Stopwatch()
    with open_stages(job.backbone.device, THREADS, watch) as stages:
        items = stages.decode(job.decode, job.inputs.read(), PREFETCH_DEPTH)
        sampler = BatchSampler(job, job.config.batch_size, stages.overlap, watch)
        for item in stages.write(job.write_image, sampler.run(items)):
            rows.append(job.compare(item))
            progress.advance(1)
    return sorted(rows, key=lambda row: row["number"])


def write_enhancement(
    job: Enhancement, rows: Sequence[Row], progress: ProgressReporter = NO_PROGRESS
) -> EnhanceSummary:
    """Write the manifest, the page, and last the summary."""
    progress.stage("writing the page")
    config, summary = job.config, enhance_manifest.summarize(rows)
    metadata = {"purpose": usage_marker.marker_text("enhancement"), "code_version": version("anonymizer")}
    metadata |= {"lpips": job.lpips.versioned_name} if job.lpips else {}
    table = enhance_manifest.build_table(rows, job.measures)
    (job.folder / "manifest.parquet").write(parquet.to_bytes(table.replace_schema_metadata(metadata)))
    figures = enhance_manifest.compute_figures(table, job.measures, np.random.default_rng(config.seed))
    unmeasured = [
        f"{measure.upper()}: could not be had for any picture: they are too small for it, or too large"
        for measure in job.measures
        if summary.compared and measure not in figures
    ]
    document = metadata | job.constants | {"passes": job.passes} | asdict(summary)
    document |= {"cautions": [*cautions(config.levels), *unmeasured], "figures": figures}
    page.write_enhancement(job.folder / "report.html", document, list(_groups(job, rows)), _failed_ids(rows))
    document["seconds"] = time.monotonic() - job.begun
    (job.folder / "summary.json").write(json.dumps(document, indent=1).encode())
    return summary


@dataclass(slots=True)
class EnhanceItem(Item):
    """A record that is enlarged, and what the result is compared with."""

    number: int = 0  # in the source's order
    reference: torch.Tensor | str | None = None  # (3, H, W), or why there is none; None where none is asked for


class Enhancement(SamplingJob[EnhanceItem]):
    """The stages of an enhancement, in the order in which an item meets them."""

    def __init__(self, config: EnhanceConfig, inputs: EnhanceInputs, begun: float) -> None:
        self.config, self.model, self.inputs = config, config.model, inputs
        self.begun = begun  # by the monotonic clock
        self.folder = StoragePath.from_uri(config.output.uri).as_private()
        self.enhancer, self.lpips = _build_enhancer(config), _lpips_of(config)
        self.backbone = self.enhancer.backbone
        self.constants: Row = {"model": config.model.public_name, "model_digest": self.backbone.digest}
        self.constants |= config.model_dump(include={"factor", "upsampling", "sampler", "seed"})
        self.constants["steps"] = self.enhancer.steps
        self.passes = [
            {"level": level, "t_boom": t_boom, "T": self.backbone.T, "log_snr": self.enhancer.whole.log_snr(t_boom)}
            for level, t_boom in zip(self.enhancer.levels, self.enhancer.t_boom, strict=True)
        ]
        self.measures: Sequence[str] = ()
        if config.references is not None:
            self.measures = ("psnr", "ssim") if self.lpips is None else ("lpips", "psnr", "ssim")

    def decode(self, pair: Pair) -> EnhanceItem:
        """Decode a record and its reference, each at its own size."""
        number, record, reference = pair
        item = EnhanceItem(replace(record, data=b""), number=number)
        try:
            if record.problem:
                raise RecordError(record.problem)
            item.conditioning_text = conditioning_text(self.model, record, self.backbone)
            item.picture = image_codec.decode(record.data, 1, "tiles", self.config.source.limits)
            self._refuse_too_large(item)
            item.noise_key = noise_key(self.config.seed, record.data)
            item.reference = self._decode_reference(item, reference)
        except RecordError as error:
            item.fail(error.reason)
        return item

    def enlarged_sides(self, item: EnhanceItem) -> tuple[int, int]:
        """Return the height and width of an item's output."""
        assert item.picture is not None
        height, width = (self.config.factor * side for side in item.picture.tensor.shape[-2:])
        return height, width

    def working_sides(self, item: EnhanceItem) -> tuple[int, int]:
        return self.enhancer.working_sides(*self.enlarged_sides(item))

    def _refuse_too_large(self, item: EnhanceItem) -> None:
        """Bound what is made as what is read is bounded."""
        height, width = self.working_sides(item)
        longest = max(self.enlarged_sides(item))
        max_pixels, max_side = self.config.source.limits.max_pixels, image_codec.MAX_SIDE[self.config.output.image]
        if height * width > max_pixels or longest > max_side:
            raise RecordError(Reason.TOO_MANY_PIXELS)

    def _decode_reference(self, item: EnhanceItem, record: Record | None) -> torch.Tensor | str | None:
        if self.config.references is None:
            return None
        if record is None:
            return MISSING
        if record.problem is not None:
            return record.problem.value
        try:
            reference = image_codec.decode(record.data, 1, "tiles", self.config.references.limits).tensor
        except RecordError as error:
            return error.reason.value
        return reference if tuple(reference.shape[-2:]) == self.enlarged_sides(item) else WRONG_SIZE

    def sample(self, x0: torch.Tensor, level: float, noise: Noise, condition: object) -> torch.Tensor:
        return self.enhancer(x0, noise, condition)

    def gate(self, item: EnhanceItem) -> None:
        if item.is_unsafe:
            item.fail(Reason.UNSAFE)
        else:
            item.decision = Decision(Status.RELEASED)

    def write_image(self, item: EnhanceItem) -> EnhanceItem:
        """Encode and write an item's output."""
        try:
            if item.output is not None:
                item.encoded = self._encode(item.output)
                (self.folder / self._file(item)).write_uncommitted(item.encoded.data)
        except RecordError as error:
            item.fail(error.reason)
        item.output = None
        return item

    def _file(self, item: EnhanceItem) -> str:
        return f"images/{item.number:06d}{image_codec.SUFFIXES[self.config.output.image]}"

    def _encode(self, picture: torch.Tensor) -> image_codec.EncodedImage:
        return image_codec.encode(picture, encoding=self.config.output.image, quality=self.config.output.quality)

    def compare(self, item: EnhanceItem) -> Row:
        """Return an item's row, with scores of the written picture, and of the same one enlarged without a model."""
        row: Row = {"number": item.number, "record_id": item.record.entry.record_id, **self.constants}
        row |= {"levels": self.enhancer.levels, "t_boom": self.enhancer.t_boom}
        row["log_snr"] = [one_pass["log_snr"] for one_pass in self.passes]
        assert item.decision is not None
        if item.encoded is None:
            return row | {"reason": item.decision.reason}
        row |= {"file": self._file(item), "width": item.encoded.width, "height": item.encoded.height}
        if not isinstance(item.reference, torch.Tensor):
            return row | ({} if item.reference is None else {"reference": item.reference})
        reference = item.reference[None].to(self.backbone.device)
        for method in METHODS:
            encoded = item.encoded if method == ENHANCED else self._encode(self.upsample(item, method))
            picture = _decode(encoded.data)[None].to(reference.device)  # as it comes back from a file
            scores = score_images(picture, reference, self.lpips)
            row |= {column_name(measure, method): values[0] for measure, values in scores.items()}
        return row | {"reference": USED}

    def upsample(self, item: EnhanceItem, method: Upsampling) -> torch.Tensor:
        """Return an item's picture (3, H, W) enlarged without a model."""
        assert item.picture is not None
        return resample(item.picture.tensor[None], self.enlarged_sides(item), method)[0]


def _groups(job: Enhancement, rows: Sequence[Row]) -> Iterator[page.Group]:
    """Yield examples for the page: some by chance, and of many those that came out worst, lest the page mislead."""
    written = [row for row in rows if "file" in row]
    rng = np.random.default_rng(job.config.seed)
    drawn = sorted(rng.choice(len(written), min(EXAMPLE_COUNT, len(written)), replace=False).tolist())
    if drawn:
        is_all = len(drawn) == len(written)
        title = "Before and after" if is_all else "Before and after, drawn by chance"
        about = "In the source's order." if is_all else f"{len(drawn)} of {len(written)} pictures."
        yield page.Group(title, about, _examples(job, [written[at] for at in drawn]))
    if len(written) > len(drawn) and job.measures:
        measure = job.measures[0]
        scored = [(score, row) for row in written if (score := row.get(measure)) is not None]
        worst = [row for _, row in sorted(scored, key=lambda pair: DIRECTION[measure] * pair[0])[:WORST_COUNT]]
        if worst:
            about = f"The {len(worst)} of {len(scored)} pictures that came out worst by {measure.upper()}."
            yield page.Group("Furthest from their references", about, _examples(job, worst))


def _examples(job: Enhancement, rows: Sequence[Row]) -> list[page.Example]:
    """Read some records again; one that can no longer be read is left out."""
    examples: dict[int, page.Example] = {}
    order = sorted(rows, key=lambda row: row["number"])
    for row, item in zip(order, map(job.decode, job.inputs.read([row["number"] for row in order])), strict=True):
        if item.picture is not None:
            after: dict[str, torch.Tensor | str] = {"bicubic": job.upsample(item, "bicubic")}
            after[ENHANCED] = _decode((job.folder / row["file"]).read())
            if job.measures:
                after["reference"] = MISSING if item.reference is None else item.reference
            scores = {measure: row.get(measure) for measure in job.measures}
            examples[row["number"]] = page.build_example(row["record_id"], item.picture.tensor, after, scores)
    return [examples[row["number"]] for row in rows if row["number"] in examples]


def _decode(data: bytes) -> torch.Tensor:
    """Return a picture (3, H, W) at its own size."""
    return image_codec.decode(data, 1, "tiles", UNBOUNDED).tensor


def _failed_ids(rows: Sequence[Row]) -> Mapping[str, list[str]]:
    """Return, by reason, the ids of the first few records that could not be enlarged."""
    ids: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if "file" not in row and len(ids[row["reason"]]) < MAX_LISTED_IDS:
            ids[row["reason"]].append(row["record_id"])
    return ids
