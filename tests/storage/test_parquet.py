"""Parquet tables are read without threads that outlive the process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest

from anonymizer.storage import parquet


@pytest.mark.slow
def test_a_process_may_exit_right_after_reading_a_table(tmp_path: Path) -> None:
    path = tmp_path / "table.parquet"
    path.write_bytes(parquet.to_bytes(pa.table({"x": ["a"] * 300})))
    program = (
        "import sys, torch; from anonymizer.storage import parquet, path; P = path.StoragePath; "
        "parquet.read(P.from_uri(sys.argv[1])); list(parquet.open_table(P.from_uri(sys.argv[1])).to_batches(9))"
    )
    for _ in range(3):  # with pq.read_table, most ended with SIGABRT
        assert subprocess.run([sys.executable, "-c", program, str(path)]).returncode == 0
