"""What the nodes of an exported ONNX graph are: which of the student's layers each one came of."""

from __future__ import annotations

from typing import Any

from deploy.graph import Graph
from deploy.layers import Operation, layer_of, student_layers

# Operations with weights, and the axis of their weights that counts the outputs.
OUTPUT_AXIS = {"Conv": 0, "ConvTranspose": 1, "Gemm": 1, "MatMul": 1}


def onnx_operations(model: Any, graph: Graph) -> list[Operation]:
    """The nodes of an exported graph, with the student's layers that they are."""
    from onnx import numpy_helper

    layers = student_layers(graph)
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    operations = []
    for node in model.graph.node:
        weight = constants.get(node.input[1]) if node.op_type in OUTPUT_AXIS else None
        layer = None
        if weight is not None:
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            axis = 0 if transposed else OUTPUT_AXIS[node.op_type]
            layer = layer_of(numpy_helper.to_array(weight), layers, axis)
        read = tuple(name for name in node.input if name and name not in constants)
        operations.append(Operation(node.name, read, tuple(node.output), layer))
    return operations
