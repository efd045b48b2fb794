"""A face recogniser as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np


def save_network(path: Path, shape: list[Any]) -> Path:
    """An ONNX file: pictures averaged over 8 x 8 cells, then mixed at random into eight numbers."""
    from onnx import TensorProto, helper, numpy_helper, save_model

    height, width = (size if isinstance(size, int) else 112 for size in (shape[1:3] if shape[3] == 3 else shape[2:]))
    cells = 3 * (height // 8) * (width // 8)
    mixing = np.random.default_rng(0).standard_normal((cells, 8)).astype(np.float32)
    nodes = [
        helper.make_node("AveragePool", ["x"], ["cells"], kernel_shape=[8, 8], strides=[8, 8]),
        helper.make_node("Flatten", ["cells"], ["flat"]),
        helper.make_node("MatMul", ["flat", "mixing"], ["out"]),
    ]
    if shape[-1] == 3:
        nodes[0].input[0] = "turned"
        nodes.insert(0, helper.make_node("Transpose", ["x"], ["turned"], perm=[0, 3, 1, 2]))
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(mixing, "mixing")],
    )
    save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path
