"""What the nodes of an exported ONNX graph are: which of the student's layers, and what they compute for an image."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.graph import INPUT_NAME, Graph
from deploy.layers import Operation, layer_of, student_layers
from deploy.runtime import default_threads

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


def silu_inputs(model: Any) -> set[str]:
    """Names of the tensors x of every x * sigmoid(x)."""
    nodes = model.graph.node
    gates = {node.output[0]: node.input[0] for node in nodes if node.op_type == "Sigmoid"}
    products = [set(node.input) for node in nodes if node.op_type == "Mul"]
    return {source for gate, source in gates.items() if {gate, source} in products}


def activations(model: Any, images: Iterable[NDArray[np.float32]]) -> Iterator[dict[str, NDArray[np.float32]]]:
    """For each image all float tensors of the graph by name, input included, constants left out.

    Args:
        model: the float graph; as it is, it stays.
        images: (1, 3, height, width) float32 in 0..1.
    """
    import onnx
    import onnxruntime

    probed = onnx.shape_inference.infer_shapes(model)
    outputs = {output.name for output in probed.graph.output}
    kinds = {info.name: info.type.tensor_type.elem_type for info in probed.graph.value_info}
    for node in probed.graph.node:
        for name in node.output:
            if name not in outputs and kinds.get(name) == onnx.TensorProto.FLOAT:
                probed.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = default_threads()
    session = onnxruntime.InferenceSession(probed.SerializeToString(), options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    for image in images:
        yield {INPUT_NAME: image, **dict(zip(names, session.run(names, {INPUT_NAME: image}), strict=True))}
