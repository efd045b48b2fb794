"""Decide which files the rows of a table may name: those in its own folder, and below the roots in ``source.allow``.

Rows are untrusted data: a file that a row names is read with the rights of this process, and published.
"""

from __future__ import annotations

import os
import posixpath
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from urllib.parse import quote

from anonymizer.data.sources.column_policy import Field
from anonymizer.data.sources.files import URL_SAFE, Location, is_inside, read_local, read_remote
from anonymizer.errors import RecordError
from anonymizer.records import Reason
from anonymizer.storage import filesystem
from anonymizer.storage.address import Address, is_network, parse_address

MAX_ORIGINS = 20  # that `plan` shows
READ, REFUSED = "read (source.allow)", "refused (outside_source): name what is meant in source.allow"


class RowFiles:
    """The files that rows of a table at ``location`` may name."""

    def __init__(self, location: Location, allow: Sequence[str]) -> None:
        self.location = location
        self.networks = [entry for entry in allow if is_network(entry)]
        self.roots = [root for entry in allow if (root := parse_address(entry)) is not None]
        self.folder = location.root
        self.own = parse_address(location.to_uri(self.folder or "/"))

    def resolve(self, name: str) -> tuple[str, Reason | None]:
        """Return the URI of the file that a row names, or the name and the problem if it may not be read."""
        if (path := self._own_path(name)) is not None:
            return self.location.to_uri(path), None
        address = self._allowed_address(name)
        if address is None:
            return name, Reason.OUTSIDE_SOURCE
        return address.path if address.is_local else name, None

    def read(self, name: str, max_bytes: int) -> bytes:
        """Return all bytes of the file that a row names. RecordError OUTSIDE_SOURCE if it may not be read."""
        if (path := self._own_path(name)) is not None:
            return self.location.read(path, max_bytes)
        address = self._allowed_address(name)
        if address is None:
            raise RecordError(Reason.OUTSIDE_SOURCE)
        if address.is_local:
            return read_local(address.path, [root.path for root in self.roots if root.is_local], max_bytes)
        protocol, _, rest = name.partition("://")
        return read_remote(*filesystem.open_fs(f"{protocol.lower()}://{rest}", self.networks), max_bytes)

    def describe(self, names: Iterable[str]) -> Iterator[Field]:
        """Yield a field for each store or host outside the table's folder that rows name, the most frequent first."""
        counts = Counter[tuple[str, str]]()
        for name in names:
            if self._own_path(name) is None:
                counts[self._origin(name), READ if self._allowed_address(name) else REFUSED] += 1
        for (origin, treatment), count in counts.most_common(MAX_ORIGINS):
            yield Field.for_column(origin, treatment, f"{count:,} {'row' if count == 1 else 'rows'}")
        if len(counts) > MAX_ORIGINS:
            yield Field(f"{len(counts) - MAX_ORIGINS:,} more places", "by source.allow", "rows")

    def _own_path(self, name: str) -> str | None:
        """Return the path of a file in the table's folder; None for any other text."""
        if "\0" in name:
            return None
        if "://" in name or (self.location.is_local and posixpath.isabs(name)):
            address = parse_address(name)
            if address is None or self.own is None or not _is_below(address, self.own):
                return None
            return address.path if address.is_local else self.location.to_path(name)
        if filesystem.is_web(self.location.fs):
            url = f"{self.folder}/{quote(posixpath.normpath(name), safe=URL_SAFE)}"
            address = parse_address(url) if not posixpath.isabs(name) and "\\" not in name else None
            return url if address and self.own and address.is_inside(self.own) else None
        path = posixpath.normpath(posixpath.join(self.folder or "/", name))
        return path if path.startswith(f"{self.folder}/") else None

    def _allowed_address(self, name: str) -> Address | None:
        address = parse_address(name)
        return address if address and any(_is_below(address, root) for root in self.roots) else None

    def _origin(self, name: str) -> str:
        address = parse_address(name)
        if address is None:
            return "addresses of an unknown form" if "://" in name else "relative paths out of the folder"
        return "other folders of this machine" if address.is_local else address.origin


def _is_below(address: Address, root: Address) -> bool:
    """Return whether an address lies below a root, on a disk by either the text or the folders that links lead to."""
    if address.is_inside(root):
        return True
    return address.is_local and root.is_local and is_inside(os.path.realpath(address.path), os.path.realpath(root.path))
