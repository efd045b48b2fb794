"""Class labels of a model, by name or by number, and the models that are conditioned on them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from anonymizer.backbones.base import BaseBackbone, guide
from anonymizer.errors import ModelError, RecordError
from anonymizer.records import Reason


@dataclass(frozen=True)
class ClassLabels:
    """``names``: number -> name, synonyms with commas between. ``null``: the class that stands for none."""

    count: int
    names: Mapping[int, str]
    null: int | None

    @classmethod
    def from_config(cls, embedding_count: int, id2label: Mapping[str, str] | None) -> ClassLabels:
        """Return the labels of a network; one embedding more than there are names is the class of none."""
        names = {int(number): str(name) for number, name in (id2label or {}).items()}
        count = len(names) or embedding_count
        return cls(count, names, count if embedding_count == count + 1 else None)

    def index_of(self, label: str) -> int:
        """Return the class that a label names. RecordError: NO_CONDITION, also for a name of several classes."""
        label = label.strip().casefold()
        matches = [
            number
            for number, name in self.names.items()
            if label in {name.casefold(), *(synonym.strip().casefold() for synonym in name.split(","))}
        ]
        if len(matches) == 1:
            return matches[0]
        if label.isascii() and label.isdigit() and int(label) < self.count:
            return int(label)
        raise RecordError(Reason.NO_CONDITION)

    def indices_of(self, labels: Sequence[str]) -> torch.Tensor:
        """Return the class of each label: (B,) int64."""
        return torch.tensor([self.index_of(label) for label in labels], dtype=torch.long)


class ClassConditionalBackbone(BaseBackbone):
    """A network that takes a class for each row; ``model.guidance`` needs the class that stands for none."""

    classes: ClassLabels | None

    def condition(self, labels: Sequence[str]) -> torch.Tensor:
        if self.classes is None:
            raise ModelError(f"model.condition: the model {self.name!r} knows no classes: leave it out")
        return self.classes.indices_of(labels).to(self.device, non_blocking=True)  # (B,)

    def _guided(self, zt: torch.Tensor, t: int, condition: object) -> torch.Tensor:
        if self.classes is None:
            return self._network(zt, t, None)
        null = None if self.classes.null is None else torch.full((len(zt),), self.classes.null, device=self.device)
        if not isinstance(condition, torch.Tensor):
            if null is None:
                raise ModelError(
                    f"model.condition: the model {self.name!r} needs a class for each record: set it to label"
                )
            return self._network(zt, t, null)
        if self.config.guidance == 1:
            return self._network(zt, t, condition)
        if null is None:
            raise ModelError(f"model.guidance: the model {self.name!r} has no class that stands for none: set it to 1")
        both = torch.cat([null, condition])
        return guide(lambda z, labels: self._network(z, t, labels), zt, both, self.config.guidance)

    def _network(self, zt: torch.Tensor, t: int, labels: torch.Tensor | None) -> torch.Tensor:
        """Return the network's output for classes (B,), without a learned variance, float32."""
        raise NotImplementedError
