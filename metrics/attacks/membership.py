"""Membership: was this photo in the released set, or in the diffusion model's training set?

Every attack scores members and others and is judged by how well the score separates them. How near outputs come to the
model's training images is the same question, with outputs as members.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self, Unpack

import numpy as np
import torch

from anonymizer.backbones.protocol import Denoised
from metrics.attacks.linkage import is_detected, row_blocks
from metrics.stats.intervals import Floats, Names, concatenate
from metrics.stats.risk import Figure, FigureContext
from metrics.stats.roc import roc_figures

LOSS_LEVELS = (0.05, 0.1, 0.2, 0.3, 0.4)  # of T, at which the denoising loss is taken
UNDETECTED_SCORE = -2.0  # below every (calibrated) cosine similarity
CHUNK = 32  # images denoised at once; bounds memory


@dataclass(frozen=True)
class MembershipScores:
    """Scores of members (N,) and of others (M,), higher for members, and the person behind each."""

    members: Floats
    others: Floats
    member_subjects: Names
    other_subjects: Names

    def __post_init__(self) -> None:
        for scores, subjects in ((self.members, self.member_subjects), (self.others, self.other_subjects)):
            if scores.ndim != 1 or scores.shape != subjects.shape or np.isnan(scores).any():
                raise ValueError(f"scores and subjects must be (N,) without NaN, got {scores.shape}, {subjects.shape}")

    def __add__(self, other: Self) -> Self:
        return concatenate(self, other)


@dataclass(frozen=True)
class Candidates:
    """Photos that may be members: embeddings (N, D), NaN where not detected, and their people."""

    embeddings: Floats
    subjects: Names


def nearest_similarity(queries: Floats, targets: Floats) -> Floats:
    """Return the highest cosine similarity of each query (N, D) to any target (M, D): (N,).

    A query that was not detected scores ``UNDETECTED_SCORE``. Raises ValueError if no target was detected.
    """
    usable = targets[is_detected(targets)]
    if not len(usable):
        raise ValueError("targets are empty: give at least one picture with an embedding")
    nearest = np.empty(len(queries))
    for rows in row_blocks(len(queries), len(usable)):
        nearest[rows] = (queries[rows] @ usable.T).max(axis=1)
    return np.where(np.isnan(nearest), UNDETECTED_SCORE, nearest)


def score_release(
    members: Candidates, others: Candidates, outputs: Floats, reference: Floats | None = None
) -> MembershipScores:
    """Score photos by the similarity to the nearest of the released ``outputs`` (K, D).

    With ``reference`` (R, D), about as many outputs that the aware attacker made of images outside the release, the
    similarity to the nearest of those is subtracted, so that a photo that resembles everything does not pass for a
    member. A photo that was not detected scores ``UNDETECTED_SCORE``.
    """

    def score(photos: Floats) -> Floats:
        near = nearest_similarity(photos, outputs)
        if reference is None:
            return near
        return np.where(is_detected(photos), near - nearest_similarity(photos, reference), UNDETECTED_SCORE)

    return MembershipScores(score(members.embeddings), score(others.embeddings), members.subjects, others.subjects)


def score_closeness(outputs: Candidates, held_out: Candidates, training: Floats) -> MembershipScores:
    """Score outputs, and originals that the model never saw, by the nearest of its training images (M, D).

    An AUC above one half means that outputs crowd around training images more than new photographs do; the TPR at 1 %
    FPR is the share of outputs nearer than all but a hundredth of those.
    """
    near, usual = nearest_similarity(outputs.embeddings, training), nearest_similarity(held_out.embeddings, training)
    return MembershipScores(near, usual, outputs.subjects, held_out.subjects)


class Denoiser(Protocol):
    """The part of ``anonymizer.backbones.Backbone`` that the loss needs."""

    T: int
    alphas_cumprod: torch.Tensor

    def encode(self, images: torch.Tensor) -> torch.Tensor: ...

    def predict(self, zt: torch.Tensor, t: int, condition: Any = None) -> Denoised: ...


@torch.inference_mode()
def denoising_losses(
    model: Denoiser,
    images: torch.Tensor,
    rng: np.random.Generator,
    levels: Sequence[float] = LOSS_LEVELS,
    repeats: int = 4,
) -> Floats:
    """Return the mean squared error of the noise predicted in images (B, 3, size, size) in [-1, 1]: (B,).

    Averaged over ``repeats`` draws at each of ``levels`` (shares of T). All images meet the same noise, so that only
    they differ: score all candidates with generators of one seed. Low and middle levels tell most (Matsumoto et al.
    2023; Carlini et al. 2023).
    """
    if not levels or min(levels) <= 0 or max(levels) > 1 or repeats < 1:
        raise ValueError(f"levels must lie in (0, 1] and repeats be positive, got {tuple(levels)} and {repeats}")
    z0s = [model.encode(part) for part in images.split(CHUNK)]
    total = np.zeros(len(images))
    for t in [max(1, round(level * model.T)) for level in levels] * repeats:
        abar = float(model.alphas_cumprod[t - 1])
        noise = torch.from_numpy(rng.standard_normal(tuple(z0s[0].shape[1:]), dtype=np.float32)).to(z0s[0].device)
        errors = [
            (model.predict(abar**0.5 * z0 + (1 - abar) ** 0.5 * noise, t).eps.float() - noise).square().mean((1, 2, 3))
            for z0 in z0s
        ]
        total += torch.cat(errors).double().cpu().numpy()
    return np.asarray(total / (len(levels) * repeats))


def score_training_set(
    members: Floats, others: Floats, member_subjects: Names, other_subjects: Names
) -> MembershipScores:
    """Score training images (N,) and others (M,) by their denoising losses: the model knows well what it has seen."""
    return MembershipScores(-members, -others, member_subjects, other_subjects)


def figures(scores: MembershipScores, rng: np.random.Generator, **context: Unpack[FigureContext]) -> list[Figure]:
    """Return AUC, and TPR at 1 % and 0.1 % FPR with the share of others that its threshold lets through."""
    subjects = scores.member_subjects, scores.other_subjects
    return roc_figures(scores.members, scores.others, rng, *subjects, **context)
