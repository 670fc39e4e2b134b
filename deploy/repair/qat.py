"""Distillation-aware quantization-aware training: the weights learn to be rounded, the float student is the teacher.

A short fine-tune (Krishnamoorthi 2018, "Quantizing deep convolutional networks", section 3.2.1) of the simulated INT8
network, whose only loss is its distance from the float network's raw outputs (quantization-aware distillation, Polino
et al. 2018) and from the outputs of its layers. It needs no labels. What comes out are ordinary float weights.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deploy.graph import Graph
from deploy.repair.distance import output_distance, relative_error
from deploy.repair.fake_quant import WEIGHT_LIMIT, LayerFunction, Range, Simulation, as_tuple, weight_scales
from deploy.repair.task import Task, is_better

# The relative squared errors of the layers' outputs, beside the distance of the raw outputs.
_FEATURES_WEIGHT = 1.0
_GREATEST_GRADIENT = 10.0
_MEMORY = 0.97  # of the moving average of the weights, per step


@dataclass(frozen=True)
class Training:
    """How long and how boldly to train.

    Attributes:
        steps: batches to train on.
        batch: crops per step.
        crop: side of a crop in pixels, at most the network's input; cut from images at their deployed scale, so that
            the activations are those that the ranges were measured on.
        rate: greatest change of a weight per step, in steps of its layer's int8 grid.
        check_every: training steps between two looks at the held-out images.
        drop: probability that an activation stays float in a step (after QDrop, Wei et al. 2022): the targets do not
            all round at the same places.
    """

    steps: int = 300
    batch: int = 4
    crop: int = 320
    rate: float = 0.002
    check_every: int = 50
    drop: float = 0.1


def train(
    task: Task, network: nn.Module, ranges: Sequence[Range], training: Training
) -> tuple[nn.Module, dict[str, Any]]:
    """Train a copy of a network for INT8.

    Args:
        task: the float student, which is the teacher, and the images.
        network: where to begin: the student, or it with weights already repaired.
        ranges: of its activations; a classifier's are measured anew at every look at the held-out images.
        training: training.

    Returns:
        The weights with the least distance on the held-out images, those of before among them, and the history.
    """
    student = copy.deepcopy(network).eval().requires_grad_(True)
    optimizer = torch.optim.Adam(_parameter_groups(student), betas=(0.9, 0.99))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, training.steps) * training.rate)
    random = torch.Generator().manual_seed(task.seed)
    best, mean = copy.deepcopy(network), copy.deepcopy(network)
    history = [{"step": 0, "distance": task.distance(network, ranges)}]
    for step, batch in enumerate(_batches(task.images, training, random), start=1):
        active = (torch.rand(len(ranges), generator=random) >= training.drop).tolist()
        optimizer.zero_grad(set_to_none=True)
        _loss(task.graph, student, batch, ranges, active).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(student.parameters(), _GREATEST_GRADIENT)
        optimizer.step()
        schedule.step()
        _follow(mean, student, min(_MEMORY, step / (step + 9)))
        if step % training.check_every == 0 or step == training.steps:
            ranges = ranges if task.keeps_ranges else task.ranges(mean)
            distance = task.distance(mean, ranges)
            if is_better(distance, min(one["distance"] for one in history)):
                best = copy.deepcopy(mean)
            history.append({"step": step, "distance": distance})
    return best.eval().requires_grad_(False), {"history": history}


def _follow(mean: nn.Module, network: nn.Module, memory: float) -> None:
    """Move the exponential moving average of the weights: the noise of small batches averages out."""
    with torch.no_grad():
        for kept, now in zip(mean.parameters(), network.parameters(), strict=True):
            kept.lerp_(now, 1 - memory)


def _rate(step: int, steps: int) -> float:
    """A short linear start, then half a cosine to zero."""
    warm = max(steps // 20, 1)
    return min((step + 1) / warm, 0.5 * (1 + math.cos(math.pi * step / steps)))


def _parameter_groups(network: nn.Module) -> list[dict[str, Any]]:
    """Each weight moves by its own layer's int8 step: one rate for all is too bold here and too timid there."""
    groups = []
    for parameter in network.parameters():
        if parameter.ndim > 1:
            step = float(weight_scales(parameter).mean())
        else:
            step = float(parameter.detach().abs().mean()) / WEIGHT_LIMIT
        groups.append({"params": [parameter], "lr": max(step, 1e-8)})
    return groups


def _loss(graph: Graph, student: nn.Module, batch: Tensor, ranges: Sequence[Range], active: Sequence[bool]) -> Tensor:
    features: list[Tensor] = []
    errors: list[Tensor] = []

    def keep(number: int, x: Tensor, weight: Tensor, bias: Tensor | None, layer: LayerFunction) -> Tensor:
        features.append(layer(x, weight, bias))
        return features[-1]

    def compare(number: int, x: Tensor, weight: Tensor, bias: Tensor | None, layer: LayerFunction) -> Tensor:
        y: Tensor = layer(x, weight, bias)
        errors.append(relative_error(y, features[number]))
        return y

    with torch.no_grad(), Simulation(None, weights=False, visitor=keep, observe=False):
        expected = as_tuple(graph.network(batch))
    with Simulation(ranges, active=active, visitor=compare):
        met = as_tuple(student(batch))
    return output_distance(graph.outputs, met, expected, graph.reg_max) + _FEATURES_WEIGHT * torch.stack(errors).mean()


def _batches(images: Tensor, training: Training, random: torch.Generator) -> Iterator[Tensor]:
    """Random crops, flips and sizes of the images: (batch, 3, crop, crop) float in 0..1."""
    side = min(training.crop, images.shape[2])
    for _ in range(training.steps):
        chosen = torch.randint(len(images), (training.batch,), generator=random).tolist()
        yield torch.stack([_crop(images[index], side, random) for index in chosen])


def _crop(image: Tensor, side: int, random: torch.Generator) -> Tensor:
    """A square of an image (3, H, W) uint8, up to a quarter larger or smaller than `side`, brought to it."""
    zoom, top, left, flip = torch.rand(4, generator=random).tolist()
    height, width = image.shape[1:]
    cut = min(round(side * (0.8 + 0.45 * zoom)), height, width)
    y, x = round(top * (height - cut)), round(left * (width - cut))
    crop = _unit(image[None, :, y : y + cut, x : x + cut])
    if cut != side:
        crop = F.interpolate(crop, (side, side), mode="bilinear", align_corners=False)
    return (crop.flip(3) if flip < 0.5 else crop)[0]


def _unit(images: Tensor) -> Tensor:
    return images.float() / 255
