"""Verdicts of a pipeline folder's safety checker, which never blackens an image here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from anonymizer.backbones.pipeline_folder import PipelineFolder
from anonymizer.backbones.prompt_encoder import mute_module_log


class SafetyChecker:
    """A ``StableDiffusionSafetyChecker`` behind its feature extractor, in float32 whatever the model's dtype."""

    def __init__(self, checker: Any, extractor: Any, device: torch.device) -> None:
        mute_module_log(type(checker))  # it reports black images, of which it makes none here
        self.checker, self.extractor, self.device = checker.to(device), extractor, device

    def __call__(self, images: torch.Tensor) -> Sequence[bool]:
        """Return a verdict for each image (B, 3, H, W) in [-1, 1], as it would be saved; non-finite values are black.

        The extractor crops the middle of an image, so an oblong one is checked square by square.
        """
        side, longest = min(images.shape[-2:]), max(images.shape[-2:])
        count = -(-longest // side)
        starts = [round(i * (longest - side) / max(1, count - 1)) for i in range(count)]
        dim = 2 if images.shape[-2] == longest else 3
        squares = [self._check_squares(images.narrow(dim, start, side)) for start in starts]
        return [any(verdicts) for verdicts in zip(*squares, strict=True)]

    def _check_squares(self, images: torch.Tensor) -> Sequence[bool]:
        levels = ((images.nan_to_num(-1, -1, -1).clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
        inputs = self.extractor(
            [Image.fromarray(pixels) for pixels in levels.permute(0, 2, 3, 1).cpu().numpy()], return_tensors="pt"
        )
        # The images that it would blacken are a dummy: one number each.
        _, verdicts = self.checker(
            clip_input=inputs.pixel_values.to(self.device, torch.float32), images=np.zeros((len(images), 1))
        )
        return [bool(verdict) for verdict in verdicts]


def load_safety_checker(folder: PipelineFolder, device: torch.device) -> SafetyChecker | None:
    """Load the folder's safety checker, if it has one and ``model.safety_checker`` is set."""
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers import CLIPImageProcessor

    if not folder.config.safety_checker or not folder.has_part("safety_checker"):
        return None
    if not folder.has_part("feature_extractor"):
        raise folder.error(
            "has a safety checker and no feature_extractor, which it sees through: save the model again, or set "
            "model.safety_checker=false"
        )
    checker = folder.load_network(StableDiffusionSafetyChecker, "safety_checker", torch.float32)
    return SafetyChecker(checker, folder.load(CLIPImageProcessor, "feature_extractor"), device)
