"""Stores behind fsspec: opened so that no listing is remembered; what their errors mean, in words that name no object.

What a store answers may hold keys, paths and ids: none of it gets into a message, but the name of its error.
"""

from __future__ import annotations

import errno
import random
import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem

T = TypeVar("T")

MAX_PARALLEL_REQUESTS = 16  # small requests that are under way at a time
MAX_ATTEMPTS = 4
FIRST_BACKOFF = (
    0.2  # seconds before the second try; each further one waits twice as long, and up to as long again by chance
)

# What file systems call the thing that changes when a file does; the first one that they know counts.
VERSION_FIELDS = (
    "ETag",
    "etag",
    "blob_id",
    "mtime",
    "LastModified",
    "last_modified",
    "Last-Modified",
    "modified",
    "created",
)
EXTRAS = {"s3": "s3", "s3a": "s3"}  # protocol -> the extra of this package that brings its file system
LOCAL_PROTOCOLS = (None, "file", "local", "memory")
CLIENT_LIBRARIES = (
    "botocore",
    "aiobotocore",
    "boto3",
    "aiohttp",
    "s3fs",
    "gcsfs",
    "google",
    "adlfs",
    "azure",
    "urllib3",
)

# Names of errors of the libraries behind fsspec, which are not all OSErrors.
NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"}
NO_CREDENTIALS |= {"ProfileNotFound", "SSOTokenLoadError", "UnauthorizedSSOTokenError"}
UNREACHABLE = {"EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError", "gaierror"}
TRANSIENT = {"FSTimeoutError", "ReadTimeoutError", "ConnectionClosedError", "IncompleteRead", "ResponseStreamingError"}
TRANSIENT |= {"ClientPayloadError", "ServerDisconnectedError", "ClientOSError", "ServerTimeoutError"}
TRANSIENT_CODES = {"500", "502", "503", "504", "InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout"}
TRANSIENT_CODES |= {"429", "409", "ConditionalRequestConflict", "OperationAborted", "Throttling", "ThrottlingException"}
TRANSIENT_ERRNOS = {errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, getattr(errno, "EREMOTEIO", errno.EBUSY)}
DENIED = {"401", "403", "AccessDenied", "Forbidden", "AllAccessDisabled", "AccountProblem"}


def open_fs(uri: str) -> tuple[Any, str]:
    """The file system and the path of a URI; what others write there is seen at once. Raises what fsspec raises."""
    protocol, _ = fsspec.core.split_protocol(uri)
    fresh = {} if protocol in LOCAL_PROTOCOLS else {"use_listings_cache": False}
    try:
        return fsspec.core.url_to_fs(uri, **fresh)  # type: ignore[no-any-return]
    except ImportError as error:
        extra = EXTRAS.get(protocol or "")
        step = f"pip install 'anonymizer[{extra}]'" if extra else str(error).splitlines()[0]
        raise ImportError(f"the package that reaches {protocol}:// is not installed: {step}") from None


def is_local(fs: Any) -> bool:
    """Whether it is the disk of this machine, or one that is mounted here."""
    return isinstance(fs, LocalFileSystem)


def has_buckets(fs: Any) -> bool:
    """Whether what stands before the first slash of a path is a bucket or container, and no folder."""
    return bool(
        {"s3", "gs", "gcs", "az", "abfs"} & set((fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol)
    )


def is_s3(fs: Any) -> bool:
    """Whether it speaks S3 through s3fs, whoever serves it."""
    return "s3" in fs.protocol and hasattr(fs, "call_s3")


def is_versioned(fs: Any, path: str) -> bool:
    """Whether what is deleted there stays as an old version, as far as the store says so."""
    if not is_s3(fs):
        return False
    try:
        return bool(fs.is_bucket_versioned(fs.split_path(path)[0]))
    except Exception:  # not everybody may ask
        return False


def version_of(info: dict[str, Any]) -> str:
    """What changes when a file does, as its file system tells it."""
    return f"{next((info[name] for name in VERSION_FIELDS if info.get(name)), '')}"


def is_storage_error(error: BaseException) -> bool:
    """Whether an error is one of storage, and none of ours."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in CLIENT_LIBRARIES


def error_code(error: BaseException) -> str:
    """What the store itself called the error: ``NoSuchBucket``, ``503``; empty if it said nothing."""
    for one in _causes(error):
        if isinstance(answer := getattr(one, "response", None), dict):
            return str(answer.get("Error", {}).get("Code", ""))
        status = getattr(one, "status", None) or getattr(one, "code", None)
        if isinstance(status, int):
            return str(status)
    return ""


def is_transient(error: BaseException) -> bool:
    """Whether the same request may well succeed a moment later."""
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    if isinstance(error, TimeoutError | ConnectionError) or error_code(error) in TRANSIENT_CODES:
        return True
    names = {type(one).__name__ for one in _causes(error)}
    return bool(names & TRANSIENT) or (isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS)


def is_not_found(error: BaseException) -> bool:
    """Whether there is no such object, in a bucket that there is."""
    return isinstance(error, FileNotFoundError) and error_code(error) != "NoSuchBucket"


def is_precondition_failed(error: BaseException) -> bool:
    """Whether the condition of a put was not met."""
    return isinstance(error, FileExistsError) or error_code(error) in ("PreconditionFailed", "412")


def explain(error: BaseException) -> str:
    """What is wrong and what to do, in our own words."""
    said, names = error_code(error), {type(one).__name__ for one in _causes(error)}
    if names & NO_CREDENTIALS:
        return "no credentials were found: put them into the environment, or name a profile that has them (AWS_PROFILE)"
    if said == "InvalidAccessKeyId":
        return "the store does not know this access key: check AWS_ACCESS_KEY_ID, AWS_PROFILE and the endpoint"
    if said == "SignatureDoesNotMatch":
        return "the secret key does not belong to the access key: check AWS_SECRET_ACCESS_KEY"
    if said in ("ExpiredToken", "TokenRefreshRequired", "InvalidToken"):
        return "the credentials have expired, or are not valid here: renew them"
    if said == "RequestTimeTooSkewed":
        return "the clock of this machine is wrong: set it"
    if isinstance(error, PermissionError) or said in DENIED:
        return "access denied: check the credentials, and what they may do there"
    if said == "NoSuchBucket":
        return "there is no such bucket: make it, or check its name and the endpoint (AWS_ENDPOINT_URL)"
    if names & UNREACHABLE or isinstance(error, ConnectionRefusedError):
        return "cannot be reached: check the network and the endpoint (AWS_ENDPOINT_URL)"
    if is_transient(error):
        return "the store failed several times in a row: run the same command again"
    if isinstance(error, FileNotFoundError):
        return "there is no such file: check the address"
    number = getattr(error, "errno", None)
    reason = errno.errorcode.get(number, type(error).__name__) if isinstance(number, int) else type(error).__name__
    return f"the store refused ({said if said.isalnum() else reason}): check the address and access"


def with_retries(work: Callable[[], T]) -> T:
    """What ``work`` returns, which may be done twice; tried again, with growing pauses, while its errors may pass.

    Clients of stores have patience of their own; this is for what they do not try again.
    """
    for wait in _pauses():
        try:
            return work()
        except Exception as error:
            if not is_storage_error(error) or not is_transient(error):
                raise
        time.sleep(wait)
    return work()


def _pauses() -> Iterator[float]:
    for number in range(MAX_ATTEMPTS - 1):
        yield FIRST_BACKOFF * 2**number * random.uniform(1, 2)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = 0
    while error is not None and seen < 10:
        yield error
        error, seen = error.__cause__ or error.__context__, seen + 1
