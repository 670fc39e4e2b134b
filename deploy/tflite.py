"""`python -m deploy.tflite`: a student as a TFLite bundle for LiteRT."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deploy.bundle import OutputSpec
from deploy.calibration import SILU_INPUT_FLOOR
from deploy.command import run_target
from deploy.errors import ExportError
from deploy.quantization import CALIBRATED, Recipe
from deploy.target import Compiled, Job, Target, input_spec

MODEL_FILE = "model.tflite"
SIGNATURE = "serving_default"
OUTPUT_PREFIX = f"{SIGNATURE}_output_"

# Score 0.98: keeps high scores apart even if the calibration images hold no clear object.
CLASS_LOGIT_CEILING = 4.0

# Part of the calibration images' range that a classifier's logits may exceed it by, at either end.
LOGIT_HEADROOM = 0.15


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_target(TARGET, argv)


def compile_tflite(job: Job) -> Compiled:
    """The graph with pixels (1, height, width, 3): float32 in 0..1, or int8 (pixel - 128) for int8."""
    model = _convert(job)
    outputs, recipe = _outputs(model, job), None
    if job.precision == "fp16":
        model = _halve(model)
    elif job.precision != "fp32":
        recipe = job.recipe(ranges="minmax" if job.precision == "w8a16" else None)
        model = _quantize(model, job, outputs, recipe)
    (job.folder / MODEL_FILE).write_bytes(model)
    pixels = _details(model)[0][0]
    dtype = np.dtype(pixels["dtype"]).name
    return Compiled(MODEL_FILE, input_spec(job, pixels["name"], layout="NHWC", dtype=dtype), outputs, recipe)


def _convert(job: Job) -> bytes:
    import litert_torch
    import torch

    from deploy.graph import ChannelsLast

    example = (torch.zeros(1, job.imgsz, job.imgsz, 3),)
    try:
        converted = litert_torch.convert(ChannelsLast(job.graph.network).eval(), example)
    except RuntimeError as error:  # the message goes on with the whole trace of torch.export
        raise ExportError(
            f"LiteRT cannot convert the student ({str(error).splitlines()[0]}): replace the operation in the network, "
            "or use a YOLOv8"
        ) from error
    # In memory: writing a file, litert-torch 0.10.0 ends the whole process where the disk is full.
    return bytes(converted.model_content())


def _quantize(model: bytes, job: Job, outputs: tuple[OutputSpec, ...], asked: Recipe) -> bytes:
    """Weights in int8 per channel, and activations per tensor as the precision says; int8 alone has no float border."""
    from ai_edge_quantizer import quantizer, recipe

    from deploy.tflite_graph import with_float_outputs, with_output_names

    library_recipe = {
        "int8": recipe.static_wi8_ai8,
        "w8a16": recipe.static_wi8_ai16,
        "dynamic": recipe.dynamic_wi8_afp32,
        "w8": recipe.weight_only_wi8_afp32,
    }[job.precision]() + _left_in_float(model, job, asked)
    ranges = None
    if job.precision in CALIBRATED:
        ranges = _measure_ranges(model, job, asked, outputs)
        _fix_ranges(ranges, model, outputs)
    if job.precision == "w8a16":
        library_recipe += [_not_quantized(".*", operation) for operation in ("INPUT", "OUTPUT")]
    worker = quantizer.Quantizer(model, library_recipe)
    result = worker.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    quantized = bytes(result.quantized_model)
    return with_output_names(quantized, model) if job.precision == "w8a16" else with_float_outputs(quantized)


def _left_in_float(model: bytes, job: Job, asked: Recipe) -> list[dict[str, Any]]:
    """The part of the library's recipe that keeps the float layers' operations as they are."""
    from deploy.layers import float_operations
    from deploy.tflite_graph import tflite_operations

    names = float_operations(tflite_operations(model, job.graph), asked.float_layers)
    if not names:
        return []
    # An operation is known to the library by the names of its outputs, each with a semicolon after it.
    regex = f"^(?:{'|'.join(map(re.escape, names))})$"
    return [_not_quantized(regex, "*")]


def _not_quantized(regex: str, operation: str) -> dict[str, Any]:
    return {"regex": regex, "operation": operation, "algorithm_key": "no_quantize", "op_config": {}}


def _measure_ranges(
    model: bytes, job: Job, asked: Recipe, outputs: tuple[OutputSpec, ...]
) -> dict[str, dict[str, Any]]:
    """Tensor name to range by the recipe's method, in the form that the library takes.

    The extremes over all images together leave too coarse a step for nearly all of them in a detector; but nothing
    computes on the outputs, so nothing gains from a finer step there. For a classifier see `CalibrationList`.
    """
    from deploy.ranges import estimate_ranges
    from deploy.tflite_graph import activations

    images = (np.ascontiguousarray(image.transpose(0, 2, 3, 1)) for image in job.calibration_inputs())
    whole = [output.name for output in outputs]
    found = estimate_ranges(activations(model, images), asked, whole, job.known_ranges(asked))
    return {
        name: {"min": np.full((1, 1), low, np.float32), "max": np.full((1, 1), high, np.float32)}
        for name, (low, high) in found.items()
    }


def _fix_ranges(ranges: dict[str, dict[str, Any]], model: bytes, outputs: tuple[OutputSpec, ...]) -> None:
    """Put in what is known beforehand of the input, the class outputs, the logits and the inputs of SiLU."""
    from deploy.graph import CLASS_LOGIT_FLOOR
    from deploy.tflite_graph import silu_inputs

    # Pixels are 0..1 whatever the images: then the quantized input is pixel - 128.
    pixels = ranges[_details(model)[0][0]["name"]]
    pixels["min"], pixels["max"] = np.zeros_like(pixels["min"]), np.ones_like(pixels["max"])
    for name in silu_inputs(model):
        ranges[name]["min"] = np.maximum(ranges[name]["min"], np.float32(SILU_INPUT_FLOOR))
    for output in outputs:
        if output.meaning == "class":  # the 255 steps are spent on scores that matter
            logits = ranges[output.name]
            logits["min"] = np.maximum(logits["min"], np.float32(CLASS_LOGIT_FLOOR))
            logits["max"] = np.maximum(logits["max"], np.float32(CLASS_LOGIT_CEILING))
        elif output.meaning == "logits":  # of two classes cut off at the greatest value neither would be the likelier
            logits = ranges[output.name]
            margin = np.float32(LOGIT_HEADROOM) * (logits["max"] - logits["min"])
            logits["min"], logits["max"] = logits["min"] - margin, logits["max"] + margin


def _halve(model: bytes) -> bytes:
    """Weights stored in float16; the runtime computes in what suits the processor."""
    from ai_edge_quantizer import quantizer, recipe_manager
    from ai_edge_quantizer.algorithm_manager import AlgorithmName

    manager = recipe_manager.RecipeManager()
    manager.add_weight_only_config(".*", "*", 16, algorithm_key=AlgorithmName.FLOAT_CASTING)
    worker = quantizer.Quantizer(model, manager.get_quantization_recipe())
    return bytes(worker.quantize(enable_progress_bar=False, enable_progress_report=False).quantized_model)


def _outputs(model: bytes, job: Job) -> tuple[OutputSpec, ...]:
    """The graph's outputs by their names in the model, which numbers them in order."""
    names = {detail["name"]: detail for detail in _details(model)[1]}
    found = []
    for index, output in enumerate(job.graph.outputs):
        name = f"{OUTPUT_PREFIX}{index}_output"
        expected = [1, output.channels]
        if output.layout != "NC":
            cells = job.imgsz // output.stride
            expected = [1, cells, cells, output.channels]
        met = names[name]["shape"].tolist() if name in names else f"only {', '.join(names)}"
        if met != expected:
            raise ExportError(f"the converted model has {met} for {name}, expected {expected}: check litert-torch")
        found.append(replace(output, name=name, layout="NC" if output.layout == "NC" else "NHWC"))
    return tuple(found)


def _details(model: bytes) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(model_content=model)
    return interpreter.get_input_details(), interpreter.get_output_details()


TARGET = Target(
    engine="tflite",
    packages={
        "litert_torch": "litert-torch",
        "ai_edge_quantizer": "ai-edge-quantizer",
        "ai_edge_litert": "ai-edge-litert",
    },
    compile=compile_tflite,
    precisions=("fp32", "fp16", "w8", "dynamic", "w8a16", "int8"),
)

if __name__ == "__main__":
    sys.exit(main())
