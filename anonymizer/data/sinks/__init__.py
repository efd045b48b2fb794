"""Sinks of released images: written in output order as they come, with nothing about their originals."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from anonymizer.config import OutputConfig
from anonymizer.data.sinks.base import ImageLocation, ReleasedImage, Sink
from anonymizer.data.sinks.folder import FolderSink
from anonymizer.data.sinks.parquet import ParquetSink
from anonymizer.data.sinks.webdataset import WebDatasetSink

__all__ = ["ImageLocation", "ReleasedImage", "Sink", "open_sink"]


def open_sink(config: OutputConfig, columns: Mapping[str, pa.DataType] | None = None) -> Sink:
    """Return the configured sink.

    ``columns``: types of the carried columns, for Parquet; by default they are inferred from the first 1,000 images.
    """
    if config.format == "parquet":
        return ParquetSink(columns)
    return WebDatasetSink() if config.format == "webdataset" else FolderSink()
