"""The raw tensors of an exported ONNX graph, channels last, as the kernels of ONNX Runtime leave them."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from deploy.bundle import OutputSpec

TO_NHWC, TO_NCHW = [0, 2, 3, 1], [0, 3, 1, 2]


def channels_last(outputs: Iterable[OutputSpec]) -> tuple[OutputSpec, ...]:
    """What is said of raw tensors (1, channels, h, w) when they are (1, h, w, channels)."""
    return tuple(replace(one, layout="NHWC") if one.layout == "NCHW" else one for one in outputs)


def turn_outputs(model: Any, turned: Collection[str] = ()) -> None:
    """Make every output (1, channels, h, w) of a float graph (1, h, w, channels), in place, but those that are."""
    from onnx import helper

    for output in model.graph.output:
        shape = _shape(output)
        if len(shape) == 4 and output.name not in turned:
            whole = f"{output.name}_nchw"
            _rename(model, output.name, whole)
            turn = helper.make_node("Transpose", [whole], [output.name], f"{output.name}_nhwc", perm=TO_NHWC)
            model.graph.node.append(turn)
            _set_shape(output, [shape[0], *shape[2:], shape[1]])


def last_convolutions_as_products(model: Any, kept: Collection[str]) -> list[str]:
    """Write the convolutions of one pixel that make an output as matrix products, in place.

    Of bytes, ONNX Runtime multiplies matrices into float32 outputs; convolutions only into bytes again, which would
    round the raw tensors, or in float. The output of such a product is (1, h, w, channels).

    Args:
        model: the float graph; the outputs of other operations stay (1, channels, h, w).
        kept: names of the nodes that stay as they are.

    Returns:
        The outputs that are products now.
    """
    from onnx import numpy_helper

    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    turned = []
    for output in graph.output:
        node = makers[output.name]
        weight = constants.get(node.input[1]) if node.op_type == "Conv" and len(node.input) == 3 else None
        if weight is None or node.name in kept or not _is_of_one_pixel(node, weight):
            continue
        batch, channels, height, width = _shape(output)
        matrix = numpy_helper.to_array(weight)[:, :, 0, 0].T  # (inputs, outputs)
        place = list(graph.node).index(node)
        graph.node.remove(node)
        for one in reversed(_product(graph, node, matrix, (batch, height, width, channels))):
            graph.node.insert(place, one)
        if not any(weight.name in one.input for one in graph.node):
            graph.initializer.remove(weight)
        _set_shape(output, [batch, height, width, channels])
        turned.append(output.name)
    return turned


def _product(graph: Any, node: Any, matrix: Any, shape: tuple[int, ...]) -> list[Any]:
    """The nodes that take the convolution's place; its constants go into the graph."""
    from onnx import helper, numpy_helper

    name = node.name
    constants = {
        f"{name}_matrix": np.ascontiguousarray(matrix),
        f"{name}_cells": np.array([-1, matrix.shape[0]], np.int64),
        f"{name}_shape": np.array(shape, np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(values, key) for key, values in constants.items())
    weights, cells, whole = constants
    return [
        helper.make_node("Transpose", [node.input[0]], [f"{name}_turned"], f"{name}_turn", perm=TO_NHWC),
        helper.make_node("Reshape", [f"{name}_turned", cells], [f"{name}_rows"], f"{name}_flatten"),
        helper.make_node("Gemm", [f"{name}_rows", weights, node.input[2]], [f"{name}_product"], name),
        helper.make_node("Reshape", [f"{name}_product", whole], list(node.output), f"{name}_restore"),
    ]


def _is_of_one_pixel(node: Any, weight: Any) -> bool:
    from onnx import helper

    said = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return (
        list(weight.dims[2:]) == [1, 1]
        and said.get("group", 1) == 1
        and set(said.get("strides", [1])) == {1}
        and not any(said.get("pads", []))
    )


def _rename(model: Any, name: str, other: str) -> None:
    """Call a tensor that is made and perhaps read within the graph by another name."""
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [other if one == name else one for one in names]


def _shape(output: Any) -> list[int]:
    return [side.dim_value for side in output.type.tensor_type.shape.dim]


def _set_shape(output: Any, shape: list[int]) -> None:
    for side, value in zip(output.type.tensor_type.shape.dim, shape, strict=True):
        side.dim_value = value
