"""Addresses as text: one meaning or none, and inside a root only if every client agrees."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
import yarl
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer.storage.address import is_network, parse_address

WEB_ROOT = "https://images.example/data/"
ESCAPES = [
    "https://images.example/data/../secret",
    "https://images.example/data/%2e%2e/secret",
    "https://images.example/data/.%2E/secret",
    "https://images.example/data/..%2fsecret",
    "https://images.example/data/a%5c..%5csecret",
    "https://images.example/data\\..\\secret",
    "https://images.example\\@127.0.0.1/data/x",
    "https://images.example@127.0.0.1/data/x",
    "https://user:word@images.example/data/x",
    "https://images.example:443@127.0.0.1/data/x",
    "https://127.0.0.1/data/x#@images.example/data/x",
    "https://images.example#/data/x",
    "https://images.example:444/data/x",
    "https://images.example.evil.example/data/x",
    "https://evilimages.example/data/x",
    "https://images.example./data/x",
    "http://images.example/data/x",
    "https://images.example/database/x",
    "https://images.example/data/x\r\nHost: other",
    "https://images.example/data/ x",
    "https://im\u0430ges.example/data/x",  # a Cyrillic letter
    "https:/images.example/data/x",
    "https:images.example/data/x",
    "//images.example/data/x",
    "zip://x::https://images.example/data/x",
    "https://images.example/data/x::https://other.example/y",
    "https://2130706433/data/x",
    "https://0x7f.1/data/x",
    "https://0177.0.0.1/data/x",
    "https://[::ffff:127.0.0.1]/data/x",
    "https://[::1]/data/x",
    "https://169.254.169.254/latest/meta-data/",
    "https://metadata.google.internal/x",
    "ftp://images.example/data/x",
    "data:image/png;base64,AAAA",
    "",
]


@pytest.mark.parametrize("text", ESCAPES)
def test_a_web_address_that_leads_elsewhere_is_not_inside(text: str) -> None:
    root, address = parse_address(WEB_ROOT), parse_address(text)
    assert root is not None
    assert address is None or not address.is_inside(root)


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("https://images.example/data/x.png", WEB_ROOT),
        ("HTTPS://IMAGES.example:443/data/a/b%20c.png?size=1", WEB_ROOT),
        ("https://images.example/data", WEB_ROOT),
        ("https://images.example/d%61ta/x", WEB_ROOT),
        ("http://127.0.0.1:8000/x", "http://127.0.0.1:8000"),
        ("http://[0:0:0:0:0:0:0:1]:80/x", "http://[0:0:0:0:0:0:0:1]"),
        ("s3a://bucket/a/x", "s3://bucket/a"),
        ("s3://bucket/a//x", "s3://bucket/"),
        ("memory://set/x", "memory:///set"),
        ("/data/a/../b/x", "/data/b"),
        ("file:///data/b/x", "/data/b/"),
        ("/anything", "/"),
    ],
)
def test_an_address_below_a_root_is_inside(text: str, root: str) -> None:
    address, outer = parse_address(text), parse_address(root)
    assert address is not None and outer is not None and address.is_inside(outer)


@pytest.mark.parametrize(
    ("text", "root"),
    [
        ("s3://bucket2/x", "s3://bucket"),
        ("s3://bucket/ab/x", "s3://bucket/a"),
        ("s3://bucket/a/../b", "s3://bucket/a"),
        ("gs://bucket/a/x", "s3://bucket/a"),
        ("/data/b/../../etc/passwd", "/data/b"),
        ("file:///data/b/../c", "/data/b"),
        ("file://host/data/b/x", "/data/b"),
        ("/database", "/data"),
    ],
)
def test_an_address_beside_a_root_is_not_inside(text: str, root: str) -> None:
    address, outer = parse_address(text), parse_address(root)
    assert outer is not None and (address is None or not address.is_inside(outer))


PIECES = st.sampled_from(
    ["https://", "http://", "images.example", "127.0.0.1", "evil.example", "/data/", "..", ".", "/", "\\", "@", ":",
     "?", "#", "%2e", "%2f", "%5C", "%00", "%", "x.png", "::", " ", "\t", "[::1]", "443", "\u3002", "ⓔ", "S3://", ";"]
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(st.lists(PIECES, max_size=8).map("".join), st.booleans())
def test_what_is_inside_is_fetched_from_inside(text: str, has_root: bool) -> None:
    """The client that fetches reads the same host and path as the parser, and so does the standard library."""
    text = (WEB_ROOT if has_root else "") + text
    address, root = parse_address(text), parse_address(WEB_ROOT)
    assert root is not None
    if address is None or not address.is_inside(root):
        return
    fetched, parts = yarl.URL(text), urlsplit(text)
    for host, port, user in ((fetched.host, fetched.port, fetched.user), (parts.hostname, parts.port, parts.username)):
        assert (host, port or 443, user) == ("images.example", 443, None)
    assert fetched.scheme == "https" and f"{fetched.path}/".startswith("/data/")
    assert f"{fetched.raw_path}/".startswith("/data/")


def test_networks_are_addresses_and_ranges() -> None:
    assert is_network("10.1.2.3") and is_network("10.0.0.0/8") and is_network("fd00::/8")
    assert not any(map(is_network, ["", "10", "images.example", "https://10.1.2.3", "/10.0.0.0/8"]))
