"""Label consistency: do images still show their labels, by CLIP and the labels' names, or by a classifier?"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch.nn import functional as F

from anonymizer.config import FilterConfig
from anonymizer.errors import ConfigError, ModelError
from metrics.models import weights
from metrics.models.clip import LOCAL_FOLDER, ClipEmbedder, check_images, model_folder

REQUIRED_FILES = "config.json with id2label, model.safetensors and preprocessor_config.json"
MAX_LISTED = 10  # classes that an error lists

Logits = Callable[[torch.Tensor], torch.Tensor]  # (B, 3, H, W) in [-1, 1] -> (B, K)


@dataclass(frozen=True)
class Reading:
    """The class of one image, and whether that is its label."""

    predicted: str
    agrees: bool


@dataclass(frozen=True)
class Reader:
    """Predicts for each image the class with the largest logit.

    ``columns``: label of the source -> column of the logits. ``names``: of each column, the source's label if it has
    one.
    """

    logits: Logits
    columns: Mapping[str, int]
    names: Sequence[str]
    versioned_name: str

    @torch.inference_mode()
    def read(self, images: torch.Tensor, labels: Sequence[str]) -> list[Reading]:
        """Predict each row of (B, 3, H, W) in [-1, 1]. Raises ValueError for images or logits of another shape."""
        check_images(images)
        logits, shape = self.logits(images), (len(images), len(self.names))
        if logits.shape != shape:
            raise ValueError(f"logits must be {shape}, got {tuple(logits.shape)}: one for each picture and class")
        readings = []
        for column, label in zip(logits.argmax(1).tolist(), labels, strict=True):
            agrees = column == self.columns[label]
            readings.append(Reading(label if agrees else self.names[column], agrees))
        return readings


@dataclass(frozen=True)
class Classifier:
    """Any function of images (B, 3, H, W) in [-1, 1] to logits (B, K), with the names of the K classes.

    A name may hold synonyms after commas, as ImageNet's do.
    """

    logits: Logits
    names: Sequence[str]
    versioned_name: str = "a function"

    @classmethod
    def load(cls, folder: str, device: str | torch.device = "cpu") -> Self:
        """Load a folder in transformers' ``AutoModelForImageClassification`` format, safetensors only.

        Raises ModelError.
        """
        path = Path(folder).expanduser()
        try:
            processor, model, missing = _load_classifier(path)
        except Exception as error:  # transformers raises many types for a wrong file
            raise ModelError(
                f"filter.classifier {folder!r}: not a usable classifier ({type(error).__name__}): it needs "
                f"{REQUIRED_FILES}"
            ) from None
        if missing:
            raise ModelError(
                f"filter.classifier {folder!r}: the weights lack {missing} tensors that config.json asks for: save the "
                "model again"
            )
        model = model.to(device)

        def logits(images: torch.Tensor) -> torch.Tensor:
            pixels = ((images.clamp(-1, 1) + 1) * 127.5).round().to("cpu", torch.uint8)  # as in a file
            inputs = processor(images=list(pixels), return_tensors="pt", input_data_format="channels_first")
            return torch.as_tensor(model(inputs["pixel_values"].to(device)).logits).float()

        digest = weights.digest(*sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors")))
        names = [str(model.config.id2label[number]) for number in sorted(model.config.id2label)]
        return cls(logits, names, weights.versioned_name("a classifier", digest))

    def reader_for(self, labels: Sequence[str], names: Mapping[str, str] | None = None) -> Reader:
        """Return a reader of these labels; ``names``: label -> class, where the two differ.

        A class is named by itself, one of its synonyms, whatever the case, or its number. Raises ConfigError where a
        label is no class.
        """
        columns: dict[str, int] = {}
        for label in labels:
            if (column := self._column((names or {}).get(label, label))) is not None:
                columns[label] = column
        if unknown := len(set(labels)) - len(columns):
            known = ", ".join(repr(name) for name in self.names[:MAX_LISTED])
            raise ConfigError(
                f"filter: {unknown} of {len(set(labels))} labels of the source are no classes of the classifier "
                f"({known}{', ...' if len(self.names) > MAX_LISTED else ''}): say which they are in filter.names"
            )
        label_of = {column: label for label, column in columns.items()}
        return Reader(
            self.logits, columns, [label_of.get(i, name) for i, name in enumerate(self.names)], self.versioned_name
        )

    def _column(self, class_name: str) -> int | None:
        class_name = class_name.strip().casefold()
        for column, name in enumerate(self.names):
            if class_name in {name.casefold(), *(synonym.strip().casefold() for synonym in name.split(","))}:
                return column
        is_number = class_name.isascii() and class_name.isdigit()
        return int(class_name) if is_number and int(class_name) < len(self.names) else None


@dataclass(frozen=True)
class ZeroShot:
    """A CLIP that compares an image with the names of the labels and predicts the nearest (Radford et al. 2021)."""

    embedder: ClipEmbedder
    tokenizer: Callable[[list[str]], torch.Tensor]

    @classmethod
    def load(cls, spec: str, device: str | torch.device = "cpu") -> Self:
        """Load a ``spec`` of ``metrics.models.clip``. Raises ModelError."""
        embedder = ClipEmbedder.load(spec, device)
        try:
            return cls(embedder, _load_tokenizer(spec))
        except Exception as error:  # a hub's tokenizer that is not in the cache
            raise ModelError(
                f"filter.clip: {spec!r}: its tokenizer cannot be had ({type(error).__name__}): choose a model of "
                "open_clip's own tokenizer, such as ViT-B-32"
            ) from None

    def reader_for(
        self, labels: Sequence[str], names: Mapping[str, str] | None = None, prompt: str = "a photo of a {label}"
    ) -> Reader:
        """Return a reader of these labels; underscores are read as spaces. Raises ConfigError where all are one name.

        ``names``: label -> its word in the prompt, where it differs.
        """
        words = {label: (names or {}).get(label, label.replace("_", " ")) for label in sorted(set(labels))}
        label_of = {word: label for label, word in reversed(words.items())}  # the first label of each word
        if len(label_of) < 2:
            raise ConfigError("filter: all labels of the source have one name, which every picture fits: leave it out")
        texts = self._embed([prompt.replace("{label}", word) for word in label_of])  # (K, D)
        column_of = {word: column for column, word in enumerate(label_of)}
        columns = {label: column_of[word] for label, word in words.items()}
        names_of_columns, name = list(label_of.values()), self.embedder.versioned_name
        return Reader(lambda images: self.embedder.embed(images) @ texts.T, columns, names_of_columns, name)

    @torch.inference_mode()
    def _embed(self, texts: list[str]) -> torch.Tensor:
        model, device = self.embedder.model, self.embedder.device
        parts = [model.encode_text(self.tokenizer([text]).to(device)).float() for text in texts]
        return F.normalize(torch.cat(parts), dim=-1)


def load_filter(config: FilterConfig, device: str | torch.device) -> Classifier | ZeroShot | None:
    """Load the model of the filter that ``config`` names, or none. Raises ModelError."""
    if config.kind == "none":
        return None
    if config.kind == "clip":
        return ZeroShot.load(config.clip, device)
    return Classifier.load(str(config.classifier), device)


def build_reader(model: Classifier | ZeroShot, config: FilterConfig, labels: Sequence[str]) -> Reader:
    """Return a reader for a source with these labels. Raises ConfigError."""
    if isinstance(model, ZeroShot):
        return model.reader_for(labels, config.names, config.prompt)
    return model.reader_for(labels, config.names)


def _load_tokenizer(spec: str) -> Any:
    import open_clip

    folder = model_folder(spec)
    return open_clip.get_tokenizer(f"{LOCAL_FOLDER}{folder}" if folder else spec.partition("/")[0])


def _load_classifier(folder: Path) -> tuple[Any, Any, int]:
    """Return the preprocessor, the classifier, and how many of its tensors were missing."""
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    if not (folder / "config.json").is_file():  # transformers would look for it on the hub
        raise FileNotFoundError
    own: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    with _silence_transformers():
        processor = AutoImageProcessor.from_pretrained(str(folder), **own)
        model, info = AutoModelForImageClassification.from_pretrained(
            str(folder), use_safetensors=True, output_loading_info=True, **own
        )
    return processor, model.eval().requires_grad_(False), len(info["missing_keys"])


@contextlib.contextmanager
def _silence_transformers() -> Iterator[None]:
    """Keep transformers from printing as it loads: our own error says it better."""
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
