"""Feature maps and the embedding of any classifier, read where its own layers produce them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor, nn

from distill.errors import DistillError

__all__ = ["Layers", "find_layers", "replaced", "tapped"]

_MOST_MAPS: Final = 4


@dataclass(frozen=True)
class Layers:
    """Where a network's activations are read.

    Attributes:
        maps: modules that put out the last feature map of each resolution, finest first; at most the last four
            resolutions.
        channels: channels of each.
        head: the last linear layer, or a 1x1 convolution of a pooled map in its place (timm's ResNetV2); its input is
            the embedding.
        dim: width of the embedding.
        positions: 1; where the head reads a flattened map, how many positions that has. The embedding is then the
            mean over them: a map of 512 x 8 x 8 has 32,768 numbers, whose relations nobody could afford to compare.
    """

    maps: tuple[str, ...]
    channels: tuple[int, ...]
    head: str
    dim: int
    positions: int


def find_layers(network: nn.Module, example: Tensor) -> Layers:
    """Find the layers by running one example (1, channels, height, width) through the network.

    Raises:
        DistillError: when the network has no linear layer at its end.
    """
    seen: dict[tuple[int, ...], tuple[str, int]] = {}  # (height, width): name, channels
    linear: list[tuple[str, int]] = []
    pooled: list[tuple[str, int]] = []  # the layer so far without anything but a reshaping behind it

    def look(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Linear) and inputs[0].ndim == 2:
            linear.append((name, module.in_features))
        if isinstance(module, nn.Conv2d) and inputs[0].shape[2:].numel() == 1:
            pooled[:] = [(name, module.in_channels)]
        elif not any(module.children()) and not isinstance(module, nn.Flatten | nn.Identity):
            pooled.clear()
        if isinstance(output, Tensor) and _is_map(output, example):
            seen.pop(tuple(output.shape[2:]), None)  # the last of its resolution, in the order of the pass
            seen[tuple(output.shape[2:])] = (name, output.shape[1])

    handles = [
        module.register_forward_hook(lambda m, i, o, name=name: look(name, m, i, o))
        for name, module in network.named_modules()
        if name
    ]
    training = network.training
    try:
        with torch.no_grad():
            network.eval()(example)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    heads = pooled or linear
    if not heads:
        raise DistillError(
            f"{type(network).__name__} ends in no linear layer: choose a network with a linear classifier"
        )
    maps = list(seen.values())[-_MOST_MAPS:]
    head, inputs = heads[-1]
    sizes = [(channels, height * width) for (height, width), (_, channels) in seen.items()]
    positions = sizes[-1][1] if sizes and sizes[-1][0] * sizes[-1][1] == inputs else 1
    return Layers(tuple(n for n, _ in maps), tuple(c for _, c in maps), head, inputs // positions, positions)


def _is_map(output: Tensor, image: Tensor) -> bool:
    """Whether it is (batch, channels, height, width) of more than one position, and of the image's proportions.

    ConvNeXt and Swin put channels last within their blocks: (batch, height, width, channels) is none.
    """
    if output.ndim != 4 or output.shape[2:].numel() < 2:
        return False
    (height, width), (image_height, image_width) = output.shape[2:], image.shape[2:]
    return bool(
        height <= image_height
        and width <= image_width
        and abs(height * image_width - width * image_height) <= max(image_height, image_width)
    )


@contextmanager
def tapped(network: nn.Module, layers: Layers) -> Iterator[dict[str, Tensor]]:
    """Collect, while the block runs, what the layers put out: each map under its name, and the embedding and raw
    logits of the head under ``"embedding"`` and ``"logits"``. Nothing stays attached to the network.
    """
    found: dict[str, Tensor] = {}

    def keep_map(name: str) -> Any:
        return lambda module, inputs, output: found.__setitem__(name, output)

    def keep_head(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        embedding = inputs[0].flatten(1)
        if layers.positions > 1:
            embedding = embedding.reshape(len(embedding), layers.dim, layers.positions).mean(dim=2)
        found["embedding"], found["logits"] = embedding, output.flatten(1)

    handles = [network.get_submodule(name).register_forward_hook(keep_map(name)) for name in layers.maps]
    handles.append(network.get_submodule(layers.head).register_forward_hook(keep_head))
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced(network: nn.Module, layer: str, output: Tensor) -> Iterator[None]:
    """Let a layer put out something else while the block runs: what follows it becomes a branch of another network."""
    handle = network.get_submodule(layer).register_forward_hook(lambda module, inputs, _: output)
    try:
        yield
    finally:
        handle.remove()
