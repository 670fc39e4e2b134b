"""`python -m deploy.openvino`: a student as an OpenVINO IR bundle."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from deploy.bundle import OutputSpec
from deploy.calibration import fitted_input
from deploy.command import run_target
from deploy.errors import ExportError
from deploy.quantization import Recipe
from deploy.target import Compiled, Job, Target, input_spec

if TYPE_CHECKING:
    from deploy.layers import Operation

MODEL_FILE = "model.xml"
PIXELS = "pixels"
_RANGES_OF_NNCF = ("mean-minmax", "minmax")
_HALVED = ("fp16", "bf16")  # there is no storing in bf16; float16 holds all that bf16 keeps of a weight


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_target(TARGET, argv)


def compile_openvino(job: Job) -> Compiled:
    """The graph with uint8 pixels (1, height, width, 3), normalised inside, to raw tensors (1, h, w, channels)."""
    import openvino

    from deploy.graph import export_onnx
    from deploy.layers import float_operations
    from deploy.onnx_graph import onnx_operations
    from deploy.onnx_heads import channels_last

    # From bytes, so that no path of this machine is written into the model. Converted, not merely read: converting
    # fuses x * sigmoid(x) into one Swish, which the CPU then computes inside the int8 convolution before it. Read as
    # it is, each of the two operations gets quantizers of its own and the int8 network runs a third slower.
    exported, recipe = export_onnx(job.graph, job.imgsz), None
    model = _converted(exported)
    if job.precision in ("int8", "w8"):
        recipe = job.recipe()
        nodes = onnx_operations(exported, job.graph)
        floats = set(float_operations(nodes, recipe.float_layers))
        quantize = _quantize if job.precision == "int8" else _compress
        model = quantize(model, job, recipe, _named_after([node for node in nodes if node.name in floats], model))
    model = _with_borders(model, job.graph.outputs)
    _number_names(model)
    try:
        openvino.save_model(model, job.folder / MODEL_FILE, compress_to_fp16=job.precision in _HALVED)
    except RuntimeError as error:  # its only word for a full disk is "iostream error"
        raise ExportError(f"OpenVINO cannot write into {job.folder.parent} ({error}): is there space left?") from error
    given, made = input_spec(job, PIXELS, layout="NHWC", dtype="uint8"), channels_last(job.graph.outputs)
    return Compiled(MODEL_FILE, given, made, recipe)


def _converted(exported: Any) -> Any:
    """The OpenVINO model of an `onnx.ModelProto`.

    Raises:
        ExportError: it has an operation that OpenVINO has not.
    """
    import openvino
    from openvino import frontend

    try:
        return openvino.convert_model(io.BytesIO(exported.SerializeToString()))
    except (frontend.OpConversionFailure, frontend.GeneralFailure, frontend.NotImplementedFailure) as error:
        lines = [line.strip(" -") for line in str(error).splitlines()]  # the first tell where in OpenVINO's source
        reason = next((line for line in lines if line.startswith("No conversion rule")), lines[-1])
        raise ExportError(
            f"the student has an operation that OpenVINO has not ({reason}): replace it in the network, or use a YOLOv8"
        ) from error


def _quantize(model: Any, job: Job, recipe: Recipe, float_operations: list[str]) -> Any:
    """Post-training quantization by NNCF: weights symmetric per channel, activations asymmetric (preset MIXED).

    Args:
        model: converted from an ONNX graph.
        job: with its calibration images.
        recipe: what is asked.
        float_operations: names of those that stay in float.
    """
    import nncf

    from deploy.openvino_graph import quantize_before_slices

    original = model.clone()
    images = job.calibration_images.images
    spec = input_spec(job, PIXELS)
    quantized = nncf.quantize(
        model,
        nncf.Dataset(images, lambda image: fitted_input(image, spec)),
        preset=nncf.QuantizationPreset.MIXED,
        target_device=nncf.TargetDevice.CPU,
        subset_size=len(images),
        advanced_parameters=_advanced(recipe, brought=job.graph.ranges is not None),
        ignored_scope=nncf.IgnoredScope(names=float_operations),
    )
    if recipe.ranges not in _RANGES_OF_NNCF:
        from deploy.openvino_ranges import set_ranges

        set_ranges(quantized, original, job.calibration_inputs(), recipe, job.known_ranges(recipe))
    quantize_before_slices(quantized)
    return quantized


def _compress(model: Any, job: Job, recipe: Recipe, float_operations: list[str]) -> Any:
    """Weights in 8 bits per channel, all arithmetic in float."""
    import nncf

    mode, scope = nncf.CompressWeightsMode.INT8_SYM, nncf.IgnoredScope(names=float_operations)
    return nncf.compress_weights(model, mode=mode, ignored_scope=scope)


def _named_after(nodes: Iterable[Operation], model: Any) -> list[str]:
    """Names of the operations that came of ONNX nodes.

    Conversion may split a node in two, and names them after it; a node without a bias that makes an output is named
    after that.
    """
    wanted = {name for node in nodes for name in (node.name, *node.outputs)}
    names = [operation.get_friendly_name() for operation in model.get_ordered_ops()]
    return [name for name in names if name.removesuffix("/WithoutBiases") in wanted]


def _advanced(recipe: Recipe, brought: bool) -> Any:
    """What NNCF has to be told.

    Args:
        recipe: "minmax" is the extremes over all images, for a classifier; see `CalibrationList`. NNCF means those per
            image.
        brought: whether the student's weights were trained for INT8. Its biases make up for the rounding already, and
            NNCF, which takes them for a float network's, would correct that away.
    """
    from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    whole = {"activations_range_estimator_params": RangeEstimatorParametersSet.MINMAX}
    return AdvancedQuantizationParameters(
        disable_bias_correction=brought, **(whole if recipe.ranges == "minmax" else {})
    )


def _with_borders(model: Any, outputs: Sequence[OutputSpec]) -> Any:
    """The model with uint8 pixels as input and its outputs channels last."""
    import openvino
    from openvino.preprocess import PrePostProcessor

    from deploy.openvino_graph import steps_to_channels_last

    steps = PrePostProcessor(model)
    steps.input().tensor().set_element_type(openvino.Type.u8).set_layout(openvino.Layout("NHWC"))
    steps.input().model().set_layout(openvino.Layout("NCHW"))
    steps.input().preprocess().convert_element_type(openvino.Type.f32).scale(255.0)
    steps_to_channels_last(steps, outputs)
    built = steps.build()
    built.input().set_names({PIXELS})
    return built


def _number_names(model: Any) -> None:
    """Rename what OpenVINO named by a counter of the whole process, so that the same model gives the same file."""
    for index, operation in enumerate(model.get_ordered_ops()):
        kind = operation.get_type_name()
        if re.search(r"_\d+$", operation.get_friendly_name()) and kind != "Result":
            operation.set_friendly_name(f"{kind}_{index}")


TARGET = Target(
    engine="openvino",
    packages={"onnx": "onnx", "onnxslim": "onnxslim", "openvino": "openvino", "nncf": "nncf"},
    compile=compile_openvino,
    precisions=("fp32", "fp16", "bf16", "w8", "int8"),
)

if __name__ == "__main__":
    sys.exit(main())
