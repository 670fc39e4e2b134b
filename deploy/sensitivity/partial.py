"""A network of which a part computes as in INT8 and the rest in float, for any part, cheaply."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from deploy.calibration import SILU_INPUT_FLOOR
from deploy.repair.fake_quant import LayerFunction, Range, Simulation, as_tuple, round_weights

_PROBE_SIDE = 64  # pixels of the small image on which it is seen what a choice reaches


@dataclass(frozen=True)
class Choice:
    """What computes as in INT8.

    Attributes:
        layers: numbers of the layers, in forward order, whose weights are quantized.
        sites: numbers of the activations that are.
    """

    layers: frozenset[int]
    sites: frozenset[int]


class PartialQuantizer:
    """A float network, and what is needed to quantize any part of it.

    Attributes:
        ranges: of its activations, in the order in which a pass meets them.
        sites: for each activation the numbers of the layers that make or read it. It stays float where all of them do:
            that is what the runtimes do, too.
    """

    def __init__(self, network: nn.Module, ranges: Sequence[Range]) -> None:
        """Prepare a network.

        Args:
            network: evaluation mode.
            ranges: of its activations, in the order in which a pass meets them.
        """
        self._network = network
        self.ranges = tuple(ranges)
        side = torch.rand(1, 3, _PROBE_SIDE, _PROBE_SIDE, generator=torch.Generator().manual_seed(0))
        recorder = _Recorder()
        with torch.inference_mode(), recorder:
            network(side)
        self.sites = tuple(frozenset(layers) for layers in recorder.sites)
        self._weights = tuple(round_weights(weight, axis) for weight, axis in recorder.weights)
        self._probe = side
        self._probe_inputs = self._float_pass(side)[1]
        self._reached: dict[Choice, frozenset[int]] = {}

    @property
    def layer_count(self) -> int:
        """Layers with weights."""
        return len(self._weights)

    def quantized(self, layers: frozenset[int]) -> Choice:
        """The choice in which `layers` and no others are in INT8."""
        return Choice(layers, frozenset(site for site, touched in enumerate(self.sites) if touched & layers))

    def outputs(self, image: Tensor, choices: Iterable[Choice]) -> Iterator[tuple[Tensor, ...]]:
        """The raw outputs in float, and then with each choice.

        Layers that a choice does not reach are not computed again.
        """
        with torch.inference_mode():
            expected, _, made = self._float_pass(image, keep=True)
            yield expected
            for choice in choices:
                with self._simulation(choice, self.reached(choice), made):
                    yield as_tuple(self._network(image))

    def reached(self, choice: Choice) -> frozenset[int]:
        """Numbers of the layers that compute something else under a choice."""
        if choice not in self._reached:
            seen: list[Tensor] = []
            everything = frozenset(range(self.layer_count))
            with torch.inference_mode(), self._simulation(choice, everything, {}, seen):
                self._network(self._probe)
            moved = {
                number
                for number, (before, after) in enumerate(zip(self._probe_inputs, seen, strict=True))
                if not torch.equal(before, after)
            }
            self._reached[choice] = choice.layers | moved
        return self._reached[choice]

    def _float_pass(
        self, image: Tensor, keep: bool = False
    ) -> tuple[tuple[Tensor, ...], list[Tensor], dict[int, Tensor]]:
        """Raw outputs, and the inputs of all layers or, to `keep`, what they make."""
        inputs: list[Tensor] = []
        made: dict[int, Tensor] = {}

        def visit(number: int, x: Tensor, weight: Tensor, bias: Tensor | None, layer: LayerFunction) -> Tensor:
            result = layer(x, weight, bias)
            if keep:
                made[number] = result
            else:
                inputs.append(x)
            return result

        with torch.inference_mode(), Simulation(None, weights=False, visitor=visit):
            return as_tuple(self._network(image)), inputs, made

    def _simulation(
        self, choice: Choice, reached: frozenset[int], made: dict[int, Tensor], seen: list[Tensor] | None = None
    ) -> Simulation:
        def visit(number: int, x: Tensor, weight: Tensor, bias: Tensor | None, layer: LayerFunction) -> Tensor:
            if seen is not None:
                seen.append(x)
            if number not in reached:
                return made[number]
            return layer(x, self._weights[number] if number in choice.layers else weight, bias)

        active = [site in choice.sites for site in range(len(self.sites))]
        return _Partial(self.ranges, weights=False, active=active, visitor=visit)


class _Partial(Simulation):
    """A simulation whose sigmoids are rounded only where their inputs are."""

    def _silu(self, x: Tensor) -> Tensor:
        rounded = self._rounded(x, SILU_INPUT_FLOOR)
        return nn.functional.silu(rounded) if rounded is x else super()._silu(rounded)


class _Recorder(Simulation):
    """A float pass that notes for every quantized activation the layers that make or read it.

    An operation without weights counts as those layers that make what it reads: it is quantized if any of them is.
    """

    def __init__(self) -> None:
        super().__init__(None, weights=False)
        self.sites: list[set[int]] = []
        self.weights: list[tuple[Tensor, int]] = []
        self._makers: dict[int, frozenset[int]] = {}
        self._site_of: dict[int, int] = {}
        self._touched: list[int] = []
        self._alive: list[Any] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self._touched = []
        layers_before = self._layers
        result = super().__torch_function__(func, types, args, kwargs)
        read = list(_tensors(args))
        makers = frozenset[int]().union(*(self._makers.get(id(one), ()) for one in read))
        if self._layers > layers_before:
            makers |= {layers_before}
        for site in self._touched:
            self.sites[site] |= makers
        if self._layers > layers_before:
            makers = frozenset({layers_before})
        for one in _tensors((result,)):
            self._makers[id(one)] = makers
            self._alive.append(one)
            if id(one) in self._on_grid and read and id(read[0]) in self._site_of:
                self._site_of[id(one)] = self._site_of[id(read[0])]
        return result

    def _layer(self, func: Any, axis: int, x: Tensor, weight: Tensor, bias: Tensor | None = None, *rest: Any) -> Tensor:
        self.weights.append((weight.detach(), axis))
        return super()._layer(func, axis, x, weight, bias, *rest)

    def _rounded(self, x: Tensor, floor: float = -math.inf) -> Tensor:
        number = self._sites
        result = super()._rounded(x, floor)
        if self._sites > number:
            self._site_of[id(x)] = number
            self.sites.append(set())
        self._touched.append(self._site_of[id(x)])
        return result


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors(value)
