"""A cell of a Parquet file that Python has no value for ends its own record, and no other."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from anonymizer.errors import GateError
from tests.support.releases import picture, rows, run, settings

NO_TEXT = pa.StringArray.from_buffers(
    2, pa.py_buffer(b"\x00\x00\x00\x00\x02\x00\x00\x00\x04\x00\x00\x00"), pa.py_buffer(b"\xff\xfeab")
)
COLUMNS = {
    "no UTF-8": NO_TEXT,
    "a time beyond the calendar": pa.array([2**61, 1], pa.timestamp("us")),
    "a day beyond the calendar": pa.array([2**31 - 1, 1], pa.int32()).cast(pa.date32()),
}


@pytest.mark.parametrize("role", ["id", "label", "carry", "subject"])
@pytest.mark.parametrize("kind", COLUMNS)
def test_a_cell_without_a_value_fails_its_own_record(tmp_path: Path, kind: str, role: str) -> None:
    (tmp_path / "in").mkdir()
    images = pa.array([picture(0), picture(1)], pa.binary())
    pq.write_table(pa.table({"image": images, "x": COLUMNS[kind]}), tmp_path / "in" / "part.parquet")
    source = {"format": "parquet", "image": "image", role: ["x"] if role == "carry" else "x"}
    result = rows(run(settings(tmp_path / "in", tmp_path / "out", source=source)))
    assert [row["status"] for row in result] == ["failed", "released"]
    assert result[0]["reason"] == ("no_subject" if role == "subject" else "bad_metadata")


def test_a_time_zone_that_there_is_not_and_a_deep_description_are_no_crash(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    images = pa.array([picture(0), picture(1)], pa.binary())
    table = pa.table({"image": images, "x": pa.array([1, 2], pa.timestamp("us", "Mars/Olympus")), "n": [0, 1]})
    table = table.replace_schema_metadata({b"huggingface": b"[" * 100_000})
    pq.write_table(table, tmp_path / "in" / "part.parquet")
    for role, failed in (("x", 2), ("n", 0)):
        source = {"format": "parquet", "image": "image", "carry": [role], "drop": ["*"]}
        config = settings(tmp_path / "in", tmp_path / role, source=source, policy={"max_failed": 1.0})
        if failed:
            with pytest.raises(GateError, match="bad_metadata"):
                run(config)
        else:
            assert {row["status"] for row in rows(run(config))} == {"released"}
