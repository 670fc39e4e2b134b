"""`python -m deploy.tflite`: a student as a TFLite bundle for LiteRT."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from deploy.bundle import OutputSpec
from deploy.calibration import SILU_INPUT_FLOOR
from deploy.command import run_target
from deploy.errors import ExportError
from deploy.quantization import Recipe
from deploy.runtime import default_threads
from deploy.target import Compiled, Job, Target, input_spec

MODEL_FILE = "model.tflite"
SIGNATURE = "serving_default"
OUTPUT_PREFIX = f"{SIGNATURE}_output_"

# Score 0.98: keeps high scores apart even if the calibration images hold no clear object.
CLASS_LOGIT_CEILING = 4.0

# Part of the calibration images' range that a classifier's logits may exceed it by, at either end.
LOGIT_HEADROOM = 0.15

Ranges = Mapping[str, Mapping[str, Any]]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_target(TARGET, argv)


def compile_tflite(job: Job) -> Compiled:
    """The graph with pixels (1, height, width, 3): float32 in 0..1, or int8 (pixel - 128) for int8."""
    model = _convert(job)
    outputs, recipe = _outputs(model, job), None
    if job.precision == "int8":
        recipe = job.recipe()
        model = _quantize(model, job, outputs, recipe)
    elif job.precision == "fp16":
        model = _halve(model)
    (job.folder / MODEL_FILE).write_bytes(model)
    pixels = _details(model)[0][0]
    dtype = np.dtype(pixels["dtype"]).name
    return Compiled(MODEL_FILE, input_spec(job, pixels["name"], layout="NHWC", dtype=dtype), outputs, recipe)


def _convert(job: Job) -> bytes:
    import litert_torch
    import torch

    from deploy.graph import ChannelsLast

    example = (torch.zeros(1, job.imgsz, job.imgsz, 3),)
    converted = litert_torch.convert(ChannelsLast(job.graph.network).eval(), example)
    # In memory: writing a file, litert-torch 0.10.0 ends the whole process where the disk is full.
    return bytes(converted.model_content())


def _quantize(model: bytes, job: Job, outputs: tuple[OutputSpec, ...], asked: Recipe) -> bytes:
    """Static quantization: int8 activations per tensor, int8 weights per channel, int8 input and outputs."""
    from ai_edge_quantizer import quantizer, recipe

    from deploy.tflite_graph import with_float_outputs

    static_int8 = recipe.static_wi8_ai8() + _left_in_float(model, job, asked)
    whole = "" if asked.ranges == "minmax" else OUTPUT_PREFIX
    ranges = _joined_ranges(_measure_ranges(model, job, static_int8), whole)
    _fix_ranges(ranges, model, outputs)
    worker = quantizer.Quantizer(model, static_int8)
    result = worker.quantize(ranges, enable_progress_bar=False, enable_progress_report=False)
    return with_float_outputs(bytes(result.quantized_model))


def _left_in_float(model: bytes, job: Job, asked: Recipe) -> list[dict[str, Any]]:
    """The part of the library's recipe that keeps the float layers' operations as they are."""
    from deploy.layers import float_operations
    from deploy.tflite_graph import tflite_operations

    names = float_operations(tflite_operations(model, job.graph), asked.float_layers)
    if not names:
        return []
    # An operation is known to the library by the names of its outputs, each with a semicolon after it.
    regex = f"^(?:{'|'.join(map(re.escape, names))})$"
    return [{"regex": regex, "operation": "*", "algorithm_key": "no_quantize", "op_config": {}}]


def _measure_ranges(model: bytes, job: Job, quantization_recipe: Any) -> list[Ranges]:
    """Per calibration image: tensor name to its least and greatest value."""
    from ai_edge_quantizer import calibrator, recipe_manager

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(quantization_recipe)
    worker = calibrator.Calibrator(model, num_threads=default_threads())
    measured = []
    for images in job.calibration_inputs():
        # One image at a time: the library's own average over images weighs the first one most.
        worker.reset_model_qsvs()
        worker.calibrate({SIGNATURE: [{"args_0": np.ascontiguousarray(images.transpose(0, 2, 3, 1))}]}, manager)
        measured.append(worker.get_model_qsvs())
    return measured


def _joined_ranges(measured: list[Ranges], whole: str) -> dict[str, dict[str, Any]]:
    """Tensor name to range: the mean of the images' extremes; the extremes of all images for names that begin `whole`.

    The extremes over all images together leave too coarse a step for nearly all of them in a detector; but nothing
    computes on the outputs, so nothing gains from a finer step there. For a classifier see `CalibrationList`.
    """
    ranges = {}
    for name in measured[0]:
        lows, highs = (np.stack([image[name][end] for image in measured]) for end in ("min", "max"))
        if name.startswith(whole):
            low, high = lows.min(axis=0), highs.max(axis=0)
        else:
            low, high = lows.mean(axis=0, dtype=np.float64), highs.mean(axis=0, dtype=np.float64)
        ranges[name] = {"min": low.astype(np.float32), "max": high.astype(np.float32)}
    return ranges


def _fix_ranges(ranges: dict[str, dict[str, Any]], model: bytes, outputs: tuple[OutputSpec, ...]) -> None:
    """Put in what is known beforehand of the input, the class outputs, the logits and the inputs of SiLU."""
    from deploy.graph import CLASS_LOGIT_FLOOR
    from deploy.tflite_graph import silu_inputs

    # Pixels are 0..1 whatever the images: then the quantized input is pixel - 128.
    pixels = ranges[_details(model)[0][0]["name"]]
    pixels["min"], pixels["max"] = np.zeros_like(pixels["min"]), np.ones_like(pixels["max"])
    for name in ranges.keys() & set(silu_inputs(model)):  # those that stay in float have no range
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
)

if __name__ == "__main__":
    sys.exit(main())
