"""The client for what data names: public addresses, redirects to the same host, and no proxy of the environment."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer.storage import filesystem, web_client
from tests.support.http_listener import Quiet, listening

PRIVATE = [
    *("127.0.0.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1", "224.0.0.1"),
    *("::1", "::", "fe80::1", "fe80::1%eth0", "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::7f00:1"),
    *("2002:7f00:1::", "2002:a9fe:a9fe::", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "255.255.255.255", "198.18.0.1"),
]


@pytest.mark.parametrize("address", PRIVATE)
def test_an_address_that_is_not_public_is_refused(address: str) -> None:
    assert not web_client.is_public(address)
    assert not web_client.is_allowed("images.example", address, ["10.99.0.0/16"])


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808"])
def test_a_public_address_is_allowed(address: str) -> None:
    assert web_client.is_public(address)


@settings(deadline=None)
@given(st.ip_addresses(v=4), st.sampled_from(["{}", "::ffff:{}", "64:ff9b::{}"]))
def test_an_ipv4_address_is_as_public_as_any_that_wraps_it(ip: IPv4Address, form: str) -> None:
    assert web_client.is_public(form.format(ip)) == (ip.is_global and not ip.is_multicast)


@settings(deadline=None)
@given(st.ip_addresses(v=6))
def test_no_public_ipv6_address_wraps_a_private_one(ip: IPv6Address) -> None:
    for wrapped in (ip.ipv4_mapped, ip.sixtofour):
        assert wrapped is None or wrapped.is_global or not web_client.is_public(str(ip))


def test_networks_allow_what_they_hold_and_localhost_is_this_machine() -> None:
    assert web_client.is_allowed("images.corp", "10.1.2.3", ["10.1.0.0/16"])
    assert not web_client.is_allowed("images.corp", "10.2.2.3", ["10.1.0.0/16"])
    assert web_client.is_allowed("localhost", "127.0.0.1", []) and not web_client.is_allowed(
        "localhost", "10.0.0.1", []
    )


class Server(Quiet):
    """Answers with a picture, or with the redirect that ``targets`` has for its path."""

    targets: ClassVar[dict[str, str]] = {}
    asked: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if target := self.targets.get(self.path):
            self.send_response(302)
            self.send_header("Location", target)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", "7")
        self.end_headers()
        self.wfile.write(b"picture" if self.command == "GET" else b"")

    do_HEAD = do_GET


@pytest.fixture
def server() -> Iterator[str]:
    Server.targets, Server.asked = {}, []
    with listening(Server) as url:
        yield url


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Let a name lead to an address."""
    known: dict[str, str] = {}
    original = socket.getaddrinfo

    def getaddrinfo(host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host not in known:
            return original(host, port, *args, **options)
        family = socket.AF_INET6 if ":" in known[host] else socket.AF_INET
        place = (known[host], port, 0, 0) if family == socket.AF_INET6 else (known[host], port)
        return [(family, socket.SOCK_STREAM, 6, "", place)]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return known.__setitem__


def fetch(url: str, *networks: str) -> bytes:
    fs, path = filesystem.open_fs(url, networks)
    return bytes(fs.cat_file(path))


def refused(url: str, *networks: str) -> bool:
    try:
        fetch(url, *networks)
    except Exception as error:
        assert filesystem.is_refused_address(error), error
        assert "source.allow" in filesystem.explain(error)
        return True
    return False


def test_a_name_that_leads_to_this_machine_is_not_connected_to(server: str, names: Callable[[str, str], None]) -> None:
    port = server.rpartition(":")[2]
    for address in ("127.0.0.1", "::1", "::ffff:127.0.0.1"):
        names("images.example", address)
        assert refused(f"http://images.example:{port}/x")
    assert Server.asked == []
    names("images.example", "127.0.0.1")
    assert fetch(f"http://images.example:{port}/x", "127.0.0.1") == b"picture"


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "0177.0.0.1"])
def test_numbers_that_are_no_written_address_are_names(server: str, host: str) -> None:
    try:
        fetch(f"http://{host}:{server.rpartition(':')[2]}/x")
        pytest.fail("it was fetched")
    except Exception as error:
        assert ip_address("127.0.0.1").is_loopback
        assert not isinstance(error, AssertionError)
    assert Server.asked == []


def test_a_redirect_stays_on_its_host_and_port(server: str, names: Callable[[str, str], None]) -> None:
    port = server.rpartition(":")[2]
    names("other.example", "127.0.0.1")
    with listening(Server) as second:
        Server.targets = {
            "/same": "/x",
            "/whole": f"{server}/x",
            "/port": f"{second}/x",
            "/host": f"http://other.example:{port}/x",
            "/name": f"http://localhost:{port}/x",
            "/user": f"http://127.0.0.1@other.example:{port}/x",
            "/short": f"//other.example:{port}/x",
            "/metadata": "http://169.254.169.254/latest/meta-data/",
            "/file": "file:///etc/passwd",
            "/twice": "/host",
            "/secure": server.replace("http:", "https:") + "/x",
        }
        for path in ("/same", "/whole"):
            assert fetch(server + path) == b"picture"
        Server.asked.clear()
        wrong = [path for path in Server.targets if path not in ("/same", "/whole")]
        for path in wrong:
            try:
                fetch(server + path, "127.0.0.1")
                pytest.fail(f"{path} was followed")
            except Exception:
                pass
        assert "/x" not in Server.asked


def test_a_proxy_of_the_environment_is_not_asked(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    assert fetch(f"{server}/x") == b"picture"
