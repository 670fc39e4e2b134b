"""What of a network is quantized for MNN and how, as its converter reads it from a file.

MNN's own quantizer knows no range method of ours, no zero points, and takes images in the order in which the disk lists
them. Its converter takes ranges from others (`compressionParamsFile`; `MNN_compression.proto` and
`FullQuantAndCoding.cpp` in MNN's source): of a convolution the scale and zero point of what it reads and makes, and the
scales of its weights. At run time MNN computes in int8 what has them for all that it reads and makes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.calibration import SILU_INPUT_FLOOR
from deploy.errors import ExportError
from deploy.mnn_format import EightBits
from deploy.quantization import Recipe
from deploy.ranges import Range, estimate_ranges
from deploy.target import Job

INT8_MARK = "DT_INT8"  # of MNN's word for the kind of an operation that it executes in int8
_GREATEST = 127  # of symmetric int8 weights
_LEAST, _STEPS = -128, 255  # of activations
_CLAMPS = ("Relu", "Clip")  # the converter makes them a part of the convolution before
_MAXIMUM = "MaxPool"
_MOVES = ("Concat", "Flatten", "Pad", "Reshape", "Resize", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze")


@dataclass(frozen=True)
class Plan:
    """What is quantized and how.

    Attributes:
        recipe: what was asked for.
        entries: of the convolutions to quantize, as the converter reads them.
        apart: tensors that get bits of their own besides; see `_apart`.
    """

    recipe: Recipe
    entries: list[dict[str, Any]]
    apart: dict[str, EightBits]


def plan(model: Any, job: Job) -> Plan:
    """Choose what to quantize.

    Args:
        model: the float graph as an `onnx.ModelProto`.
        job: for "int8", or for "w8": weights alone.
    """
    from deploy.onnx_graph import onnx_operations

    recipe = job.recipe(_float_by_default(job))
    layers = {one.name: one.layer for one in onnx_operations(model, job.graph)}
    ranges = _ranges(model, job, recipe) if job.precision == "int8" else None
    pooled = _pooled(model) if ranges else set()
    entries, read = list[dict[str, Any]](), set[str]()
    for node, weights in _convolutions(model):
        if layers[node.name] not in recipe.float_layers and not pooled.intersection(
            (node.input[0], *_names(node, model))
        ):
            entries += _entries(node, weights, model, ranges)
            read.add(node.input[0])
    return Plan(recipe, entries, _apart(model, read, ranges) if ranges else {})


def executed_float_layers(path: Path, model: Any, job: Job) -> tuple[str, ...]:
    """Names of the student's layers that MNN does not execute in int8, by its own account of a run."""
    import MNN

    from deploy.layers import float_layer_names
    from deploy.onnx_graph import onnx_operations

    net = MNN.Interpreter(str(path))
    executed = set[str]()

    def note(_tensors: Any, operation: Any) -> bool:
        if INT8_MARK in operation.getType():
            executed.add(operation.getName())
        return True

    net.runSessionWithCallBackInfo(net.createSession({"backend": "CPU", "numThread": 1}), note, note)
    wrong = [node.name for node in model.graph.node if node.op_type == _MAXIMUM and node.output[0] in executed]
    if wrong:
        raise ExportError(
            f"MNN would pool {', '.join(wrong)} in int8, which it does wrongly: give --precision w8 or fp16"
        )
    layers = {one.name: one.layer for one in onnx_operations(model, job.graph)}
    done = {layers[node.name] for node, _ in _convolutions(model) if executed & set(_names(node, model))}
    return tuple(name for name in float_layer_names(job.graph) if name not in done)


def _pooled(model: Any) -> set[str]:
    """Names of the tensors that a max pooling reads or makes, or that hold the same values in other places.

    MNN 3.6 pools in int8 where what is read and made is described, and on x86 mistakes the sign of what it compares:
    128 steps off on average, where average pooling, resizing, adding and joining are right. So no int8 touches them.
    """
    made, read = set[str](), set[str]()
    for node in model.graph.node:
        if node.op_type == _MAXIMUM or (node.op_type in _MOVES and made.intersection(node.input)):
            made.update(node.output)
    for node in reversed(model.graph.node):
        if node.op_type == _MAXIMUM or (node.op_type in _MOVES and read.intersection(node.output)):
            read.update(node.input)
    return made | read


def _apart(model: Any, read: set[str], ranges: dict[str, Range]) -> dict[str, EightBits]:
    """The tensors from which MNN would move int8 numbers into what a convolution reads, with bits of their own.

    MNN 3.6 passes the bits of what is read on to undescribed tensors that are joined, cut or resized to make it, and
    where one of them goes to several places the order of addresses in memory decides whose it gets: the same file
    gives other numbers from one opening to the next (`Pipeline::encode`). A tensor that has bits is left alone.
    """
    reached = set(read)
    for node in reversed(model.graph.node):
        if node.op_type in _MOVES and reached.intersection(node.output):
            reached.update(node.input)
    made = {name for node in model.graph.node if node.op_type not in _MOVES for name in node.output}
    return {name: eight_bits(ranges[name]) for name in sorted(reached & made & ranges.keys())}


def _float_by_default(job: Job) -> tuple[str, ...]:
    """The layers that make a head's raw tensors, which 8 bits would clip; of weights alone none."""
    from deploy.layers import last_layer_names

    return () if job.graph.task == "classify" or job.precision == "w8" else last_layer_names(job.graph)


def _ranges(model: Any, job: Job, recipe: Recipe) -> dict[str, Range]:
    """Tensor name to range by the recipe's method, and what is known beforehand of some tensors."""
    from deploy.graph import INPUT_NAME
    from deploy.onnx_graph import activations, silu_inputs

    outputs = [output.name for output in model.graph.output]
    found = estimate_ranges(activations(model, job.calibration_inputs()), recipe, outputs, job.known_ranges(recipe))
    found[INPUT_NAME] = 0.0, 1.0  # pixels, whatever the images
    for name in silu_inputs(model):
        low, high = found[name]
        found[name] = max(low, SILU_INPUT_FLOOR), high
    return found


def _convolutions(model: Any) -> Iterator[tuple[Any, NDArray[np.float32]]]:
    """Every convolution's node with its weights (outputs, inputs of a group, height, width)."""
    from onnx import numpy_helper

    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Conv" and node.input[1] in constants:
            yield node, numpy_helper.to_array(constants[node.input[1]])


def _names(node: Any, model: Any) -> list[str]:
    """What the converter may call a convolution: its output, or that of a clamp which becomes a part of it."""
    readers = [one for one in model.graph.node if node.output[0] in one.input]
    clamps = [one.output[0] for one in readers if len(readers) == 1 and one.op_type in _CLAMPS]
    return [node.output[0], *clamps]


def _entries(
    node: Any, weights: NDArray[np.float32], model: Any, ranges: dict[str, Range] | None
) -> Iterator[dict[str, Any]]:
    """A convolution's entry under each name that it may have, of which the converter finds one."""
    greatest = np.abs(weights).reshape(len(weights), -1).max(axis=1)
    scales = np.where(greatest > 0, greatest / _GREATEST, 1).astype(np.float32)
    stored = {"name": node.input[1], "bits": 8, "scales": [float(scale) for scale in scales], "asymmetric": False}
    stored |= {"clampMin": -_GREATEST, "clampMax": _GREATEST, "blockSize": -1}
    for name in _names(node, model):
        if ranges is None:
            yield {"opName": name, "weight": [stored]}
        else:
            read, made = _activation(node.input[0], ranges[node.input[0]]), _activation(name, ranges[name])
            yield {"opName": name, "input": [read], "weight": [stored], "output": [made]}


def _activation(name: str, bounds: Range) -> dict[str, Any]:
    bits = eight_bits(bounds)
    return {
        "name": name, "bits": 8, "scales": [bits.scale], "zeroPoint": int(bits.zero), "clampMin": _LEAST,
        "clampMax": _GREATEST,
    }  # fmt: skip


def eight_bits(bounds: Range) -> EightBits:
    """A tensor's 8 bits by its range, within which 0 lies."""
    low, high = bounds
    scale = float(np.float32((high - low) / _STEPS)) or 1.0
    return EightBits(scale, float(round(_LEAST - low / scale)))
