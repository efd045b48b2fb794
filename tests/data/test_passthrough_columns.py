"""Carried columns get the common type of their values, in parts and in any order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from anonymizer.data.passthrough_columns import TypeInference, to_arrays, to_json

VALUES: list[list[Any]] = [
    [],
    [None, None],
    [1, None, -3],
    [1, 2.5, None],
    [True, False, None],
    ["a", None],
    ["a", 1],
    [2**53, 0.5],
    [2**53 + 1, 0.5],
    [2**63 - 1, -(2**63)],
    [0.1, float("inf")],
]


@pytest.mark.parametrize("values", VALUES)
def test_a_column_in_parts_has_the_type_of_the_whole(values: list[Any]) -> None:
    texts = [to_json({"x": value}) for value in values]
    inference = TypeInference(["x"])
    for text in texts:
        inference.update([text])
    try:
        expected = pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError):
        expected = pa.array([None if v is None else str(v) for v in values], pa.string())
    array = to_arrays(texts, inference.types())["x"]
    assert array.equals(expected)
    parts = [to_arrays([text], inference.types())["x"] for text in texts]
    assert pa.chunked_array(parts, array.type).equals(pa.chunked_array([array]))


@pytest.mark.parametrize("values", [[2**63, 1], [True, 1], [1, True], [True, 0.5], [0.5, True]])
def test_values_without_a_common_type_are_text_in_any_order(values: list[Any]) -> None:
    inference = TypeInference(["x"])
    texts = [to_json({"x": value}) for value in values]
    inference.update(texts)
    assert to_arrays(texts, inference.types())["x"].to_pylist() == [str(v) for v in values]


def test_nan_does_not_hide_the_type_of_other_values() -> None:
    inference = TypeInference(["x"])
    inference.update([to_json({"x": value}) for value in (float("nan"), 1.5, float("nan"))])
    assert inference.types() == {"x": pa.float64()} and np.isnan(float("nan"))
