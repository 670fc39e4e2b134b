"""The little of an ONNX file that an audit needs, read without the onnx package, which no device has.

Protocol Buffers' wire format: a message is a row of fields, each a number with its wire type (0 a variable-length
integer, 1 eight bytes, 2 a length and that many bytes, 5 four bytes); see
https://protobuf.dev/programming-guides/encoding. The numbers of the fields are those of `onnx.proto`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

_GRAPH = 7  # of a ModelProto
_NODE, _INITIALIZER = 1, 5  # of a GraphProto
_INPUT, _OUTPUT, _NAME, _OP_TYPE = 1, 2, 3, 4  # of a NodeProto
_DIMS, _TENSOR_NAME = 1, 8  # of a TensorProto
_FIXED_BYTES = {1: 8, 5: 4}


@dataclass(frozen=True)
class Node:
    """One node of the graph; an input that is left out has the name ""."""

    name: str
    op_type: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class OnnxGraph:
    """Nodes by their names, and the shape of each constant by its name."""

    nodes: dict[str, Node]
    constants: dict[str, tuple[int, ...]]


def read_graph(data: bytes) -> OnnxGraph:
    """Read an ONNX model.

    Raises:
        ValueError: it is none.
    """
    nodes: dict[str, Node] = {}
    constants: dict[str, tuple[int, ...]] = {}
    for number, graph in _fields(memoryview(data)):
        if number == _GRAPH and isinstance(graph, memoryview):
            for kind, message in _fields(graph):
                if kind == _NODE and isinstance(message, memoryview):
                    node = _node(message)
                    nodes[node.name] = node
                elif kind == _INITIALIZER and isinstance(message, memoryview):
                    name, shape = _constant(message)
                    constants[name] = shape
    return OnnxGraph(nodes, constants)


def _node(message: memoryview) -> Node:
    texts: dict[int, list[str]] = {_INPUT: [], _OUTPUT: [], _NAME: [], _OP_TYPE: []}
    for number, value in _fields(message):
        if number in texts and isinstance(value, memoryview):
            texts[number].append(str(value, "utf-8"))
    name, kind = "".join(texts[_NAME]), "".join(texts[_OP_TYPE])
    return Node(name, kind, tuple(texts[_INPUT]), tuple(texts[_OUTPUT]))


def _constant(message: memoryview) -> tuple[str, tuple[int, ...]]:
    name, shape = "", list[int]()
    for number, value in _fields(message):
        if number == _DIMS and isinstance(value, memoryview):  # packed
            at = 0
            while at < len(value):
                side, at = _integer(value, at)
                shape.append(side)
        elif number == _DIMS and isinstance(value, int):
            shape.append(value)
        elif number == _TENSOR_NAME and isinstance(value, memoryview):
            name = str(value, "utf-8")
    return name, tuple(shape)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Number and value of each field of a message."""
    at = 0
    while at < len(message):
        key, at = _integer(message, at)
        number, wire_type = key >> 3, key & 7
        if wire_type == 0:
            value, at = _integer(message, at)
            yield number, value
            continue
        if wire_type == 2:
            size, at = _integer(message, at)
        elif wire_type in _FIXED_BYTES:
            size = _FIXED_BYTES[wire_type]
        else:
            raise ValueError(f"no ONNX file: wire type {wire_type} at byte {at}")
        if at + size > len(message):
            raise ValueError(f"no ONNX file: it ends within a field of {size} bytes")
        yield number, message[at : at + size]
        at += size


def _integer(message: memoryview, at: int) -> tuple[int, int]:
    """A variable-length integer, seven bits a byte, the lowest first; and where the next field begins."""
    value = shift = 0
    while True:
        if at >= len(message):
            raise ValueError("no ONNX file: it ends within a number")
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
