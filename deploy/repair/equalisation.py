"""Cross-layer equalisation: channels of like size on either side of a pair of layers, the network's output unchanged.

Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction", section 4.1, equation 11.
Dividing channel i of a layer by s_i and multiplying what the next layer reads from it by s_i changes nothing if, and
only if, everything between the two is positively homogeneous, f(s x) = s f(x): nothing at all, ReLU, poolings. SiLU is
not, so a YOLOv8 has no such pair: the only convolutions without SiLU are the last ones, whose outputs are the
network's. The published remedy for it is to treat SiLU as if it were ReLU, which changes the float network; this does
not do that.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_LAYERS = frozenset({"conv2d", "linear"})
_HOMOGENEOUS = frozenset(
    {"relu", "relu_", "leaky_relu", "leaky_relu_", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "dropout"}
)
_ROUNDS, _TOLERANCE = 20, 1e-4


@dataclass(frozen=True)
class Pair:
    """Two layers of which the second alone reads the first, with nothing but homogeneous functions between.

    Attributes:
        first: weights (channels, ...) of the first.
        bias: (channels,) of the first, or None.
        second: weights of the second.
        axis: the one of `channels` in `second`.
    """

    first: Tensor
    bias: Tensor | None
    second: Tensor
    axis: int


def equalise(network: nn.Module, example: Tensor) -> tuple[nn.Module, int]:
    """A copy of a network whose pairs of layers are equalised, and how many pairs it has.

    Args:
        network: evaluation mode, BatchNorms fused.
        example: an input, (1, 3, H, W).
    """
    equalised = copy.deepcopy(network)
    pairs = find_pairs(equalised, example)
    with torch.no_grad():
        for _ in range(_ROUNDS):
            if max((_equalise_pair(pair) for pair in pairs), default=0.0) < _TOLERANCE:
                break
    return equalised, len(pairs)


def find_pairs(network: nn.Module, example: Tensor) -> list[Pair]:
    """Every pair that can be equalised without changing what the network computes."""
    with torch.no_grad(), _Provenance() as seen:
        outputs = network(example)
    seen.spoil(outputs if isinstance(outputs, tuple | list) else (outputs,))
    return [pair for number, pair in sorted(seen.pairs.items()) if number not in seen.spoiled]


def _equalise_pair(pair: Pair) -> float:
    """One step of equation 11; returns how far the greatest factor was from 1."""
    first = pair.first.abs().flatten(1).amax(dim=1)
    second = pair.second.abs().transpose(0, pair.axis).flatten(1).amax(dim=1)
    alive = (first > 0) & (second > 0)
    factors = torch.where(alive, first / torch.sqrt(first * second).clamp(min=1e-12), torch.ones_like(first))
    pair.first.data /= factors.view(-1, *(1,) * (pair.first.ndim - 1))
    if pair.bias is not None:
        pair.bias.data /= factors
    shape = [1] * pair.second.ndim
    shape[pair.axis] = -1
    pair.second.data *= factors.view(shape)
    return float((factors - 1).abs().max())


class _Provenance(TorchFunctionMode):
    """Notes which layer's output, up to homogeneous functions, every tensor of a forward pass is."""

    def __init__(self) -> None:
        super().__init__()
        self.pairs: dict[int, Pair] = {}
        self.spoiled: set[int] = set()
        self._layers: list[tuple[Tensor, Tensor | None]] = []
        self._source: dict[int, int] = {}
        self._kept: list[Tensor] = []  # or another tensor could get the identity of one that is gone
        self._weights: set[int] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `torch.overrides.TorchFunctionMode`."""
        name = getattr(func, "__name__", "").split(".")[0]
        result = func(*args, **(kwargs or {}))
        if name in _LAYERS:
            self._layer(result, *args, **(kwargs or {}))
        elif name in _HOMOGENEOUS and id(args[0]) in self._source:
            self._mark(result, self._source[id(args[0])])
        elif _tensors(result):  # not so by asking a tensor for its shape
            self.spoil([*args, *(kwargs or {}).values()])
        return result

    def spoil(self, values: Iterable[Any]) -> None:
        """Something else than one layer reads these."""
        for value in values:
            for tensor in _tensors(value):
                if id(tensor) in self._source:
                    self.spoiled.add(self._source[id(tensor)])

    def _layer(
        self, y: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any, **named: Any
    ) -> None:
        source = self._source.get(id(x))
        if source is not None:
            first, first_bias = self._layers[source]
            axis = _input_axis(weight, len(first))
            if source in self.pairs or axis is None or id(weight) in self._weights:
                self.spoiled.add(source)
            else:
                self.pairs[source] = Pair(first, first_bias, weight, axis)
        if id(weight) not in self._weights:  # of weights used twice, neither use can be scaled alone
            self._mark(y, len(self._layers))
            self._layers.append((weight, bias))
            self._weights.add(id(weight))
        else:
            self.spoiled |= {number for number, (one, _) in enumerate(self._layers) if one is weight}
            self.spoiled |= {number for number, pair in self.pairs.items() if pair.second is weight}

    def _mark(self, tensor: Tensor, source: int) -> None:
        self._kept.append(tensor)
        self._source[id(tensor)] = source


def _input_axis(weight: Tensor, channels: int) -> int | None:
    """The axis of `weight` that goes over the channels it reads; None if it has none, as a grouped convolution's."""
    if weight.shape[1] == channels:
        return 1
    return 0 if weight.shape[1] == 1 and weight.shape[0] == channels else None  # depthwise


def _tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [one for one in value if isinstance(one, Tensor)] if isinstance(value, list | tuple) else []
