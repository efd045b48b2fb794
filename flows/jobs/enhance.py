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

from anonymizer.backbones.conditioning import condition, refuse_idle_guidance, unsafe
from anonymizer.config import EnhanceConfig, Limits
from anonymizer.data import image_codec, usage_marker
from anonymizer.enhance import Enhancer, Upsampling, cautions, resample
from anonymizer.errors import OutputError, RecordError, StepError
from anonymizer.noise import KeyedNoise
from anonymizer.records import Reason
from anonymizer.release import preflight
from anonymizer.report.enhance import Example, Group, example, write_enhancement
from anonymizer.storage import parquet
from anonymizer.storage.path import Place
from flows.jobs import enhance_manifest
from flows.jobs.enhance_inputs import MISSING, Item, Pictures
from flows.jobs.enhance_manifest import BETTER, ENHANCED, METHODS, USED, EnhanceSummary, Method, Row, column
from flows.jobs.release import apart, backbone_of, guarded
from flows.runtime.progress import NOBODY, Watcher
from metrics.models.lpips import PerceptualDistance
from metrics.utility.image_quality import scored

PURPOSE = usage_marker.said("enhancement")
SHOWN, FURTHEST = 12, 6  # pictures on the page: drawn by chance, and those that are furthest from their references
UNBOUNDED = Limits(max_bytes=2**62, max_pixels=2**62)  # for files of our own
NAMED = 5  # records of each reason that the page names


def run(config: EnhanceConfig, watching: Watcher = NOBODY) -> EnhanceSummary:
    """Make ``config.output.uri``: pictures, manifest, page, and last the summary. UsageError before long work."""
    begun = time.monotonic()
    _check_place(config)
    folder = Place.of(config.output.uri)
    folder.make_private()  # before anything can fail, and say why in there
    watching.stage("reading the source")
    pictures = Pictures(config)
    job = _Enhancement(config, folder.as_private())
    usage_marker.mark(job.folder, "enhancement")
    watching.begin(len(pictures), 0)
    watching.stage("enlarging")
    rows: list[Row] = []
    for batch in job.batches(pictures.read(job.enhancer)):
        rows += job.enhance(batch)
        watching.advance(len(batch))
    rows.sort(key=lambda row: row.number)
    watching.stage("writing the page")
    return job.write(rows, pictures, time.monotonic() - begun)


def run_for_scheduler(config: EnhanceConfig, watching: Watcher) -> EnhanceSummary:
    """``run``, with errors that a scheduler may keep; what they may not tell goes to ``errors/`` there."""
    error = StepError("enhancement: failed")
    return guarded(Place.of(config.output.uri), "enhance", error, lambda: run(config, watching))


def check(config: EnhanceConfig) -> None:
    """What can be told before the work: the place to write to, sources, models. Writes nothing. Raises UsageError."""
    _check_place(config)
    Pictures(config)
    refuse_idle_guidance(config.model, backbone_of(config.model))
    _enhancer_of(config)
    _lpips_of(config)


def _check_place(config: EnhanceConfig) -> None:
    folder = Place.of(config.output.uri)
    for source in filter(None, (config.source, config.references)):
        preflight.check_folder("output.uri", config.output.uri, source.uri)
        usage_marker.refuse_source("source.uri" if source is config.source else "references.uri", source.uri)
    if not folder.is_local and next(folder.children(), None) is not None:
        raise OutputError(f"output.uri {config.output.uri!r}: is there already: name a new prefix")


def _enhancer_of(config: EnhanceConfig) -> Enhancer:
    backbone, overlap = backbone_of(config.model), config.model.tile_overlap
    return Enhancer(backbone, config.factor, config.levels, config.upsampling, config.sampler, config.steps, overlap)


def _lpips_of(config: EnhanceConfig) -> PerceptualDistance | None:
    """What compares to the eye, where there is something to compare with and it is not left out."""
    if config.references is None or config.metrics.lpips == "none":
        return None
    return _loaded(config.metrics.lpips, str(backbone_of(config.model).device))


@lru_cache(maxsize=1)
def _loaded(lpips: str, device: str) -> PerceptualDistance:
    return apart(lambda: PerceptualDistance.load(lpips, device))


class _Enhancement:
    """One enhancement, with what it holds, in the order in which a picture meets it."""

    def __init__(self, config: EnhanceConfig, folder: Place) -> None:
        self.config, self.folder = config, folder
        self.enhancer, self.lpips = _enhancer_of(config), _lpips_of(config)
        self.backbone = self.enhancer.backbone
        self.measures: Sequence[str] = ()
        if config.references is not None:
            self.measures = ("psnr", "ssim") if self.lpips is None else ("lpips", "psnr", "ssim")

    def batches(self, items: Iterator[Item]) -> Iterator[list[Item]]:
        """Pictures of one shape, as many as the model is to see at once; a record without a picture by itself."""
        batch: list[Item] = []
        shape, most = None, 1
        for item in items:
            if item.picture is None:
                yield [item]
                continue
            if batch and (item.picture.shape != shape or len(batch) == most):
                yield batch
                batch = []
            shape, most = item.picture.shape, self._at_once(item.picture)
            batch.append(item)
        if batch:
            yield batch

    def _at_once(self, picture: torch.Tensor) -> int:
        """How many pictures of this shape have about as many pixels as a batch of the model's size."""
        height, width = self.enhancer.worked_at(*(self.config.factor * side for side in picture.shape[-2:]))
        return max(1, self.config.batch_size * self.backbone.size**2 // (height * width))

    def enhance(self, batch: Sequence[Item]) -> list[Row]:
        """A row for each, with its picture written, and compared where it has a reference."""
        pictures = [item.picture for item in batch if item.picture is not None]
        if not pictures:
            return [Row(item.number, item.record_id, reason=item.problem) for item in batch]
        low = torch.stack(pictures).to(self.backbone.device)  # (B, 3, h, w)
        said = condition(self.backbone, (item.told for item in batch))
        outputs = self.enhancer(low, KeyedNoise([item.key for item in batch]), said)
        objections = unsafe(self.config.model, self.backbone, outputs)
        rows = [self._written(*each) for each in zip(batch, outputs.cpu(), objections, strict=True)]
        return self._compared(batch, rows) if self.measures else rows

    def _written(self, item: Item, output: torch.Tensor, unsafe: bool) -> Row:
        row = Row(item.number, item.record_id)
        try:
            if unsafe:
                raise RecordError(Reason.UNSAFE)
            encoded = self._encoded(output)
        except RecordError as error:
            return replace(row, reason=error.reason)
        file = f"images/{item.number:06d}{image_codec.SUFFIXES[self.config.output.image]}"
        (self.folder / file).put(encoded.data)
        return replace(row, file=file, width=encoded.width, height=encoded.height)

    def _encoded(self, picture: torch.Tensor) -> image_codec.EncodedPicture:
        return image_codec.encode(picture, image=self.config.output.image, quality=self.config.output.quality)

    def _compared(self, batch: Sequence[Item], rows: Sequence[Row]) -> list[Row]:
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
                made = torch.stack([self._made(method, item, file) for item, file, _ in pairs]).to(wanted.device)
                values = scored(made, wanted, self.lpips)
                scores |= {column(measure, method): some for measure, some in values.items()}
            for at, (item, _, _) in enumerate(pairs):
                own = {name: values[at] for name, values in scores.items()}
                found[item.number] = replace(found[item.number], reference=USED, scores=own)
        return list(found.values())

    def _made(self, method: Method, item: Item, file: str) -> torch.Tensor:
        """A picture (3, H, W) as it comes back from its file; one that is enlarged without a model from such a file."""
        if method == ENHANCED:
            return _decoded((self.folder / file).read())
        return _decoded(self._encoded(self._plain(item, method)).data)

    def _plain(self, item: Item, kind: Upsampling) -> torch.Tensor:
        assert item.picture is not None
        height, width = (self.config.factor * side for side in item.picture.shape[-2:])
        return resample(item.picture[None], (height, width), kind)[0]

    def write(self, rows: Sequence[Row], pictures: Pictures, seconds: float) -> EnhanceSummary:
        """The manifest, the page, and the summary: with it, all is there."""
        config, summary = self.config, enhance_manifest.summary(rows)
        made_with: dict[str, object] = {"model": config.model.public_name, "model_digest": self.backbone.digest}
        made_with |= {"factor": config.factor, "upsampling": config.upsampling, "sampler": config.sampler}
        made_with |= {"steps": self.enhancer.steps, "seed": config.seed}
        said = {"purpose": PURPOSE, "code_version": version("anonymizer")}
        said |= {"lpips": self.lpips.reported} if self.lpips else {}
        table = enhance_manifest.table(rows, self.enhancer, made_with, self.measures).replace_schema_metadata(said)
        (self.folder / "manifest.parquet").write(parquet.to_bytes(table))
        passes = enhance_manifest.passes(self.enhancer)
        figures = enhance_manifest.figures(rows, self.measures, np.random.default_rng(config.seed))
        told = said | made_with | {"passes": passes} | asdict(summary)
        unmeasured = [
            f"{measure.upper()}: could not be had for any picture: they are too small for it, or too large"
            for measure in self.measures
            if summary.compared and measure not in figures
        ]
        told |= {"cautions": [*cautions(config.levels), *unmeasured], "figures": figures}
        write_enhancement(self.folder / "report.html", told, list(self._groups(rows, pictures)), _failed(rows))
        (self.folder / "summary.json").write(json.dumps(told | {"seconds": seconds}, indent=1).encode())
        return summary

    def _groups(self, rows: Sequence[Row], pictures: Pictures) -> Iterator[Group]:
        """Pictures for the page: some by chance, and of many the ones that came out worst, so that nobody is misled."""
        made = [row for row in rows if row.file is not None]
        rng = np.random.default_rng(self.config.seed)
        drawn = sorted(rng.choice(len(made), min(SHOWN, len(made)), replace=False).tolist())
        if drawn:
            about = "In the source's order." if len(drawn) == len(made) else f"{len(drawn)} of {len(made)} pictures."
            title = "Before and after" if len(drawn) == len(made) else "Before and after, drawn by chance"
            yield Group(title, about, self._examples([made[at] for at in drawn], pictures))
        if len(made) > len(drawn) and self.measures:
            first = self.measures[0]
            told = [row for row in made if row.scores.get(first) is not None]
            worst = sorted(told, key=lambda row: BETTER[first] * (row.scores[first] or 0.0))[:FURTHEST]
            if worst:
                about = f"The {len(worst)} of {len(told)} pictures that came out worst by {first.upper()}."
                yield Group("Furthest from their references", about, self._examples(worst, pictures))

    def _examples(self, rows: Sequence[Row], pictures: Pictures) -> list[Example]:
        """Some pictures again, with what they were enlarged from. A record that can no longer be read is left out."""
        found = []
        order = sorted(rows, key=lambda row: row.number)
        for row, item in zip(order, pictures.read(self.enhancer, [row.number for row in order]), strict=True):
            if item.picture is not None and row.file is not None:
                after: dict[str, torch.Tensor | str] = {"bicubic": self._plain(item, "bicubic")}
                after[ENHANCED] = _decoded((self.folder / row.file).read())
                if self.measures:
                    after["reference"] = item.reference if item.reference is not None else MISSING
                scores = {measure: row.scores.get(measure) for measure in self.measures}
                found.append(example(row.record_id, item.picture, after, scores))
        return sorted(found, key=lambda one: [row.record_id for row in rows].index(one.record_id))


def _decoded(data: bytes) -> torch.Tensor:
    """A picture (3, H, W) at its own size."""
    return image_codec.decode(data, 1, "tiles", UNBOUNDED).tensor


def _failed(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Reason -> ids of the first few records of which nothing could be made."""
    found: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        if row.reason is not None and len(found[row.reason]) < NAMED:
            found[row.reason].append(row.record_id)
    return found
