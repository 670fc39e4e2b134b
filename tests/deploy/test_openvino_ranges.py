"""Ranges of OpenVINO quantizers: those that meet share one, those that only look alike do not."""

from __future__ import annotations

import numpy as np
import pytest

openvino = pytest.importorskip("openvino", reason="compiling needs the [train] extra")

from openvino import opset13 as ops  # noqa: E402

from deploy.openvino_ranges import set_ranges  # noqa: E402
from deploy.quantization import Recipe  # noqa: E402


def _model(*, quantized: bool):
    """swish(x), its double and its triple; the first two joined, all three quantized to one range."""
    pixels = ops.parameter([1, 2, 4, 4], np.float32, name="x")
    made = [ops.multiply(ops.swish(pixels), ops.constant(np.float32(factor))) for factor in (1, 2, 3)]
    for name, one in zip("abc", made, strict=True):
        one.set_friendly_name(name)
    if quantized:
        limits = [ops.constant(np.full((1, 1, 1, 1), value, np.float32)) for value in (-1.0, 9.0, -1.0, 9.0)]
        made = [ops.fake_quantize(one, *limits, 256) for one in made]
        for name, one in zip("abc", made, strict=True):
            one.set_friendly_name(f"{name}/fq")
    moved = ops.max_pool(made[0], [1, 1], [1, 1], [1, 1], [1, 1], [3, 3], "floor", "explicit").output(0)
    return openvino.Model([ops.relu(ops.concat([moved, made[1]], 1)), ops.relu(made[2])], [pixels], "model")


def test_quantizers_share_a_range_where_they_meet_and_not_where_theirs_was_equal_by_chance() -> None:
    quantized, original = _model(quantized=True), _model(quantized=False)
    image = np.linspace(0, 1, 32, dtype=np.float32).reshape(1, 2, 4, 4)
    set_ranges(quantized, original, [image], Recipe("mse", 99.9, ()))
    highs = {
        one.get_friendly_name(): float(one.input_value(2).get_node().data.max())
        for one in quantized.get_ordered_ops()
        if one.get_type_name() == "FakeQuantize"
    }
    greatest = float(1 / (1 + np.exp(-1)))
    assert highs == pytest.approx({"a/fq": 2 * greatest, "b/fq": 2 * greatest, "c/fq": 3 * greatest}, rel=0.02)
