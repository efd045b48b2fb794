"""Keep Pillow's warnings and debug lines, which may quote an image's metadata, out of logs."""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator

# At DEBUG, Pillow logs the values of TIFF tags: names, places, serial numbers; at ERROR, numbers from broken headers.
if logging.getLogger("PIL").level == logging.NOTSET:
    logging.getLogger("PIL").setLevel(logging.CRITICAL)

_lock = threading.Lock()
_active = 0
_filters: list[object] = []


@contextlib.contextmanager
def suppress_pillow_warnings() -> Iterator[None]:
    """Ignore warnings raised by Pillow's own modules, in any number of threads.

    ``warnings.catch_warnings`` swaps a process-wide list and so is not safe in threads; here the first thread installs
    one filter and the last removes it.
    """
    global _active
    with _lock:
        before = list(warnings.filters)
        warnings.filterwarnings("ignore", module=r"PIL\.")
        if _active == 0:
            _filters[:] = [item for item in warnings.filters[:1] if item not in before]
        _active += 1
    try:
        yield
    finally:
        with _lock:
            _active -= 1
            if _active == 0:
                for item in _filters:
                    with contextlib.suppress(ValueError):  # other code may have restored the list meanwhile
                        warnings.filters.remove(item)  # type: ignore[attr-defined]
