"""File systems behind fsspec, opened without listing caches, and their errors in words that name no object.

A store's own messages may hold keys, paths and ids, so that only error codes and class names are repeated.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar

import fsspec
from fsspec.implementations.local import LocalFileSystem
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_random_exponential

from anonymizer.storage.web_client import RefusedAddressError, open_client

T = TypeVar("T")

MAX_PARALLEL_REQUESTS = 16  # small ones
MAX_ATTEMPTS = 4

# Keys of fsspec's info() that change when a file does, in order of preference.
VERSION_FIELDS = ["ETag", "etag", "blob_id", "mtime", "LastModified", "last_modified", "Last-Modified"]
VERSION_FIELDS += ["modified", "created"]
# protocol -> the extra of this package that installs its file system
EXTRAS = {"s3": "s3", "s3a": "s3", "http": "http", "https": "http"}
LOCAL_PROTOCOLS = (None, "file", "local", "memory")
WEB_PROTOCOLS = ("http", "https")
CLIENT_LIBRARIES = {"botocore", "aiobotocore", "boto3", "aiohttp", "s3fs", "gcsfs", "google", "adlfs", "azure"}
CLIENT_LIBRARIES |= {"urllib3"}

# Class names of errors of these libraries, not all of which are OSErrors, and error codes of stores.
NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "TokenRetrievalError"}
NO_CREDENTIALS |= {"ProfileNotFound", "SSOTokenLoadError", "UnauthorizedSSOTokenError"}
UNREACHABLE = {"EndpointConnectionError", "ConnectTimeoutError", "ClientConnectorError", "gaierror"}
TRANSIENT = {"FSTimeoutError", "ReadTimeoutError", "ConnectionClosedError", "IncompleteRead", "ResponseStreamingError"}
TRANSIENT |= {"ClientPayloadError", "ServerDisconnectedError", "ClientOSError", "ServerTimeoutError"}
TRANSIENT_CODES = {"500", "502", "503", "504", "InternalError", "ServiceUnavailable", "SlowDown", "RequestTimeout"}
TRANSIENT_CODES |= {"429", "409", "ConditionalRequestConflict", "OperationAborted", "Throttling", "ThrottlingException"}
TRANSIENT_ERRNOS = {errno.EBUSY, errno.EAGAIN, errno.ETIMEDOUT, getattr(errno, "EREMOTEIO", errno.EBUSY)}
DENIED = "access denied: check the credentials, and what they may do there"
EXPLANATIONS = {
    "InvalidAccessKeyId": "the store does not know this access key: check AWS_ACCESS_KEY_ID, AWS_PROFILE and the "
    "endpoint",
    "SignatureDoesNotMatch": "the secret key does not belong to the access key: check AWS_SECRET_ACCESS_KEY",
    "RequestTimeTooSkewed": "the clock of this machine is wrong: set it",
    "NoSuchBucket": "there is no such bucket: make it, or check its name and the endpoint (AWS_ENDPOINT_URL)",
    **dict.fromkeys(
        ("ExpiredToken", "TokenRefreshRequired", "InvalidToken"),
        "the credentials have expired, or are not valid here: renew them",
    ),
    **dict.fromkeys(("401", "403", "AccessDenied", "Forbidden", "AllAccessDisabled", "AccountProblem"), DENIED),
}


def open_fs(uri: str, networks: Sequence[str] | None = None) -> tuple[Any, str]:
    """Return the file system and the path of a URI; listings are never cached. Raises what fsspec raises.

    With ``networks``, a web server is reached by a client that follows no redirect to another host and connects to
    public addresses and these networks only.
    """
    protocol, _ = fsspec.core.split_protocol(uri)
    options: dict[str, Any] = {} if protocol in LOCAL_PROTOCOLS else {"use_listings_cache": False}
    if networks is not None and protocol in WEB_PROTOCOLS:
        options["get_client"] = partial(open_client, tuple(networks))
    try:
        return fsspec.core.url_to_fs(uri, **options)  # type: ignore[no-any-return]
    except ImportError as error:
        extra = EXTRAS.get(protocol or "")
        step = f"pip install 'anonymizer[{extra}]'" if extra else str(error).splitlines()[0]
        raise ImportError(f"the package that reaches {protocol}:// is not installed: {step}") from None


def is_local(fs: Any) -> bool:
    """Return whether a file system is a disk of this machine, or mounted here."""
    return isinstance(fs, LocalFileSystem)


def has_buckets(fs: Any) -> bool:
    """Return whether the first part of a path is a bucket or container instead of a folder."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not {"s3", "gs", "gcs", "az", "abfs"}.isdisjoint(protocols)


def is_web(fs: Any) -> bool:
    """Return whether a file system reads from web servers, whose paths are whole URLs."""
    return "https" in fs.protocol


def is_s3(fs: Any) -> bool:
    """Return whether a file system is s3fs, for any server that speaks S3."""
    return "s3" in fs.protocol and hasattr(fs, "call_s3")


def is_versioned(fs: Any, path: str) -> bool:
    """Return whether the bucket keeps old versions of deleted objects, as far as S3 reveals it."""
    if not is_s3(fs):
        return False
    try:
        return bool(fs.is_bucket_versioned(fs.split_path(path)[0]))
    except Exception:  # asking needs a permission of its own
        return False


def version_of(info: dict[str, Any]) -> str:
    """Return a text from fsspec's info() that changes when the file does; empty if there is none."""
    return f"{next((info[name] for name in VERSION_FIELDS if info.get(name)), '')}"


def is_storage_error(error: BaseException) -> bool:
    """Return whether an error comes from the operating system or from a store's client."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in CLIENT_LIBRARIES


def error_code(error: BaseException) -> str:
    """Return the code of the store's response, such as ``NoSuchBucket`` or ``503``; empty if there is none."""
    for cause in _causes(error):
        if isinstance(response := getattr(cause, "response", None), dict):
            return str(response.get("Error", {}).get("Code", ""))
        status = getattr(cause, "status", None) or getattr(cause, "code", None)
        if isinstance(status, int):
            return str(status)
    return ""


def is_transient(error: BaseException) -> bool:
    """Return whether the same request may succeed a moment later."""
    if isinstance(error, FileNotFoundError | FileExistsError | PermissionError):
        return False
    if isinstance(error, TimeoutError | ConnectionError) or error_code(error) in TRANSIENT_CODES:
        return True
    is_transient_class = not TRANSIENT.isdisjoint(_class_names(error))
    return is_transient_class or (isinstance(error, OSError) and error.errno in TRANSIENT_ERRNOS)


def is_not_found(error: BaseException) -> bool:
    """Return whether an object is missing from a bucket that exists."""
    return isinstance(error, FileNotFoundError) and error_code(error) != "NoSuchBucket"


def is_refused_address(error: BaseException) -> bool:
    """Return whether a redirect or an address was not followed."""
    return any(isinstance(cause, RefusedAddressError) for cause in _causes(error))


def is_precondition_failed(error: BaseException) -> bool:
    """Return whether the condition of a conditional put was not met."""
    return isinstance(error, FileExistsError) or error_code(error) in ("PreconditionFailed", "412")


def explain(error: BaseException) -> str:
    """Return the problem and the next step, without anything from the store's message."""
    code, names = error_code(error), _class_names(error)
    if is_refused_address(error):
        return "redirects to another host, or leads to an address that is not public: name that in source.allow"
    if names & NO_CREDENTIALS:
        return "no credentials were found: put them into the environment, or name a profile that has them (AWS_PROFILE)"
    if code in EXPLANATIONS:
        return EXPLANATIONS[code]
    if isinstance(error, PermissionError):
        return DENIED
    if names & UNREACHABLE or isinstance(error, ConnectionRefusedError):
        return "cannot be reached: check the network and the endpoint (AWS_ENDPOINT_URL)"
    if is_transient(error):
        return "the store failed several times in a row: run the same command again"
    if isinstance(error, FileNotFoundError):
        return "there is no such file: check the address"
    reason = errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__)
    return f"the store refused ({code if code.isalnum() else reason}): check the address and access"


def with_retries(work: Callable[[], T]) -> T:
    """Return ``work()``, repeated with random exponential back-off after transient errors; work must be idempotent.

    Clients of stores have retries of their own; these are for what they do not retry.
    """
    return Retrying(
        retry=retry_if_exception(lambda error: is_storage_error(error) and is_transient(error)),
        stop=stop_after_attempt(MAX_ATTEMPTS),
        wait=wait_random_exponential(multiplier=0.4, min=0.2),  # seconds
        reraise=True,
    )(work)


def _class_names(error: BaseException) -> set[str]:
    return {type(cause).__name__ for cause in _causes(error)}


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    for _ in range(10):  # a chain may be circular
        if error is None:
            return
        yield error
        error = error.__cause__ or error.__context__
