"""Leaks around the image: metadata, names, order, sizes, times and scores, each attacked rather than assumed.

Functions of plain values (bytes, text, numbers). A value that can point at the original behind an output gives a
``Ranking``, as if it were an image; mere presence is counted.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy.stats import rankdata

from anonymizer.data.metadata import find_metadata
from metrics.attacks.linkage import Ranking, link_by_similarity, link_by_value
from metrics.stats.intervals import Bools, Estimate, Floats, Names, Numbers, Trials, as_subjects, normal_quantile

MIN_TOKEN_LENGTH = 4  # characters; shorter tokens occur everywhere
PERMUTATIONS = 999
TIE_WEIGHT = 1e-6  # of a similarity that decides between originals whose scores agree equally well
# File formats and schemes, which name no person.
NOT_NAMES = frozenset(["jpeg", "webp", "tiff", "avif", "heic", "parquet", "jsonl", "file", "https"])


@dataclass(frozen=True)
class Metadata:
    """Files that carry anything but pixels, and how many carry each kind of it."""

    trials: Trials
    kinds: Mapping[str, int]

    def __add__(self, other: Self) -> Self:
        return type(self)(self.trials + other.trials, Counter(self.kinds) + Counter(other.kinds))


@dataclass(frozen=True)
class NameTraces:
    """``trials``: which records have a token of their names in public; ``control``: as many random tokens each.

    ``token_counts``: each token that occurs and how many records carry it; it names people and stays restricted. Tokens
    that all records carry (a folder around everything) distinguish nobody and are no hit.
    """

    trials: Trials
    control: Trials
    token_counts: Mapping[str, int]


@dataclass(frozen=True)
class Order:
    """How far the order of a release follows its source's."""

    correlation: float  # Spearman's
    interval: Estimate  # 95 % (Bonett and Wright 2000)
    p_value: float  # two-sided, from permutations
    neighbours: Trials  # images followed by a neighbour in the source, which finds blocks that moved as a whole
    control: Trials  # the same of a shuffled release
    chance: float


def scan_metadata(files: Iterable[bytes], subjects: Sequence[object]) -> Metadata:
    """Find what encoded files, one for each of ``subjects``, carry besides pixels; a broken file counts too."""
    by_file = [find_metadata(data) for data in files]
    hits = np.array([bool(kinds) for kinds in by_file])
    return Metadata(Trials(hits, as_subjects(subjects)), Counter(kind for kinds in by_file for kind in kinds))


def name_tokens(name: str) -> frozenset[str]:
    """Return the parts of a path, file name or record id that could be a person's name: 4 letters or digits and more.

    Compared without case and in one Unicode form; words for file formats are left out.
    """
    return frozenset(re.findall(rf"[^\W_]{{{MIN_TOKEN_LENGTH},}}", _normalise(name))) - NOT_NAMES


def find_names(
    names: Sequence[str], public: Iterable[str | bytes], subjects: Sequence[object], rng: np.random.Generator
) -> NameTraces:
    """Look for the names of the originals in everything public.

    ``names`` (N,): all that names a record (path, folders, id), as one text each. ``public``: file names, texts, and
    files that hold more than pixels; bytes are read as UTF-8 and as UTF-16. A token counts wherever it occurs, inside a
    longer word too; one that could be part of a digest counts only where no other hexadecimal digit touches it. The
    control looks for random tokens of the same length and kind. Raises ValueError.
    """
    if len(names) != len(subjects) or not len(names):
        raise ValueError(f"names and subjects must be one each a record, got {len(names)} and {len(subjects)}")
    text = "\n".join(_normalise(_decode(part)) for part in public)
    owned = [name_tokens(name) for name in names]
    carriers = Counter(token for own in owned for token in own)
    runs = set(re.findall("[0-9a-f]+", text))

    def occurs(token: str) -> bool:
        return token in runs if _is_hexadecimal(token) else token in text

    present = {token for token in carriers if occurs(token)}
    decoys = {token for token in sorted(carriers) if occurs(_decoy(token, rng))}
    telling = {token for token, count in carriers.items() if count < len(names) or len(names) == 1}
    people = as_subjects(subjects)
    hits, control = (
        Trials(np.array([bool(own & some & telling) for own in owned]), people) for some in (present, decoys)
    )
    return NameTraces(hits, control, {token: carriers[token] for token in sorted(present)})


def compare_order(source: Numbers, subjects: Sequence[object], rng: np.random.Generator) -> Order:
    """Compare the order of a release with its source's, from the position (n,) of each output in the source.

    Raises ValueError for fewer than four outputs.
    """
    n = len(source)
    if n < 4 or source.shape != (n,) or len(subjects) != n:
        raise ValueError(f"source and subjects must be (n,) with n >= 4, got {source.shape} and {len(subjects)}")
    positions = rankdata(source)
    centred = positions - positions.mean()
    if not centred.any():
        raise ValueError("source must hold different places, got one place only: give where each original stood")
    released = np.arange(n) - (n - 1) / 2
    scale = math.sqrt(float(centred @ centred) * float(released @ released))
    rho = float(released @ centred) / scale
    shuffled = np.array([released @ rng.permutation(centred) for _ in range(PERMUTATIONS)]) / scale
    people = as_subjects(subjects)[:-1]
    return Order(
        correlation=rho,
        interval=_spearman_interval(rho, n),
        p_value=(1 + int((np.abs(shuffled) >= abs(rho) - 1e-12).sum())) / (1 + PERMUTATIONS),
        neighbours=Trials(_are_neighbours(positions), people),
        control=Trials(_are_neighbours(rng.permutation(positions)), people),
        chance=2 / n,
    )


def link_by_rank(
    outputs: Floats, originals: Floats, truth: Numbers, subjects: Names, rng: np.random.Generator
) -> Ranking:
    """Rank the originals by how near the rank of their value is to the output's: largest with largest, and so on.

    Finds values that grow together, such as encoded sizes at two resolutions and times of writing. Raises ValueError.
    """
    return link_by_value(_relative_ranks(outputs), _relative_ranks(originals), truth, subjects, rng)


def link_by_dimensions(
    outputs: Numbers, originals: Numbers, truth: Numbers, subjects: Names, rng: np.random.Generator
) -> Ranking:
    """Rank the originals (M, 2) by width and height against the outputs (N, 2), in pixels. Raises ValueError."""
    if outputs.shape[1:] != (2,) or originals.shape[1:] != (2,):
        raise ValueError(f"outputs must be (N, 2) and originals (M, 2), got {outputs.shape} and {originals.shape}")
    difference = np.abs(outputs[:, None] * 1.0 - originals).sum(-1)  # (N, M)
    return link_by_similarity(-difference, truth, subjects, rng)


def link_by_scores(
    scores: Sequence[tuple[Floats, Floats]],
    truth: Numbers,
    subjects: Names,
    rng: np.random.Generator,
    similarity: Floats | None = None,
) -> Ranking:
    """Rank the originals by the sum of differences from several published scores.

    ``scores``: published (N,) and recomputed (N, M) of each. Of originals in the same bins the one with the greatest
    ``similarity`` (N, M), in about [-1, 1], comes first; without it, chance decides. Raises ValueError.
    """
    for published, recomputed in scores:
        if recomputed.ndim != 2 or published.shape != recomputed.shape[:1]:
            shapes = f"{published.shape} and {recomputed.shape}"
            raise ValueError(f"published must be (N,) and recomputed (N, M), got {shapes}")
    difference = sum(np.abs(published[:, None] - recomputed) for published, recomputed in scores)
    tie = 0.0 if similarity is None else TIE_WEIGHT * similarity
    return link_by_similarity(tie - np.asarray(difference), truth, subjects, rng)


def _normalise(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _decode(part: str | bytes) -> str:
    """Return bytes as text; without its zero bytes, UTF-16 reads as Latin text does."""
    return part if isinstance(part, str) else part.replace(b"\0", b"").decode("utf-8", "replace")


def _decoy(token: str, rng: np.random.Generator) -> str:
    """Return a random token of the same length: digits for digits, a-f for hexadecimal letters, a-z for others."""
    letters = "abcdef" if _is_hexadecimal(token) else "abcdefghijklmnopqrstuvwxyz"
    return "".join(str(rng.integers(10)) if c.isdigit() else letters[rng.integers(len(letters))] for c in token)


def _is_hexadecimal(token: str) -> bool:
    return re.fullmatch("[0-9a-f]+", token) is not None


def _relative_ranks(values: Floats) -> Floats:
    """Return each value's rank among all, in (0, 1); equal values share theirs, NaN has none."""
    ranks = np.asarray(rankdata(values, nan_policy="omit"), dtype=np.float64)
    return np.asarray((ranks - 0.5) / max(1, int(np.isfinite(values).sum())))


def _are_neighbours(positions: Floats) -> Bools:
    return np.asarray(np.abs(np.diff(positions)) == 1)


def _spearman_interval(rho: float, n: int) -> Estimate:
    """Return Bonett and Wright's interval for Spearman's correlation."""
    middle = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, rho)))
    half = normal_quantile() * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return Estimate(rho, math.tanh(middle - half), math.tanh(middle + half))
