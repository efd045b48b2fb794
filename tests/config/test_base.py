"""Sections are frozen, and addresses with passwords are refused and not repeated."""

from __future__ import annotations

from functools import reduce

import pytest

from anonymizer.config import build, known_keys
from tests.support.configs import LEAST, config_error

PASSWORD = "hunter2"


@pytest.mark.parametrize("key", ["source.uri", "output.uri"])
@pytest.mark.parametrize("uri", ["s3://me:{}@host/x", "ftp://:{}/a@host", "simplecache::sftp://me:{}@host:22/x"])
def test_an_address_with_a_password_is_refused_and_not_repeated(key: str, uri: str) -> None:
    line = config_error(LEAST, f"{key}={uri.format(PASSWORD)}")
    assert line.startswith(f"{key} holds a password, which would be stored with the run")
    assert "environment" in line
    assert PASSWORD not in line


@pytest.mark.parametrize(
    "override", ["source={}", "source=[{}]", "source.uri=[{}]", "output.format={}", "{}", "a={}x: ["]
)
def test_an_address_with_a_password_is_not_repeated_wherever_it_stands(override: str) -> None:
    assert PASSWORD not in config_error(LEAST, override.format(f"s3://me:{PASSWORD}@host/x"))


@pytest.mark.parametrize(
    "uri", ["hdfs://host:8020/me@home", "sftp://me@host/x", "github://org:repo@v1/x", "s3://bucket/a:b@c", "C:\\a@b"]
)
def test_an_address_without_a_password_is_accepted(uri: str) -> None:
    assert build(LEAST, (), {"source.uri": uri}).source.uri == uri


def test_a_config_cannot_be_changed_afterwards() -> None:
    config = build(LEAST)
    for name in known_keys():
        *sections, key = name.split(".")
        with pytest.raises(ValueError, match="frozen"):
            setattr(reduce(getattr, sections, config), key, 1)
