"""What becomes of each column, and of what else a source holds; a column that nobody has classified stops the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from anonymizer.config import SourceConfig
from anonymizer.data.metadata import find_metadata
from anonymizer.data.sources.files import to_printable
from anonymizer.errors import SourceError
from anonymizer.records import Entry

if TYPE_CHECKING:
    from anonymizer.data.sources import Source

ALL_OTHERS = "*"  # in source.drop: every column that is not named
PICTURE, DROPPED, RESTRICTED = "the picture", "dropped", "restricted (ledger)"
TREATMENTS = {  # setting -> what becomes of a column that it names
    "image": PICTURE,
    "id": "the record's id (ledger)",
    "label": "label (published)",
    "caption": "caption (published)",
    "carry": "carried (published)",
    "restricted": RESTRICTED,
    "subject": "subject (ledger)",
    "where": "chooses records (not kept)",
    "drop": DROPPED,
}
# What is kept is not dropped, and what stays in the ledger is not published.
CONFLICTS = [("drop", other) for other in TREATMENTS if other not in ("drop", "where")]
CONFLICTS += [("restricted", other) for other in ("label", "caption", "carry")]
REENCODED = "dropped: pictures are encoded afresh from pixels"
METADATA_TREATMENTS = {
    "exif": "dropped, after its orientation is applied: pictures are encoded afresh from pixels",
    "icc": "used to convert colours, then dropped",
}
MAX_NAMED, MAX_NAME_LENGTH = 10, 60  # of an error: columns, and letters of each


@dataclass(frozen=True)
class Field:
    """Something that a source holds, what becomes of it, and where it is found."""

    name: str
    becomes: str
    found: str

    @classmethod
    def for_column(cls, column: str, becomes: str, location: str) -> Field:
        """With a name from the source, as it may be printed."""
        return cls(_printable_name(column) or "(no name)", becomes, location)


FILE_ATTRIBUTES = Field("file name, path, size and time", RESTRICTED, "each file")


class ColumnPolicy:
    """What becomes of each column: ``named`` are (setting, column), and ``rest`` says that all others are dropped.

    SourceError for a column that two settings contradict each other about.
    """

    def __init__(self, named: Iterable[tuple[str, str]], rest: bool) -> None:
        self.rest = rest
        self._settings: dict[str, dict[str, None]] = {}
        for setting, column in named:
            self._settings.setdefault(column, {})[setting] = None
        for column, settings in self._settings.items():
            for one, other in CONFLICTS:
                if one in settings and other in settings:
                    raise SourceError(
                        f"source.{one}: column {_printable_name(column)!r} is named in source.{other} too: name it in one"  # noqa: E501
                    )

    def treatment(self, column: str) -> str | None:
        """What becomes of a column; None where nobody has said."""
        if settings := self._settings.get(column):
            return " and ".join(TREATMENTS[setting] for setting in settings)
        return DROPPED if self.rest else None

    def find_unclassified(self, columns: Iterable[str]) -> list[str]:
        """Those that nobody has classified; looks at none of them where the rest is dropped."""
        return [] if self.rest else [column for column in dict.fromkeys(columns) if self.treatment(column) is None]

    def describe(self, columns: Iterable[str], location: str) -> list[Field]:
        """What becomes of these columns, all of which are classified; ``found`` says where they are."""
        return [
            Field.for_column(column, self.treatment(column) or DROPPED, location) for column in dict.fromkeys(columns)
        ]


def configured_columns(config: SourceConfig) -> list[tuple[str, str]]:
    """(setting, column) of each column that the configuration names."""
    if ALL_OTHERS in config.carry or ALL_OTHERS in config.restricted:
        raise SourceError(f"source: {ALL_OTHERS!r} works in source.drop only: name each column to carry or to restrict")
    one = ((name, getattr(config, name)) for name in ("image", "id", "label", "caption", "subject"))
    many = ((name, column) for name in ("carry", "restricted", "where", "drop") for column in getattr(config, name))
    return [
        (name, column)
        for name, column in (*one, *many)
        if column is not None and (name, column) != ("drop", ALL_OTHERS)
    ]


def refuse_unclassified(columns: Iterable[str]) -> None:
    """SourceError where there are columns that nobody has classified."""
    if columns := list(dict.fromkeys(columns)):
        names = ", ".join(repr(_printable_name(column)) for column in columns[:MAX_NAMED])
        more = f" and {len(columns) - MAX_NAMED} more" if len(columns) > MAX_NAMED else ""
        raise SourceError(
            f"source: columns that nobody has classified, {names}{more}: name each in source.carry, source.drop or "
            f"source.restricted (drop: ['{ALL_OTHERS}'] drops all others)"
        )


def sample_metadata(source: Source, limit: int = 200) -> list[Field]:
    """Kinds of metadata inside up to ``most`` pictures from all over the source, and in how many of them."""
    kinds: Counter[str] = Counter()
    looked = 0
    for record in source.read(sample_evenly(source.entries(), limit)):
        found = find_metadata(record.data) if record.problem is None else ["unreadable"]
        if found != ["unreadable"]:
            looked += 1
            kinds.update(found)
    fields = [
        Field.for_column(
            f"{kind} of pictures", METADATA_TREATMENTS.get(kind, REENCODED), f"{kinds[kind]} of {looked} pictures"
        )
        for kind in sorted(kinds)
    ]
    return [*fields, Field("other metadata of pictures", REENCODED, f"0 of {looked} pictures")]


def sample_evenly(entries: Iterable[Entry], limit: int) -> list[Entry]:
    """At most ``most`` usable entries, and half as many at least where there are so many, at equal distances."""
    kept: list[Entry] = []
    step = 1
    for number, entry in enumerate(entry for entry in entries if entry.problem is None):
        if number % step == 0:
            kept.append(entry)
        if len(kept) > limit:
            kept, step = kept[::2], 2 * step
    return kept


def _printable_name(column: str) -> str:
    """A column's name as it may be printed: visible, and not too long; half a character, as JSON can spell it, too."""
    name = to_printable(column.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape"), safe="%")
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 3]}..."
