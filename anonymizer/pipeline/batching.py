"""Decoded records, and the batches in which a model sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from anonymizer.data.image_codec import DecodedImage
from anonymizer.records import Reason, Record


@dataclass(frozen=True)
class Decoded:
    """A record with its picture, or with what was published of it before, or with the reason why there is neither.

    ``told``: what the model is told of it. ``earlier``: attempts that came too close, each with its level, scores and
    reason.
    """

    record: Record
    source_hmac: str | None = None
    picture: DecodedImage | None = None
    conditioning_text: str | None = None
    previous_row: Mapping[str, Any] | None = None  # its row in the previous release's ledger
    problem: Reason | None = None
    earlier: tuple[Mapping[str, Any], ...] = ()


def batch_by_shape(
    items: Iterable[Decoded], batch_size_for: Callable[[torch.Tensor], int]
) -> Iterator[tuple[list[Decoded], list[Decoded]]]:
    """Full batches of usable records of one shape, and with each the unusable ones met on the way."""
    good: list[Decoded] = []
    bad: list[Decoded] = []
    shape: torch.Size | None = None
    for item in items:
        if item.picture is None:
            bad.append(item)
            continue
        if good and item.picture.tensor.shape != shape:
            yield good, bad
            good, bad = [], []
        shape = item.picture.tensor.shape
        good.append(item)
        if len(good) >= batch_size_for(item.picture.tensor):
            yield good, bad
            good, bad = [], []
    if good or bad:
        yield good, bad
