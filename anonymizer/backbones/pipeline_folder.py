"""The parts of a pipeline folder, loaded by the classes of diffusers and transformers, from safetensors only."""

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
LIBRARY_LOGGERS = ("diffusers", "transformers")


class PipelineFolder:
    """A folder with a pipeline of diffusers, and the settings that it is loaded with."""

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

    def resolve_size(self, native_size: int, multiple: int) -> int:
        """Of the pictures that the model works on: its own, or the one that was asked for."""
        size = native_size if self.config.size is None else self.config.size
        if size % multiple:
            raise ModelError(f"model.size: {size} is no multiple of {multiple}, which this model works in")
        return size

    def has_part(self, name: str) -> bool:
        """Whether the pipeline has a part of this name. ModelError if it should, and its folder is not there."""
        if (self.index.get(name) or [None])[0] is None:
            return False
        if not (self.folder / name).is_dir():
            raise ModelError(f"model.id {self.config.id!r}: has no folder {name}, which its model_index.json names")
        return True

    def load(self, kind: Any, name: str) -> Any:
        """A tokenizer, a scheduler: whatever has no weights."""
        with self._guarded(name):
            return kind.from_pretrained(self._at(name)[0], subfolder=self._at(name)[1])

    def load_config(self, kind: Any, name: str) -> Mapping[str, Any]:
        """What stands in the configuration of a part, and nothing that a class would fill in."""
        with self._guarded(name):
            found: Mapping[str, Any] = kind.load_config(self._at(name)[0], subfolder=self._at(name)[1])
            return found

    def load_network(self, kind: Any, name: str, dtype: torch.dtype) -> Any:
        """A network, on the CPU, for inference. ModelError if weights are missing, which would be drawn at random."""
        folder, subfolder = self._at(name)
        with self._guarded(name):
            model, found = kind.from_pretrained(
                folder,
                subfolder=subfolder,
                torch_dtype=dtype,
                variant=self.config.variant,
                use_safetensors=None if self.config.allow_pickle else True,  # None: pickles, if there is nothing else
                low_cpu_mem_usage=False,
                output_loading_info=True,
            )
        if missing := found["missing_keys"]:
            raise ModelError(
                f"model.id {self.config.id!r}: the weights lack {len(missing)} of the tensors that {name}/config.json "
                "asks for: save the model again"
            )
        return model.eval().requires_grad_(False)

    def _at(self, name: str) -> tuple[str, str]:
        """A part may lie in the folder itself, if it is the only one."""
        return str(self.folder), name if (self.folder / name).is_dir() else ""

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        try:
            with silence_libraries():
                yield
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise self._unusable(error, name) from None

    def _unusable(self, error: Exception, name: str = "model_index.json") -> ModelError:
        rest = "(pickled weights only with model.allow_pickle=true)"
        if not self.index:
            return ModelError(
                f"model.id {self.config.id!r}: not a usable diffusers folder ({name}: {type(error).__name__}): it "
                f"needs {REQUIRED_FILES}; single files are not read {rest}"
            )
        variant = f" of variant {self.config.variant!r}" if self.config.variant else ""
        return ModelError(
            f"model.id {self.config.id!r}: its {name} cannot be loaded ({type(error).__name__}): check its config and "
            f"its weights{variant} in safetensors {rest}"
        )


def digest(folder: Path) -> str:
    """SHA-256 (hex) over the names and contents of configs, vocabularies and weights, in sorted order."""
    total = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.suffix in (".json", ".safetensors", ".bin", ".txt", ".model")):
        with path.open("rb") as file:
            inner = hashlib.file_digest(file, "sha256")
        total.update(path.relative_to(folder).as_posix().encode() + b"\0" + inner.digest())
    return total.hexdigest()


@contextlib.contextmanager
def silence_libraries() -> Iterator[None]:
    """What these libraries write about missing and pickled files, our own line says better; and no bars of theirs."""
    logs = [logging.getLogger(name) for name in LIBRARY_LOGGERS]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL + 1)
    transformers: Any = sys.modules.get("transformers.utils.logging")  # which is slow to import, for nothing
    has_bars = transformers is not None and transformers.is_progress_bar_enabled()
    if has_bars:
        transformers.disable_progress_bar()
    try:
        yield
    finally:
        if has_bars:
            transformers.enable_progress_bar()
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
