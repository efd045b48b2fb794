"""Batches of items that a model can sample together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import torch

from anonymizer.pipeline.item import Item

I = TypeVar("I", bound=Item)  # noqa: E741  an item of a job


def batch_items(
    items: Iterable[I], batch_size_for: Callable[[I], int], max_waiting_bytes: int = 0
) -> Iterator[list[I]]:
    """Yield batches of one level and shape; an item that has a decision already comes at once, by itself.

    Items with a published output are in batches of their own. ``max_waiting_bytes``: how much of pictures may wait for
    more of their level and shape; beyond it the fullest batch goes out unfilled. By default a batch ends where the next
    item to be sampled, or the next published one, is of another level or shape.
    """
    waiting: dict[tuple[bool, float, torch.Size], list[I]] = {}
    waiting_bytes = 0
    for item in items:
        if item.decision is not None or item.picture is None:
            yield [item]
            continue
        tensor = item.picture.tensor
        key = (item.published is not None, item.level, tensor.shape)
        if not max_waiting_bytes and key not in waiting:
            yield from [waiting.pop(other) for other in list(waiting) if other[0] == key[0]]
        waiting.setdefault(key, []).append(item)
        waiting_bytes += tensor.nbytes
        if len(waiting[key]) >= batch_size_for(item):
            batch = waiting.pop(key)
        elif waiting_bytes > max_waiting_bytes > 0:
            batch = waiting.pop(max(waiting, key=lambda key: len(waiting[key])))
        else:
            continue
        waiting_bytes -= sum(item.picture.tensor.nbytes for item in batch if item.picture)
        yield batch
    yield from waiting.values()
