"""The layers with weights of a student: their names, and which operations of a target's graph each became.

Every exporter names operations in its own way, fuses some and reorders others. The weights are what they all keep, so
that an operation is known by them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from deploy.errors import ExportError
from deploy.graph import Graph
from deploy.graph_classify import ExportedLogits, UltralyticsLogits
from deploy.graph_detect import RawHeads

_WEIGHTED = (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)
# Folding a BatchNorm in or leaving it out changes the last bits.
_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Layer:
    """One convolution or linear layer.

    Attributes:
        name: as the student's checkpoint calls it: `model.0.conv`, `model.22.cv2.0.2`.
        module: as `Graph.network` calls it; "" of an exported program, whose layers are no modules.
        weight: (outputs, values of one output) float32, the magnitudes of each row divided by the greatest and sorted:
            the same however an exporter transposes them, and whether or not it folds a BatchNorm in, whose factors may
            be negative.
    """

    name: str
    module: str
    weight: NDArray[np.float32]


@dataclass(frozen=True)
class Operation:
    """One operation of a target's graph.

    Attributes:
        name: unique in the graph.
        inputs: the tensors that it reads, constants left out.
        outputs: the tensors that it makes.
        layer: name of the student's layer that it is; None of one without weights.
    """

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    layer: str | None = None


def student_layers(graph: Graph) -> tuple[Layer, ...]:
    """Every layer with weights, in forward order."""
    network = graph.network
    if isinstance(network, ExportedLogits):
        named = [(name, weight) for name, weight in network.program.named_parameters() if weight.ndim > 1]
        return tuple(Layer(name.removesuffix(".weight"), "", row_signature(_numpy(weight))) for name, weight in named)
    order = _forward_order(graph)
    layers = []
    for module_name in order:
        module: Any = network.get_submodule(module_name)
        axis = 1 if isinstance(module, nn.ConvTranspose2d) else 0
        signature = row_signature(_numpy(module.weight), axis)
        layers.append(Layer(_checkpoint_name(module_name, network), module_name, signature))
    return tuple(layers)


def float_layer_names(graph: Graph) -> tuple[str, ...]:
    """Full names of all layers that may stay in float, in forward order."""
    return tuple(layer.name for layer in student_layers(graph))


def last_layer_names(graph: Graph) -> tuple[str, ...]:
    """Full names of the layers of a detector's or segmenter's head that make its raw tensors."""
    ends = {
        f"{name}.{len(module) - 1}"
        for name, module in graph.network.named_modules()
        if isinstance(module, nn.Sequential) and not name.startswith("body.")
    }
    return tuple(layer.name for layer in student_layers(graph) if layer.module in ends)


def block_names(graph: Graph) -> tuple[str, ...]:
    """The student's blocks in forward order: each a prefix of its layers' names, as `Quantization.float_layers` takes.

    `model.0` … of the body, `model.22.cv2.0` … of the head's branches, the first two parts of any other name.
    """
    return tuple(dict.fromkeys(map(block_of, float_layer_names(graph))))


def block_of(layer: str) -> str:
    """The block that a layer belongs to; see `block_names`."""
    parts = layer.split(".")
    if len(parts) > 3 and parts[0] == "model" and parts[2] in ("cv2", "cv3", "cv4") and parts[3].isdecimal():
        return ".".join(parts[:4])
    if len(parts) > 2 and parts[0] == "model" and parts[2] == "proto":
        return ".".join(parts[:3])
    return ".".join(parts[:2])


def layers_below(names: Iterable[str], graph: Graph) -> tuple[str, ...]:
    """Full names, in forward order, of the layers that `names` are or are prefixes of.

    Raises:
        ExportError: a name of no layer; the message lists the blocks.
    """
    known, wanted = float_layer_names(graph), list(names)
    for name in wanted:
        if not any(_is_below(layer, name) for layer in known):
            raise ExportError(f"the student has no layer {name!r}: give some of {', '.join(block_names(graph))}")
    return tuple(layer for layer in known if any(_is_below(layer, name) for name in wanted))


def layer_of(weight: NDArray[np.float32], layers: Sequence[Layer], axis: int = 0) -> str | None:
    """Name of the layer whose weights these are, in whatever layout; None for none.

    Args:
        weight: as the target's graph holds it.
        layers: of the student.
        axis: the one of the outputs.
    """
    signature = row_signature(weight, axis)
    for layer in layers:
        if layer.weight.shape == signature.shape and np.allclose(layer.weight, signature, atol=_TOLERANCE):
            return layer.name
    return None


def float_operations(operations: Sequence[Operation], float_layers: Iterable[str]) -> list[str]:
    """Names of the operations to keep in float: the layers', and those without weights that read nothing else.

    So an activation stays with its convolution, and what joins a float tensor with a quantized one is quantized.

    Args:
        operations: of the whole graph, each after those whose tensors it reads.
        float_layers: full names.
    """
    kept, floats, names = frozenset(float_layers), set[str](), []
    for one in operations:
        stays = one.layer in kept if one.layer is not None else bool(one.inputs) and floats.issuperset(one.inputs)
        if stays:
            floats.update(one.outputs)
            names.append(one.name)
    return names


def row_signature(weight: NDArray[np.float32], axis: int = 0) -> NDArray[np.float32]:
    """Weights as `Layer.weight` has them; `axis` is the one of the outputs."""
    rows = np.abs(np.moveaxis(np.asarray(weight, np.float32), axis, 0).reshape(weight.shape[axis], -1))
    greatest = rows.max(axis=1, keepdims=True)
    return np.sort(rows / np.where(greatest == 0, np.float32(1), greatest), axis=1)


def _numpy(weight: torch.Tensor) -> NDArray[np.float32]:
    return np.asarray(weight.detach().float().numpy())


def _is_below(layer: str, name: str) -> bool:
    return layer == name or layer.startswith(f"{name}.")


def _forward_order(graph: Graph) -> list[str]:
    """Names of the network's modules with weights as they are called."""
    called: list[str] = []
    handles = [
        module.register_forward_pre_hook(lambda _module, _inputs, name=name: called.append(name))
        for name, module in graph.network.named_modules()
        if isinstance(module, _WEIGHTED)
    ]
    try:
        with torch.inference_mode():
            graph.network(torch.zeros(1, 3, 64, 64))
    finally:
        for handle in handles:
            handle.remove()
    return list(dict.fromkeys(called))


def _checkpoint_name(module: str, network: nn.Module) -> str:
    """`body.layers.4.cv1.conv` as `model.4.cv1.conv`, `box_branches.0.2` as `model.22.cv2.0.2`."""
    if module.startswith("body.layers."):
        return module.replace("body.layers.", "model.", 1)
    body: Any = network.get_submodule("body")
    head = f"model.{len(body.layers)}"
    if isinstance(network, RawHeads):
        branches = {"box_branches": "cv2", "class_branches": "cv3", "mask_branches": "cv4", "prototypes": "proto"}
        branch, rest = module.split(".", 1)
        return f"{head}.{branches[branch]}.{rest}"
    assert isinstance(network, UltralyticsLogits), type(network)
    return f"{head}.{module}"
