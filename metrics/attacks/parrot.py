"""The parrot: a linker trained on pairs of other people that the attacker makes (arXiv 2304.01635).

"A False Sense of Privacy": an attacker who compares images as they are is unaware. This one learns a linear map for
originals and one for outputs that bring the two halves of a pair together (InfoNCE; van den Oord et al. 2018), and uses
what links best on held-out people: the trained maps or an untrained comparison.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional as F

from metrics.attacks.training_pairs import hold_out
from metrics.stats.intervals import Bools, Floats, Names

Features = Mapping[str, Floats]  # name -> (N, D); a row of NaN where there is none (no face)
Matrix = npt.NDArray[np.float32]

MIN_PAIRS = 20
MAX_DIMENSIONS = 256  # of the space in which the maps are trained
STEPS, EVALUATION_INTERVAL = 300, 10  # of Adam on all pairs at once, and between validations
SHRINKAGE = 3.0  # of a covariance towards its mean variance: attackers have few pairs of many features
LEARNING_RATE, WEIGHT_DECAY = 1e-2, 0.3  # decay draws the maps back to where they started, not to zero
INITIAL_SHARPNESS = 10.0  # the inverse temperature, which is trained


@dataclass(frozen=True)
class Tower:
    """Maps the features of one side to unit rows: each centred and scaled, concatenated, and projected."""

    centres: Mapping[str, Matrix]  # name -> (D,)
    scales: Mapping[str, float]
    projection: Matrix | None = None  # (sum of D, d); None: the features as they are

    def __call__(self, features: Features) -> Matrix:
        """Return (N, d) float32 of unit norm; a row of NaN where every feature is missing. Raises ValueError."""
        rows = _to_unit_norm(self.project(features))
        rows[np.all([np.isnan(features[name]).any(axis=1) for name in self.centres], axis=0)] = np.nan
        return rows

    def project(self, features: Features) -> Matrix:
        """Return the rows before they are brought to unit norm; a missing feature lies at its centre."""
        if absent := [name for name in self.centres if name not in features]:
            raise ValueError(f"features: {', '.join(absent)} missing: embed pictures as the training pairs were")
        parts = [(_to_unit_norm(features[name]) - self.centres[name]) * self.scales[name] for name in self.centres]
        x = np.nan_to_num(np.concatenate(parts, axis=1), nan=0.0)  # (N, sum of D)
        return x if self.projection is None else x @ self.projection


Towers = tuple[Tower, Tower]  # of originals, of outputs
Side = tuple[Features, Features]  # originals, outputs


@dataclass(frozen=True)
class Linker:
    """A trained attacker: two towers whose rows are compared by cosine.

    ``validation``: the mean reciprocal rank of each candidate on the held-out pairs; ``chosen``: the best of them.
    """

    chosen: str
    validation: Mapping[str, float]
    embed_originals: Tower
    embed_outputs: Tower


def train(
    originals: Features, outputs: Features, rng: np.random.Generator, people: Sequence[object] | Names | None = None
) -> Linker:
    """Train on n pairs: row i of each feature (n, D) of ``outputs`` was made of row i of ``originals``.

    ``people`` (n,) names the person of each pair, so that nobody is trained on and held out; None: all differ. On the
    held-out quarter, the InfoNCE loss stops the training, and the mean reciprocal rank chooses: each feature, all of
    them, all centred, canonical correlation, or the trained maps, which start from the better of these last two; the
    simplest wins a tie. Takes seconds on one core for some hundred pairs. Raises ValueError.
    """
    n = _count_pairs(originals, outputs)
    held_out = hold_out(range(n) if people is None else people, rng)  # (n,)
    learn, judge = ((_rows(originals, mask), _rows(outputs, mask)) for mask in (~held_out, held_out))

    untrained = {name: _identity_tower(originals, [name]) for name in originals}
    if len(originals) > 1:
        untrained["all features"] = _identity_tower(originals, list(originals))
    centred = _principal_towers(*learn)
    starts = {"centred": centred, "canonical": _canonical_towers(centred, learn)}
    start = max(starts.values(), key=lambda towers: _score(towers, judge))
    candidates = {name: (tower, tower) for name, tower in untrained.items()} | starts
    candidates["trained"] = _train_towers(start, learn, judge)

    validation = {name: _score(towers, judge) for name, towers in candidates.items()}
    chosen = max(validation, key=lambda name: validation[name])  # the first of equals
    return Linker(chosen, validation, *candidates[chosen])


def reciprocal_rank(originals: Matrix, outputs: Matrix) -> float:
    """Return the mean of 1 / rank of each output's own original; two (n, d) of unit norm. Ties count half."""
    cosine = np.nan_to_num(outputs @ originals.T, nan=-np.inf)  # (n, n)
    true = np.diag(cosine)[:, None]
    ranks = 1 + (cosine > true).sum(1) + ((cosine == true).sum(1) - 1) / 2
    return float((1 / ranks).mean())


def _score(towers: Towers, pairs: Side) -> float:
    return reciprocal_rank(towers[0](pairs[0]), towers[1](pairs[1]))


def _count_pairs(originals: Features, outputs: Features) -> int:
    """Return the number of pairs. Raises ValueError unless both sides have the same features of the same pairs."""
    shapes = {name: np.shape(rows) for name, rows in originals.items()}
    if shapes != {name: np.shape(rows) for name, rows in outputs.items()} or not shapes:
        raise ValueError(f"features: originals {shapes} must match outputs: embed both halves of each pair alike")
    n, *others = {shape[0] for shape in shapes.values()}
    if others or n < MIN_PAIRS:
        raise ValueError(f"features: one row for each of {MIN_PAIRS} pairs or more, got {shapes}: make more pairs")
    return int(n)


def _rows(features: Features, mask: Bools) -> Features:
    return {name: rows[mask] for name, rows in features.items()}


def _to_unit_norm(x: Floats) -> Matrix:
    """Return rows of unit norm; a row of zeros stays as it is, and so does NaN."""
    x = np.asarray(x, dtype=np.float32)
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return np.asarray(x / np.where(norm == 0, 1, norm), dtype=np.float32)


def _identity_tower(features: Features, names: Sequence[str]) -> Tower:
    """Return the comparison of an unaware attacker; the cosine of several features is the mean of theirs."""
    return Tower({name: np.zeros(features[name].shape[1], np.float32) for name in names}, dict.fromkeys(names, 1.0))


def _principal_towers(originals: Features, outputs: Features) -> Towers:
    """Centre each side, weight features equally, and project on the principal axes that both sides share."""
    a, b = _centred_tower(originals), _centred_tower(outputs)
    x = np.concatenate([a.project(originals), b.project(outputs)]).astype(np.float64)  # (2n, sum of D)
    power, left = np.linalg.eigh(x @ x.T)  # the Gram matrix is small where features are wide
    keep = np.flatnonzero(power > 1e-6 * power[-1])[-MAX_DIMENSIONS:]
    if not len(keep):
        raise ValueError("features must differ between pairs, got the same rows or none: embed other pictures")
    axes = (x.T @ (left[:, keep] / np.sqrt(power[keep]))).astype(np.float32)  # (sum of D, d)
    return replace(a, projection=axes), replace(b, projection=axes)


def _centred_tower(features: Features) -> Tower:
    """Give the rows of each feature mean 0 and mean square norm 1; a constant feature gets no weight."""
    centres, scales = {}, {}
    for name, rows in features.items():
        known = _to_unit_norm(rows[np.isfinite(rows).all(1)])
        centres[name] = known.sum(0) / max(1, len(known))
        power = float(np.square(known - centres[name]).sum() / max(1, len(known)))
        scales[name] = power**-0.5 if power > 1e-10 else 0.0
    return Tower(centres, scales)


def _canonical_towers(start: Towers, learn: Side) -> Towers:
    """Return shrunk canonical correlation (Vinod 1976): the directions of common variance, by its strength."""
    x, y = (tower.project(side).astype(np.float64) for tower, side in zip(start, learn, strict=True))  # (n, d) each
    to_x, to_y = _whitening(x), _whitening(y)
    u, strength, v = np.linalg.svd(to_x @ (x.T @ y / len(x)) @ to_y)
    return _rotate(start[0], to_x @ u * strength**0.5), _rotate(start[1], to_y @ v.T * strength**0.5)


def _whitening(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the inverse square root of the covariance of (n, d), shrunk towards its mean variance."""
    covariance = x.T @ x / len(x)
    mean = max(float(np.trace(covariance)) / len(covariance), 1e-12)
    power, axes = np.linalg.eigh(covariance + SHRINKAGE * mean * np.eye(len(covariance)))
    return np.asarray(axes / np.sqrt(power) @ axes.T)


def _train_towers(start: Towers, learn: Side, judge: Side) -> Towers:
    """Rotate and stretch the axes of each side until the loss on the held-out pairs rises."""
    x, y = ([torch.from_numpy(t.project(f)) for t, f in zip(start, side, strict=True)] for side in (learn, judge))
    d = x[0].shape[1]
    moves = [torch.zeros(d, d, requires_grad=True) for _ in start]  # away from the identity, (d, d) each
    log_sharpness = torch.tensor(math.log(INITIAL_SHARPNESS), requires_grad=True)
    groups: list[dict[str, Any]] = [{"params": moves, "weight_decay": WEIGHT_DECAY}]
    adam = torch.optim.AdamW([*groups, {"params": [log_sharpness], "weight_decay": 0.0}], lr=LEARNING_RATE)

    def loss(pairs: list[torch.Tensor]) -> torch.Tensor:
        a, b = (F.normalize(side + side @ move, dim=1) for side, move in zip(pairs, moves, strict=True))
        logits = log_sharpness.exp() * b @ a.T  # (n, n), the true ones on the diagonal
        true = torch.arange(len(logits))
        return (F.cross_entropy(logits, true) + F.cross_entropy(logits.T, true)) / 2

    lowest, best = math.inf, [move.detach().clone() for move in moves]
    for step in range(STEPS + 1):
        if step % EVALUATION_INTERVAL == 0:
            with torch.no_grad():
                held_out = float(loss(y))
            if held_out < lowest:
                lowest, best = held_out, [move.detach().clone() for move in moves]
        adam.zero_grad()
        loss(x).backward()
        adam.step()
    eye = np.eye(d, dtype=np.float32)
    return _rotate(start[0], eye + best[0].numpy()), _rotate(start[1], eye + best[1].numpy())


def _rotate(tower: Tower, matrix: Floats) -> Tower:
    assert tower.projection is not None
    return replace(tower, projection=(tower.projection @ matrix).astype(np.float32))
