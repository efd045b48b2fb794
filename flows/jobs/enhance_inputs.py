"""The inputs of an enhancement: records in the source's order, each beside its reference where there are some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

from anonymizer.config import EnhanceConfig, SourceConfig
from anonymizer.data.sources import Source, open_source
from anonymizer.errors import SourceError
from anonymizer.records import Entry, Record

Pair = tuple[int, Record, Record | None]  # a record's number in the source, the record, and its reference


class EnhanceInputs:
    """Entries of the source, and for each the one of its reference. SourceError if either source cannot be used."""

    def __init__(self, config: EnhanceConfig) -> None:
        self.source = _open_images(config.source)
        self.entries = list(self.source.entries())
        self.references: Source | None = None
        self.matches: Sequence[Entry | None] = [None] * len(self.entries)
        if config.references is None:
            return
        try:
            self.references = _open_images(config.references)
            self.matches = match_references(self.entries, list(self.references.entries()))
        except SourceError as error:
            raise SourceError(str(error).replace("source.", "references.", 1)) from None
        if not any(self.matches):
            raise SourceError(
                f"references.uri {config.references.uri!r}: none of its pictures is named as one of the source: name "
                "them alike, but for the suffix, or set source.id and references.id"
            )

    def __len__(self) -> int:
        return len(self.entries)

    def read(self, numbers: Sequence[int] | None = None) -> Iterator[Pair]:
        """Yield every record with its reference, or those of some numbers."""
        numbers = range(len(self)) if numbers is None else numbers
        matches = [match for number in numbers if (match := self.matches[number])]
        references = self.references.read(matches) if self.references else iter(())
        for number, record in zip(numbers, self.source.read([self.entries[n] for n in numbers]), strict=True):
            yield number, record, next(references) if self.matches[number] else None


def match_references(entries: Sequence[Entry], references: Sequence[Entry]) -> list[Entry | None]:
    """Return for each entry the reference of its id; or of its id but for the suffix, where that is unambiguous."""
    by_id = {reference.record_id: reference for reference in references}
    by_stem = {_stem(reference): reference for reference in references}
    counts, reference_counts = (Counter(map(_stem, some)) for some in (entries, references))

    def match(entry: Entry) -> Entry | None:
        stem = _stem(entry)
        alike = by_stem.get(stem) if counts[stem] == reference_counts[stem] == 1 else None
        return by_id.get(entry.record_id, alike)

    return [match(entry) for entry in entries]


def _stem(entry: Entry) -> str:
    folder, slash, name = entry.record_id.rpartition("/")
    return folder + slash + (name.rpartition(".")[0] or name)


def _open_images(config: SourceConfig) -> Source:
    """Open a source of which only images are used: columns that are not asked for are left behind."""
    return open_source(config.model_copy(update={"drop": ("*",), "subject": None}))
