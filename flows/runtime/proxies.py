"""HTTP proxies of the environment: none for addresses of this machine, which no proxy can reach."""

from __future__ import annotations

import os

import httpx

from anonymizer.errors import ConfigError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
NO_PROXY = ("NO_PROXY", "no_proxy")  # some programs read the one, some the other, and some either


def bypass_for_loopback() -> None:
    """Add this machine to NO_PROXY, for this process and its children.

    Raises ConfigError where the proxy that the environment names cannot be used by Prefect's clients at all.
    """
    named = [host.strip() for name in NO_PROXY for host in os.environ.get(name, "").split(",")]
    hosts = dict.fromkeys([*(host for host in named if host), *LOOPBACK])
    os.environ |= dict.fromkeys(NO_PROXY, ",".join(hosts))
    try:
        httpx.Client(verify=False).close()  # sends nothing, and so needs no certificates
    except (ValueError, ImportError, httpx.InvalidURL) as error:  # the value is not repeated: it may hold a password
        raise ConfigError(
            f"HTTP_PROXY, HTTPS_PROXY, ALL_PROXY: name a proxy that cannot be used ({type(error).__name__}): give "
            "http://HOST:PORT, or unset them"
        ) from None
