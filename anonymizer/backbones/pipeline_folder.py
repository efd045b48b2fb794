"""A pipeline folder of diffusers, whose parts are loaded by the classes of diffusers and transformers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from anonymizer.config import ModelConfig
from anonymizer.errors import ModelError

REQUIRED_FILES = "scheduler/scheduler_config.json, unet/config.json and unet/diffusion_pytorch_model.safetensors"
DIGESTED_SUFFIXES = (".json", ".safetensors", ".bin", ".txt", ".model")


class PipelineFolder:
    """The folder, and the settings that its parts are loaded with: from safetensors, unless pickles are allowed."""

    def __init__(self, folder: Path, config: ModelConfig) -> None:
        self.folder, self.config = folder, config
        self.index: dict[str, Any] = {}
        try:
            index = folder / "model_index.json"
            self.index = json.loads(index.read_text(encoding="utf-8")) if index.exists() else {}
            self.pipeline_class = str(self.index.get("_class_name", "DDPMPipeline"))
        except (OSError, ValueError, AttributeError) as error:
            raise self._unusable(error) from None

    @property
    def digest(self) -> str:
        return digest(self.folder)

    def error(self, text: str) -> ModelError:
        """Return an error about this model."""
        return ModelError(f"model.id {self.config.id!r}: {text}")

    def native_size(self, sample_size: object, scale: int) -> int:
        """Return the side in pixels of a network whose configuration has ``sample_size`` cells of ``scale`` pixels."""
        if not isinstance(sample_size, int):
            raise self.error(f"sample_size {sample_size!r}: only square models are supported")
        return sample_size * scale

    def resolve_size(self, sample_size: object, scale: int, multiple: int) -> int:
        """Return ``model.size``, or the network's own side in pixels."""
        native = self.native_size(sample_size, scale)
        size = native if self.config.size is None else self.config.size
        if size % multiple:
            raise ModelError(f"model.size: {size} is no multiple of {multiple}, which this model works in")
        return size

    def has_part(self, name: str) -> bool:
        """Return whether the index names a part. ModelError if it does, and the part's folder is missing."""
        if (self.index.get(name) or [None])[0] is None:
            return False
        if not (self.folder / name).is_dir():
            raise self.error(f"has no folder {name}, which its model_index.json names")
        return True

    def require_parts(self, *names: str, hint: str) -> None:
        """Raise ModelError if the pipeline lacks one of the parts."""
        if missing := [name for name in names if not self.has_part(name)]:
            raise self.error(f"a {self.pipeline_class} without {' and '.join(missing)}{hint}")

    def load(self, kind: Any, name: str) -> Any:
        """Load a part without weights: a tokenizer, a scheduler."""
        with self._report_unusable(name):
            return kind.from_pretrained(str(self.folder), subfolder=self._subfolder(name))

    def load_config(self, kind: Any, name: str) -> Mapping[str, Any]:
        """Load the configuration of a part as it was saved, without the defaults of its class."""
        with self._report_unusable(name):
            config: Mapping[str, Any] = kind.load_config(str(self.folder), subfolder=self._subfolder(name))
            return config

    def load_network(self, kind: Any, name: str, dtype: torch.dtype) -> Any:
        """Load a network on the CPU, for inference. ModelError if weights are missing, which would be random."""
        with self._report_unusable(name):
            network, info = kind.from_pretrained(
                str(self.folder),
                subfolder=self._subfolder(name),
                torch_dtype=dtype,
                variant=self.config.variant,
                use_safetensors=None if self.config.allow_pickle else True,  # None: pickles, if there is nothing else
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        if missing := info["missing_keys"]:
            raise self.error(
                f"the weights lack {len(missing)} of the tensors that {name}/config.json asks for: save the model again"
            )
        return network.eval().requires_grad_(False)

    def _subfolder(self, name: str) -> str:
        """Return the part's folder; the only part of a pipeline may lie at the root."""
        return name if (self.folder / name).is_dir() else ""

    @contextlib.contextmanager
    def _report_unusable(self, name: str) -> Iterator[None]:
        try:
            with silence_libraries():
                yield
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise self._unusable(error, name) from None

    def _unusable(self, error: Exception, name: str = "model_index.json") -> ModelError:
        pickles = "(pickled weights only with model.allow_pickle=true)"
        if not self.index:
            return self.error(
                f"not a usable diffusers folder ({name}: {type(error).__name__}): it needs {REQUIRED_FILES}; single "
                f"files are not read {pickles}"
            )
        variant = f" of variant {self.config.variant!r}" if self.config.variant else ""
        return self.error(
            f"its {name} cannot be loaded ({type(error).__name__}): check its config and its weights{variant} in "
            f"safetensors {pickles}"
        )


def digest(folder: Path) -> str:
    """Return the SHA-256 (hex) over names and contents of configs, vocabularies and weights, in sorted order."""
    total = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in DIGESTED_SUFFIXES):
        with path.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256")
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + inner.digest())
    return total.hexdigest()


@contextlib.contextmanager
def silence_libraries() -> Iterator[None]:
    """Mute diffusers' and transformers' logs and progress bars: our own errors report missing and pickled files."""
    loggers = [logging.getLogger(name) for name in ("diffusers", "transformers")]
    levels = [logger.level for logger in loggers]
    transformers: Any = sys.modules.get("transformers.utils.logging")  # slow to import, and not needed if it is not yet
    has_bars = transformers is not None and transformers.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL + 1)
    if has_bars:
        transformers.disable_progress_bar()
    try:
        yield
    finally:
        if has_bars:
            transformers.enable_progress_bar()
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
