"""Identity distance of two images by a face recogniser, and the number of faces on an image."""

from __future__ import annotations

import math

from anonymizer.errors import ModelError
from metrics.features.arcface import ArcFace
from metrics.features.dlib_faces import DlibFaces, import_faces_module
from metrics.features.embedder import Rows

FIELD = "metrics.identity"


FaceRecogniser = ArcFace | DlibFaces


def load_recogniser(spec: str) -> FaceRecogniser:
    """Load ``dlib`` or ``arcface:FILE.onnx``; it runs on the CPU, in one thread at a time. Raises ModelError.

    A face counts where dlib's detector takes it for one; where it is sure of none, the surest above
    ``dlib_faces.MIN_DETECTION_SCORE`` counts, so that every compared face is counted. Faces that are not frontal, or
    shorter than about a third of the image's shorter side, are not seen.
    """
    kind, _, file = spec.partition(":")
    if spec != "dlib" and kind != "arcface":
        raise ModelError(f"{FIELD}: unknown face recogniser {spec!r}: write dlib, arcface:FILE.onnx or none")
    import_faces_module("dlib", FIELD)  # detects for both
    return ArcFace.load(file, FIELD) if kind == "arcface" else DlibFaces.load(FIELD)


def score_models(recogniser: FaceRecogniser) -> dict[str, str]:
    """Return for each score of faces the model behind it, with a digest of its weights."""
    assert recogniser.finder is not None
    return {"identity_distance": recogniser.versioned_name, "faces": recogniser.finder.versioned_name}


def identity_distance(a: Rows, b: Rows) -> float:
    """Return 1 - cosine of the two faces, one of each image, that are most alike: in [0, 2], 0 for the same face.

    (F, D) and (G, D) of unit norm. The least of all pairs, because the surest face of an original and that of its
    output may be two people, and far from each other while a third is easily recognised. NaN where either has no face.
    """
    if not len(a) or not len(b):
        return math.nan
    return float((1 - a @ b.T).clip(0, 2).min())  # NaN, if a network gave one, stays
