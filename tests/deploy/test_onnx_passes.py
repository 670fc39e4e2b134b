"""Passes over ONNX graphs for ONNX Runtime: the same numbers by faster operations."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="compiling needs the [train] extra")
ort = pytest.importorskip("onnxruntime", reason="compiling needs the [train] extra")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

from deploy.bundle import OutputSpec  # noqa: E402
from deploy.onnx_bytes import move_bytes, shared_ranges  # noqa: E402
from deploy.onnx_heads import channels_last, last_convolutions_as_products, turn_outputs  # noqa: E402
from deploy.onnx_stem import widen_stem  # noqa: E402

RNG = np.random.default_rng(0)


def _model(nodes, inputs, outputs, constants, kind=TensorProto.FLOAT):
    graph = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _run(model, optimised: bool = True, **inputs):
    onnx.checker.check_model(model, full_check=True)
    options = ort.SessionOptions()
    if not optimised:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(model.SerializeToString(), options).run(None, inputs)


def _kinds(model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph.node)


# Ranges --------------------------------------------------------------------------------------------------------------


def _concatenation_of_what_was_pooled():
    nodes = [
        helper.make_node("MaxPool", ["x"], ["pooled"], "pool", kernel_shape=[1, 1]),
        helper.make_node("Concat", ["pooled", "y"], ["joined"], "join", axis=1),
    ]
    shape = [1, 1, 2, 2]
    return _model(nodes, {"x": shape, "y": shape}, {"joined": [1, 2, 2, 2]}, {})


def test_what_is_concatenated_gets_one_range_with_what_it_was_handed_on_from() -> None:
    met = shared_ranges(
        _concatenation_of_what_was_pooled(), {"x": (-1, 9), "pooled": (-1, 8), "y": (0, 10), "joined": (-9, 99)}
    )
    assert met == dict.fromkeys(("x", "pooled", "y", "joined"), (-1, 10))


def test_tensors_much_narrower_than_the_concatenation_keep_their_range() -> None:
    met = shared_ranges(
        _concatenation_of_what_was_pooled(), {"x": (-1, 9), "pooled": (-1, 8), "y": (0, 15), "joined": (-9, 99)}
    )
    assert met == {"x": (-1, 9), "pooled": (-1, 9), "y": (0, 15), "joined": (-1, 15)}


# Bytes ---------------------------------------------------------------------------------------------------------------


def _doubled_and_joined(second_scale: float):
    """x doubled and joined with y, all in 8 bits, those of y of another scale perhaps."""
    pairs = []
    for name, scale in (("x", "s"), ("y", "t"), ("big", "s"), ("joined", "s")):
        pairs.append(helper.make_node("QuantizeLinear", [name, scale, "z"], [f"{name}_q"], f"{name}_quantize"))
        pairs.append(helper.make_node("DequantizeLinear", [f"{name}_q", scale, "z"], [f"{name}_r"], f"{name}_real"))
    resize = helper.make_node(
        "Resize", ["x_r", "", "scales"], ["big"], "resize", coordinate_transformation_mode="asymmetric",
        mode="nearest", nearest_mode="floor",
    )  # fmt: skip
    join = helper.make_node("Concat", ["big_r", "y_r"], ["joined"], "join", axis=1)
    nodes = [*pairs[:4], resize, *pairs[4:6], join, *pairs[6:]]
    constants = {
        "s": np.float32(0.05), "t": np.float32(second_scale), "z": np.uint8(100),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }  # fmt: skip
    return _model(nodes, {"x": [1, 3, 2, 5], "y": [1, 2, 4, 10]}, {"joined_r": [1, 5, 4, 10]}, constants)


@pytest.mark.parametrize(("scale", "moved"), [(0.05, 2), (0.04, 1)])
def test_bytes_are_moved_without_a_change_where_scales_are_one(scale: float, moved: int) -> None:
    model = _doubled_and_joined(scale)
    images = {"x": RNG.normal(0, 2, (1, 3, 2, 5)), "y": RNG.normal(0, 2, (1, 2, 4, 10))}
    images = {name: values.astype(np.float32) for name, values in images.items()}
    (expected,) = _run(model, optimised=False, **images)
    assert move_bytes(model) == moved
    assert (_kinds(model)["Resize"], _kinds(model)["Expand"]) == (0, 1)
    for optimised in (False, True):
        np.testing.assert_array_equal(_run(model, optimised, **images)[0], expected)


# Heads ---------------------------------------------------------------------------------------------------------------


def _two_heads():
    """A convolution of one pixel and one of nine, each an output."""
    nodes = [
        helper.make_node("Conv", ["x", "w", "b"], ["one"], "one_conv"),
        helper.make_node("Conv", ["x", "v", "b"], ["nine"], "nine_conv", pads=[1, 1, 1, 1]),
    ]
    constants = {
        "w": RNG.normal(size=(3, 4, 1, 1)).astype(np.float32),
        "v": RNG.normal(size=(3, 4, 3, 3)).astype(np.float32),
        "b": RNG.normal(size=3).astype(np.float32),
    }
    return _model(nodes, {"x": [1, 4, 2, 5]}, {"one": [1, 3, 2, 5], "nine": [1, 3, 2, 5]}, constants)


@pytest.mark.parametrize(("kept", "products"), [((), ["one"]), (("one_conv",), [])])
def test_outputs_come_channels_last_and_those_of_one_pixel_as_products(kept, products) -> None:
    model = _two_heads()
    image = RNG.normal(size=(1, 4, 2, 5)).astype(np.float32)
    expected = _run(model, x=image)
    assert last_convolutions_as_products(model, kept) == products
    turn_outputs(model, products)
    assert (_kinds(model)["Gemm"], _kinds(model)["Conv"]) == (len(products), 2 - len(products))
    assert [output.name for output in model.graph.output] == ["one", "nine"]
    for met, exact in zip(_run(model, x=image), expected, strict=True):
        np.testing.assert_allclose(met, exact.transpose(0, 2, 3, 1), atol=1e-5)


def test_what_is_said_of_outputs_is_turned_but_for_those_without_cells() -> None:
    outputs = (OutputSpec("a", "box", 8, 4, "NCHW"), OutputSpec("b", "logits", 1, 4, "NC"))
    assert [one.layout for one in channels_last(outputs)] == ["NHWC", "NC"]


# Stem ----------------------------------------------------------------------------------------------------------------


def _quantized_stem(side: int, kernel: int, stride: int, pad: int):
    """uint8 pixels (1, side, side, 3) to 5 channels by a convolution of 8 bits."""
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["turned"], "turn", perm=[0, 3, 1, 2]),
        helper.make_node("DequantizeLinear", ["turned", "s", "z"], ["real"], "real_of_pixels"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["weights"], "real_of_weights", axis=0),
        helper.make_node("DequantizeLinear", ["b", "bs", "bz"], ["bias"], "real_of_bias", axis=0),
        helper.make_node(
            "Conv", ["real", "weights", "bias"], ["made"], "stem", kernel_shape=[kernel] * 2, strides=[stride] * 2,
            pads=[pad] * 4,
        ),
        helper.make_node("QuantizeLinear", ["made", "os", "oz"], ["rounded"], "round"),
        helper.make_node("DequantizeLinear", ["rounded", "os", "oz"], ["out"], "real_of_output"),
    ]  # fmt: skip
    scales = RNG.uniform(0.002, 0.004, 5).astype(np.float32)
    constants = {
        "s": np.float32(1 / 255), "z": np.uint8(0), "os": np.float32(0.02), "oz": np.uint8(120),
        "w": RNG.integers(-127, 128, (5, 3, kernel, kernel)).astype(np.int8), "ws": scales, "wz": np.zeros(5, np.int8),
        "b": RNG.integers(-9999, 9999, 5).astype(np.int32), "bs": scales / np.float32(255),
        "bz": np.zeros(5, np.int32),
    }  # fmt: skip
    size = (side + 2 * pad - kernel) // stride + 1
    shapes = {"pixels": [1, side, side, 3]}, {"out": [1, 5, size, size]}
    return _model(nodes, *shapes, constants, TensorProto.UINT8)


@pytest.mark.parametrize(
    ("side", "kernel", "stride", "pad"), [(32, 3, 2, 1), (32, 6, 2, 2), (12, 3, 1, 1), (38, 5, 3, 1)]
)
def test_a_widened_stem_in_bands_makes_the_same_numbers(side: int, kernel: int, stride: int, pad: int) -> None:
    model = _quantized_stem(side, kernel, stride, pad)
    pixels = RNG.integers(0, 256, (1, side, side, 3)).astype(np.uint8)
    (expected,) = _run(model, pixels=pixels)
    size = expected.shape[-1]
    assert len(np.unique(expected)) > 50
    assert widen_stem(model, "pixels", band_bytes=4 * 5 * size * 5)  # five rows
    assert _kinds(model)["Conv"] == -(-size // 5)
    (met,) = _run(model, pixels=pixels)
    # Sums of 32 bits are the same in any order; only their rounding to 8 may be computed otherwise.
    np.testing.assert_array_equal(met, expected)


def test_a_stem_whose_width_is_no_multiple_is_left_alone() -> None:
    model = _quantized_stem(30, 3, 2, 1)
    before = model.SerializeToString()
    assert not widen_stem(model, "pixels")
    assert model.SerializeToString() == before
