"""What the operators of a TFLite model are: which of the student's layers each one came of, and which gate a SiLU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.graph import Graph
from deploy.layers import Operation, layer_of, student_layers
from deploy.runtime import default_threads


def tflite_operations(model: bytes, graph: Graph) -> list[Operation]:
    """The operators of a float model, with the student's layers that they are."""
    from ai_edge_litert import schema_py_generated as schema

    layers = student_layers(graph)
    kinds = schema.BuiltinOperator
    output_axes = {kinds.CONV_2D: 0, kinds.DEPTHWISE_CONV_2D: 3, kinds.FULLY_CONNECTED: 0, kinds.TRANSPOSE_CONV: 0}
    content = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model))
    (subgraph,) = content.subgraphs
    operations = []
    for one in subgraph.operators:
        axis = output_axes.get(content.operatorCodes[one.opcodeIndex].builtinCode)
        weight = None if axis is None else subgraph.tensors[one.inputs[1]]
        layer = None
        if weight is not None and content.buffers[weight.buffer].data is not None:
            values = np.frombuffer(content.buffers[weight.buffer].data.tobytes(), np.float32).reshape(weight.shape)
            layer = layer_of(values, layers, axis or 0)
        read = [i for i in one.inputs if i >= 0 and content.buffers[subgraph.tensors[i].buffer].data is None]
        outputs = tuple(subgraph.tensors[index].name.decode() for index in one.outputs)
        names = tuple(subgraph.tensors[index].name.decode() for index in read)
        operations.append(Operation("".join(f"{name};" for name in outputs), names, outputs, layer))
    return operations


def silu_inputs(model: bytes) -> list[str]:
    """Names of the tensors x of every x * sigmoid(x)."""
    from ai_edge_litert import schema_py_generated as schema

    content = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model))
    (graph,) = content.subgraphs
    codes = [code.builtinCode for code in content.operatorCodes]
    operators: dict[int, list[Any]] = {}
    for one in graph.operators:
        operators.setdefault(codes[one.opcodeIndex], []).append(one)
    products = [set(one.inputs) for one in operators.get(schema.BuiltinOperator.MUL, [])]
    gates = [(one.outputs[0], one.inputs[0]) for one in operators.get(schema.BuiltinOperator.LOGISTIC, [])]
    return [graph.tensors[source].name.decode() for gate, source in gates if {gate, source} in products]


def with_float_outputs(model: bytes) -> bytes:
    """The model without what quantizes a float output: the library takes all outputs of a model for quantized ones."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    content = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    (graph,) = content.subgraphs
    codes = [code.builtinCode for code in content.operatorCodes]
    last = {
        one.outputs[0]: one
        for one in graph.operators
        if codes[one.opcodeIndex] == schema.BuiltinOperator.QUANTIZE
        and one.outputs[0] in graph.outputs
        and graph.tensors[one.inputs[0]].type == schema.TensorType.FLOAT32
    }
    if not last:
        return model
    graph.operators = [one for one in graph.operators if one not in last.values()]
    graph.outputs = [last[index].inputs[0] if index in last else index for index in graph.outputs]
    for output in content.signatureDefs[0].outputs:
        if output.tensorIndex in last:
            output.tensorIndex = last[output.tensorIndex].inputs[0]
    return bytes(flatbuffer_utils.convert_object_to_bytearray(content))


def with_output_names(model: bytes, original: bytes) -> bytes:
    """The model with its outputs named as in `original`, where the library put a dequantization after them."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools import flatbuffer_utils

    (before,) = schema.ModelT.InitFromObj(schema.Model.GetRootAs(original)).subgraphs
    content = flatbuffer_utils.read_model_from_bytearray(bytearray(model))
    (graph,) = content.subgraphs
    names = [before.tensors[index].name for index in before.outputs]
    for tensor in graph.tensors:
        if tensor.name in names:
            tensor.name += b"_quantized"
    for index, name in zip(graph.outputs, names, strict=True):
        graph.tensors[index].name = name
    return bytes(flatbuffer_utils.convert_object_to_bytearray(content))


def activations(model: bytes, images: Iterable[NDArray[np.float32]]) -> Iterator[dict[str, NDArray[np.float32]]]:
    """For each image all float tensors of the model by name, input included, constants left out.

    The arrays are good until the next image.

    Args:
        model: in float.
        images: (1, height, width, 3) float32 in 0..1.
    """
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.interpreter import Interpreter

    content = schema.ModelT.InitFromObj(schema.Model.GetRootAs(model))
    (graph,) = content.subgraphs
    made = sorted({index for one in graph.operators for index in one.outputs} | set(graph.inputs))
    computed = [index for index in made if graph.tensors[index].type == schema.TensorType.FLOAT32]
    interpreter = Interpreter(
        model_content=model, num_threads=default_threads(), experimental_preserve_all_tensors=True
    )
    interpreter.allocate_tensors()
    for image in images:
        interpreter.set_tensor(graph.inputs[0], image)
        interpreter.invoke()
        yield {graph.tensors[index].name.decode(): interpreter.get_tensor(index) for index in computed}
