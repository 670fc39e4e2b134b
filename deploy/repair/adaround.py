"""Adaptive rounding: each weight goes up or down so that its layer's output stays, not simply to the nearest step.

AdaRound (Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization", equations 21 to 25), with
its asymmetric reconstruction: the layer's input is the one it meets with all layers before it rounded, its target the
float network's output. Layer by layer in one pass over the images, on sampled output positions.

The result lies on the int8 grid. In every channel the weight of greatest magnitude is kept, so that a target that
takes its scale from it finds the same grid and rounds to the same integers.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploy.repair.fake_quant import WEIGHT_LIMIT, LayerFunction, Range, Simulation, weight_scales

# The rectified sigmoid's stretch, after Louizos et al. 2018, and the decay of its regulariser.
_ZETA, _GAMMA = 1.1, -0.1
_BETA_START, _BETA_END, _WARM_UP = 20.0, 2.0, 0.2


@dataclass(frozen=True)
class Rounding:
    """How long to search.

    Attributes:
        iterations: per layer.
        positions: output positions per layer that are reconstructed.
        rate: of Adam.
        pull: weight of the regulariser that makes every weight decide.
    """

    iterations: int = 150
    positions: int = 1024
    rate: float = 0.02
    pull: float = 0.01


def round_adaptively(
    reference: nn.Module,
    network: nn.Module,
    images: Tensor,
    ranges: Sequence[Range],
    seed: int,
    rounding: Rounding | None = None,
) -> nn.Module:
    """A copy of a network whose weights are on the int8 grid.

    Args:
        reference: the float student.
        network: the same network, possibly with repaired weights.
        images: (n, 3, H, W) float RGB in 0..1; all at once.
        ranges: of `network`'s activations.
        seed: of the sampled positions.
        rounding: default `Rounding()`.

    Returns:
        The copy. Grouped and transposed convolutions, and layers used twice, are left for the nearest step.
    """
    how = rounding or Rounding()
    rounded = copy.deepcopy(network)
    expected: list[Tensor] = []
    done: set[int] = set()

    def note(number: int, x: Tensor, weight: Tensor, bias: Tensor | None, layer: LayerFunction) -> Tensor:
        y = layer(x, weight, bias)
        expected.append(_sample(y, _positions(y, how.positions, seed + number)))
        return y

    def search(number: int, x: Tensor, weight: Tensor, bias: Tensor | None, layer: LayerFunction) -> Tensor:
        y = layer(x, weight, bias)
        positions = _positions(y, how.positions, seed + number)
        patches = _patches(x, weight, y, positions)
        if patches is None or id(weight) in done:
            return y
        target = expected[number] if bias is None else expected[number] - bias
        weight.data.copy_(_search(weight.detach(), patches, target, how))
        done.add(id(weight))
        return layer(x, weight, bias)

    with torch.no_grad():
        with Simulation(None, weights=False, observe=False, visitor=note):
            reference(images)
        with Simulation(ranges, visitor=search):
            rounded(images)
    return rounded


def _positions(y: Tensor, count: int, seed: int) -> Tensor:
    """Indices of sampled outputs over images, rows and columns; the same for outputs of the same size."""
    places = y.numel() // y.shape[1]
    return torch.randint(places, (min(count, places),), generator=torch.Generator().manual_seed(seed))


def _sample(y: Tensor, positions: Tensor) -> Tensor:
    """(n, channels, h, w) or (n, channels) to (positions, channels)."""
    return y.flatten(2).transpose(1, 2).reshape(-1, y.shape[1])[positions] if y.ndim > 2 else y[positions]


def _patches(x: Tensor, weight: Tensor, y: Tensor, positions: Tensor) -> Tensor | None:
    """What the layer multiplies its weights with at `positions`: (positions, values of one output); None if unknown."""
    if weight.ndim == 2:
        return x[positions] if x.ndim == 2 else None
    channels, kernel = weight.shape[1], weight.shape[2:]
    if y.ndim != 4 or weight.shape[0] != y.shape[1] or channels != x.shape[1]:
        return None
    rows, columns = y.shape[2:]
    # Square, undilated kernels with the usual padding, as all students have; others are left alone.
    stride, pad = round(x.shape[2] / rows), kernel[0] // 2
    if kernel[0] != kernel[1] or (x.shape[2] + 2 * pad - kernel[0]) // stride + 1 != rows:
        return None
    image, row, column = positions // (rows * columns), positions // columns % rows, positions % columns
    padded = F.pad(x, (pad, pad, pad, pad))
    parts = [
        padded[image, :, row * stride + down, column * stride + right]
        for down in range(kernel[0])
        for right in range(kernel[1])
    ]
    return torch.stack(parts, dim=2).flatten(1)


def _search(weight: Tensor, patches: Tensor, target: Tensor, how: Rounding) -> Tensor:
    """The weights on their grid, each at one of its two neighbours there."""
    scales = weight_scales(weight).view(-1, *(1,) * (weight.ndim - 1))
    levels = weight / scales
    below = levels.floor()
    # Full-scale weights are what the target takes its scale from: they stay.
    fixed = levels.abs() > WEIGHT_LIMIT - 0.5
    part = (levels - below).clamp(0.01, 0.99)
    start = -torch.log((_ZETA - _GAMMA) / (part - _GAMMA) - 1)
    signal = target.square().mean().clamp(min=1e-12)
    with torch.enable_grad():
        undecided = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([undecided], lr=how.rate)
        for step in range(how.iterations):
            up = _rectified(undecided)
            candidate = torch.where(fixed, levels.round(), below + up) * scales
            loss = (patches @ candidate.flatten(1).T - target).square().mean() / signal
            done = (step / how.iterations - _WARM_UP) / (1 - _WARM_UP)
            if done > 0:
                beta = _BETA_END + (_BETA_START - _BETA_END) * (1 - done)
                loss = loss + how.pull * (1 - (2 * up - 1).abs().pow(beta)).mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    decided = below + (_rectified(undecided.detach()) >= 0.5).to(below.dtype)
    nearest = levels.round()
    found = torch.where(fixed, nearest, decided).clamp(-WEIGHT_LIMIT, WEIGHT_LIMIT) * scales
    return min((found, nearest * scales), key=lambda one: float((patches @ one.flatten(1).T - target).square().mean()))


def _rectified(undecided: Tensor) -> Tensor:
    return (torch.sigmoid(undecided) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)
