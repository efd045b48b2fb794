"""Addresses of files as text: which store and path one names, and whether it lies below another.

An address that two readers could understand in two ways (user names, backslashes, dot segments, encoded slashes, chains
of file systems) is refused: the check of the text and the client that fetches it must read the same address.
"""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from ipaddress import ip_network
from urllib.parse import unquote

STORES = {"s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "abfs", "abfss": "abfs", "adl": "adl"}
STORES |= {"hdfs": "hdfs", "memory": "memory"}
LOCAL = ("file", "local")
DEFAULT_PORTS = {"http": 80, "https": 443}
WEB_PATTERN = re.compile(
    r"(?P<scheme>https?)://(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<path>/[!$-.0-;=@-\[\]_a-z~/]*)?(?P<query>\?[!$-;=?-\[\]_a-z~]*)?"
)


@dataclass(frozen=True)
class Address:
    """A store (``file``, ``s3``, ``https://host``) and a path on it."""

    store: str
    path: str

    @property
    def is_local(self) -> bool:
        return self.store == "file"

    @property
    def is_web(self) -> bool:
        return "://" in self.store

    @property
    def origin(self) -> str:
        """The store, with its bucket or container where it has several."""
        return self.store if self.is_web else f"{self.store}://{self.path.partition('/')[0]}"

    def is_inside(self, root: Address) -> bool:
        """Return whether this is ``root`` or lies below it; only the text is compared."""
        return self.store == root.store and f"{self.path}/".startswith(f"{root.path.rstrip('/')}/")


def parse_address(text: str) -> Address | None:
    """Return the address of an absolute path or a URI; None for any other text, and for one that is ambiguous."""
    protocol, separator, rest = text.partition("://")
    protocol = protocol.lower()
    if "\0" in text:
        return None
    if not separator or protocol in LOCAL:
        path = rest if separator else text
        return Address("file", posixpath.normpath("/" + path.lstrip("/"))) if path.startswith("/") else None
    if "::" in text or not text.isprintable() or "\\" in text:
        return None
    if protocol in DEFAULT_PORTS:
        return _parse_web(f"{protocol}://{rest}")
    rest = rest.lstrip("/") if protocol == "memory" else rest
    segments = rest.rstrip("/").split("/")
    if protocol not in STORES or not segments[0] or not {".", ".."}.isdisjoint(segments):
        return None
    return Address(STORES[protocol], "/".join(segments))


def _parse_web(text: str) -> Address | None:
    match = WEB_PATTERN.fullmatch(text)
    if match is None:
        return None
    segments = [unquote(segment, errors="surrogateescape") for segment in (match["path"] or "/").split("/")]
    if any(segment in (".", "..") or not {"/", "\\", "\0"}.isdisjoint(segment) for segment in segments):
        return None
    scheme, port = match["scheme"], match["port"]
    suffix = "" if port is None or int(port) == DEFAULT_PORTS[scheme] else f":{int(port)}"
    return Address(f"{scheme}://{match['host'].lower()}{suffix}", "/".join(segments).rstrip("/"))


def is_network(text: str) -> bool:
    """Return whether a text is an IP address or a network, such as ``10.1.0.0/16``."""
    try:
        ip_network(text, strict=False)
    except ValueError:
        return False
    return True
