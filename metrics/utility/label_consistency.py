"""Whether pictures still show what their labels say: by CLIP and the labels' names, or by a classifier."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Self

import torch
from torch.nn import functional as F

from anonymizer.config import FilterConfig
from anonymizer.errors import ConfigError, ModelError
from metrics.models import weights
from metrics.models.clip import BUNDLED, LOCAL_FOLDER, ClipEmbedder, check_images

REQUIRED_FILES = "config.json with id2label, model.safetensors and preprocessor_config.json"
MAX_LISTED = 10  # classes that an error lists

Logits = Callable[[torch.Tensor], torch.Tensor]  # (B, 3, H, W) in [-1, 1] -> (B, K)


@dataclass(frozen=True)
class Reading:
    """What one picture was taken for, and whether that is its label."""

    predicted: str
    agrees: bool


@dataclass(frozen=True)
class Reader:
    """Takes each picture for the class with the largest logit.

    ``columns``: label of the source -> column of the logits. ``names``: of each column, in the source's words where it
    has some. ``reported`` names the model.
    """

    logits: Logits
    columns: Mapping[str, int]
    names: Sequence[str]
    versioned_name: str

    @torch.inference_mode()
    def read(self, images: torch.Tensor, labels: Sequence[str]) -> list[Reading]:
        """One for each row of (B, 3, H, W) in [-1, 1]. Raises ValueError for pictures or logits of another shape."""
        check_images(images)
        logits = self.logits(images)
        if logits.shape != (len(images), len(self.names)):
            wanted = (len(images), len(self.names))
            raise ValueError(f"logits must be {wanted}, got {tuple(logits.shape)}: one for each picture and class")
        found = logits.argmax(1).tolist()
        pairs = zip(found, labels, strict=True)
        return [Reading(label if at == self.columns[label] else self.names[at], at == self.columns[label])
                for at, label in pairs]  # fmt: skip


@dataclass(frozen=True)
class Classifier:
    """Any function of pictures (B, 3, H, W) in [-1, 1] to logits (B, K), with the names of the K classes.

    A name may hold synonyms after commas, as ImageNet's do.
    """

    logits: Logits
    names: Sequence[str]
    versioned_name: str = "a function"

    @classmethod
    def load(cls, folder: str, device: str | torch.device = "cpu") -> Self:
        """A folder in transformers' ``AutoModelForImageClassification`` format, safetensors only. Raises ModelError."""
        path = Path(folder).expanduser()
        try:
            processor, model, missing = _load_classifier(path)
        except Exception as error:  # transformers raises whatever a wrong file causes
            raise ModelError(
                f"filter.classifier {folder!r}: not a usable classifier ({type(error).__name__}): it needs "
                f"{REQUIRED_FILES}"
            ) from None
        if missing:
            raise ModelError(
                f"filter.classifier {folder!r}: the weights lack {missing} tensors that config.json asks for: save the "
                "model again"
            )
        device = torch.device(device)
        model = model.to(device)

        def logits(images: torch.Tensor) -> torch.Tensor:
            pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)  # as a file would hold them
            inputs = processor(images=list(pixels), return_tensors="pt", input_data_format="channels_first")
            found: torch.Tensor = model(inputs["pixel_values"].to(device)).logits
            return found.float()

        digest = weights.digest(*sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors")))
        names = [str(model.config.id2label[number]) for number in sorted(model.config.id2label)]
        return cls(logits, names, weights.versioned_name("a classifier", digest))

    def reader_for(self, labels: Sequence[str], names: Mapping[str, str] | None = None) -> Reader:
        """For a source with these labels; ``names``: label -> class, where the two differ. ConfigError if one is none.

        A class is found by its name, or one of its synonyms, whatever the case, or by its number.
        """
        called = {label: (names or {}).get(label, label) for label in labels}
        found = {label: self._column(name) for label, name in called.items()}
        columns = {label: at for label, at in found.items() if at is not None}
        if unknown := len(found) - len(columns):
            known = ", ".join(repr(name) for name in self.names[:MAX_LISTED])
            raise ConfigError(
                f"filter: {unknown} of {len(found)} labels of the source are no classes of the classifier ({known}"
                f"{', ...' if len(self.names) > MAX_LISTED else ''}): say which they are in filter.names"
            )
        spelled = {at: label for label, at in columns.items()}
        return Reader(
            self.logits, columns, [spelled.get(at, name) for at, name in enumerate(self.names)], self.versioned_name
        )

    def _column(self, wanted: str) -> int | None:
        wanted = wanted.strip().casefold()
        for at, name in enumerate(self.names):
            if wanted in {name.casefold(), *(one.strip().casefold() for one in name.split(","))}:
                return at
        return int(wanted) if wanted.isascii() and wanted.isdigit() and int(wanted) < len(self.names) else None


@dataclass(frozen=True)
class ZeroShot:
    """A CLIP that is asked about the names of the labels, and takes a picture for the nearest (Radford et al. 2021)."""

    embedder: ClipEmbedder
    tokenizer: Callable[[list[str]], torch.Tensor]

    @classmethod
    def load(cls, spec: str, device: str | torch.device = "cpu") -> Self:
        """``spec`` as of ``metrics.clip``. Raises ModelError."""
        embedder = ClipEmbedder.load(spec, device)
        try:
            return cls(embedder, _load_tokenizer(spec))
        except Exception as error:  # one of a hub's, which is not at hand
            raise ModelError(
                f"filter.clip: {spec!r}: its tokenizer cannot be had ({type(error).__name__}): choose a model of "
                "open_clip's own tokenizer, such as ViT-B-32"
            ) from None

    def reader_for(
        self, labels: Sequence[str], names: Mapping[str, str] | None = None, prompt: str = "a photo of a {label}"
    ) -> Reader:
        """For a source with these labels; underscores are read as spaces. ConfigError where there is no choice.

        ``names``: label -> how the prompt calls it, where it should be another word.
        """
        called = {label: (names or {}).get(label, label.replace("_", " ")) for label in sorted(set(labels))}
        of_name = {name: label for label, name in reversed(called.items())}  # the first label of each name
        if len(of_name) < 2:
            raise ConfigError("filter: all labels of the source have one name, which every picture fits: leave it out")
        texts = self._embed([prompt.replace("{label}", name) for name in of_name])  # (K, D)
        at = {name: column for column, name in enumerate(of_name)}
        columns = {label: at[name] for label, name in called.items()}
        return Reader(
            lambda images: self.embedder.embed(images) @ texts.T,
            columns,
            [*of_name.values()],
            self.embedder.versioned_name,
        )

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> torch.Tensor:
        model, device = self.embedder.model, self.embedder.device
        parts = [model.encode_text(self.tokenizer([text]).to(device)).float() for text in texts]
        return F.normalize(torch.cat(parts), dim=-1)


def load_filter(config: FilterConfig, device: str | torch.device) -> Classifier | ZeroShot | None:
    """The model of the filter that ``config`` names, or none. Raises ModelError."""
    if config.kind == "none":
        return None
    if config.kind == "clip":
        return ZeroShot.load(config.clip, device)
    return Classifier.load(str(config.classifier), device)


def build_reader(model: Classifier | ZeroShot, config: FilterConfig, labels: Sequence[str]) -> Reader:
    """What reads pictures of a source with these labels. Raises ConfigError."""
    if isinstance(model, ZeroShot):
        return model.reader_for(labels, config.names, config.prompt)
    return model.reader_for(labels, config.names)


def _load_tokenizer(spec: str) -> Any:
    import open_clip

    if spec.startswith(BUNDLED):
        with as_file(files("anonymizer.bundled").joinpath(spec.removeprefix(BUNDLED))) as folder:
            return open_clip.get_tokenizer(f"{LOCAL_FOLDER}{folder}")
    if spec.startswith(LOCAL_FOLDER):
        return open_clip.get_tokenizer(f"{LOCAL_FOLDER}{Path(spec.removeprefix(LOCAL_FOLDER)).expanduser()}")
    return open_clip.get_tokenizer(spec.partition("/")[0])


def _load_classifier(folder: Path) -> tuple[Any, Any, int]:
    """The preprocessor, the classifier, and how many of its tensors were missing."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    if not (folder / "config.json").is_file():  # which transformers would look for on the hub
        raise FileNotFoundError
    own: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with _silence_transformers():
        processor = AutoImageProcessor.from_pretrained(str(folder), **own)
        model, found = AutoModelForImageClassification.from_pretrained(
            str(folder), use_safetensors=True, output_loading_info=True, **own
        )
    return processor, model.eval().requires_grad_(False), len(found["missing_keys"])


@contextlib.contextmanager
def _silence_transformers() -> Iterator[None]:
    """What transformers prints as it loads, our own line says better."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
