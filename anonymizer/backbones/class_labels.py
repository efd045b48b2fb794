"""Classes that a model knows: by name or by number, and the one that stands for none of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from anonymizer.errors import RecordError
from anonymizer.records import Reason


@dataclass(frozen=True)
class ClassLabels:
    """``names``: number -> name, with synonyms after commas, as far as they are known. ``null`` stands for no class."""

    count: int
    names: Mapping[int, str]
    null: int | None

    @classmethod
    def from_config(cls, embedding_count: int, id2label: Mapping[str, str] | None) -> ClassLabels:
        """Of a network with so many class embeddings; one more than there are names is the class of none."""
        names = {int(number): str(name) for number, name in (id2label or {}).items()}
        count = len(names) or embedding_count
        return cls(count, names, count if embedding_count == count + 1 else None)

    def index_of(self, label: str) -> int:
        """The class that a label names. RecordError: NO_CONDITION, also for a name that several classes have."""
        wanted = label.strip().casefold()
        found = [
            number
            for number, name in self.names.items()
            if wanted in {name.casefold(), *(one.strip().casefold() for one in name.split(","))}
        ]
        if len(found) == 1:
            return found[0]
        if wanted.isascii() and wanted.isdigit() and int(wanted) < self.count:
            return int(wanted)
        raise RecordError(Reason.NO_CONDITION)

    def indices_of(self, labels: Sequence[str]) -> torch.Tensor:
        """(B,) int64."""
        return torch.tensor([self.index_of(one) for one in labels], dtype=torch.long)
