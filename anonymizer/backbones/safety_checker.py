"""What the safety checker of a pipeline folder objects to: its verdicts, and never a black picture."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.prompt_encoder import mute_module_log
from anonymizer.errors import ModelError


class SafetyChecker:
    """A ``StableDiffusionSafetyChecker`` behind its feature extractor, in float32 whatever the model's dtype."""

    def __init__(self, checker: Any, extractor: Any, device: torch.device) -> None:
        mute_module_log(type(checker))  # it logs of black pictures, and there are none
        self.checker, self.extractor, self.device = checker.to(device), extractor, device

    def __call__(self, images: torch.Tensor) -> Sequence[bool]:
        """One verdict for each picture (B, 3, H, W) in [-1, 1], as it would be saved; what is not finite is black.

        The extractor looks at the middle of a picture, so that an oblong one is shown to it square by square.
        """
        side, longest = min(images.shape[-2:]), max(images.shape[-2:])
        starts = [round(i * (longest - side) / max(1, -(-longest // side) - 1)) for i in range(-(-longest // side))]
        along = 2 if images.shape[-2] == longest else 3
        found = [self._verdicts(images.narrow(along, start, side)) for start in starts]
        return [any(verdicts) for verdicts in zip(*found, strict=True)]

    def _verdicts(self, images: torch.Tensor) -> Sequence[bool]:
        """Of squares (B, 3, S, S)."""
        levels = ((images.nan_to_num(-1, -1, -1).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        pictures = [Image.fromarray(one) for one in levels.permute(0, 2, 3, 1).cpu().numpy()]  # (B, H, W, 3)
        found = self.extractor(pictures, return_tensors="pt")
        # What it would black out is nothing but a row of numbers, one for each picture.
        _, verdicts = self.checker(
            clip_input=found.pixel_values.to(self.device, torch.float32), images=np.zeros((len(images), 1))
        )
        return [bool(verdict) for verdict in verdicts]


def load_safety_checker(parts: PipelineFolder, device: torch.device) -> SafetyChecker | None:
    """The one that the folder has, if it has one and it is asked for."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    if not parts.config.safety_checker or not parts.has_part("safety_checker"):
        return None
    if not parts.has_part("feature_extractor"):
        raise ModelError(
            f"model.id {parts.config.id!r}: has a safety checker and no feature_extractor, which it sees through: save "
            "the model again, or set model.safety_checker=false"
        )
    checker = parts.load_network(StableDiffusionSafetyChecker, "safety_checker", torch.float32)
    return SafetyChecker(checker, parts.load(CLIPImageProcessor, "feature_extractor"), device)
