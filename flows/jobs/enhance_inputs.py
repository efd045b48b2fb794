"""What an enhancement reads: each picture as it is, and the one that it should become where there are references."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from anonymizer.backbones.conditioning import conditioning_text
from anonymizer.config import EnhanceConfig, SourceConfig
from anonymizer.data import image_codec
from anonymizer.data.sources import open_source
from anonymizer.enhance import Enhancer, noise_key
from anonymizer.errors import RecordError, SourceError
from anonymizer.records import Entry, Reason, Record

MISSING, WRONG_SIZE = "missing", "wrong_size"  # why a reference cannot be compared with, beside reasons of records


@dataclass(frozen=True)
class EnhanceItem:
    """A record with its picture (3, h, w), or with the reason why there is none; and what it is compared with."""

    number: int
    record_id: str
    picture: torch.Tensor | None = None
    key: bytes = b""  # of its noise
    conditioning_text: str | None = None
    reference: torch.Tensor | str | None = None  # (3, H, W), or why there is none; None where none is asked for
    problem: Reason | None = None


class EnhanceInputs:
    """The records of the source in their order, beside their references. SourceError if either cannot be used."""

    def __init__(self, config: EnhanceConfig) -> None:
        self.config, self.references = config, config.references
        self.entries = _list_entries(config.source)
        self.partners: Sequence[Entry | None] = [None] * len(self.entries)
        if self.references is not None:
            try:
                self.partners = match_references(self.entries, _list_entries(self.references))
            except SourceError as error:
                raise SourceError(str(error).replace("source.", "references.", 1)) from None
            if not any(self.partners):
                raise SourceError(
                    f"references.uri {self.references.uri!r}: none of its pictures is named as one of the source: name "
                    "them alike, but for the suffix, or set source.id and references.id"
                )

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, enhancer: Enhancer, numbers: Sequence[int] | None = None) -> Iterator[EnhanceItem]:
        """Every record, or those of some numbers, one after another."""
        wanted = range(len(self)) if numbers is None else numbers
        records = open_source(_read_only(self.config.source)).read([self.entries[number] for number in wanted])
        others = self._others([other for number in wanted if (other := self.partners[number])])
        for number, record in zip(wanted, records, strict=True):
            reference = next(others) if self.partners[number] else None
            yield self._item(number, record, reference, enhancer)

    def _others(self, entries: Sequence[Entry]) -> Iterator[Record]:
        return iter(()) if self.references is None else open_source(_read_only(self.references)).read(entries)

    def _item(self, number: int, record: Record, other: Record | None, enhancer: Enhancer) -> EnhanceItem:
        item = EnhanceItem(number, record.entry.record_id)
        try:
            if record.problem:
                raise RecordError(record.problem)
            said = conditioning_text(self.config.model, record, enhancer.backbone)
            picture = image_codec.decode(record.data, 1, "tiles", self.config.source.limits).tensor  # at its own size
            self._refuse_too_large(picture, enhancer)
        except RecordError as error:
            return replace(item, problem=error.reason)
        key = noise_key(self.config.seed, record.data)
        reference = None if self.references is None else self._reference(picture, other)
        return replace(item, picture=picture, key=key, conditioning_text=said, reference=reference)

    def _refuse_too_large(self, picture: torch.Tensor, enhancer: Enhancer) -> None:
        """What is made is bounded as what is read is."""
        height, width = (self.config.factor * side for side in picture.shape[-2:])
        worked = enhancer.working_sides(height, width)
        most = self.config.source.limits.max_pixels
        if worked[0] * worked[1] > most or max(height, width) > image_codec.MAX_SIDE[self.config.output.image]:
            raise RecordError(Reason.TOO_MANY_PIXELS)

    def _reference(self, picture: torch.Tensor, other: Record | None) -> torch.Tensor | str:
        if other is None:
            return MISSING
        if other.problem is not None:
            return other.problem.value
        assert self.references is not None
        try:
            found = image_codec.decode(other.data, 1, "tiles", self.references.limits).tensor
        except RecordError as error:
            return error.reason.value
        wanted = tuple(self.config.factor * side for side in picture.shape[-2:])
        return found if tuple(found.shape[-2:]) == wanted else WRONG_SIZE


def match_references(entries: Sequence[Entry], others: Sequence[Entry]) -> list[Entry | None]:
    """Of each entry the other one of its name; or of its name but for the suffix, where on both sides only one is."""
    by_id = {other.record_id: other for other in others}
    by_stem = {_stem(other): other for other in others}
    here, there = (Counter(_stem(entry) for entry in some) for some in (entries, others))

    def partner(entry: Entry) -> Entry | None:
        stem = _stem(entry)
        alike = by_stem.get(stem) if here[stem] == there[stem] == 1 else None
        return by_id.get(entry.record_id, alike)

    return [partner(entry) for entry in entries]


def _stem(entry: Entry) -> str:
    folder, slash, name = entry.record_id.rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)


def _list_entries(source: SourceConfig) -> list[Entry]:
    return list(open_source(_read_only(source)).entries())


def _read_only(source: SourceConfig) -> SourceConfig:
    """A source of which nothing is written but pictures: what is not asked for is left behind."""
    return source.model_copy(update={"drop": ("*",), "subject": None})
