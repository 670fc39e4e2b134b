"""What changes an OpenVINO model without changing what it computes: fewer bytes moved, fewer conversions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploy.bundle import OutputSpec

_LIMITS = (1, 2, 3, 4)  # inputs of a FakeQuantize that say its ranges


def quantize_before_slices(model: Any) -> int:
    """Quantize a tensor once before its slices are taken instead of each slice after, in place.

    NNCF quantizes what a convolution reads: of a C2f's two halves each on its own, though both get the range of the
    concatenation that they end in. Then the convolution before writes float32, which is sliced and rounded in passes of
    its own. Rounded before, its output leaves the convolution as bytes.

    Args:
        model: quantized by NNCF.

    Returns:
        How many tensors: those of which every reader is a slice, and every slice's reader a quantizer of one range.
    """
    moved = 0
    for operation in model.get_ordered_ops():
        if operation.get_type_name() in ("Constant", "FakeQuantize"):
            continue
        slices = [one for one in _readers(operation) if one.get_type_name() in ("Slice", "VariadicSplit", "Split")]
        quantizers = [one for cut in slices for one in _readers(cut)]
        if not quantizers or len(slices) < len(_readers(operation)) or not _are_alike(quantizers):
            continue
        once = _like(quantizers[0], operation.output(0))
        for cut in slices:
            cut.input(0).replace_source_output(once.output(0))
        for one in quantizers:
            one.output(0).replace(one.input_value(0))
        moved += 1
    return moved


def steps_to_channels_last(steps: Any, outputs: Sequence[OutputSpec]) -> None:
    """Ask a `PrePostProcessor` for outputs (1, h, w, channels), which is how OpenVINO's convolutions write them.

    As (1, channels, h, w) they would be turned in a pass of their own: of an INT8 YOLOv8-n a tenth of its time.

    Args:
        steps: of the model.
        outputs: the raw tensors in the model's order, as the exported graph has them.
    """
    import openvino

    for place, output in enumerate(outputs):
        if output.layout == "NCHW":
            steps.output(place).model().set_layout(openvino.Layout("NCHW"))
            steps.output(place).tensor().set_layout(openvino.Layout("NHWC"))


def _readers(operation: Any) -> list[Any]:
    """By name: OpenVINO gives them in the order of their addresses, and the file would be another each time."""
    readers = [target.get_node() for output in operation.outputs() for target in output.get_target_inputs()]
    return sorted(readers, key=lambda one: str(one.get_friendly_name()))


def _are_alike(operations: Sequence[Any]) -> bool:
    """Whether all quantize alike, by one range for the whole tensor."""
    if any(one.get_type_name() != "FakeQuantize" for one in operations):
        return False
    limits = {
        (one.get_levels(), *(tuple(one.input_value(place).get_node().data.ravel()) for place in _LIMITS))
        for one in operations
    }
    return len(limits) == 1 and all(len(limit) == 1 for limit in next(iter(limits))[1:])


def _like(quantizer: Any, tensor: Any) -> Any:
    from openvino import opset13

    limits = [quantizer.input_value(place) for place in _LIMITS]
    return opset13.fake_quantize(tensor, *limits, quantizer.get_levels())
