"""Leaks around the picture: each kind, planted, is found; where there is none, attacks do what chance does."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import spearmanr

from anonymizer.data.image_codec import encode
from metrics.attacks import leaks
from metrics.attacks.linkage import Ranking
from metrics.stats.intervals import wilson_interval

N = 200
WHO = np.array([f"person {i}" for i in range(N)])
NAMES = [
    "photos/Ada_Almqvist_003.jpg", "photos/Bruno-Bernasconi.jpeg", "photos/Chiara Carvalho.png", "photos/Zoë Grün.webp"
]  # fmt: skip


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(7)


def includes_chance(ranking: Ranking, k: int = 20) -> bool:
    """Both the attack and its control lie around chance, within the interval."""
    result = [wilson_interval(int(t.hits.sum()), len(t)) for t in (ranking.within(k), ranking.control_within(k))]
    return all(interval.low <= ranking.chance(k) <= interval.high for interval in result)


def is_found(ranking: Ranking) -> bool:
    return ranking.within(1).rate > 0.95 and ranking.control_within(1).rate < 0.05


def shuffled(rng: np.random.Generator) -> npt.NDArray[np.int64]:
    return rng.permutation(N)


def test_planted_metadata_is_found_and_counted_by_kind() -> None:
    clean = encode(torch.zeros(3, 8, 8)).data
    out = io.BytesIO()
    exif = Image.Exif()
    exif[315] = "Ada Almqvist"
    Image.new("RGB", (8, 8)).save(out, "JPEG", exif=exif, comment="taken by Bruno")
    result = leaks.scan_metadata([clean, out.getvalue(), clean + b"more"], ["a", "b", "c"])
    assert result.trials.hits.tolist() == [False, True, True]
    assert result.kinds == {"exif": 1, "comment": 1, "trailing data": 1}
    assert (result + result).kinds["exif"] == 2 and len((result + result).trials) == 6


@pytest.mark.parametrize("image", ["png", "jpeg", "webp"])
def test_freshly_encoded_pictures_carry_nothing(image: str) -> None:
    result = leaks.scan_metadata([encode(torch.zeros(3, 8, 8), encoding=image).data], ["a"])  # type: ignore[arg-type]
    assert not result.trials.hits.any() and not result.kinds


def test_tokens_are_what_could_be_a_name() -> None:
    assert leaks.name_tokens("s3://bucket/Site-Oslo/Zoë_Grün_0042.JPEG") == {"bucket", "site", "oslo", "grün", "0042"}


@pytest.mark.parametrize(
    "public",
    [
        "grid_ALMQVIST.png",
        b"tEXtauthor almqvist",
        "Almqvist".encode("utf-16"),
        "output_id,file\n1f,adaalmqvist2.png",
    ],
)
def test_a_planted_name_is_found_wherever_it_hides(public: str | bytes, rng: np.random.Generator) -> None:
    result = leaks.find_names(NAMES, ["nothing here", public], list("abcd"), rng)
    assert result.trials.hits.tolist() == [True, False, False, False]
    assert result.token_counts == {"almqvist": 1} and not result.control.hits.any()


def test_another_unicode_form_of_a_name_is_the_same_name(rng: np.random.Generator) -> None:
    assert leaks.find_names(NAMES, ["by ZOE\u0308 GRU\u0308N"], list("abcd"), rng).token_counts == {"grün": 1}


def test_a_folder_around_everything_is_reported_but_tells_nobody_apart(rng: np.random.Generator) -> None:
    result = leaks.find_names(NAMES, ["from photos/"], list("abcd"), rng)
    assert result.token_counts == {"photos": 4} and not result.trials.hits.any()
    assert leaks.find_names(NAMES[:1], ["from photos/"], ["a"], rng).trials.hits.all()


def test_digits_inside_a_digest_are_nobodys_name_and_on_their_own_they_are(rng: np.random.Generator) -> None:
    digests = [hashlib.sha256(bytes([i % 256, i // 256])).hexdigest() for i in range(800)]
    names = [f"{i + 1000}.jpg" for i in range(N)]
    assert not leaks.find_names(names, digests, WHO.tolist(), rng).trials.hits.any()
    planted = leaks.find_names(names, [*digests, "made of IMG_1003", f"{names[7]}"], WHO.tolist(), rng)
    assert np.flatnonzero(planted.trials.hits).tolist() == [3, 7]


def test_numbers_that_occur_by_chance_occur_as_often_in_the_control(rng: np.random.Generator) -> None:
    sizes = " ".join(str(n) for n in rng.integers(1000, 10000, 4000))
    result = leaks.find_names([f"{i + 1000}.jpg" for i in range(N)], [sizes], WHO.tolist(), rng)
    control = wilson_interval(int(result.control.hits.sum()), N)
    assert 0.2 < result.trials.rate < 0.9 and control.low <= result.trials.rate <= control.high


def test_an_order_that_was_kept_is_found_with_certainty(rng: np.random.Generator) -> None:
    for source in (np.arange(N), np.arange(N)[::-1]):
        result = leaks.compare_order(source, WHO.tolist(), rng)
        assert abs(result.correlation) == pytest.approx(1) and result.p_value == 1 / (1 + leaks.PERMUTATIONS)
        assert result.neighbours.rate == 1 and result.control.rate < 0.05
        assert -1 <= result.interval.low <= result.interval.high <= 1


def test_blocks_that_moved_as_a_whole_are_found_by_their_neighbours(rng: np.random.Generator) -> None:
    blocks = np.arange(N).reshape(20, 10)[rng.permutation(20)].ravel()
    result = leaks.compare_order(blocks, WHO.tolist(), rng)
    assert result.neighbours.rate >= 0.9 and result.control.rate < 0.05 and result.chance == 0.01


def test_a_shuffled_order_says_nothing(rng: np.random.Generator) -> None:
    result = leaks.compare_order(shuffled(rng), WHO.tolist(), rng)
    interval = wilson_interval(int(result.neighbours.hits.sum()), N - 1)
    assert result.p_value > 0.05 and result.interval.low <= 0 <= result.interval.high
    assert interval.low <= result.chance <= interval.high


def test_spearman_agrees_with_scipy_and_with_a_frame_solved_by_hand(rng: np.random.Generator) -> None:
    by_hand = leaks.compare_order(np.array([2, 1, 4, 3]), list("abcd"), rng)  # 1 - 6 * 4 / (4 * 15)
    assert by_hand.correlation == pytest.approx(0.6) and by_hand.neighbours.hits.tolist() == [True, False, True]
    source = rng.integers(0, 9, 50)
    assert leaks.compare_order(source, WHO[:50].tolist(), rng).correlation == pytest.approx(
        spearmanr(np.arange(50), source).statistic
    )


def test_sizes_that_grow_together_are_found_across_scales(rng: np.random.Generator) -> None:
    truth, sizes = shuffled(rng), rng.uniform(1e5, 9e5, N)
    outputs = np.sqrt(sizes[truth])
    assert is_found(leaks.link_by_rank(outputs, sizes, truth, WHO, rng))
    assert includes_chance(leaks.link_by_rank(rng.random(N), sizes, truth, WHO, rng))


def test_equal_times_of_writing_are_a_blind_guess(rng: np.random.Generator) -> None:
    assert includes_chance(leaks.link_by_rank(np.full(N, 1e9), np.arange(N) * 1.0, shuffled(rng), WHO, rng))


def test_a_missing_value_is_a_blind_guess_and_counted(rng: np.random.Generator) -> None:
    truth, times = shuffled(rng), np.arange(N) * 1.0
    result = leaks.link_by_rank(np.where(np.arange(N) < 50, np.nan, times[truth]), times, truth, WHO, rng)
    assert result.unseen.hits.sum() == 50 and (result.ranks[:50] > 1).mean() > 0.9


def test_dimensions_that_were_kept_are_found_and_one_size_for_all_is_not(rng: np.random.Generator) -> None:
    truth, sizes = shuffled(rng), np.stack([rng.permutation(N), rng.permutation(N)], axis=1) + 300
    assert is_found(leaks.link_by_dimensions(sizes[truth], sizes, truth, WHO, rng))
    assert includes_chance(leaks.link_by_dimensions(np.full((N, 2), 64), sizes, truth, WHO, rng))


@given(st.lists(st.text(max_size=30), min_size=1, max_size=5), st.lists(st.text() | st.binary(), max_size=5))
def test_any_name_that_is_handed_out_as_it_is_is_found(names: list[str], public: list[str | bytes]) -> None:
    rng = np.random.default_rng(0)
    result = leaks.find_names(names, [*public, *names], names, rng).token_counts
    assert set(result) == {token for name in names for token in leaks.name_tokens(name)}


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda r: leaks.find_names(["a"], [], [], r), "names and subjects"),
        (lambda r: leaks.compare_order(np.arange(3), list("abc"), r), "n >= 4"),
        (lambda r: leaks.compare_order(np.zeros(5, int), list("abcde"), r), "different places"),
        (lambda r: leaks.link_by_dimensions(np.zeros(3), np.zeros((2, 3)), np.arange(3), WHO[:3], r), "outputs"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(call: object, says: str, rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match=says) as refused:
        call(rng)  # type: ignore[operator]
    assert "\n" not in str(refused.value)
