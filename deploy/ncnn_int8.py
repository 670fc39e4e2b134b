"""Post-training quantization of an ncnn network, in memory.

ncnn's own tools for it are not on PyPI. What they write is little: a convolution's or linear layer's weights as int8,
one scale for each output (each group, of a depthwise convolution), and one scale for what it reads, all symmetric. The
layer itself quantizes what it reads and gives float32, so that nothing else in the network changes. See ncnn's wiki,
"quantized int8 inference", and `Convolution::load_model` in its source.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import ExportError
from deploy.ncnn_format import SCALE_TERM, Blob, Layer, write_network
from deploy.quantization import Recipe
from deploy.ranges import Mark, RangeEstimator, mark_of
from deploy.target import Job

GREATEST = 127  # of symmetric int8: -128 is not used

# Kind of layer to the value of that parameter, which says what its weights have scales for: each output, or group.
SCALE_TERMS = {"Convolution": 2, "ConvolutionDepthWise": 1, "InnerProduct": 2}
_OUTPUTS, _GROUPS = 0, 7


def quantize(layers: Sequence[Layer], job: Job) -> Recipe:
    """Quantize convolutions and linear layers in place.

    Returns:
        The recipe; its float layers are those that were asked for and those that ncnn has no int8 form of.
    """
    from deploy.layers import float_layer_names

    names = _student_names(layers, job)
    recipe = job.recipe(_float_by_default(job))
    chosen = [
        layer
        for layer in layers
        if layer.kind in SCALE_TERMS and layer.weights and names.get(layer.name) not in recipe.float_layers
    ]
    limits = _limits(layers, chosen, job, recipe)
    for layer in chosen:
        _quantize_layer(layer, limits[layer.name])
    done = {names.get(layer.name) for layer in chosen}
    return replace(recipe, float_layers=tuple(name for name in float_layer_names(job.graph) if name not in done))


def _float_by_default(job: Job) -> tuple[str, ...]:
    """Of a head, the layers that make its raw tensors, and the first one.

    There 8 bits cost most of the accuracy and save little time; and of pixels, which are never negative, symmetric
    8 bits tell only 128 apart.
    """
    from deploy.layers import float_layer_names, last_layer_names

    return () if job.graph.task == "classify" else (float_layer_names(job.graph)[0], *last_layer_names(job.graph))


def _student_names(layers: Sequence[Layer], job: Job) -> dict[str, str]:
    """Name of each layer with int8 form to that of the student's layer that it is."""
    from deploy.layers import layer_of, student_layers

    known = student_layers(job.graph)
    named = {}
    for layer in layers:
        if layer.kind in SCALE_TERMS and layer.weights:
            name = layer_of(_rows(layer, layer.whole(_OUTPUTS)), known)
            if name is not None:
                named[layer.name] = name
    return named


def _rows(layer: Layer, count: int) -> NDArray[np.float32]:
    return layer.weights[0].values.astype(np.float32).reshape(count, -1)


def _quantize_layer(layer: Layer, limit: float) -> None:
    """Give a layer int8 weights and its scales, in place.

    Args:
        layer: with float weights.
        limit: magnitude that becomes 127 in what it reads; greater ones are cut off.
    """
    count = layer.whole(_GROUPS) if layer.kind == "ConvolutionDepthWise" else layer.whole(_OUTPUTS)
    rows = _rows(layer, count)
    greatest = np.abs(rows).max(axis=1)
    scales = np.where(greatest > 0, GREATEST / np.where(greatest > 0, greatest, 1), 1).astype(np.float32)
    weights = np.clip(np.rint(rows * scales[:, None]), -GREATEST, GREATEST).astype(np.int8)
    read = np.full(1, GREATEST / limit, np.float32)
    layer.params[SCALE_TERM] = str(SCALE_TERMS[layer.kind])
    layer.weights = [Blob(weights.ravel(), tagged=True), *layer.weights[1:], Blob(scales), Blob(read)]


def _limits(layers: Sequence[Layer], chosen: Sequence[Layer], job: Job, recipe: Recipe) -> dict[str, float]:
    """Layer name to the limit of what it reads, from the calibration images."""
    origins = {layer.outputs[0]: layer.outputs[0] for layer in layers if layer.kind != "Split"}
    for layer in layers:
        for output in layer.outputs:  # the copies of one tensor are measured once
            origins[output] = origins[layer.inputs[0]] if layer.kind == "Split" else output
    tensors = list(dict.fromkeys(origins[layer.inputs[0]] for layer in chosen))
    magnitudes = {name: RangeEstimator() for name in tensors}
    marks: dict[str, list[Mark]] = {name: [] for name in tensors}
    known = job.known_ranges(recipe)
    method = "mean-minmax" if known else recipe.ranges
    counted = method not in ("minmax", "mean-minmax")
    for values in _activations(layers, tensors, job):
        for name, one in values.items():
            magnitudes[name].add(np.abs(one), histogram=counted)
            marks[name].append(mark_of(one))
    limits = {name: one.range(method, recipe.percentile, GREATEST)[1] for name, one in magnitudes.items()}
    for name in tensors:
        found = None if known is None else known.find(marks[name])
        if found is not None:
            limits[name] = max(-found[0], found[1])
    return {layer.name: limits[origins[layer.inputs[0]]] or 1.0 for layer in chosen}  # 0 stays 0 at any scale


def _activations(layers: Sequence[Layer], tensors: Sequence[str], job: Job) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Of every calibration image, what the float network's tensors hold."""
    from deploy.ncnn import IMAGES, MODEL_FILE, WEIGHTS_FILE

    param, weights = write_network(layers)
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / MODEL_FILE).write_text(param, encoding="ascii")
        (Path(name) / WEIGHTS_FILE).write_bytes(weights)
        net = _float_net(Path(name) / MODEL_FILE, Path(name) / WEIGHTS_FILE)
    for image in job.calibration_inputs():
        yield _extracted(net, IMAGES, image[0], tensors)


def _float_net(param: Path, weights: Path) -> Any:
    import ncnn

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.lightmode = False  # every tensor is asked for
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False
    net.opt.num_threads = 1  # threads that wait for each other after every layer stall where others want the processor
    if net.load_param(str(param)) or net.load_model(str(weights)):
        raise ExportError("ncnn refuses the network that pnnx made of the student: check the versions of both")
    return net


def _extracted(net: Any, given: str, image: NDArray[np.float32], tensors: Sequence[str]) -> dict[str, Any]:
    import ncnn

    extractor = net.create_extractor()
    extractor.input(given, ncnn.Mat(image))
    values = {}
    for name in tensors:
        status, tensor = extractor.extract(name)
        if status:
            raise ExportError(f"ncnn cannot compute tensor {name} of the student (status {status}): is memory left?")
        values[name] = np.asarray(tensor)
    return values
