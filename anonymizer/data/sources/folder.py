"""A folder of images, nested to any depth; an image's folder can be its label and its subject."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from anonymizer.config import SourceConfig
from anonymizer.data.sources.building import RecordIds, find_subject_problem, folder_values, read_each
from anonymizer.data.sources.column_policy import ALL_OTHERS, FILE_ATTRIBUTES, Field, describe_folder
from anonymizer.data.sources.files import Location, to_printable
from anonymizer.errors import SourceError
from anonymizer.records import Entry, Record


class FolderSource:
    """Every file below the folder, except ``files.IGNORED_NAMES``, is a record; its relative path is its id."""

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
            label, subject = folder_values(self.config, file.relative)
            problem = file.problem or duplicate or find_subject_problem(self.config, subject)
            uri = self.location.to_uri(file.path)
            yield Entry(record_id, uri, size=file.size, label=label, problem=problem, subject=subject)
        if not len(ids):
            raise SourceError(f"source.uri {self.location.uri!r}: no files in it: name the folder of the pictures")

    def read(self, entries: Sequence[Entry]) -> Iterator[Record]:
        return read_each(entries, self._read, self.location.concurrent_reads)

    def fields(self) -> list[Field]:
        return [FILE_ATTRIBUTES, *describe_folder(self.config, "each file")]

    def _read(self, entry: Entry) -> Record:
        data = self.location.read(self.location.to_path(entry.uri), self.config.limits.max_bytes, entry.size)
        return Record(entry, data, label=entry.label, subject=entry.subject)
