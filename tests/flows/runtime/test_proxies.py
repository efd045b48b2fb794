"""A proxy in the environment: nothing on this machine is reached through it, and a wrong one is one line."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.request
from pathlib import Path

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer.errors import ConfigError
from flows.runtime import prefect_settings, proxies
from tests.support.environment import without_prefect
from tests.support.http_listener import Quiet, listening

VARIABLES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy")

RUN = """
from flows.runtime import temporary_server as server
with server.ensure_server("SECRET") as ready:
    ready()
    from prefect import flow, task
    @task
    def two(): return 2
    @flow(name="behind-a-proxy")
    def one(): return two.submit().result()
    assert one() == 2
"""


@pytest.mark.slow
@pytest.mark.parametrize("no_proxy", [None, "example.org"])
def test_a_temporary_server_is_reached_without_the_proxy_by_every_client(tmp_path: Path, no_proxy: str | None) -> None:
    asked: list[str] = []

    class Proxy(Quiet):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(502)

        do_POST = do_CONNECT = do_PUT = do_PATCH = do_GET

    environment = {n: v for n, v in without_prefect().items() if n.lower() != "no_proxy"}
    with listening(Proxy) as url:
        environment |= dict.fromkeys(VARIABLES, url) | {"PREFECT_HOME": str(tmp_path)}
        environment |= {} if no_proxy is None else {"NO_PROXY": no_proxy}
        done = subprocess.run([sys.executable, "-c", RUN], capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr, asked) == (0, "", [])


HOSTS = st.lists(st.sampled_from(["example.org", ".example.org", "10.0.0.1", "*", " h ", ""]), max_size=4)


@settings(deadline=None, max_examples=50)
@given(upper=st.none() | HOSTS, lower=st.none() | HOSTS)
def test_this_machine_is_added_to_the_hosts_without_a_proxy(upper: list[str] | None, lower: list[str] | None) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HTTP_PROXY", "http://proxy.example:8080")
        for name, hosts in (("NO_PROXY", upper), ("no_proxy", lower)):
            patch.delenv(name, raising=False) if hosts is None else patch.setenv(name, ",".join(hosts))
        proxies.bypass_for_loopback()
        for host in (*proxies.LOOPBACK, *(h.strip() for h in [*(upper or []), *(lower or [])] if h.strip() != "*")):
            assert not host or urllib.request.proxy_bypass_environment(host), host
        with httpx.Client(verify=False) as client:
            for url in ("http://127.0.0.1:4200/api", "http://localhost:1/", "http://[::1]:8/"):
                assert client._transport_for_url(httpx.URL(url)) is client._transport
        before = os.environ["NO_PROXY"]
        proxies.bypass_for_loopback()
        assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == before


@pytest.mark.parametrize("variable", VARIABLES)
@pytest.mark.parametrize("value", ["http://secret:port", "socks5://secret:1080", "ftp://secret/"])
def test_a_proxy_that_cannot_be_used_is_one_line(monkeypatch: pytest.MonkeyPatch, variable: str, value: str) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigError, match=r"^HTTP_PROXY, HTTPS_PROXY, ALL_PROXY: name a proxy that") as caught:
        prefect_settings.apply_defaults()
    assert "secret" not in str(caught.value) and "\n" not in str(caught.value)
