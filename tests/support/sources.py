"""Open, read and check sources in tests, and write the files that they read."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any

import pytest

from anonymizer.config import SourceConfig
from anonymizer.data.sources import Source, open_source
from anonymizer.errors import SourceError
from anonymizer.records import Reason, Record


def open_uri(uri: object, **options: Any) -> Source:
    return open_source(SourceConfig.model_validate({"uri": str(uri), **options}))


def read_all(uri: object, **options: Any) -> dict[str, Record]:
    """Return the records by id; listed by one source and read by another, as the shards of a run do."""
    entries = list(open_uri(uri, **options).entries())
    records = list(open_uri(uri, **options).read(entries))
    assert [record.entry for record in records] == entries, "one record for each entry, in order"
    assert len({entry.record_id for entry in entries}) == len(entries), "ids are unique"
    assert all(entry.record_id.isprintable() and entry.record_id.encode() for entry in entries)
    assert all((not record.data) == (record.problem is not None) for record in records if record.entry.size != 0)
    return {record.entry.record_id: record for record in records}


def problems(records: dict[str, Record]) -> dict[str, Reason]:
    return {key: record.problem for key, record in records.items() if record.problem is not None}


def source_error(uri: object, **options: Any) -> str:
    with pytest.raises(SourceError) as caught:
        read_all(uri, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def write_files(root: Path, **files: bytes) -> Path:
    for name, data in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def member(
    name: str, data: bytes = b"", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = len(data), kind, link
    return info, data


def tar(*members: tuple[tarfile.TarInfo, bytes] | tuple[str, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as archive:
        for info, data in members:
            archive.addfile(info if isinstance(info, tarfile.TarInfo) else member(info, data)[0], io.BytesIO(data))
    return file.getvalue()


DROP_REST: dict[str, Any] = {"drop": ["*"]}  # columns that a test is not about
ROW_CHANGES = {  # how a table with the rows one, two, six can change
    "inserted": [("new", "x"), ("one", "a"), ("two", "b"), ("six", "c")],
    "reordered": [("two", "b"), ("one", "a"), ("six", "c")],
    "dropped": [("two", "b"), ("six", "c")],
}
