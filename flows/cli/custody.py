"""What a custodian does by hand with the restricted half: open what is encrypted there."""

from __future__ import annotations

import os
from pathlib import Path

from anonymizer.crypto import encryption
from anonymizer.errors import UsageError
from anonymizer.storage.path import StoragePath
from flows.cli import console


def unseal(file: str, identity: str, output: str) -> None:
    """Decrypt ``file`` (any address) to a new file ``output`` that is for its owner alone.

    ``identity`` names a file with an age private key, or an environment variable that holds one; it is never the key.
    """
    text = _read_identity(identity)
    try:
        data = StoragePath.from_uri(file).read()
    except OSError as error:
        raise UsageError(
            f"file {file!r}: cannot be read ({error.strerror or type(error).__name__}): name a .age file"
        ) from None
    opened = encryption.decrypt(data, text)
    place = StoragePath.from_uri(output)
    if not place.as_private().create(opened):
        raise UsageError(f"output {output!r}: is there already: name a new file")
    console.print_facts("Opened", {"file": file, "written to": place})


def _read_identity(name: str) -> str:
    if encryption.PRIVATE_KEY_PREFIX in name.upper():  # it is not repeated
        raise UsageError("identity: holds the key itself, which others may see now: put it into a file and name that")
    try:
        return Path(name).read_text(encoding="utf-8")
    except FileNotFoundError:
        if (text := os.environ.get(name)) is not None:
            return text
        raise UsageError(
            f"identity {name!r}: neither a file nor an environment variable that is set: name one that holds the key"
        ) from None
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or type(error).__name__
        raise UsageError(f"identity {name!r}: cannot be read ({why}): name a file with an age private key") from None
