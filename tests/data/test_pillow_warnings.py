"""Warnings of Pillow are suppressed in threads, and no others."""

from __future__ import annotations

import threading
import warnings

import pytest

from anonymizer.data.image_codec import decode
from anonymizer.data.pillow_warnings import suppress_pillow_warnings
from anonymizer.errors import RecordError
from tests.support.encoded_images import photo, saved


def test_warnings_of_pillow_are_suppressed_in_threads_and_others_are_not() -> None:
    broken = saved(photo(), "TIFF")[:-40]
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        before = list(warnings.filters)

        def work() -> None:
            for _ in range(10):
                with pytest.raises(RecordError):
                    decode(broken, 8)

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not heard
        with suppress_pillow_warnings():
            warnings.warn("mine", stacklevel=1)
        assert [str(w.message) for w in heard] == ["mine"]
        assert list(warnings.filters) == before
