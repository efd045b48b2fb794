"""Evidence with known answers, for the tests of audits and calibrations."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from metrics import features

PEOPLE, PHOTOS = 24, 4
ALL = ("linkage", "reidentification", "parrot", "averaging", "inversion", "membership", "attributes")


class EveryFace:
    """A recogniser that works by pixels, and finds no face in a picture that is grey all over."""

    name, versioned_name, is_face = "toy", "toy faces", True

    def embed(self, images: torch.Tensor) -> Any:
        result = features.load_embedders(["pixels"])[0].embed(images)
        result[images.flatten(1).std(1).numpy() < 1e-3] = np.nan
        return result


def people(rng: np.random.Generator, noise: float = 0.15) -> tuple[torch.Tensor, Any]:
    """``PHOTOS`` photos (N, 3, 16, 16) of each of ``PEOPLE``, and whose they are."""
    faces = rng.uniform(-0.7, 0.7, (PEOPLE, 1, 3, 16, 16))
    photos = faces + noise * rng.standard_normal((PEOPLE, PHOTOS, 3, 16, 16))
    names = np.repeat([f"person {i}" for i in range(PEOPLE)], PHOTOS)
    return torch.from_numpy(photos.reshape(-1, 3, 16, 16).clip(-1, 1)).float(), names
