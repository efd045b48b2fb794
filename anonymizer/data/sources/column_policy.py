"""Decide what happens to each column of a source; a column without a setting stops the run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from anonymizer.config import SourceConfig
from anonymizer.data.sources.files import to_printable
from anonymizer.errors import SourceError
from anonymizer.schema import COLUMNS, PRIVATE_COLUMNS

ALL_OTHERS = "*"  # in source.drop: every column without a setting
PICTURE, DROPPED, RESTRICTED = "the picture", "dropped", "restricted (ledger)"
TREATMENTS = {  # setting -> treatment of the columns that it names
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
# A column that is used is not dropped, and one that stays in the ledger is not published.
CONFLICTS = [("drop", setting) for setting in TREATMENTS if setting not in ("drop", "where")]
CONFLICTS += [("restricted", setting) for setting in ("label", "caption", "carry")]
MAX_NAMED, MAX_NAME_LENGTH = 10, 60  # columns in one error message, and characters of each name

# Columns of the manifest and of the released files themselves, which a carried column must not replace.
RESERVED_COLUMNS = frozenset(["image", *(column.name for column in COLUMNS)]) | PRIVATE_COLUMNS


@dataclass(frozen=True)
class Field:
    """An attribute of a source, what happens to it, and in which part of the source it occurs."""

    name: str
    treatment: str
    location: str

    @classmethod
    def for_column(cls, column: str, treatment: str, location: str) -> Field:
        """Return the field of a column with its name made printable."""
        return cls(_printable_name(column) or "(no name)", treatment, location)

    def to_json(self) -> dict[str, str]:
        return {"name": self.name, "becomes": self.treatment, "found": self.location}


FILE_ATTRIBUTES = Field("file name, path, size and time", RESTRICTED, "each file")


def describe_folder(config: SourceConfig, location: str) -> list[Field]:
    """Return the field of an image's folder where it is the label or the subject, else nothing."""
    uses = [TREATMENTS[name] for name in ("label", "subject") if getattr(config, name) == "folder"]
    return [Field("folder", " and ".join(uses), location)] if uses else []


def configured_columns(config: SourceConfig) -> list[tuple[str, str]]:
    """Return (setting, column) for each column that the configuration names."""
    if ALL_OTHERS in config.carry or ALL_OTHERS in config.restricted:
        raise SourceError(f"source: {ALL_OTHERS!r} works in source.drop only: name each column to carry or to restrict")
    single = [(name, getattr(config, name)) for name in ("image", "id", "label", "caption", "subject")]
    lists = [(name, column) for name in ("carry", "restricted", "where", "drop") for column in getattr(config, name)]
    return [use for use in (*single, *lists) if use[1] is not None and use != ("drop", ALL_OTHERS)]


class ColumnPolicy:
    """The treatment of each column, from (setting, column) pairs; ``drops_rest`` drops the columns without a setting.

    Raises SourceError for a column with two settings that contradict each other.
    """

    def __init__(self, named: Iterable[tuple[str, str]], drops_rest: bool) -> None:
        self.drops_rest = drops_rest
        self._settings: dict[str, dict[str, None]] = {}
        for setting, column in named:
            self._settings.setdefault(column, {})[setting] = None
        for column, settings in self._settings.items():
            for first, second in CONFLICTS:
                if first in settings and second in settings:
                    name = _printable_name(column)
                    raise SourceError(
                        f"source.{first}: column {name!r} is named in source.{second} too: name it in one"
                    )

    @classmethod
    def from_config(cls, config: SourceConfig) -> ColumnPolicy:
        return cls(configured_columns(config), ALL_OTHERS in config.drop)

    def treatment(self, column: str) -> str | None:
        """Return the treatment of a column; None if it has no setting."""
        if settings := self._settings.get(column):
            return " and ".join(TREATMENTS[setting] for setting in settings)
        return DROPPED if self.drops_rest else None

    def find_unclassified(self, columns: Iterable[str]) -> list[str]:
        """Return the columns without a treatment; reads none of them where the rest is dropped."""
        return (
            [] if self.drops_rest else [column for column in dict.fromkeys(columns) if self.treatment(column) is None]
        )

    def check(self, columns: Iterable[str]) -> None:
        """Raise SourceError if a column has no treatment."""
        refuse_unclassified(self.find_unclassified(columns))

    def describe(self, columns: Iterable[str], location: str) -> list[Field]:
        """Return the fields of columns that all have a treatment."""
        return [Field.for_column(name, self.treatment(name) or DROPPED, location) for name in dict.fromkeys(columns)]


def refuse_unclassified(columns: Iterable[str]) -> None:
    """Raise SourceError if there is any column."""
    if names := [repr(_printable_name(column)) for column in dict.fromkeys(columns)]:
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        raise SourceError(
            f"source: columns that nobody has classified, {', '.join(names[:MAX_NAMED])}{more}: name each in "
            f"source.carry, source.drop or source.restricted (drop: ['{ALL_OTHERS}'] drops all others)"
        )


def check_carry(config: SourceConfig) -> None:
    """Raise SourceError if a carried column would replace one of the release's own."""
    for name in config.carry:
        if name in RESERVED_COLUMNS:
            hint = f"use source.{name}" if name in ("label", "caption") else "rename it in the source, or leave it out"
            raise SourceError(f"source.carry: {name!r} is a column of the release itself: {hint}")


def check_columns(config: SourceConfig, available: Sequence[str], file: str) -> None:
    """Raise SourceError if a column that the configuration uses is missing from the file, or there twice."""
    counts = Counter(available)
    for setting, name in configured_columns(config):
        if setting == "drop" or counts[name] == 1:
            continue
        if counts[name] > 1:
            raise SourceError(f"source.{setting}: {counts[name]} columns {name!r} in {file}: rename all but one")
        near = ", ".join(repr(to_printable(column)) for column in get_close_matches(name, counts, n=3, cutoff=0.6))
        hint = f"did you mean {near}?" if near else "check its spelling"
        raise SourceError(f"source.{setting}: no column {name!r} among the {len(available)} of {file}: {hint}")


def _printable_name(column: str) -> str:
    """Return a column's name for a message: printable, even with unpaired surrogates as JSON can spell, and short."""
    name = to_printable(column.encode("utf-8", "surrogatepass").decode("utf-8", "surrogateescape"), safe="%")
    return name if len(name) <= MAX_NAME_LENGTH else f"{name[: MAX_NAME_LENGTH - 3]}..."
