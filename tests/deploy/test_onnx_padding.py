"""A border of minus infinity before a pooling, which 8 bits cannot hold, becomes the least value that its image has."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="compiling needs the [train] extra")
ort = pytest.importorskip("onnxruntime", reason="compiling needs the [train] extra")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from deploy.onnx import _bound_padding  # noqa: E402


def _two_poolings_with_one_border() -> onnx.ModelProto:
    """x (0..1) and x - 5, each padded by the same constant and pooled."""
    pool = {"kernel_shape": [2, 2], "strides": [2, 2]}
    nodes = [
        helper.make_node("Pad", ["x", "pads", "border"], ["x_padded"], "pad_x"),
        helper.make_node("MaxPool", ["x_padded"], ["x_pooled"], "pool_x", **pool),
        helper.make_node("Sub", ["x", "five"], ["y"], "sub"),
        helper.make_node("Pad", ["y", "pads", "border"], ["y_padded"], "pad_y"),
        helper.make_node("MaxPool", ["y_padded"], ["y_pooled"], "pool_y", **pool),
    ]
    constants = [
        numpy_helper.from_array(np.array([0, 0, 1, 1, 0, 0, 1, 1], np.int64), "pads"),
        numpy_helper.from_array(np.array(-np.inf, np.float32), "border"),
        numpy_helper.from_array(np.array(5, np.float32), "five"),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 1, 6, 6])]
    outputs = [helper.make_tensor_value_info(f"{name}_pooled", TensorProto.FLOAT, [1, 1, 4, 4]) for name in "xy"]
    graph = helper.make_graph(nodes, "poolings", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_each_border_is_bounded_by_its_own_image_though_they_share_a_constant() -> None:
    model = _two_poolings_with_one_border()
    pixels = np.random.default_rng(0).random((1, 1, 6, 6)).astype(np.float32)
    expected = ort.InferenceSession(model.SerializeToString()).run(None, {"x": pixels})
    ranges = {
        "x": SimpleNamespace(range_value=(np.float32(0), np.float32(1))),
        "y": SimpleNamespace(range_value=(np.float32(-5), np.float32(-4))),
    }
    _bound_padding(model, ranges)
    onnx.checker.check_model(model, full_check=True)
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert [constants[model.graph.node[index].input[2]].item() for index in (0, 3)] == [0.0, -5.0]
    assert "border" not in constants, "ONNX Runtime warns of what nothing reads"
    assert ranges["x_padded"] is ranges["x"]
    assert ranges["y_padded"] is ranges["y"]
    for met, exact in zip(
        ort.InferenceSession(model.SerializeToString()).run(None, {"x": pixels}), expected, strict=True
    ):
        np.testing.assert_array_equal(met, exact)
