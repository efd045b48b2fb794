"""From prompts to what a network is told: each text is embedded once, by the pipeline that the model was saved with."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.errors import ModelError

MAX_CACHED_PROMPTS = (
    64  # texts whose embeddings stay on the device: a quarter of a megabyte each of CLIP, up to five of T5
)
LENGTH_WARNING = "sequence-length-is-longer-than-the-specified-maximum"


@dataclass(frozen=True)
class PromptEmbeddings:
    """Prompts, embedded: ``hidden`` (B, tokens, width) and, where a network takes one, ``pooled`` (B, width)."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def repeat(self, count: int) -> PromptEmbeddings:
        """One row, ``count`` times."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return PromptEmbeddings(self.hidden.expand(count, -1, -1), pooled)

    @classmethod
    def concat(cls, rows: Sequence[PromptEmbeddings]) -> PromptEmbeddings:
        pooled = [one.pooled for one in rows if one.pooled is not None]
        return cls(torch.cat([one.hidden for one in rows]), torch.cat(pooled) if pooled else None)


class CachedPromptEncoder:
    """``embed``, with a memory for the last KEPT texts.

    A text is embedded by itself, never beside others, so that what a row is told does not depend on its batch.
    """

    def __init__(self, embed: Callable[[str], PromptEmbeddings]) -> None:
        self.embed = lru_cache(MAX_CACHED_PROMPTS)(embed)

    def __call__(self, texts: Sequence[str]) -> PromptEmbeddings:
        """One row for each of the texts."""
        return PromptEmbeddings.concat([self.embed(text) for text in texts])


class PromptEncoder:
    """``encode_prompt`` of a pipeline of diffusers that was made of tokenizers and text encoders alone."""

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        mute_module_log(type(pipeline))
        for part in pipeline.components.values():
            if hasattr(part, "deprecation_warnings"):  # a tokenizer's: diffusers cuts off what is too long
                part.deprecation_warnings[LENGTH_WARNING] = True
        self.pipeline, self.device = pipeline.to(device), device

    def __call__(self, text: str) -> PromptEmbeddings:
        return PromptEmbeddings(*self._encode(text, do_classifier_free_guidance=False)[::2])

    def encode_negative(self, negative_prompt: str) -> PromptEmbeddings:
        """What guidance leads away from: a text or, where there is none, what the pipeline takes in its place."""
        return PromptEmbeddings(
            *self._encode("", do_classifier_free_guidance=True, negative_prompt=negative_prompt or None)[1::2]
        )

    @torch.no_grad()
    def _encode(self, text: str, **more: Any) -> Sequence[torch.Tensor]:
        """The prompt's embedding, the negative prompt's and, of some pipelines, what is pooled of both."""
        text = text.encode(errors="replace").decode()  # half a surrogate pair is nothing that a tokenizer takes
        found: Sequence[torch.Tensor] = self.pipeline.encode_prompt(
            prompt=text, device=self.device, num_images_per_prompt=1, **more
        )
        return found


def load_clip_tokenizer(parts: PipelineFolder, name: str) -> Any:
    """A ``CLIPTokenizer``. ModelError without a vocabulary, for which an empty one would be taken in silence."""
    from transformers import CLIPTokenizer

    if not any((parts.folder / name / file).is_file() for file in ("vocab.json", "tokenizer.json")):
        raise ModelError(
            f"model.id {parts.config.id!r}: {name} has no vocabulary: put vocab.json and merges.txt into that folder"
        )
    return parts.load(CLIPTokenizer, name)


def mute_module_log(kind: type) -> None:
    """Nothing that the module of ``kind`` logs is let through: it quotes what it cuts off a prompt, maybe a caption's.

    A filter, and not a level: it holds in all threads, whatever is set for a while elsewhere.
    """
    logging.getLogger(kind.__module__).addFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False
