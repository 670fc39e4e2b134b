"""What moves numbers without computing moves bytes, in a graph that ONNX Runtime's quantizer has made.

A concatenation of tensors of one range is a copy; of several ranges, each byte is looked up in a table. The quantizer
gives every tensor a range of its own, and writes the doubling of an image as any resizing, value by value.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from deploy.onnx_heads import TO_NCHW, TO_NHWC

Range = tuple[float, float]
_HANDS_ON = ("Resize", "MaxPool", "Slice", "Split", "Transpose", "Reshape")  # values of its first input as they are
_WIDER = 1.45  # times that a tensor's steps may grow for the sake of a copy; without a limit, accuracy is lost


def shared_ranges(model: Any, ranges: Mapping[str, Range]) -> dict[str, Range]:
    """Ranges where what is concatenated has one, if none of it gets much wider, and what is handed on keeps its own.

    A concatenation gets the widest of its inputs', so that of inputs that differ more, one at least is copied.

    Args:
        model: the float graph.
        ranges: tensor name to range; tensors that are missing have none.
    """
    found = dict(ranges)
    group: dict[str, set[str]] = {}
    for node in model.graph.node:
        joins = node.op_type == "Concat"
        if not joins and node.op_type not in _HANDS_ON:
            continue
        read = [name for name in (node.input if joins else node.input[:1]) if name in found]
        made = [name for name in node.output if name in found]
        if len(read) < (len(node.input) if joins else 1) or not made:
            continue
        low, high = widest = min(found[name][0] for name in read), max(found[name][1] for name in read)
        names = set(made)
        if high - low <= _WIDER * min(found[name][1] - found[name][0] for name in read):
            names.update(*(group.get(name, {name}) for name in read))
        group.update(dict.fromkeys(names, names))
        found.update(dict.fromkeys(names, widest))
    return found


class QuantizedGraph:
    """A graph of QuantizeLinear and DequantizeLinear pairs, seen by the bytes between them."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.nodes = model.graph.node
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._makers = {name: node for node in self.nodes for name in node.output}

    def constant(self, name: str) -> Any:
        """A constant's values; None of what is none."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self._constants[name]) if name in self._constants else None

    def add_constant(self, name: str, values: Any) -> str:
        """Put a new constant into the graph; returns its name."""
        from onnx import numpy_helper

        tensor = numpy_helper.from_array(np.asarray(values), name)
        self.model.graph.initializer.append(tensor)
        self._constants[name] = tensor
        return name

    def dequantizer(self, name: str) -> Any:
        """The DequantizeLinear that makes a tensor; None if something else does."""
        maker = self._makers.get(name)
        return maker if maker is not None and maker.op_type == "DequantizeLinear" else None

    def only_reader(self, name: str, op_type: str) -> Any:
        """The node of this type that is all that reads a tensor; None if something else does."""
        readers = [node for node in self.nodes if name in node.input]
        outputs = {output.name for output in self.model.graph.output}
        alone = len(readers) == 1 and readers[0].op_type == op_type and name not in outputs
        return readers[0] if alone else None

    def step(self, node: Any) -> tuple[float, int] | None:
        """Scale and zero point of one of the two, where they are one each."""
        scale, zero_point = (self.constant(name) for name in node.input[1:3])
        if scale is None or zero_point is None or scale.size != 1:
            return None
        return float(scale.item()), int(zero_point.item())

    def replace(self, old: Any, new: list[Any]) -> None:
        """Put nodes into the place of one."""
        place = list(self.nodes).index(old)
        self.nodes.remove(old)
        for node in reversed(new):
            self.nodes.insert(place, node)
        self._makers.update({name: node for node in new for name in node.output})

    def prune(self) -> None:
        """Take out the nodes and constants that nothing reads."""
        graph = self.model.graph
        outputs = {output.name for output in graph.output}
        while unread := [node for node in graph.node if not outputs & set(node.output) and not self._is_read(node)]:
            for node in unread:
                graph.node.remove(node)
        read = {name for node in graph.node for name in node.input}
        for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
            graph.initializer.remove(tensor)
        del graph.value_info[:]  # tells of tensors that are gone

    def _is_read(self, node: Any) -> bool:
        made = set(node.output)
        return any(made & set(one.input) for one in self.nodes)


def move_bytes(model: Any) -> int:
    """Let concatenations and doublings of images work on bytes where no value changes, in place.

    Returns:
        How many do.
    """
    import onnx

    graph = QuantizedGraph(model)
    infos = onnx.shape_inference.infer_shapes(model).graph.value_info
    shapes = {info.name: [side.dim_value for side in info.type.tensor_type.shape.dim] for info in infos}
    moved = 0
    for node in [node for node in model.graph.node if node.op_type in ("Concat", "Resize")]:
        after = graph.only_reader(node.output[0], "QuantizeLinear")
        read = node.input if node.op_type == "Concat" else node.input[:1]
        before = [graph.dequantizer(name) for name in read]
        if after is None or None in before or len({graph.step(one) for one in (after, *before)}) > 1:
            continue
        if node.op_type == "Concat":
            new = _concatenation(node, [one.input[0] for one in before], after.output[0])
        elif _doubles(node, graph):
            new = _doubling(node, graph, before[0].input[0], after.output[0], shapes[node.input[0]])
        else:
            continue
        graph.replace(after, new)
        graph.nodes.remove(node)
        moved += 1
    graph.prune()
    return moved


def _concatenation(node: Any, read: list[str], made: str) -> list[Any]:
    from onnx import helper

    axis = next(attribute.i for attribute in node.attribute if attribute.name == "axis")
    return [helper.make_node("Concat", read, [made], node.name, axis=axis)]


def _doubles(node: Any, graph: QuantizedGraph) -> bool:
    """Whether a Resize writes every value of an image twice in each direction."""
    from onnx import helper

    said = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    scales = graph.constant(node.input[2]) if len(node.input) == 3 else None
    return (
        scales is not None
        and scales.tolist() == [1, 1, 2, 2]
        and said.get("mode", b"nearest") == b"nearest"
        and (said.get("coordinate_transformation_mode"), said.get("nearest_mode")) == (b"asymmetric", b"floor")
    )


def _doubling(node: Any, graph: QuantizedGraph, read: str, made: str, shape: list[int]) -> list[Any]:
    """Columns and rows copied, a pixel's channels at a time; ONNX Runtime resizes byte by byte, ten times slower.

    The transposes meet those of the convolutions around, which ONNX Runtime computes channels last, and vanish.
    """
    from onnx import helper

    batch, channels, height, width = shape
    name = node.name
    apart = graph.add_constant(f"{name}_apart", np.array([batch, height, 1, width, 1, channels], np.int64))
    twice = graph.add_constant(f"{name}_twice", np.array([batch, height, 2, width, 2, channels], np.int64))
    whole = graph.add_constant(f"{name}_whole", np.array([batch, 2 * height, 2 * width, channels], np.int64))
    return [
        helper.make_node("Transpose", [read], [f"{name}_turned"], f"{name}_turn", perm=TO_NHWC),
        helper.make_node("Reshape", [f"{name}_turned", apart], [f"{name}_cells"], f"{name}_part"),
        helper.make_node("Expand", [f"{name}_cells", twice], [f"{name}_copies"], name),
        helper.make_node("Reshape", [f"{name}_copies", whole], [f"{name}_doubled"], f"{name}_join"),
        helper.make_node("Transpose", [f"{name}_doubled"], [made], f"{name}_turn_back", perm=TO_NCHW),
    ]
