"""Passes over an OpenVINO model: the same numbers in fewer bytes."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

openvino = pytest.importorskip("openvino", reason="compiling needs the [train] extra")

from openvino import opset13 as ops  # noqa: E402

from deploy.bundle import OutputSpec  # noqa: E402
from deploy.onnx_heads import channels_last  # noqa: E402
from deploy.openvino_graph import quantize_before_slices, steps_to_channels_last  # noqa: E402

HIGHS = (3.0, 3.0)


def _rounded(tensor, high: float):
    limits = [ops.constant(np.full((1, 1, 1, 1), value, np.float32)) for value in (-1.0, high, -1.0, high)]
    return ops.fake_quantize(tensor, *limits, 256)


def _halves(highs: tuple[float, float], *, read_whole: bool = False):
    """swish(x) cut in two, each half rounded, the second doubled, joined; perhaps swish(x) itself as an output too."""
    pixels = ops.parameter([1, 4, 3, 3], np.float32, name="x")
    whole = ops.swish(pixels)
    cuts = [
        ops.slice(whole, *(ops.constant(np.array([value], np.int64)) for value in (first, first + 2, 1, 1)))
        for first in (0, 2)
    ]
    one, other = (_rounded(cut, high) for cut, high in zip(cuts, highs, strict=True))
    joined = ops.concat([one, ops.multiply(other, ops.constant(np.float32(2)))], 1)
    return openvino.Model([joined, whole] if read_whole else [joined], [pixels], "halves")


def _run(model, values):
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return compiled([values])[compiled.output(0)]


def test_a_tensor_is_rounded_once_before_its_slices_to_the_same_numbers() -> None:
    model = _halves(HIGHS)
    values = np.random.default_rng(0).normal(0, 3, (1, 4, 3, 3)).astype(np.float32)
    expected = _run(model.clone(), values)
    assert quantize_before_slices(model) == 1
    kinds = Counter(operation.get_type_name() for operation in model.get_ops())
    assert (kinds["FakeQuantize"], kinds["Slice"]) == (1, 2)
    (quantizer,) = [one for one in model.get_ops() if one.get_type_name() == "FakeQuantize"]
    assert quantizer.input_value(0).get_node().get_type_name() == "Swish"
    np.testing.assert_array_equal(_run(model, values), expected)


@pytest.mark.parametrize("model", [_halves((3.0, 2.0)), _halves(HIGHS, read_whole=True)], ids=["ranges", "readers"])
def test_slices_of_several_ranges_and_tensors_that_are_read_whole_are_left_alone(model) -> None:
    assert quantize_before_slices(model) == 0
    assert Counter(one.get_type_name() for one in model.get_ops())["FakeQuantize"] == 2


def test_outputs_are_turned_channels_last_but_for_those_without_cells() -> None:
    from openvino.preprocess import PrePostProcessor

    pixels = ops.parameter([1, 4, 2, 3], np.float32, name="x")
    map_, row = ops.relu(pixels), ops.reduce_mean(pixels, ops.constant(np.array([2, 3])))
    model = openvino.Model([map_, row], [pixels], "two")
    outputs = (OutputSpec("a", "box", 8, 4, "NCHW"), OutputSpec("b", "logits", 1, 4, "NC"))
    steps = PrePostProcessor(model)
    steps_to_channels_last(steps, outputs)
    compiled = openvino.Core().compile_model(steps.build(), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    values = np.random.default_rng(0).normal(size=(1, 4, 2, 3)).astype(np.float32)
    results = compiled([values])
    np.testing.assert_array_equal(results[0], np.maximum(values, 0).transpose(0, 2, 3, 1))
    assert results[1].shape == (1, 4)
    assert [one.layout for one in channels_last(outputs)] == ["NHWC", "NC"]
