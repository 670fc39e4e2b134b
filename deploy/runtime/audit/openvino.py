"""What OpenVINO executed, from the graph that its CPU plugin made of the model.

The plugin describes each node of that graph with its kernel, the precision that it computes in and its time:
`CompiledModel.get_runtime_model`, keys as in `openvino/runtime/exec_model_info.hpp`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle
from deploy.errors import EngineError
from deploy.runtime.audit.operators import (
    CONVERSION,
    CONVOLUTION,
    LAYOUT,
    OTHER,
    PRODUCT,
    Executed,
    Operator,
    multiplications,
    precision_of,
)
from deploy.runtime.engine import not_installed, reason
from deploy.runtime.engines.openvino import open_core, settings
from deploy.runtime.options import Options
from deploy.runtime.tensors import fill_input

_NOT_EXECUTED = ("Const", "Input", "Output", "Parameter", "Result")
_ROLES = {
    **dict.fromkeys(("Convolution", "GroupConvolution", "Deconvolution"), CONVOLUTION),
    **dict.fromkeys(("FullyConnected", "MatMul"), PRODUCT),
    **dict.fromkeys(("Convert", "FakeQuantize"), CONVERSION),
}


def executed(bundle: Bundle, threads: int, options: Options, pixels: NDArray[np.uint8], runs: int) -> Executed:
    """Run a bundle and ask; see `deploy.runtime.audit.executed`."""
    try:
        import openvino
    except ImportError as error:
        raise not_installed(bundle, "openvino", error) from error
    version = str(openvino.__version__).split("-")[0]
    core = open_core(openvino, bundle, options)
    config = {**settings(bundle, threads, options), "PERF_COUNT": True}
    try:
        compiled = core.compile_model(str(bundle.model_path), "CPU", config)
        request = compiled.create_infer_request()
        fill_input(pixels, bundle.manifest.input, request.get_input_tensor().data)
        for _ in range(runs):
            request.infer()
        nodes = compiled.get_runtime_model().get_ordered_ops()
    except RuntimeError as error:
        raise EngineError(f"OpenVINO {version} refuses {bundle.model_path}: {reason(error)}") from error
    operators = tuple(found for node in nodes if (found := _operator(node)) is not None)
    return Executed("openvino", version, operators, _notes(operators))


def _operator(node: Any) -> Operator | None:
    """A node of the executed graph; None for what takes no time, as constants and what runs once beforehand."""
    said = _said(node)
    kind, kernel, time_us = (said.get(key, "") for key in ("layerType", "primitiveType", "execTimeMcs"))
    if kind in _NOT_EXECUTED or not time_us.isdigit():
        return None
    computes_in = precision_of(kernel.rpartition("_")[2])
    if computes_in == "other":
        computes_in = precision_of(said.get("runtimePrecision", ""))
    role = _ROLES.get(kind, OTHER)
    if kind in ("Reorder", "Subgraph"):
        # A reorder changes the layout, the type or both; a subgraph that changes the type is a quantizer.
        read = [_first_type(_said(one.get_node())) for one in node.input_values()]
        converts = read[:1] not in ([], [_first_type(said)])
        role = CONVERSION if converts else LAYOUT if kind == "Reorder" else OTHER
    macs = _macs(kind, node) if role in (CONVOLUTION, PRODUCT) else 0
    return Operator(node.get_friendly_name(), kind, role, computes_in, kernel, macs, int(time_us) * 1e-6)


def _said(node: Any) -> Mapping[str, str]:
    described = node.get_rt_info()
    return {key: described[key].astype(str) for key in described}


def _first_type(said: Mapping[str, str]) -> str:
    return said.get("outputPrecisions", "").partition(",")[0]


def _macs(kind: str, node: Any) -> int:
    made = _shape(node.output(0))
    inputs: Sequence[Sequence[int]] = [_shape(one) for one in node.input_values()]
    if len(inputs) < 2:
        return 0
    if kind == "Deconvolution":
        return multiplications(inputs[0], inputs[1], inputs[0][1])
    if _ROLES[kind] == PRODUCT:
        return multiplications(made, inputs[0][-1:], 1)
    return multiplications(made, inputs[1], made[1])


def _shape(port: Any) -> tuple[int, ...]:
    shape = port.get_partial_shape()
    return tuple(shape.to_shape()) if shape.is_static else ()


def _notes(operators: Sequence[Operator]) -> tuple[str, ...]:
    references = [one for one in operators if one.counts and one.kernel.startswith("ref")]
    if references:
        return (f"{len(references)} convolutions or products ran by OpenVINO's slow reference code",)
    return ()
