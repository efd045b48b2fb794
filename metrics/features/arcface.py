"""Face recognisers of the ArcFace kind (Deng et al. 2019), from any ONNX file that the user names."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from anonymizer.errors import ModelError
from metrics.features.dlib_faces import Face, FaceDescriber, FaceFinder, import_faces_module, to_unit_norm
from metrics.features.embedder import FIELD, Rows
from metrics.features.image_features import resize
from metrics.models import weights
from metrics.models.clip import check_images

SIDE = 112
EYES = (38.2946 + 51.6963j, 73.5318 + 51.5014j)  # x + iy of the eyes that ArcFace expects in 112 x 112 (insightface)


@dataclass(frozen=True)
class InputLayout:
    """The input of a network: (1, 3, side, side), or (1, side, side, 3) if ``channels_last``."""

    name: str
    side: int
    channels_last: bool

    @classmethod
    def from_onnx(cls, name: str, shape: list[Any]) -> Self:
        """Read an ONNX shape, in which a free size is text or None. Raises ValueError."""
        if len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise ValueError(f"its input is {shape}")
        channels_last = shape[1] != 3
        height, width = shape[1:3] if channels_last else shape[2:]
        if height != width and isinstance(height, int) and isinstance(width, int):
            raise ValueError(f"its input is {shape}")
        return cls(name, height if isinstance(height, int) else SIDE, channels_last)

    def __call__(self, image: torch.Tensor) -> npt.NDArray[np.float32]:
        """Return (3, side, side) in [-1, 1], RGB, as a batch of one."""
        batch = image[None].float().cpu().numpy()
        return np.ascontiguousarray(batch.transpose(0, 2, 3, 1) if self.channels_last else batch)


class ArcFace:
    """A network from an ONNX file that describes an aligned face, RGB in [-1, 1]: bytes, less 127.5, over 127.5.

    With ``finder``, faces are detected and aligned by the eyes, and an image without a face gives a row of NaN. Without
    it (dlib not installed), images count as aligned; ``versioned_name`` says so.
    """

    name = "arcface"
    is_face = True

    def __init__(self, session: Any, layout: InputLayout, finder: FaceFinder | None, *, digest: str) -> None:
        self.session, self.layout, self.finder = session, layout, finder
        self.versioned_name = f"{weights.versioned_name(self.name, digest)} {'aligned' if finder else 'not aligned'}"
        width = len(self._run_network(torch.zeros(3, layout.side, layout.side)))
        self.describer = FaceDescriber(finder, self._describe, width) if finder else None

    @classmethod
    def load(cls, file: str, field: str = FIELD) -> Self:
        """Load an ONNX file. Raises ModelError, which names ``field``."""
        path = weights.resolve_file(field, file, "write arcface:FILE.onnx")
        onnxruntime = import_faces_module("onnxruntime", field)
        finder = FaceFinder.load(field) if find_spec("dlib") else None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
        try:
            session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
            (image,) = session.get_inputs()
            layout = InputLayout.from_onnx(image.name, image.shape)
            return cls(session, layout, finder, digest=weights.digest(path))
        except Exception as error:  # onnxruntime raises many types for a wrong file
            reason = next(iter(str(error).splitlines()), "")[:160]
            raise ModelError(f"{field}: {path.name!r} is no face recogniser ({reason}): check the file") from None

    def embed(self, images: torch.Tensor) -> Rows:
        check_images(images)
        if self.describer is not None:
            return np.stack([self.describer.embed_surest(image) for image in images])
        resized = resize(images, (self.layout.side, self.layout.side))
        return np.stack([to_unit_norm(self._run_network(image)) for image in resized])

    def embed_faces(self, images: torch.Tensor) -> list[Rows]:
        """Return the faces (F, D) of each image, the surest first; F may be 0. Only with ``finder``."""
        assert self.describer is not None
        check_images(images)
        return [self.describer.embed_faces(image) for image in images]

    def _describe(self, face: Face) -> npt.NDArray[np.float64]:
        return self._run_network(align_face(face, self.layout.side))

    def _run_network(self, image: torch.Tensor) -> npt.NDArray[np.float64]:
        """Return (D,) for one image, as many files take no more at a time."""
        outputs = self.session.run(None, {self.layout.name: self.layout(image)})
        out: npt.NDArray[np.float64] = np.asarray(outputs[0], np.float64)
        if out.ndim != 2 or len(out) != 1:
            raise ValueError(f"its output is {list(out.shape)}")
        return out.reshape(-1)


def align_face(face: Face, side: int) -> torch.Tensor:
    """Rotate, scale and shift a face so that its eyes come to ``EYES``: (3, side, side) in [-1, 1]."""
    left, right = (eye * side / SIDE for eye in EYES)
    turn = (face.eyes[1] - face.eyes[0]) / (right - left)  # from positions in the result to those in the image
    shift = face.eyes[0] - turn * left
    coefficients = (turn.real, -turn.imag, shift.real, turn.imag, turn.real, shift.imag)
    image = Image.fromarray(face.pixels)
    out = np.asarray(image.transform((side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC))
    return torch.from_numpy(out.copy()).permute(2, 0, 1).float() / 127.5 - 1
