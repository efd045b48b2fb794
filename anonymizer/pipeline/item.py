"""The item that a record becomes on its way through the stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import torch

from anonymizer.data.image_codec import DecodedImage, EncodedImage
from anonymizer.records import Decision, Record, Scores, Status


@dataclass(slots=True)
class Item:
    """A record that fills up stage by stage, in the order of these fields.

    An item with a decision has been through the gate, or cannot get there: no later stage samples it. Jobs that note
    more of an item have a subclass of their own.
    """

    record: Record  # its encoded bytes are dropped once they are decoded
    picture: DecodedImage | None = None
    conditioning_text: str | None = None  # the class or prompt that the model is given
    level: float = 0.0
    noise_key: bytes = b""  # 16 bytes
    published: torch.Tensor | None = None  # an output of an earlier release: scored like a new one, and not sampled
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    output: torch.Tensor | None = None  # (3, H, W) on the CPU, in [-1, 1]; NaN where the model returned none
    seconds: float = 0.0  # of sampling and scoring
    scores: Scores = field(default_factory=Scores)
    is_unsafe: bool = False  # by the model's own safety checker
    decision: Decision | None = None
    encoded: EncodedImage | None = None

    @property
    def drawn(self) -> Sequence[Item]:
        """The items whose outputs are drawn from its picture: itself, except for a group."""
        return (self,)

    def fail(self, reason: str | None) -> None:
        """End the item without an output."""
        self.output, self.decision = None, Decision(Status.FAILED, reason)
