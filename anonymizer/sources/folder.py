"""A folder of pictures, nested as deep as it likes; a picture's folder can be its label."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from anonymizer.config import SourceConfig
from anonymizer.errors import SourceError
from anonymizer.records import Entry, Record
from anonymizer.sources.files import Ids, Location, printable, read_each


class FolderSource:
    """Every file below the folder is a record (``files.IGNORED_NAMES`` apart); its relative path is its id."""

    def __init__(self, config: SourceConfig, location: Location) -> None:
        if location.is_file:
            raise SourceError(f"source.uri {location.uri!r}: a file: name the folder, or another source.format")
        if config.label not in (None, "folder"):
            raise SourceError(f"source.label {config.label!r}: a folder has no columns: use 'folder', or leave it out")
        for name in ("id", "caption", "carry", "where"):
            if getattr(config, name):
                raise SourceError(f"source.{name}: a folder has no columns: leave it out, or use a listing")
        self.config, self.location = config, location

    def entries(self) -> Iterator[Entry]:
        ids = Ids()
        for file in self.location.files():
            record_id, duplicate = ids.claim(printable(file.relative))
            uri, label = self.location.to_uri(file.path), self._label(file.relative)
            yield Entry(record_id, uri, size=file.size, label=label, problem=file.problem or duplicate)
        if not len(ids):
            raise SourceError(f"source.uri {self.location.uri!r}: no files in it: name the folder of the pictures")

    def read(self, entries: Sequence[Entry]) -> Iterator[Record]:
        return read_each(entries, self._read, self.location.ahead)

    def _read(self, entry: Entry) -> Record:
        path = self.location.to_path(entry.uri)
        return Record(entry, self.location.read(path, self.config.limits.max_bytes, entry.size), label=entry.label)

    def _label(self, relative: str) -> str | None:
        folder = relative.rpartition("/")[0] if self.config.label == "folder" else ""
        return printable(folder, keep="%") or None
