"""What holds for sources of every format."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fsspec
from hypothesis import given, settings
from hypothesis import strategies as st

from anonymizer.errors import SourceError
from tests.support.sources import read_all, source_error, write_files


def test_a_source_that_cannot_be_used_is_one_clear_line(tmp_path: Path) -> None:
    assert "no such file or folder" in source_error(tmp_path / "nothing")
    assert "no files in it" in source_error(tmp_path)
    assert "source.label 'x'" in source_error(write_files(tmp_path, one=b"1"), label="x")
    assert "source.carry: a folder has no columns" in source_error(tmp_path, carry=["age"])
    assert "cannot be opened" in source_error("nosuchprotocol://x")
    assert "a file of unknown format" in source_error(tmp_path / "one")
    assert "a file: name the folder" in source_error(tmp_path / "one", format="folder")
    assert "'label' is a column of the release itself" in source_error(tmp_path, carry=["label"])
    assert "'lpips_bin' is a column of the release itself" in source_error(tmp_path, carry=["lpips_bin"])


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["l.csv", "l.jsonl", "l.parquet"]), st.binary(max_size=300))
def test_random_bytes_as_a_table_are_records_or_a_clear_error(name: str, data: bytes) -> None:
    fs = fsspec.filesystem("memory")
    fs.pipe_file(f"/wild/{name}", (b"image,x\n" if name == "l.csv" else b"") + data)
    try:
        read_all(f"memory://wild/{name}", carry=["x"])
    except SourceError as error:
        assert "\n" not in str(error)
    finally:
        fs.rm("/wild", recursive=True)


def test_sources_need_no_torch() -> None:
    code = "import sys; from anonymizer.data.sources import folder, webdataset; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"
