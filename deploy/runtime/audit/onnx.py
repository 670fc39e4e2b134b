"""What ONNX Runtime executed, from its profile, and from the optimised graph whose nodes the profile times."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle
from deploy.errors import EngineError
from deploy.runtime.audit.onnx_file import OnnxGraph, read_graph
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
from deploy.runtime.engines.onnx import refusals, session_settings
from deploy.runtime.options import Options
from deploy.runtime.tensors import fill_input, input_shape

_CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "QLinearConv", "ConvInteger", "ConvTranspose")
_PRODUCTS = ("Gemm", "FusedGemm", "QGemm", "MatMul", "FusedMatMul", "QLinearMatMul")
_DYNAMIC = ("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul")
_ROLES = {
    **dict.fromkeys(_DYNAMIC + _PRODUCTS, PRODUCT),
    **dict.fromkeys(_CONVOLUTIONS, CONVOLUTION),
    **dict.fromkeys(("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast"), CONVERSION),
    **dict.fromkeys(("ReorderInput", "ReorderOutput"), LAYOUT),
}
_SAME_VALUES = ("ReorderInput", "ReorderOutput", "Transpose", "Reshape")
_NODE_SUFFIX = "_kernel_time"


def executed(bundle: Bundle, threads: int, options: Options, pixels: NDArray[np.uint8], runs: int) -> Executed:
    """Run a bundle and ask; see `deploy.runtime.audit.executed`."""
    try:
        import onnxruntime
    except ImportError as error:
        raise not_installed(bundle, "onnxruntime", error) from error
    spec = bundle.manifest.input
    values = np.zeros(input_shape(spec), spec.dtype)
    fill_input(pixels, spec, values)
    refused: tuple[type[Exception], ...] = (*refusals(), ValueError)
    settings = session_settings(onnxruntime, threads, options)
    with TemporaryDirectory(prefix="audit-") as folder:
        optimised = Path(folder) / "optimised.onnx"
        settings.enable_profiling = True
        settings.profile_file_prefix = str(Path(folder) / "profile")
        settings.optimized_model_filepath = str(optimised)
        try:
            session = onnxruntime.InferenceSession(str(bundle.model_path), settings, providers=["CPUExecutionProvider"])
            for _ in range(runs + 1):
                session.run(None, {spec.name: values})
            profile = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
            graph = read_graph(optimised.read_bytes())
        except refused as error:
            library = f"ONNX Runtime {onnxruntime.__version__}"
            raise EngineError(f"{library} refuses {bundle.model_path}: {reason(error)}") from error
    operators = tuple(_operator(name, events, graph) for name, events in _by_node(profile).items())
    return Executed("onnxruntime", str(onnxruntime.__version__), operators, _notes(operators, graph))


def _by_node(profile: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The events of each node, those of the first run left out: it also allocates memory."""
    events: dict[str, list[Mapping[str, Any]]] = {}
    for event in profile:
        name = str(event.get("name", ""))
        if event.get("cat") == "Node" and name.endswith(_NODE_SUFFIX):
            events.setdefault(name.removesuffix(_NODE_SUFFIX), []).append(event)
    return {name: found[1:] or found for name, found in events.items()}


def _operator(name: str, events: Sequence[Mapping[str, Any]], graph: OnnxGraph) -> Operator:
    said = events[0]["args"]
    kind = str(said["op_name"])
    role = _ROLES.get(kind, OTHER)
    read, made = (_tensors(said[key]) for key in ("input_type_shape", "output_type_shape"))
    # Of a conversion, what it makes: the type that all after it compute in.
    shown = made if role == CONVERSION else read
    computes_in = "INT8 dynamic" if kind in _DYNAMIC else precision_of(shown[0][0] if shown else "")
    macs = _macs(name, kind, read, made, graph) if role in (CONVOLUTION, PRODUCT) else 0
    seconds = float(np.mean([event["dur"] for event in events])) * 1e-6
    return Operator(name, kind, role, computes_in, kind, macs, seconds)


def _tensors(listed: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[str, tuple[int, ...]]]:
    """Type and shape of each tensor that the profile lists; it leaves out weights that were packed beforehand."""
    return [(kind, tuple(shape)) for tensor in listed for kind, shape in tensor.items()]


def _macs(
    name: str,
    kind: str,
    read: Sequence[tuple[str, tuple[int, ...]]],
    made: Sequence[tuple[str, tuple[int, ...]]],
    graph: OnnxGraph,
) -> int:
    if not read or not made:
        return 0
    (_, data), (_, result) = read[0], made[0]
    if _ROLES[kind] == PRODUCT:
        return multiplications(result, data[-1:], 1)
    weights = _weights(name, kind, graph)
    if len(weights) < 3:
        return 0
    return multiplications(data if kind == "ConvTranspose" else result, weights, weights[0])


def _weights(name: str, kind: str, graph: OnnxGraph) -> tuple[int, ...]:
    """Shape of a convolution's weights: a constant, or made of one by what stands between."""
    node = graph.nodes.get(name)
    place = 3 if kind.startswith("QLinear") else 1
    if node is None or len(node.inputs) <= place:
        return ()
    makers = {output: one for one in graph.nodes.values() for output in one.outputs}
    tensor = node.inputs[place]
    while tensor not in graph.constants:
        maker = makers.get(tensor)
        if maker is None or not maker.inputs:
            return ()
        tensor = maker.inputs[0]
    return graph.constants[tensor]


def _notes(operators: Sequence[Operator], graph: OnnxGraph) -> tuple[str, ...]:
    notes = []
    dequantized = sum(one.counts and one.precision == "FP32" and _is_dequantized(one.name, graph) for one in operators)
    if dequantized:
        notes.append(f"{dequantized} float convolutions or products read what DequantizeLinear made of 8-bit values")
    return tuple(notes)


def _is_dequantized(name: str, graph: OnnxGraph) -> bool:
    """Whether a node reads what a DequantizeLinear made, perhaps in another layout."""
    makers = {output: one for one in graph.nodes.values() for output in one.outputs}
    node = graph.nodes.get(name)
    while node is not None and node.inputs:
        node = makers.get(node.inputs[0])
        if node is None or node.op_type not in _SAME_VALUES:
            break
    return node is not None and node.op_type == "DequantizeLinear"
