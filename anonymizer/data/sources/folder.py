"""A folder of pictures, nested as deep as it likes; a picture's folder can be its label, and say who is on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from anonymizer.config import SourceConfig
from anonymizer.data.sources.column_policy import ALL_OTHERS, FILE_ATTRIBUTES, TREATMENTS, Field
from anonymizer.data.sources.files import Location, RecordIds, read_each, to_printable
from anonymizer.errors import SourceError
from anonymizer.records import Entry, Record


class FolderSource:
    """Every file below the folder is a record (``files.IGNORED_NAMES`` apart); its relative path is its id."""

    def __init__(self, config: SourceConfig, location: Location) -> None:
        if location.is_file:
            raise SourceError(f"source.uri {location.uri!r}: a file: name the folder, or another source.format")
        for name in ("label", "subject"):
            if (value := getattr(config, name)) not in (None, "folder"):
                raise SourceError(f"source.{name} {value!r}: a folder has no columns: use 'folder', or leave it out")
        for name in ("id", "caption", "carry", "restricted", "where", "drop"):
            if getattr(config, name) and (name, config.drop) != ("drop", (ALL_OTHERS,)):
                raise SourceError(f"source.{name}: a folder has no columns: leave it out, or use a listing")
        self.config, self.location = config, location

    def entries(self) -> Iterator[Entry]:
        ids = RecordIds()
        for file in self.location.files():
            record_id, duplicate = ids.claim(to_printable(file.relative))
            uri, folder = self.location.to_uri(file.path), parent_label(file.relative)
            label = folder if self.config.label else None
            subject = folder if self.config.subject else None
            problem = file.problem or duplicate
            yield Entry(record_id, uri, size=file.size, label=label, problem=problem, subject=subject)
        if not len(ids):
            raise SourceError(f"source.uri {self.location.uri!r}: no files in it: name the folder of the pictures")

    def read(self, entries: Sequence[Entry]) -> Iterator[Record]:
        return read_each(entries, self._read, self.location.concurrent_reads)

    def fields(self) -> list[Field]:
        uses = [TREATMENTS[name] for name in ("label", "subject") if getattr(self.config, name)]
        return [FILE_ATTRIBUTES, *([Field("folder", " and ".join(uses), "each file")] if uses else [])]

    def _read(self, entry: Entry) -> Record:
        data = self.location.read(self.location.to_path(entry.uri), self.config.limits.max_bytes, entry.size)
        return Record(entry, data, label=entry.label, subject=entry.subject)


def parent_label(path: str) -> str | None:
    """The folder of a path inside the source, as a label; none at the top."""
    return to_printable(path.rpartition("/")[0], safe="%") or None
