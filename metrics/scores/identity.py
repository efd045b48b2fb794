"""How far apart the people on two pictures are to a face recogniser, and how many faces a picture shows."""

from __future__ import annotations

import math
from typing import Protocol, Self

import torch

from anonymizer.errors import ModelError
from metrics.features import Rows
from metrics.features.arcface import ArcFace
from metrics.features.dlib_faces import DlibFaces, FaceFinder, import_faces_module

FIELD = "metrics.identity"


class Recogniser(Protocol):
    """Finds faces and describes each of them by a row of unit norm."""

    @property
    def versioned_name(self) -> str: ...
    @property
    def finder(self) -> FaceFinder | None: ...

    def embed_faces(self, images: torch.Tensor) -> list[Rows]:
        """Of each of (B, 3, H, W) in [-1, 1] its faces, (F, D) and the surest first; F may be 0."""
        ...


class FaceIdentity:
    """Describes the faces of pictures, on the CPU, each picture looked at once.

    A face counts where dlib's detector takes it for one by itself; where it is sure of none, the surest that
    ``features.faces.THRESHOLD`` lets pass counts as one, so that whoever is compared is counted. Faces that are not
    frontal, or shorter than about a third of the picture's shorter side, are not seen. One thread at a time.
    """

    def __init__(self, recogniser: Recogniser, finder: FaceFinder) -> None:
        self.recogniser, self.finder = recogniser, finder

    @classmethod
    def load(cls, spec: str) -> Self:
        """``dlib`` or ``arcface:FILE.onnx``. Raises ModelError."""
        kind, _, file = spec.partition(":")
        if spec != "dlib" and kind != "arcface":
            raise ModelError(f"{FIELD}: unknown face recogniser {spec!r}: write dlib, arcface:FILE.onnx or none")
        import_faces_module("dlib", FIELD)  # it detects for both
        recogniser = ArcFace.load(file, FIELD) if kind == "arcface" else DlibFaces.load(FIELD)
        assert recogniser.finder is not None
        return cls(recogniser, recogniser.finder)

    @property
    def names(self) -> dict[str, str]:
        """Score column -> the model that fills it, with a digest of its weights."""
        return {"identity_distance": self.recogniser.versioned_name, "faces": self.finder.versioned_name}

    def embed_faces(self, images: torch.Tensor) -> list[Rows]:
        """Of each of (B, 3, H, W) in [-1, 1], all finite, its faces: (F, D) of unit norm, the surest first."""
        return self.recogniser.embed_faces(images.cpu())


def identity_distance(some: Rows, others: Rows) -> float:
    """1 - cosine of the two faces, one of each picture, that are most alike: in [0, 2], 0 for the same face.

    (F, D) and (G, D) of unit norm. The least of all pairs, because the surest face of an original and that of its
    output may be two people, and be far apart while a third is easily recognised. NaN where either has no face.
    """
    if not len(some) or not len(others):
        return math.nan
    return float((1 - some @ others.T).clip(0, 2).min())  # NaN, if a network gave one, stays
