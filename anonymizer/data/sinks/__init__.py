"""Sinks of released images: written in output order as they come, with nothing about their originals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from anonymizer.config import OutputConfig
from anonymizer.data.sinks.base import ImageLocation, ReleasedImage, Sink

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["ImageLocation", "ReleasedImage", "Sink", "open_sink"]


def open_sink(config: OutputConfig, columns: Mapping[str, pa.DataType] | None = None) -> Sink:
    """Return the configured sink.

    ``columns``: types of the carried columns, for Parquet; by default they are inferred from the first 1,000 images.
    """
    if config.format == "webdataset":
        from anonymizer.data.sinks.webdataset import WebDatasetSink

        return WebDatasetSink()
    if config.format == "parquet":
        from anonymizer.data.sinks.parquet import ParquetSink

        return ParquetSink(columns)
    from anonymizer.data.sinks.folder import FolderSink

    return FolderSink()
