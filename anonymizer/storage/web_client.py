"""An HTTP client that data cannot lead astray: no redirect to another host, no address that is not public.

Names are resolved by the connector of the client, and only the answers that passed are connected to.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any

from anonymizer.storage.address import DEFAULT_PORTS

if TYPE_CHECKING:
    from aiohttp import ClientSession

NAT64 = ip_network("64:ff9b::/96")  # an IPv4 address is in the last 32 bits
COMPATIBLE = ip_network("::/96")


class RefusedAddressError(PermissionError):
    """A redirect or an address that is not followed."""


def is_public(address: str) -> bool:
    """Return whether an IP address is one of the internet, with any IPv4 address that is wrapped in it."""
    ip = ip_address(address.partition("%")[0])
    wrapped: list[IPv4Address | IPv6Address] = [ip, *_wrapped(ip)] if isinstance(ip, IPv6Address) else [ip]
    return all(one.is_global and not one.is_multicast for one in wrapped)


def _wrapped(ip: IPv6Address) -> list[IPv4Address]:
    """Return the IPv4 addresses that a gateway would unwrap from an IPv6 address."""
    found = [ip.ipv4_mapped, ip.sixtofour, *(ip.teredo or ())]
    if ip in NAT64 or ip in COMPATIBLE:
        found.append(IPv4Address(int(ip) & 0xFFFFFFFF))
    return [one for one in found if one is not None]


def is_allowed(host: str, address: str, networks: Sequence[str]) -> bool:
    """Return whether an answer to a name may be connected to; ``networks`` are allowed besides public addresses."""
    ip = ip_address(address.partition("%")[0])
    is_named = any(ip in ip_network(network, strict=False) for network in networks)
    return is_public(address) or is_named or (host == "localhost" and ip.is_loopback)


async def open_client(networks: Sequence[str], **options: Any) -> ClientSession:
    """Return a session for fsspec's HTTP file system."""
    from aiohttp import ClientSession, TCPConnector, ThreadedResolver, TraceConfig, TraceRequestRedirectParams
    from aiohttp.abc import ResolveResult

    class CheckedResolver(ThreadedResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
        ) -> list[ResolveResult]:
            answers = await super().resolve(host, port, family)
            if not all(is_allowed(host, answer["host"], networks) for answer in answers):
                raise RefusedAddressError("the name leads to an address that is not public")
            return answers

    async def check_redirect(session: Any, context: Any, redirect: TraceRequestRedirectParams) -> None:
        headers = redirect.response.headers
        target = redirect.url.join(type(redirect.url)(headers.get("Location") or headers.get("URI") or ""))
        upgrade = redirect.url.scheme == "http" and redirect.url.port == DEFAULT_PORTS["http"]
        is_same = target.origin() == redirect.url.origin() if target.host else False
        if not is_same and not (
            upgrade and target.host == redirect.url.host and (target.scheme, target.port) == ("https", 443)
        ):
            raise RefusedAddressError("a redirect to another host")

    trace = TraceConfig()
    trace.on_request_redirect.append(check_redirect)
    connector = TCPConnector(resolver=CheckedResolver())
    return ClientSession(connector=connector, trace_configs=[trace], **options)
