"""What LiteRT executed: the parts of the graph that XNNPACK took, and the types of what each operator reads.

After delegation the interpreter lists the operators of the file first and then one DELEGATE for each part that was
taken. A tensor inside such a part has no memory of the interpreter's own, so that an operator was taken if all that it
makes has none, or is handed over by a DELEGATE. LiteRT's Python interface tells no times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle
from deploy.runtime.audit.operators import (
    CONVERSION,
    CONVOLUTION,
    OTHER,
    PRODUCT,
    Executed,
    Operator,
    multiplications,
    precision_of,
)
from deploy.runtime.engines.tflite import DELEGATED, open_interpreter
from deploy.runtime.options import Options
from deploy.runtime.tensors import fill_input

_ROLES = {
    **dict.fromkeys(("CONV_2D", "DEPTHWISE_CONV_2D", "TRANSPOSE_CONV", "CONV_3D"), CONVOLUTION),
    **dict.fromkeys(("FULLY_CONNECTED", "BATCH_MATMUL"), PRODUCT),
    **dict.fromkeys(("QUANTIZE", "DEQUANTIZE", "CAST"), CONVERSION),
}

Details = Mapping[str, Any]


def executed(bundle: Bundle, threads: int, options: Options, pixels: NDArray[np.uint8], runs: int) -> Executed:
    """Run a bundle and ask; see `deploy.runtime.audit.executed`."""
    library, interpreter = open_interpreter(bundle, threads, options)
    given = interpreter.get_input_details()[0]
    values = np.zeros(given["shape"], given["dtype"])
    fill_input(pixels, bundle.manifest.input, values)
    for _ in range(min(runs, 1)):  # once: it tells no times
        interpreter.set_tensor(given["index"], values)
        interpreter.invoke()
    tensors: Mapping[int, Details] = {one["index"]: one for one in interpreter.get_tensor_details()}
    nodes = interpreter._get_ops_details()  # experimental since 2021, and the only one to tell
    parts = [node for node in nodes if node["op_name"] == DELEGATED]
    handed_over = {int(index) for part in parts for index in part["outputs"]}

    def is_taken(node: Details) -> bool:
        return all(index in handed_over or not _has_memory(interpreter, index) for index in node["outputs"])

    operators = tuple(_operator(node, tensors, is_taken) for node in nodes if node["op_name"] != DELEGATED)
    return Executed(library, version(library), operators, _notes(operators, len(parts)))


def _operator(node: Details, tensors: Mapping[int, Details], is_taken: Callable[[Details], bool]) -> Operator:
    kind = str(node["op_name"])
    role = _ROLES.get(kind, OTHER)
    reads = [tensors[index] for index in node["inputs"] if index in tensors]
    makes = [tensors[index] for index in node["outputs"]]
    taken = is_taken(node)
    macs = _macs(kind, reads, makes) if role in (CONVOLUTION, PRODUCT) else 0
    kernel = "XNNPACK" if taken else "LiteRT's own"
    name = str(makes[0]["name"]) if makes else kind
    return Operator(name, kind, role, _precision(kind, role, reads, makes), kernel, macs, None, taken)


def _precision(kind: str, role: str, reads: Sequence[Details], makes: Sequence[Details]) -> str:
    """What an operator computes in, by the types of the file: LiteRT has kernels for each."""
    types = [np.dtype(one["dtype"]).name for one in reads]
    if role in (CONVOLUTION, PRODUCT) and len(types) > 1:
        data, weights = (types[2], types[1]) if kind == "TRANSPOSE_CONV" and len(types) > 2 else types[:2]
        if data == "float32" and weights == "int8":
            return "INT8 dynamic"
        return precision_of(data)
    return precision_of(types[0] if types else np.dtype(makes[0]["dtype"]).name)


def _macs(kind: str, reads: Sequence[Details], makes: Sequence[Details]) -> int:
    shapes = [tuple(map(int, one["shape"])) for one in reads]
    made = tuple(map(int, makes[0]["shape"]))
    if kind == "TRANSPOSE_CONV":
        return multiplications(shapes[2], shapes[1], shapes[1][-1])
    if kind == "DEPTHWISE_CONV_2D":
        return multiplications(made, shapes[1], shapes[1][-1])
    if _ROLES[kind] == PRODUCT:
        return multiplications(made, shapes[0][-1:], 1)
    return multiplications(made, shapes[1], shapes[1][0])


def _has_memory(interpreter: Any, index: int) -> bool:
    try:
        interpreter.tensor(index)()
    except ValueError:  # "Tensor data is null"
        return False
    return True


def _notes(operators: Sequence[Operator], parts: int) -> tuple[str, ...]:
    left = sorted({one.kind for one in operators if not one.accelerated})
    count = sum(not one.accelerated for one in operators)
    if not parts:
        return ("XNNPACK took no operator: all ran by LiteRT's own kernels",)
    taken = f"XNNPACK took {len(operators) - count} of {len(operators)} operators, in {parts} parts"
    return (f"{taken}; left to LiteRT's own kernels: {', '.join(left)}" if left else taken,)
