"""Bias correction: the mean error that rounding leaves in every output channel is taken off its bias.

Empirical bias correction (Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction",
appendix D; Finkelstein et al. 2019, "Fighting Quantization Bias With Bias"): layer by layer, with all layers before it
rounded and corrected, b += E[y_float - y_int8] over the calibration images and all positions.

As published that harms a YOLOv8: most positions are background, where y lies on the flat part of SiLU, and their mean
error moves the few where it does not. So before a SiLU each position counts by what its error does after it: with
g = SiLU'(y_int8), b += sum g (SiLU(y_float) - SiLU(y_int8)) / sum g^2, the least-squares step for the activation.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploy.repair.fake_quant import LayerFunction, Range, Simulation, as_tuple

_LEAST_SLOPE = 1e-6


def correct_bias(reference: nn.Module, network: nn.Module, images: Tensor, ranges: Sequence[Range]) -> nn.Module:
    """A copy of a network with corrected biases.

    Args:
        reference: the float student, whose layers give y_float.
        network: the same network, possibly with repaired weights.
        images: (n, 3, H, W) float RGB in 0..1; all at once, so that a single pass corrects every layer in order.
        ranges: of `network`'s activations.

    Returns:
        The copy. Left as they are: layers without a bias, a second use of the same one, and those that make maps of
        raw outputs, which are nearly all background, too.
    """
    expected: list[Tensor] = []
    corrected = copy.deepcopy(network)
    done: set[int] = set()

    def note(number: int, x: Tensor, weight: Tensor, bias: Tensor | None, layer: LayerFunction) -> Tensor:
        expected.append(layer(x, weight, bias))
        return expected[-1]

    def correct(number: int, x: Tensor, weight: Tensor, bias: Tensor | None, layer: LayerFunction) -> Tensor:
        y = layer(x, weight, bias)
        if bias is None or id(bias) in done or number in raw:
            return y
        done.add(id(bias))
        error = _activated_error(expected[number], y) if number in float_pass.silu_layers else expected[number] - y
        slopes = _slopes(y) if number in float_pass.silu_layers else torch.ones_like(y)
        change = _channel_sums(slopes * error) / _channel_sums(slopes.square()).clamp(min=_LEAST_SLOPE)
        bias.data += change.to(bias.dtype)
        return y + change.to(y.dtype).view(-1, *(1,) * (y.ndim - 2))

    with torch.no_grad():
        with Simulation(None, weights=False, observe=False, visitor=note) as float_pass:
            outputs = as_tuple(reference(images))
        maps = [output for output in outputs if output.ndim > 2]
        raw = {number for number, y in enumerate(expected) if any(y is output for output in maps)}
        with Simulation(ranges, visitor=correct):
            corrected(images)
    return corrected


def _activated_error(expected: Tensor, met: Tensor) -> Tensor:
    return F.silu(expected) - F.silu(met)


def _slopes(y: Tensor) -> Tensor:
    """The derivative of SiLU."""
    gate = torch.sigmoid(y)
    return gate * (1 + y * (1 - gate))


def _channel_sums(y: Tensor) -> Tensor:
    """(n, channels, ...) to (channels,) float64."""
    return y.sum(dim=[dim for dim in range(y.ndim) if dim != 1], dtype=torch.float64)
