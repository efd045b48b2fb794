"""Prompts as a network takes them: each text is embedded once, by the pipeline that the model was saved with."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch

from anonymizer.backbones.base import guide
from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.protocol import ConditionKind
from anonymizer.backbones.vae import LatentBackbone
from anonymizer.errors import ModelError

MAX_CACHED_PROMPTS = 64  # embeddings on the device: a quarter of a megabyte each of CLIP, up to five of T5
LENGTH_WARNING = "sequence-length-is-longer-than-the-specified-maximum"


@dataclass(frozen=True)
class PromptEmbeddings:
    """Embedded prompts: ``hidden`` (B, tokens, width) and, where a network takes one, ``pooled`` (B, width)."""

    hidden: torch.Tensor
    pooled: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.hidden)

    def repeat(self, count: int) -> PromptEmbeddings:
        """Return ``count`` rows of the only one."""
        pooled = None if self.pooled is None else self.pooled.expand(count, -1)
        return PromptEmbeddings(self.hidden.expand(count, -1, -1), pooled)

    @classmethod
    def concat(cls, parts: Sequence[PromptEmbeddings]) -> PromptEmbeddings:
        pooled = [part.pooled for part in parts if part.pooled is not None]
        return cls(torch.cat([part.hidden for part in parts]), torch.cat(pooled) if pooled else None)


class CachedPromptEncoder:
    """``embed`` with a cache. A text is embedded by itself, so that a row's condition does not depend on its batch."""

    def __init__(self, embed: Callable[[str], PromptEmbeddings]) -> None:
        self.embed = lru_cache(MAX_CACHED_PROMPTS)(embed)

    def __call__(self, texts: Sequence[str]) -> PromptEmbeddings:
        return PromptEmbeddings.concat([self.embed(text) for text in texts])


class PromptEncoder:
    """``encode_prompt`` of a diffusers pipeline that has tokenizers and text encoders only; ``options`` go to it."""

    def __init__(self, pipeline: Any, device: torch.device, **options: Any) -> None:
        mute_module_log(type(pipeline))
        for part in pipeline.components.values():
            if hasattr(part, "deprecation_warnings"):  # a tokenizer's: diffusers truncates what is too long
                part.deprecation_warnings[LENGTH_WARNING] = True
        self.pipeline, self.device, self.options = pipeline.to(device), device, options

    def __call__(self, text: str) -> PromptEmbeddings:
        return PromptEmbeddings(*self._encode(text, do_classifier_free_guidance=False)[::2])

    def encode_negative(self, negative_prompt: str) -> PromptEmbeddings:
        """Embed the negative prompt or, where it is empty, what the pipeline takes in its place."""
        embeddings = self._encode("", do_classifier_free_guidance=True, negative_prompt=negative_prompt or None)
        return PromptEmbeddings(*embeddings[1::2])

    @torch.no_grad()
    def _encode(self, text: str, **more: Any) -> Sequence[torch.Tensor]:
        """Return the prompt's embedding, the negative prompt's and, of some pipelines, the pooled ones of both."""
        text = text.encode(errors="replace").decode()  # tokenizers refuse lone surrogates
        embeddings: Sequence[torch.Tensor] = self.pipeline.encode_prompt(
            prompt=text, device=self.device, num_images_per_prompt=1, **self.options, **more
        )
        return embeddings


class PromptedBackbone(LatentBackbone):
    """A latent model that takes prompts; ``negative_embeddings`` (1 row) are set where guidance needs a second pass."""

    condition_kind: ConditionKind = "prompt"
    negative_embeddings: PromptEmbeddings | None = None

    def use_encoder(self, folder: PipelineFolder, encoder: PromptEncoder, network: Any) -> None:
        """Take prompts by ``encoder``. ModelError if its widths are not those of the configuration of the network."""
        self.encode_prompts = CachedPromptEncoder(encoder)
        for setting, width in self._widths(self.encode_prompts([""])).items():
            if network[setting] != width:
                raise folder.error(
                    f"{setting} {network[setting]} of the network, and its text encoders give {width}: they do not "
                    "belong together: save the model again"
                )

    def use_negative_prompt(self, encoder: PromptEncoder) -> None:
        """Guide away from ``model.negative_prompt``. ModelError for one that no guidance would use."""
        if self.config.guidance != 1:
            self.negative_embeddings = encoder.encode_negative(self.config.negative_prompt)
        elif self.config.negative_prompt:
            raise ModelError("model.negative_prompt: does nothing at guidance 1: set model.guidance, or leave it out")

    def condition(self, prompts: Sequence[str]) -> PromptEmbeddings:
        return self.encode_prompts(prompts)

    def _guided(self, zt: torch.Tensor, t: int, condition: object) -> torch.Tensor:
        if not isinstance(condition, PromptEmbeddings):
            condition = self.encode_prompts([self.config.common_prompt]).repeat(len(zt))
        if self.negative_embeddings is None:
            return self._network(zt, t, condition)
        both = PromptEmbeddings.concat([self.negative_embeddings.repeat(len(zt)), condition])
        return guide(lambda z, prompts: self._network(z, t, prompts), zt, both, self.config.guidance)

    def _network(self, zt: torch.Tensor, t: int, prompts: PromptEmbeddings) -> torch.Tensor:
        """Return the network's output for one prompt a row, float32."""
        raise NotImplementedError

    def _widths(self, prompts: PromptEmbeddings) -> Mapping[str, int]:
        """Return setting of the network -> the width that its text encoders have."""
        raise NotImplementedError


def load_text_pipeline(
    folder: PipelineFolder, pipeline: Any, encoders: Sequence[Any], dtype: torch.dtype, **more: Any
) -> Any:
    """Return a pipeline with its tokenizers and text encoders only, which knows how its family uses them.

    ``encoders``: the classes of ``text_encoder``, ``text_encoder_2`` and so on.
    """
    from transformers import T5EncoderModel, T5TokenizerFast

    parts = {name: None for name, p in inspect.signature(pipeline).parameters.items() if p.default is p.empty}
    for number, encoder in enumerate(encoders, start=1):
        suffix = "" if number == 1 else f"_{number}"
        tokenizer = f"tokenizer{suffix}"
        is_t5 = encoder is T5EncoderModel
        parts[tokenizer] = folder.load(T5TokenizerFast, tokenizer) if is_t5 else load_clip_tokenizer(folder, tokenizer)
        parts[f"text_encoder{suffix}"] = folder.load_network(encoder, f"text_encoder{suffix}", dtype)
    return pipeline(**parts | more)


def load_clip_tokenizer(folder: PipelineFolder, name: str) -> Any:
    """Load a ``CLIPTokenizer``. ModelError without a vocabulary: transformers would take an empty one in silence."""
    from transformers import CLIPTokenizer

    if not any((folder.folder / name / file).is_file() for file in ("vocab.json", "tokenizer.json")):
        raise folder.error(f"{name} has no vocabulary: put vocab.json and merges.txt into that folder")
    return folder.load(CLIPTokenizer, name)


def mute_module_log(kind: type) -> None:
    """Drop all that the module of ``kind`` logs: it quotes what it truncates of a prompt, perhaps a caption.

    A filter, and not a level, holds in all threads, whatever is set for a while elsewhere.
    """
    logging.getLogger(kind.__module__).addFilter(_drop)


def _drop(record: logging.LogRecord) -> bool:
    return False
