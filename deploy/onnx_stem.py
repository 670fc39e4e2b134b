"""The first convolution of a quantized ONNX graph, written as ONNX Runtime computes it fastest.

Its 8-bit convolution first copies what each output reads into a row of a matrix, one copy for each row of the kernel.
In a stem these are nine bytes each: the copying takes several times as long as the multiplying. And the sums of a whole
image are more than a processor's cache holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.onnx_bytes import QuantizedGraph
from deploy.onnx_heads import TO_NCHW, TO_NHWC

ABREAST = 4  # outputs side by side that one wider kernel makes
_BAND_BYTES = 2 << 20  # int32 sums of a band of rows: the cache of a core


@dataclass(frozen=True)
class _Stem:
    """The first convolution.

    Attributes:
        conv: its node.
        before: the DequantizeLinear of the pixels.
        after: the QuantizeLinear of its output.
        strides: down and across.
        pads: top, left, bottom, right.
        image: height and width of the pixels.
        kernel: the same of the weights.
        channels: of the output.
    """

    conv: Any
    before: Any
    after: Any
    strides: tuple[int, int]
    pads: tuple[int, int, int, int]
    image: tuple[int, int]
    kernel: tuple[int, int]
    channels: int

    def outputs(self, axis: int) -> int:
        """Rows (0) or columns (1) of the output."""
        padded = self.image[axis] + self.pads[axis] + self.pads[axis + 2]
        return (padded - self.kernel[axis]) // self.strides[axis] + 1


def widen_stem(model: Any, pixels: str, abreast: int = ABREAST, band_bytes: int = _BAND_BYTES) -> bool:
    """Let the first convolution make several outputs at once, one band of the image after the other, in place.

    Outputs side by side read overlapping pixels. A kernel that is wide enough for all of them, with a set of channels
    for each, has its pixels copied once; its weights where an output does not look are 0. The numbers stay the same.

    Args:
        model: quantized, its input transposed and then read by the first layer as it is.
        pixels: name of the input, (1, height, width, channels) bytes.
        abreast: outputs at once; with more of them, more products with 0 are computed.
        band_bytes: int32 sums that a band may have.

    Returns:
        Whether it is done: not where the first layer is no quantized convolution, or its width no multiple.
    """
    graph = QuantizedGraph(model)
    stem = _find(graph, pixels)
    if stem is None or stem.outputs(1) % abreast:
        return False
    _widen(graph, stem, abreast)
    height, row_bytes = stem.outputs(0), 4 * stem.outputs(1) * stem.channels
    rows = -(-height // -(-height * row_bytes // band_bytes))
    nodes: list[Any] = []
    for first in range(0, height, rows):
        nodes += _band(graph, stem, pixels, (first, min(first + rows, height)), abreast)
    graph.replace(stem.after, [*nodes, *_joined([node.output[0] for node in nodes if node.op_type == "Reshape"], stem)])
    graph.nodes.remove(stem.conv)
    graph.prune()
    return True


def _find(graph: QuantizedGraph, pixels: str) -> _Stem | None:
    (turn,) = [node for node in graph.nodes if pixels in node.input] or [None]
    before = graph.only_reader(turn.output[0], "DequantizeLinear") if turn and turn.op_type == "Transpose" else None
    conv = graph.only_reader(before.output[0], "Conv") if before else None
    after = graph.only_reader(conv.output[0], "QuantizeLinear") if conv else None
    if conv is None or after is None or len(conv.input) != 3:
        return None
    weights, biases = (graph.dequantizer(name) for name in conv.input[1:])
    said = _attributes(conv)
    plain = said.get("group", 1) == 1 and set(said.get("dilations", [1])) == {1} and "auto_pad" not in said
    if not (weights and biases and plain):
        return None
    (info,) = [one for one in graph.model.graph.input if one.name == pixels]
    _, height, width, _ = (side.dim_value for side in info.type.tensor_type.shape.dim)
    channels, _, *kernel = graph.constant(weights.input[0]).shape
    strides, pads = said.get("strides", [1, 1]), said.get("pads", [0, 0, 0, 0])
    return _Stem(conv, before, after, tuple(strides), tuple(pads), (height, width), tuple(kernel), channels)


def _widen(graph: QuantizedGraph, stem: _Stem, abreast: int) -> None:
    """Make the constants of the wider kernel, in place of the others."""
    weights, biases = (graph.dequantizer(name) for name in stem.conv.input[1:])
    values, step = graph.constant(weights.input[0]), stem.strides[1]
    width = values.shape[3]
    wide: NDArray[np.int8] = np.zeros((abreast, *values.shape[:3], width + (abreast - 1) * step), values.dtype)
    for place in range(abreast):
        wide[place, ..., place * step : place * step + width] = values
    name = stem.conv.name
    weights.input[0] = graph.add_constant(f"{name}_wide", wide.reshape(-1, *wide.shape[2:]))
    for node, first in ((weights, 1), (biases, 0)):
        for place in range(first, len(node.input)):
            one = graph.constant(node.input[place])
            if one.size == stem.channels:
                node.input[place] = graph.add_constant(f"{node.input[place]}_wide", np.tile(one, abreast))


def _band(graph: QuantizedGraph, stem: _Stem, pixels: str, rows: tuple[int, int], abreast: int) -> list[Any]:
    """The nodes that make some rows of the output, the last of which gives them channels last."""
    from onnx import helper

    first = rows[0] * stem.strides[0] - stem.pads[0]
    last = (rows[1] - 1) * stem.strides[0] - stem.pads[0] + stem.kernel[0]
    top, bottom = max(0, -first), max(0, last - stem.image[0])
    name = f"{stem.conv.name}_{rows[0]}"
    cut = [
        graph.add_constant(f"{name}_{key}", np.array([value], np.int64))
        for key, value in (("first", first + top), ("last", last - bottom), ("axis", 1))
    ]
    width = stem.outputs(1)
    shape = graph.add_constant(f"{name}_shape", np.array([1, rows[1] - rows[0], width, stem.channels], np.int64))
    kernel = (stem.kernel[0], stem.kernel[1] + (abreast - 1) * stem.strides[1])
    return [
        helper.make_node("Slice", [pixels, *cut], [f"{name}_pixels"], f"{name}_cut"),
        helper.make_node("Transpose", [f"{name}_pixels"], [f"{name}_nchw"], f"{name}_turn", perm=TO_NCHW),
        helper.make_node("DequantizeLinear", [f"{name}_nchw", *stem.before.input[1:]], [f"{name}_read"], f"{name}_dq"),
        helper.make_node(
            "Conv",
            [f"{name}_read", *stem.conv.input[1:]],
            [f"{name}_sums"],
            name,
            kernel_shape=kernel,
            strides=[stem.strides[0], stem.strides[1] * abreast],
            pads=[top, stem.pads[1], bottom, stem.pads[3]],
        ),
        helper.make_node("QuantizeLinear", [f"{name}_sums", *stem.after.input[1:]], [f"{name}_made"], f"{name}_q"),
        helper.make_node("Transpose", [f"{name}_made"], [f"{name}_nhwc"], f"{name}_turn_back", perm=TO_NHWC),
        helper.make_node("Reshape", [f"{name}_nhwc", shape], [f"{name}_rows"], f"{name}_apart"),
    ]


def _joined(bands: list[str], stem: _Stem) -> list[Any]:
    from onnx import helper

    name = stem.conv.name
    return [
        helper.make_node("Concat", bands, [f"{name}_whole"], f"{name}_join", axis=1),
        helper.make_node("Transpose", [f"{name}_whole"], [stem.after.output[0]], f"{name}_turn_back", perm=TO_NCHW),
    ]


def _attributes(node: Any) -> dict[str, Any]:
    from onnx import helper

    return {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
