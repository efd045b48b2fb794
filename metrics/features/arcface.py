"""Face recognisers of the ArcFace kind (Deng et al. 2019), from any ONNX file that the user names."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from anonymizer.errors import ModelError
from metrics.features import FIELD, Rows
from metrics.features.dlib_faces import Face, FaceFinder, import_faces_module, stack_rows, to_unit_norm
from metrics.features.image_features import resize
from metrics.models import weights
from metrics.models.clip import check_images

SIDE = 112
EYES = (38.2946 + 51.6963j, 73.5318 + 51.5014j)  # x + iy where ArcFace wants the eyes in 112 x 112 (insightface)


@dataclass(frozen=True)
class InputLayout:
    """What the network takes: (1, 3, side, side), or (1, side, side, 3) if ``channels_last``."""

    name: str
    side: int
    channels_last: bool

    @classmethod
    def from_onnx(cls, name: str, shape: list[Any]) -> Self:
        """From ONNX, where a size that is free is text or none. Raises ValueError."""
        if len(shape) != 4 or 3 not in (shape[1], shape[3]):
            raise ValueError(f"its input is {shape}")
        channels_last = shape[1] != 3
        height, width = shape[1:3] if channels_last else shape[2:]
        if height != width and isinstance(height, int) and isinstance(width, int):
            raise ValueError(f"its input is {shape}")
        return cls(name, height if isinstance(height, int) else SIDE, channels_last)

    def __call__(self, image: torch.Tensor) -> npt.NDArray[np.float32]:
        """(3, side, side) in [-1, 1], RGB, to what the network takes."""
        batch = image[None].float().cpu().numpy()
        return np.ascontiguousarray(batch.transpose(0, 2, 3, 1) if self.channels_last else batch)


class ArcFace:
    """A network from an ONNX file that describes an aligned face, RGB in [-1, 1]: bytes, less 127.5, over 127.5.

    With ``finder``, faces are detected and turned so that the eyes are where ArcFace wants them, and a picture without
    a face gives a row of NaN. Without it (dlib not installed), pictures are taken as aligned; ``reported`` says so.
    """

    name = "arcface"
    is_face = True

    def __init__(self, session: Any, input_: InputLayout, finder: FaceFinder | None, *, digest: str) -> None:
        self.session, self.input, self.finder, self.digest = session, input_, finder, digest
        self.width = len(self._run_network(torch.zeros(3, input_.side, input_.side)))

    @classmethod
    def load(cls, file: str, field: str = FIELD) -> Self:
        """Raises ModelError, which names ``field``."""
        path = weights.resolve_file(field, file, "write arcface:FILE.onnx")
        onnxruntime = import_faces_module("onnxruntime", field)
        finder = FaceFinder.load(field) if find_spec("dlib") else None
        try:
            session = _open_session(onnxruntime, path)
            (wanted,) = session.get_inputs()
            input_ = InputLayout.from_onnx(wanted.name, wanted.shape)
            return cls(session, input_, finder, digest=weights.digest(path))
        except Exception as error:  # onnxruntime has an exception for everything that a wrong file can cause
            reason = next(iter(str(error).splitlines()), "")[:160]
            raise ModelError(f"{field}: {path.name!r} is no face recogniser ({reason}): check the file") from None

    @property
    def versioned_name(self) -> str:
        return f"{weights.versioned_name(self.name, self.digest)} {'aligned' if self.finder else 'not aligned'}"

    def embed(self, images: torch.Tensor) -> Rows:
        check_images(images)
        return np.stack([self._embed(image) for image in images])

    def embed_faces(self, images: torch.Tensor) -> list[Rows]:
        """Of each picture its faces, (F, D) and the surest first; F may be 0. Only with ``finder``."""
        assert self.finder is not None
        check_images(images)
        found = [self.finder.find_all(image) for image in images]
        return [stack_rows([self._row(face) for face in faces], self.width) for faces in found]

    def _embed(self, image: torch.Tensor) -> Rows:
        if self.finder is None:
            return to_unit_norm(self._run_network(resize(image[None], (self.input.side, self.input.side))[0]))
        face = self.finder.find(image)
        return np.full(self.width, np.nan, np.float32) if face is None else self._row(face)

    def _row(self, face: Face) -> Rows:
        return to_unit_norm(self._run_network(align_face(face, self.input.side)))

    def _run_network(self, image: torch.Tensor) -> npt.NDArray[np.float64]:
        """One picture at a time, as many a file takes no more."""
        out: npt.NDArray[np.float64]
        out = np.asarray(self.session.run(None, {self.input.name: self.input(image)})[0], np.float64)
        if out.ndim != 2 or len(out) != 1:
            raise ValueError(f"its output is {list(out.shape)}")
        return out.reshape(-1)


def align_face(face: Face, side: int) -> torch.Tensor:
    """(3, side, side) in [-1, 1]: turned, scaled and shifted so that the eyes come to where ArcFace wants them."""
    left, right = (eye * side / SIDE for eye in EYES)
    turn = (face.eyes[1] - face.eyes[0]) / (right - left)  # from a place in the result to one in the picture
    shift = face.eyes[0] - turn * left
    coefficients = (turn.real, -turn.imag, shift.real, turn.imag, turn.real, shift.imag)
    picture = Image.fromarray(face.pixels)
    out = np.asarray(picture.transform((side, side), Image.Transform.AFFINE, coefficients, Image.Resampling.BICUBIC))
    return torch.from_numpy(out.copy()).permute(2, 0, 1).float() / 127.5 - 1


def _open_session(onnxruntime: Any, path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = torch.get_num_threads(), 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
