"""Leaks around the picture: metadata, names, order, sizes, times and scores, each tried rather than assumed.

Everything here is a function of plain values (bytes, text, numbers). What can name the original behind an output comes
back as a ``Ranking``, as if the value were a picture; what is merely there is counted.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from anonymizer.data.metadata import find_metadata
from metrics.attacks.linkage import Ranking, link_by_similarity, link_by_value
from metrics.stats.risk import CONFIDENCE, Interval, Trials, as_subjects

Floats = npt.NDArray[np.floating[Any]]
Numbers = npt.NDArray[np.integer[Any]]
Names = npt.NDArray[np.str_]

MIN_TOKEN_LENGTH = 4  # characters of a token; shorter ones occur everywhere
PERMUTATIONS = 999
TIE_WEIGHT = 1e-6  # of a score: what decides between originals that agree with it equally well
# Words that name a file format or a scheme, and no person.
NOT_NAMES = frozenset(["jpeg", "webp", "tiff", "avif", "heic", "parquet", "jsonl", "file", "https"])


@dataclass(frozen=True)
class Metadata:
    """``trials``: whether each file carries anything but pixels; ``kinds``: how many files carry each kind."""

    trials: Trials
    kinds: Mapping[str, int]

    def __add__(self, other: Self) -> Self:
        return type(self)(self.trials + other.trials, Counter(self.kinds) + Counter(other.kinds))


@dataclass(frozen=True)
class NameTraces:
    """``trials``: whether any token of each record's names occurs in public; ``control``: any of as many random ones.

    ``found`` gives each token that occurs and how many records carry it: it names people, and is for restricted eyes.
    Tokens that all records carry (a folder around everything) are in ``found``, but tell nobody apart and are no hit.
    """

    trials: Trials
    control: Trials
    token_counts: Mapping[str, int]


@dataclass(frozen=True)
class Order:
    """How far the order of a release follows its source's.

    ``correlation`` is Spearman's, with a 95 % ``interval`` (Bonett and Wright 2000); ``p_value`` is two-sided, from
    permutations. ``neighbours``: whether each released picture is followed by the one that is next to it in the source,
    which finds blocks that moved as a whole; ``control``: the same of a shuffled release; ``chance``: 2 / n.
    """

    correlation: float
    interval: Interval
    p_value: float
    neighbours: Trials
    control: Trials
    chance: float


def scan_metadata(files: Iterable[bytes], subjects: Sequence[object]) -> Metadata:
    """What the encoded ``files``, one for each of ``subjects``, carry besides pixels; a broken file counts as well.

    There is no chance level: blind guessing puts no metadata into a file. Raises ValueError.
    """
    kinds = [find_metadata(data) for data in files]
    return Metadata(
        Trials(np.array([bool(k) for k in kinds]), as_subjects(subjects)), Counter(k for f in kinds for k in f)
    )


def name_tokens(name: str) -> frozenset[str]:
    """What of a path, file name or record id could be somebody's name: runs of four letters or digits and more.

    Letters are compared without case and in one Unicode form; words that name a file format are left out.
    """
    return frozenset(re.findall(rf"[^\W_]{{{MIN_TOKEN_LENGTH},}}", _normalise(name))) - NOT_NAMES


def find_names(
    names: Sequence[str], public: Iterable[str | bytes], subjects: Sequence[object], rng: np.random.Generator
) -> NameTraces:
    """Do the names of the originals occur anywhere in what is public?

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

    found = {token for token in carriers if occurs(token)}
    decoys = {token for token in sorted(carriers) if occurs(_decoy(token, rng))}
    telling = {token for token, count in carriers.items() if count < len(names) or len(names) == 1}
    hits, control = ([bool(own & some & telling) for own in owned] for some in (found, decoys))
    who = as_subjects(subjects)
    return NameTraces(
        Trials(np.array(hits), who), Trials(np.array(control), who), {t: carriers[t] for t in sorted(found)}
    )


def compare_order(source: Numbers, subjects: Sequence[object], rng: np.random.Generator) -> Order:
    """Does the order of a release follow the source's?

    ``source`` (n,): the place in the source of the first output, the second, and so on. Raises ValueError for fewer
    than four outputs.
    """
    n = len(source)
    if n < 4 or source.shape != (n,) or len(subjects) != n:
        raise ValueError(f"source and subjects must be (n,) with n >= 4, got {source.shape} and {len(subjects)}")
    places = rankdata(source)
    centred = places - places.mean()
    if not centred.any():
        raise ValueError("source must hold different places, got one place only: give where each original stood")
    standing = np.arange(n) - (n - 1) / 2
    scale = math.sqrt(float(centred @ centred) * float(standing @ standing))
    rho = float(standing @ centred) / scale
    shuffled = np.array([standing @ rng.permutation(centred) for _ in range(PERMUTATIONS)]) / scale
    p_value = (1 + int((np.abs(shuffled) >= abs(rho) - 1e-12).sum())) / (1 + PERMUTATIONS)
    who = as_subjects(subjects)[:-1]
    return Order(
        correlation=rho,
        interval=_spearman_interval(rho, n),
        p_value=p_value,
        neighbours=Trials(_are_neighbours(places), who),
        control=Trials(_are_neighbours(rng.permutation(places)), who),
        chance=2 / n,
    )


def link_by_rank(
    outputs: Floats, originals: Floats, truth: Numbers, subjects: Names, rng: np.random.Generator
) -> Ranking:
    """The original whose value stands where the output's does, whatever the scales: largest by largest, and so on down.

    Finds values that grow together, such as encoded sizes at two resolutions and times of writing. Raises ValueError.
    """
    return link_by_value(_relative_ranks(outputs), _relative_ranks(originals), truth, subjects, rng)


def link_by_dimensions(
    outputs: Numbers, originals: Numbers, truth: Numbers, subjects: Names, rng: np.random.Generator
) -> Ranking:
    """The original whose width and height are nearest: ``outputs`` (N, 2) and ``originals`` (M, 2) in pixels.

    Raises ValueError.
    """
    if outputs.shape[1:] != (2,) or originals.shape[1:] != (2,):
        raise ValueError(f"outputs must be (N, 2) and originals (M, 2), got {outputs.shape} and {originals.shape}")
    wider, higher = (np.subtract.outer(a, b) for a, b in zip(outputs.T * 1.0, originals.T * 1.0, strict=True))
    apart = np.abs(wider) + np.abs(higher)  # (N, M)
    return link_by_similarity(-apart, truth, subjects, rng)


def link_by_scores(
    scores: Sequence[tuple[Floats, Floats]],
    truth: Numbers,
    subjects: Names,
    rng: np.random.Generator,
    similarity: Floats | None = None,
) -> Ranking:
    """The same with several published scores at once: the original whose differences from all of them are smallest.

    Of originals in the same bins the one with the greatest ``likeness`` (N, M), in about [-1, 1], comes first; without
    it, chance decides.
    """
    for published, recomputed in scores:
        if recomputed.ndim != 2 or published.shape != recomputed.shape[:1]:
            shapes = f"{published.shape} and {recomputed.shape}"
            raise ValueError(f"published must be (N,) and recomputed (N, M), got {shapes}")
    apart = sum(np.abs(published[:, None] - recomputed) for published, recomputed in scores)
    tie = 0.0 if similarity is None else TIE_WEIGHT * similarity
    return link_by_similarity(tie - np.asarray(apart), truth, subjects, rng)


def _normalise(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _decode(part: str | bytes) -> str:
    """Bytes as text; without its zero bytes, UTF-16 reads as Latin text does."""
    return part if isinstance(part, str) else part.replace(b"\0", b"").decode("utf-8", "replace")


def _decoy(token: str, rng: np.random.Generator) -> str:
    """A random token of the same length: digits for digits, Latin letters for all others, a-f for hexadecimal ones."""
    letters = "abcdef" if _is_hexadecimal(token) else "abcdefghijklmnopqrstuvwxyz"
    return "".join(str(rng.integers(10)) if c.isdigit() else letters[rng.integers(len(letters))] for c in token)


def _is_hexadecimal(token: str) -> bool:
    return re.fullmatch("[0-9a-f]+", token) is not None


def _relative_ranks(values: Floats) -> Floats:
    """Each value's place among all, in (0, 1); equal values share theirs, NaN has none."""
    places = np.asarray(rankdata(values, nan_policy="omit"), dtype=np.float64)
    return np.asarray((places - 0.5) / max(1, int(np.isfinite(values).sum())))


def _are_neighbours(places: Floats) -> npt.NDArray[np.bool_]:
    return np.asarray(np.abs(np.diff(places)) == 1)


def _spearman_interval(rho: float, n: int) -> Interval:
    """Bonett and Wright's interval for Spearman's correlation."""
    z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
    middle = math.atanh(max(-1 + 1e-12, min(1 - 1e-12, rho)))
    half = z * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return Interval(math.tanh(middle - half), math.tanh(middle + half))
