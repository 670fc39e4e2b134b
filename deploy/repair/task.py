"""What every method of weight repair works on: the float student, images to repair on and images to judge by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploy.calibration import CalibrationList, evenly_spaced
from deploy.fisher import MOST_IMAGES as MOST_RANGE_IMAGES
from deploy.fisher import fisher_ranges
from deploy.graph import Graph
from deploy.repair.distance import output_distance
from deploy.repair.fake_quant import Range, as_tuple, measure_ranges, run_quantized

MOST_IMAGES = 128
# Of the images, one in so many is held out, at most this many.
_HOLD_OUT_EVERY, _MOST_HELD_OUT = 6, 8
# What one pass over the layers takes at once.
_LAYERWISE_IMAGES = 16


@dataclass(frozen=True)
class Task:
    """What a method works on.

    Attributes:
        graph: the float student, whose outputs are the truth.
        images: (n, 3, H, W) uint8 RGB as at inference.
        held_out: the same, other images.
        seed: of everything random.
    """

    graph: Graph
    images: Tensor
    held_out: Tensor
    seed: int

    @property
    def keeps_ranges(self) -> bool:
        """Whether the weights are repaired for ranges that the bundles will have, too; a classifier's follow them."""
        return self.graph.task != "classify"

    def ranges(self, network: nn.Module) -> tuple[Range, ...]:
        """The activation ranges of `network` in float, as the targets will choose them."""
        images = list(torch.cat([self.images, self.held_out]).split(1))  # type: ignore[no-untyped-call]
        if self.keeps_ranges:
            chosen = evenly_spaced(images, MOST_RANGE_IMAGES)
            return fisher_ranges(self.graph, network, [image.float() / 255 for image in chosen])
        return measure_ranges(network, (image.float() / 255 for image in images), whole=True)

    def distance(self, network: nn.Module, ranges: Sequence[Range]) -> float:
        """Of the simulated INT8 from the float student, mean over the held-out images."""
        distances = []
        with torch.no_grad():
            for image in (self.held_out.float() / 255).split(1):  # type: ignore[no-untyped-call]
                expected = as_tuple(self.graph.network(image))
                met = run_quantized(network, image, ranges)
                distances.append(float(output_distance(self.graph.outputs, met, expected, self.graph.reg_max)))
        return float(np.mean(distances))

    @property
    def layerwise_images(self) -> Tensor:
        """Float images for the methods that work layer by layer."""
        return torch.stack(evenly_spaced(list(self.images), _LAYERWISE_IMAGES)).float() / 255


def make_task(graph: Graph, calibration: CalibrationList, imgsz: int, seed: int) -> Task:
    """Choose the images, and hold some of them out."""
    chosen = evenly_spaced(calibration.images, MOST_IMAGES)
    hashes = calibration.image_sha256[: len(chosen)]
    spec = graph.input_spec("images", imgsz)
    pixels = [_pixels(one) for one in replace(calibration, images=tuple(chosen), image_sha256=hashes).inputs(spec)]
    held = set(evenly_spaced(range(1, len(pixels), 2), max(1, min(len(pixels) // _HOLD_OUT_EVERY, _MOST_HELD_OUT))))
    return Task(
        graph=graph,
        images=torch.cat([one for index, one in enumerate(pixels) if index not in held]),
        held_out=torch.cat([one for index, one in enumerate(pixels) if index in held]),
        seed=seed,
    )


def _pixels(image: NDArray[np.float32]) -> Tensor:
    """A quarter of the memory: the images were bytes before."""
    return torch.from_numpy(np.rint(image * 255).astype(np.uint8))


def is_better(distance: float, before: float) -> bool:
    """Whether a change is kept; not where nothing was gained, nor where the distance is not a number."""
    return distance < before
