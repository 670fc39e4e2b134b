"""A torch simulation of the INT8 that the targets execute, with gradients.

Weights are symmetric int8 in -127..127 with one scale per output channel, activations asymmetric 8-bit with one scale
per tensor (Jacob et al. 2018, "Quantization and Training of Neural Networks for Integer-Arithmetic-Only Inference",
equations 1 and 12). The gradient passes the rounding as if it were not there, and is zero where a value is clipped
(straight-through estimator, Bengio et al. 2013).

Like the runtimes, the simulation quantizes what enters a convolution, an addition or a concatenation, and both sides of
the product x * sigmoid(x); moving values (slices, poolings, resizing) costs nothing more. The raw outputs stay float:
nothing computes on them. The three targets differ in details (OpenVINO fuses SiLU and rounds less often, ONNX Runtime
keeps the last layers float), so this stands for all of them and is none of them.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from deploy.calibration import SILU_INPUT_FLOOR

LEVELS = 255
WEIGHT_LIMIT = 127

# Function names as torch gives them to a mode; an exported program adds its overload ("conv2d.default").
_LAYERS = {"conv2d": 0, "linear": 0, "conv_transpose2d": 1}  # to the axis of the output channels in the weights
_SUMS = frozenset({"add", "add_", "__add__", "__radd__", "__iadd__"})
_JOINS = frozenset({"cat", "concat"})
_SILU = frozenset({"silu", "silu_"})
# They only move values that are on the grid already.
_MOVES = frozenset(
    {
        "chunk", "split", "split_with_sizes", "__getitem__", "getitem", "slice", "select", "max_pool2d", "interpolate",
        "upsample_nearest2d", "pad", "reshape", "view", "flatten", "permute", "transpose", "contiguous", "clone",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Range:
    """What the 256 levels of one activation tensor span; always holds 0, which paddings need exactly."""

    low: float
    high: float

    @property
    def scale(self) -> float:
        """The step between two levels."""
        return max(self.high - self.low, 1e-8) / LEVELS

    @property
    def zero_point(self) -> int:
        """The level that is 0."""
        return min(max(round(-self.low / self.scale), 0), LEVELS)

    def round(self, values: Tensor) -> Tensor:
        """`values` on the nearest levels, those beyond the range at its ends."""
        return torch.fake_quantize_per_tensor_affine(values, self.scale, self.zero_point, 0, LEVELS)


GATE = Range(0.0, LEVELS / (LEVELS + 1))  # a sigmoid: steps of 1 / 256, as LiteRT has it


def weight_scales(weight: Tensor, axis: int = 0) -> Tensor:
    """Per output channel the step that makes its greatest absolute weight 127, as every target chooses it."""
    others = [dim for dim in range(weight.ndim) if dim != axis]
    return weight.detach().abs().amax(dim=others).clamp(min=1e-12) / WEIGHT_LIMIT


def round_weights(weight: Tensor, axis: int = 0) -> Tensor:
    """`weight` on its int8 grid, symmetric per output channel."""
    scales = weight_scales(weight, axis)
    zeros = torch.zeros_like(scales, dtype=torch.int32)
    return torch.fake_quantize_per_channel_affine(weight, scales, zeros, axis, -WEIGHT_LIMIT, WEIGHT_LIMIT)


# Input, weights and bias to the output, the weights rounded or not; and what may be called in its place.
LayerFunction = Callable[[Tensor, Tensor, Tensor | None], Tensor]
Visitor = Callable[[int, Tensor, Tensor, Tensor | None, LayerFunction], Tensor]
# Told of an activation's number and its values before they are rounded, and of what is only moved from it.
Tap = Callable[[int, Tensor], None]


class Simulation(TorchFunctionMode):
    """A context in which a network computes as in INT8.

    The places where activations are quantized are numbered in the order in which a forward pass meets them, so the
    network must not branch on its input. One context serves one forward pass.
    """

    def __init__(
        self,
        ranges: Sequence[Range] | None,
        *,
        weights: bool = True,
        active: Sequence[bool] | None = None,
        visitor: Visitor | None = None,
        observe: bool = True,
        tap: Tap | None = None,
    ) -> None:
        """Prepare one pass.

        Args:
            ranges: of the activations, in order; None leaves them as they are and notes `extremes`.
            weights: whether the weights are rounded, too.
            active: per activation whether it is rounded; default all.
            observe: whether to note `extremes` where there are no ranges.
            visitor: called instead of each layer with its number, input, weights, bias and the layer's own function.
            tap: called with the number and the values of each activation where it is first read, and again with the
                number and what a slice, a pooling or a resizing made of it.
        """
        super().__init__()
        self.extremes: list[tuple[Tensor, Tensor]] = []
        self.silu_layers: set[int] = set()  # numbers of the layers whose output goes through a SiLU next
        self._last_made: tuple[int, Callable[[], Tensor | None]] = (-1, lambda: None)
        self._ranges = ranges
        self._weights = weights
        self._active = active
        self._visitor = visitor
        self._observe = observe
        self._tap = tap or (lambda number, values: None)
        # By identity: itself, what it became on the grid (None: it is there already), and the activation's number.
        self._on_grid: dict[int, tuple[weakref.ref[Tensor], Tensor | None, int]] = {}
        self._sites = 0
        self._layers = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """See `torch.overrides.TorchFunctionMode`."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").split(".")[0]
        if name in _LAYERS:
            return self._layer(func, _LAYERS[name], *args, **kwargs)
        if name in _SILU:
            return self._silu(args[0])
        if name in _SUMS and isinstance(args[0], Tensor) and isinstance(args[1], Tensor):
            return self._rounded(args[0]) + self._rounded(args[1])
        if name in _JOINS:
            return func([self._rounded(one) for one in args[0]], *args[1:], **kwargs)
        moved = name in _MOVES and args and id(args[0]) in self._on_grid
        if moved:  # what goes on is what the first reader rounded
            args = (self._rounded(args[0]), *args[1:])
        result = func(*args, **kwargs)
        if moved:
            number = self._on_grid[id(args[0])][2]
            for one in result if isinstance(result, list | tuple) else (result,):
                self._mark(one, None, number)
                self._tap(number, one)
        return result

    def _layer(self, func: Any, axis: int, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any) -> Tensor:
        x = self._rounded(x)
        number, self._layers = self._layers, self._layers + 1

        def layer(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            return func(x, round_weights(weight, axis) if self._weights else weight, bias, *rest)  # type: ignore[no-any-return]

        y = layer(x, weight, bias) if self._visitor is None else self._visitor(number, x, weight, bias, layer)
        self._last_made = number, weakref.ref(y)
        return y

    def _silu(self, x: Tensor) -> Tensor:
        number, made = self._last_made
        if made() is x:
            self.silu_layers.add(number)
        x = self._rounded(x, SILU_INPUT_FLOOR)
        if self._ranges is None:
            return nn.functional.silu(x)
        return x * GATE.round(torch.sigmoid(x))

    def _rounded(self, x: Tensor, floor: float = -np.inf) -> Tensor:
        known = self._on_grid.get(id(x))
        if known is not None:
            return x if known[1] is None else known[1]
        number, self._sites = self._sites, self._sites + 1
        rounded = x
        self._tap(number, x)
        if self._ranges is None and self._observe:
            with torch.no_grad():
                values = x.detach().flatten(1)
                low = values.amin(dim=1).clamp(min=floor) if values.shape[1] else values
                self.extremes.append((low, values.amax(dim=1)))
        elif self._ranges is not None and (self._active is None or self._active[number]):
            rounded = self._ranges[number].round(x)
        self._mark(rounded, None, number)
        if rounded is not x:
            self._mark(x, rounded, number)
        return rounded

    def _mark(self, x: Tensor, rounded: Tensor | None, number: int) -> None:
        """Note that `x` is on the grid (None), or what it became there, for as long as `x` lives."""
        key, grid = id(x), self._on_grid
        # Another tensor may get the identity of one that is gone.
        grid[key] = (weakref.ref(x, lambda _: grid.pop(key, None)), rounded, number)


def measure_ranges(network: nn.Module, batches: Iterable[Tensor], whole: bool = False) -> tuple[Range, ...]:
    """The activation ranges of a float network, as the targets choose them; see `deploy.calibration.CalibrationList`.

    Args:
        network: evaluation mode.
        batches: of images, (n, 3, H, W) float RGB in 0..1.
        whole: the extremes over all images, as for a classifier, instead of the mean of the images' extremes.
    """
    lows: list[NDArray[np.float64]] = []
    highs: list[NDArray[np.float64]] = []
    for batch in batches:
        with torch.no_grad(), Simulation(None, weights=False) as simulation:
            network(batch)
        lows.append(np.stack([low.double().numpy() for low, _ in simulation.extremes], axis=1))
        highs.append(np.stack([high.double().numpy() for _, high in simulation.extremes], axis=1))
    least, greatest = np.concatenate(lows), np.concatenate(highs)
    low, high = (least.min(0), greatest.max(0)) if whole else (least.mean(0), greatest.mean(0))
    ranges = [Range(min(float(a), 0.0), max(float(b), 0.0)) for a, b in zip(low, high, strict=True)]
    ranges[0] = Range(0.0, 1.0)  # pixels, whatever the images
    return tuple(ranges)


def run_quantized(network: nn.Module, images: Tensor, ranges: Sequence[Range]) -> tuple[Tensor, ...]:
    """The raw outputs of a network for a batch (n, 3, H, W), computed as in INT8; with gradients where they are on."""
    with Simulation(ranges):
        return as_tuple(network(images))


def as_tuple(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Raw outputs, of which a classifier has one that is not wrapped."""
    return outputs if isinstance(outputs, tuple) else (outputs,)
