"""`python -m deploy.onnx`: a student as an ONNX bundle for ONNX Runtime."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from deploy.calibration import SILU_INPUT_FLOOR
from deploy.command import run_target
from deploy.quantization import Recipe
from deploy.target import Compiled, Job, Target, input_spec

MODEL_FILE = "model.onnx"
PIXELS = "pixels"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_target(TARGET, argv)


def compile_onnx(job: Job) -> Compiled:
    """The graph with uint8 pixels (1, height, width, 3), normalised inside, to raw tensors (1, h, w, channels)."""
    import onnx

    from deploy.graph import export_onnx
    from deploy.onnx_bytes import move_bytes
    from deploy.onnx_heads import channels_last, turn_outputs
    from deploy.onnx_stem import widen_stem

    model, recipe = export_onnx(job.graph, job.imgsz), None
    if job.precision == "int8":
        recipe = job.recipe()
        model = _quantize(model, job, recipe)
        move_bytes(model)
        if _quantizes_input(model):
            _feed_pixels_to_quantized(model, job.imgsz)
            widen_stem(model, PIXELS)
        else:
            _feed_pixels(model, job.imgsz)
    else:
        turn_outputs(model)
        if job.precision == "fp16":
            model = _halve(model)
        _feed_pixels(model, job.imgsz)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, job.folder / MODEL_FILE)
    given, made = input_spec(job, PIXELS, layout="NHWC", dtype="uint8"), channels_last(job.graph.outputs)
    return Compiled(MODEL_FILE, given, made, recipe)


def _quantize(model: Any, job: Job, recipe: Recipe) -> Any:
    """Static quantization with QDQ pairs: unsigned activations, signed weights per channel.

    Signed activations run four times slower on x86. (Without VNNI, x86 adds pairs of products in 16 bits, which may
    saturate: then measure there.) The last layers, whose outputs are the raw tensors or the logits, are quantized but
    for their outputs: a QDQ pair there would clip high scores.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import save_tensors_data

    from deploy.onnx_heads import last_convolutions_as_products, turn_outputs

    classifies = job.graph.task == "classify"
    kept = [*_float_nodes(model, job, recipe), *(_normalisation(model) if classifies else _bare_outputs(model))]
    turn_outputs(model, last_convolutions_as_products(model, kept))
    with TemporaryDirectory() as folder:
        source, ranges, quantized = (Path(folder) / name for name in ("float.onnx", "ranges.json", "int8.onnx"))
        measured = _measure_ranges(model, job, recipe)
        _bound_padding(model, measured)
        onnx.save(model, source)
        save_tensors_data(measured, ranges)
        quantize_static(
            source,
            quantized,
            None,
            quant_format=QuantFormat.QDQ,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=kept,
            calibrate_method=CalibrationMethod.MinMax,
            calibration_cache_path=ranges,
            extra_options={"OpTypesToExcludeOutputQuantization": ["Gemm", "MatMul"]},
        )
        return onnx.load(quantized)


def _float_nodes(model: Any, job: Job, recipe: Recipe) -> list[str]:
    """Names of the nodes that the recipe's float layers became."""
    from deploy.layers import float_operations
    from deploy.onnx_graph import onnx_operations

    return float_operations(onnx_operations(model, job.graph), recipe.float_layers)


def _bare_outputs(model: Any) -> list[str]:
    """Names of the nodes without weights that make an output: 8 bits there would lose precision for nothing."""
    from deploy.onnx_graph import OUTPUT_AXIS

    outputs = {output.name for output in model.graph.output}
    return [node.name for node in model.graph.node if outputs & set(node.output) and node.op_type not in OUTPUT_AXIS]


def _normalisation(model: Any) -> list[str]:
    """Names of the nodes that lie before the first layer with weights: on them 8 bits would only lose precision."""
    from deploy.graph import INPUT_NAME

    reached, names = {INPUT_NAME}, []
    for node in model.graph.node:
        if reached & set(node.input) and node.op_type not in ("Conv", "Gemm", "MatMul"):
            reached |= set(node.output)
            names.append(node.name)
    return names


def _measure_ranges(model: Any, job: Job, recipe: Recipe) -> Any:
    """Tensor name to range by the recipe's method, and what is known beforehand of some tensors."""
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import TensorData, TensorsData

    from deploy.graph import INPUT_NAME
    from deploy.onnx_bytes import shared_ranges
    from deploy.onnx_graph import activations, silu_inputs
    from deploy.ranges import estimate_ranges

    outputs = [output.name for output in model.graph.output]
    found = estimate_ranges(activations(model, job.calibration_inputs()), recipe, outputs, job.known_ranges(recipe))
    # Pixels are 0..1 whatever the images: then the quantized input is the pixel itself.
    found[INPUT_NAME] = 0.0, 1.0
    for name in silu_inputs(model):
        low, high = found[name]
        found[name] = max(low, SILU_INPUT_FLOOR), high
    found = shared_ranges(model, found)
    ranges = {name: TensorData(lowest=np.float32(low), highest=np.float32(high)) for name, (low, high) in found.items()}
    return TensorsData(CalibrationMethod.MinMax, ranges)


def _bound_padding(model: Any, ranges: Any) -> None:
    """Let a border of minus infinity, as before a pooling, be the least value that its image has, in place.

    It stays below all others, but as infinity it would leave no step of 8 bits for them.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        value = constants.get(node.input[2]) if node.op_type == "Pad" and len(node.input) > 2 else None
        if value is not None and np.isneginf(numpy_helper.to_array(value)).all():
            ranges[node.output[0]] = ranges[node.input[0]]
            lowest = np.asarray(ranges[node.input[0]].range_value[0], np.float32).reshape(value.dims)
            # A constant of its own: several borders may share one, and each has another least value.
            node.input[2] = f"{node.output[0]}_border"
            graph.initializer.append(numpy_helper.from_array(lowest, node.input[2]))
    read = {name for node in graph.node for name in node.input}
    for name in constants.keys() - read:  # ONNX Runtime would warn of them whenever the model is opened
        graph.initializer.remove(constants[name])


def _halve(model: Any) -> Any:
    """Weights and arithmetic in float16; the raw outputs stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    halved = OnnxModel(convert_float_to_float16(model, keep_io_types=True))
    halved.topological_sort()  # the converter appends its casts at the end
    return halved.model


def _feed_pixels(model: Any, imgsz: int) -> None:
    """Put transpose, cast and scaling of uint8 pixels in front of a float graph, in place."""
    from onnx import TensorProto, helper, numpy_helper

    from deploy.graph import INPUT_NAME

    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(np.float32(1 / 255), "pixel_scale"))
    front = [
        helper.make_node("Transpose", [PIXELS], ["pixels_nchw"], "pixels_transpose", perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["pixels_nchw"], ["pixels_float"], "pixels_cast", to=TensorProto.FLOAT),
        helper.make_node("Mul", ["pixels_float", "pixel_scale"], [INPUT_NAME], "pixels_scale"),
    ]
    _replace_input(model, imgsz, front)


def _quantizes_input(model: Any) -> bool:
    """Whether the first thing that a quantized graph does is to quantize the pixels, without normalising them."""
    from deploy.graph import INPUT_NAME

    readers = [node.op_type for node in model.graph.node if INPUT_NAME in node.input]
    return readers == ["QuantizeLinear"]


def _feed_pixels_to_quantized(model: Any, imgsz: int) -> None:
    """Let uint8 pixels take the place of the quantized input, in place: at scale 1/255 they are the same numbers."""
    from onnx import helper, numpy_helper

    from deploy.graph import INPUT_NAME

    graph = model.graph
    (quantize,) = [node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] == INPUT_NAME]
    scale, zero_point = (
        numpy_helper.to_array(next(tensor for tensor in graph.initializer if tensor.name == name))
        for name in quantize.input[1:]
    )
    assert np.isclose(scale, 1 / 255, rtol=1e-6), scale
    assert zero_point == 0, zero_point
    front = [helper.make_node("Transpose", [PIXELS], [quantize.output[0]], "pixels_transpose", perm=[0, 3, 1, 2])]
    graph.node.remove(quantize)
    _replace_input(model, imgsz, front)


def _replace_input(model: Any, imgsz: int, front: list[Any]) -> None:
    from onnx import TensorProto, helper

    pixels = helper.make_tensor_value_info(PIXELS, TensorProto.UINT8, [1, imgsz, imgsz, 3])
    model.graph.input[0].CopyFrom(pixels)
    for node in reversed(front):
        model.graph.node.insert(0, node)


TARGET = Target(
    engine="onnx",
    packages={"onnx": "onnx", "onnxslim": "onnxslim", "onnxruntime": "onnxruntime"},
    compile=compile_onnx,
)

if __name__ == "__main__":
    sys.exit(main())
