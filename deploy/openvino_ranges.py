"""Ranges of an OpenVINO model's quantizers by methods that NNCF has not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.quantization import Recipe
from deploy.ranges import Known, Range, estimate_ranges
from deploy.runtime import default_threads

_LEVELS = 256
# Operations that pass values on as they are.
_MOVES = frozenset({"Slice", "StridedSlice", "Split", "VariadicSplit", "MaxPool", "Interpolate", "Pad", "Reshape"})


def set_ranges(
    quantized: Any,
    original: Any,
    images: Iterable[NDArray[np.float32]],
    recipe: Recipe,
    known: Known | None = None,
) -> None:
    """Give the activations' quantizers the ranges of a recipe's method, in place.

    Quantizers that meet in a concatenation and were given one range by NNCF share one afterwards too.

    Args:
        quantized: what NNCF made of `original`.
        original: the float model.
        images: (1, 3, height, width) float32 in 0..1.
        recipe: names the method.
        known: ranges that go before it.
    """
    quantizers = [one for one in quantized.get_ordered_ops() if _quantizes_activation(one)]
    activations = _activations(original, dict.fromkeys(map(_source, quantizers)), images)
    found = estimate_ranges(activations, recipe, known=known)
    for group in _groups(quantizers):
        if _range(group[0]) == (0.0, 1.0):  # the pixels, whatever the images
            continue
        ranges = [found[_source(one)] for one in group]
        low, high = _on_a_step(min(low for low, _ in ranges), max(high for _, high in ranges))
        for one in group:
            _set_range(one, low, high)


def _groups(quantizers: Sequence[Any]) -> list[list[Any]]:
    """The quantizers, those together that must agree.

    One range alone does not tell: of two outputs of SiLU the least value is the same, and NNCF moves the greatest to
    where 0 falls on a step, so that tensors that never meet often come to the same range.
    """
    groups = {one.get_friendly_name(): [one] for one in quantizers}
    first: dict[tuple[str, Range], Any] = {}
    for one in quantizers:
        for met in _concatenations(one):
            other = first.setdefault((met, _range(one)), one)
            merged, added = groups[other.get_friendly_name()], groups[one.get_friendly_name()]
            if merged is not added:
                merged += added
                groups.update((member.get_friendly_name(), merged) for member in added)
    return list({id(group): group for group in groups.values()}.values())


def _concatenations(operation: Any) -> Iterator[str]:
    """Names of the concatenations that read an operation, or what was only moved from it."""
    for port in operation.outputs():
        for reader in port.get_target_inputs():
            node = reader.get_node()
            if node.get_type_name() == "Concat":
                yield str(node.get_friendly_name())
            elif node.get_type_name() in _MOVES:
                yield from _concatenations(node)


def _quantizes_activation(operation: Any) -> bool:
    return operation.get_type_name() == "FakeQuantize" and (
        operation.input_value(0).get_node().get_type_name() not in ("Constant", "Convert")
    )


def _source(quantizer: Any) -> str:
    return str(quantizer.input_value(0).get_node().get_friendly_name())


def _range(quantizer: Any) -> Range:
    low, high = (quantizer.input_value(place).get_node().data for place in (1, 2))
    return float(low.min()), float(high.max())


def _on_a_step(low: float, high: float) -> Range:
    """The range moved so that 0 falls on a step, which padding with it needs."""
    step = max(high - low, 1e-6) / (_LEVELS - 1)
    zero = round(-low / step)
    return -zero * step, (_LEVELS - 1 - zero) * step


def _set_range(quantizer: Any, low: float, high: float) -> None:
    from openvino import opset13

    for place, end in ((1, low), (2, high), (3, low), (4, high)):
        shape = tuple(quantizer.input_value(place).get_node().data.shape)
        constant = opset13.constant(np.full(shape, end, np.float32))
        quantizer.input(place).replace_source_output(constant.output(0))


def _activations(
    model: Any, names: Iterable[str], images: Iterable[NDArray[np.float32]]
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """For each image the first output of the named operations."""
    import openvino

    probed = model.clone()
    operations = {operation.get_friendly_name(): operation for operation in probed.get_ordered_ops()}
    asked = list(names)
    first = len(probed.outputs)
    probed.add_outputs([operations[name].output(0) for name in asked])
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": default_threads()}
    compiled = openvino.Core().compile_model(probed, "CPU", settings)
    for image in images:
        results = compiled([image])
        yield {name: results[compiled.output(first + place)] for place, name in enumerate(asked)}
