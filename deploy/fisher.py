"""Activation ranges by what they do to the network's outputs, not to the activation itself.

A range is judged by the distance (`deploy.repair.distance`) that rounding and clipping an activation puts between the
outputs and the float network's. To second order that is d' H d / 2, where d is the error of the activation's values
and H the Fisher information of the outputs about them; its diagonal is enough where errors are as good as independent
(BRECQ, Li et al. 2021, equation 10). A backward pass of a random vector whose covariance is the Fisher information of
the outputs about their logits gives gradients whose mean squares are that diagonal. So the range is the one of least
squared error, each value weighted by how much it matters: of the rare great values of a detector some are objects, and
others are edges that the next layer does not ask about.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from deploy.calibration import evenly_spaced
from deploy.errors import StudentError
from deploy.graph import Graph
from deploy.graph_classify import ExportedLogits
from deploy.histogram import Histogram, mse_range
from deploy.ranges import Mark, mark_of
from deploy.repair.distance import fisher_vector
from deploy.repair.fake_quant import LEVELS, Range, Simulation, as_tuple

# Of the calibration images, and of random vectors for each of them.
MOST_IMAGES, _VECTORS = 16, 4
# Images by which an activation of the network is recognised in a target's graph, and how alike its values must be
# there, in parts of its range.
_MARKED_IMAGES, _ALIKE = 4, 1e-3
# The last ones, by what they follow from: a search builds many bundles of one student.
_FOUND: dict[str, KnownRanges] = {}


@dataclass(frozen=True)
class KnownRanges:
    """Ranges of a network's activations, to be found again in any graph that computes the same.

    Exporters rename, fuse and reorder; the values are what they all keep. So a tensor is known by its least, greatest
    and mean value in the first calibration images.

    Attributes:
        marks: (tensors, images, 3); those that were only moved from another are tensors of their own.
        ranges: least and greatest value to tell apart of each tensor.
    """

    marks: NDArray[np.float64]
    ranges: tuple[tuple[float, float], ...]

    def find(self, marks: Sequence[Mark]) -> tuple[float, float] | None:
        """The range of the tensor with these marks in the first images, in order; None of no such one."""
        count = self.marks.shape[1]
        if len(marks) < count:
            return None
        met = np.array(marks[:count], np.float64)
        span = np.maximum(self.marks[:, :, 1] - self.marks[:, :, 0], 1e-6)
        apart = (np.abs(self.marks - met).max(axis=2) / span).max(axis=1)
        nearest = int(apart.argmin())
        return self.ranges[nearest] if apart[nearest] < _ALIKE else None


def known_ranges(graph: Graph, inputs: Iterable[NDArray[np.float32]], count: int) -> KnownRanges:
    """The ranges that a student's weights were trained for or, where it brings none, those of least distance.

    Args:
        graph: the student.
        inputs: the calibration images, each (1, 3, H, W) float32 RGB in 0..1.
        count: how many they are.

    Raises:
        StudentError: it brings the ranges of another network.
    """
    searched = set(evenly_spaced(range(count), MOST_IMAGES))
    images = {
        index: torch.from_numpy(one)
        for index, one in enumerate(inputs)
        if index in searched or index < _MARKED_IMAGES  # all of them might not fit into memory
    }
    digest = hashlib.sha256(repr((graph.ranges, count)).encode())
    for tensor in (*_weights(graph.network), *images.values()):
        digest.update(tensor.contiguous().numpy().tobytes())
    key = digest.hexdigest()
    if key not in _FOUND:
        marked = [image for index, image in images.items() if index < _MARKED_IMAGES]
        found = _known_ranges(graph, [images[index] for index in sorted(searched)], marked)
        _FOUND.clear()
        _FOUND[key] = found
    return _FOUND[key]


def _weights(network: nn.Module) -> list[Tensor]:
    program = network.program if isinstance(network, ExportedLogits) else network
    return [tensor.detach() for _, tensor in (*program.named_parameters(), *program.named_buffers())]


def _known_ranges(graph: Graph, searched: Sequence[Tensor], recognised_by: Sequence[Tensor]) -> KnownRanges:
    ranges = graph.ranges
    if ranges is None:
        estimated = fisher_ranges(graph, graph.network, searched)
        ranges = tuple((one.low, one.high) for one in estimated)
    marked = [_marks(graph.network, image) for image in recognised_by]
    numbers = [number for number, _ in marked[0]]
    if max(numbers) + 1 != len(ranges):
        raise StudentError(
            f"the student brings the ranges of {len(ranges)} activations and has {max(numbers) + 1}: repair it again"
        )
    marks = np.array([[mark for _, mark in image] for image in marked], np.float64)
    return KnownRanges(marks.transpose(1, 0, 2), tuple(ranges[number] for number in numbers))


def fisher_ranges(graph: Graph, network: nn.Module, images: Sequence[Tensor], seed: int = 0) -> tuple[Range, ...]:
    """The range of least expected distance of each activation of a float network, each judged alone.

    Args:
        graph: what the network's outputs are.
        network: `graph.network`, or it with other weights.
        images: each (1, 3, H, W) float RGB in 0..1.
        seed: of the random vectors.
    """
    random = torch.Generator().manual_seed(seed)
    histograms: list[Histogram] = []
    for image in images:
        for number, (values, weights) in enumerate(_weighted_values(graph, network, image, random)):
            if number == len(histograms):
                histograms.append(Histogram())
            histograms[number].add(values, weights)
    ranges = [Range(*mse_range(one, LEVELS)) for one in histograms]
    ranges[0] = Range(0.0, 1.0)  # pixels, whatever the images
    return tuple(ranges)


def _weighted_values(
    graph: Graph, network: nn.Module, image: Tensor, random: torch.Generator
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.float32]]]:
    """Of each activation its values (n,) and the Fisher information of the outputs about each of them (n,)."""
    sites: list[Tensor] = []

    def keep(number: int, values: Tensor) -> None:
        if number == len(sites):  # not what was moved from an earlier one
            values.retain_grad()
            sites.append(values)

    with torch.enable_grad(), Simulation(None, weights=False, tap=keep) as simulation:
        outputs = as_tuple(network(image.clone().requires_grad_()))
    expected = [output.detach() for output in outputs]
    information = [torch.zeros_like(site) for site in sites]
    for left in reversed(range(_VECTORS)):
        vectors = fisher_vector(graph.outputs, expected, graph.reg_max, random)
        torch.autograd.backward(outputs, vectors, retain_graph=left > 0)
        for site, sum_ in zip(sites, information, strict=True):
            if site.grad is not None:
                sum_ += site.grad.square()
                site.grad = None
    for site, sum_, (low, _) in zip(sites, information, simulation.extremes, strict=True):
        yield site.detach().clamp(min=float(low)).flatten().numpy(), sum_.flatten().numpy()


def _marks(network: nn.Module, image: Tensor) -> list[tuple[int, Mark]]:
    """Number and mark of each activation, and of what was only moved from it."""
    found: list[tuple[int, Mark]] = []

    def note(number: int, values: Tensor) -> None:
        found.append((number, mark_of(values.numpy())))

    with torch.no_grad(), Simulation(None, weights=False, observe=False, tap=note):
        network(image)
    return found
