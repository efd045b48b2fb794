"""Errors of file systems are explained without names of objects."""

from __future__ import annotations

import re
import sys

import pytest
from botocore.exceptions import ClientError
from s3fs.errors import translate_boto_error

from anonymizer.data.sources import files
from anonymizer.errors import OutputError, SourceError
from anonymizer.storage import filesystem
from anonymizer.storage.path import StoragePath


def test_the_extra_of_a_missing_package_is_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3")
    for work, error in (
        (lambda: StoragePath.from_uri(bucket), OutputError),
        (lambda: files.locate(bucket), SourceError),
    ):
        with pytest.raises(error, match=r"not installed: pip install 'anonymizer\[s3\]'"):
            work()


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("NoSuchKey", "there is no such file"),
        ("NoSuchBucket", "there is no such bucket"),
        ("AccessDenied", "access denied"),
        ("InvalidAccessKeyId", "does not know this access key"),
        ("SignatureDoesNotMatch", "the secret key does not belong"),
        ("ExpiredToken", "the credentials have expired"),
        ("SlowDown", "failed several times in a row"),
        ("InternalError", "failed several times in a row"),
        ("EntityTooLarge", r"the store refused \(EntityTooLarge\)"),
        ("ada.png", r"the store refused \(EIO\)"),
    ],
)
def test_messages_of_a_store_are_never_repeated(code: str, message: str) -> None:
    response = {"Error": {"Code": code, "Message": "The key people/ada.png of someone is a secret"}}
    error = translate_boto_error(ClientError(response, "GetObject"))
    assert re.search(message, filesystem.explain(error))
    assert not re.search("ada|people|someone|secret is", filesystem.explain(error))
