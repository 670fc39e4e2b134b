"""Ranges by Fisher information: the random vectors' covariance, what is cut off, and tensors found again."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

pytest.importorskip("ultralytics", reason="deploying needs the [train] extra")

from deploy.bundle import OutputSpec
from deploy.calibration import choose_calibration
from deploy.errors import StudentError
from deploy.fisher import KnownRanges, fisher_ranges, known_ranges
from deploy.graph import Graph, load_graph
from deploy.ranges import mark_of
from deploy.repair.distance import fisher_vector, output_distance
from deploy.repair.fake_quant import Range, measure_ranges, run_quantized

HEADS = (
    OutputSpec("boxes", "box", 8, 8, "NCHW"),
    OutputSpec("classes", "class", 8, 3, "NCHW"),
    OutputSpec("masks", "mask", 8, 2, "NCHW"),
    OutputSpec("prototypes", "prototype", 4, 2, "NCHW"),
)
LOGITS = (OutputSpec("logits", "logits", 1, 5, "NC"),)


def _inputs(graph: Graph, student: Any) -> list[np.ndarray]:
    return list(choose_calibration(student.data_yaml, 8).inputs(graph.input_spec("images", 96)))


@pytest.mark.parametrize("outputs", [HEADS, LOGITS], ids=["detector", "classifier"])
def test_half_the_mean_square_along_a_small_change_is_its_distance(outputs: tuple[OutputSpec, ...]) -> None:
    random = torch.Generator().manual_seed(0)
    shapes = [(2, one.channels) if one.meaning == "logits" else (2, one.channels, 2, 2) for one in outputs]
    student = [torch.randn(shape, generator=random) for shape in shapes]
    for changed in range(len(shapes)):
        change = [torch.zeros(shape) for shape in shapes]
        change[changed] = 0.01 * torch.randn(shapes[changed], generator=random)
        met = [one + small for one, small in zip(student, change, strict=True)]
        distance = float(output_distance(outputs, met, student, reg_max=2).double())
        products = []
        for _ in range(1500):
            vectors = fisher_vector(outputs, student, 2, random)
            products.append(sum(float((v * c).sum()) for v, c in zip(vectors, change, strict=True)))
        assert np.mean(np.square(products)) / 2 == pytest.approx(distance, rel=0.2), outputs[changed].meaning


class _Edges(nn.Module):
    """A layer of two channels, of which the next reads the first alone; the second has rare great values."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 2, 1, bias=False), nn.Conv2d(2, 5, 1, bias=False)
        self.first.weight.data = torch.tensor([[1.0, 0, 0], [0, 100.0, 0]]).reshape(2, 3, 1, 1)
        self.second.weight.data = torch.tensor([[1.0, 0]] * 5).reshape(5, 2, 1, 1) * torch.arange(1, 6).reshape(
            5, 1, 1, 1
        )

    def forward(self, images: Tensor) -> Tensor:
        return self.second(torch.relu(self.first(images))).mean(dim=(2, 3))


def test_great_values_that_nothing_depends_on_are_cut_off() -> None:
    network = _Edges().eval().requires_grad_(False)
    graph = Graph(network, LOGITS, tuple("abcde"), 0, 16, None, "classify")
    images = [torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    assert measure_ranges(network, images)[1].high > 90
    assert 0.7 < fisher_ranges(graph, network, images)[1].high < 1.1


def test_a_detector_in_int8_comes_nearer_to_itself_than_by_the_mean_of_the_extremes(deployed_student: Any) -> None:
    graph = load_graph(deployed_student.checkpoint)
    images = [torch.from_numpy(one) for one in _inputs(graph, deployed_student)]

    def distance(ranges: tuple[Range, ...]) -> float:
        total = 0.0
        for image in images:
            with torch.no_grad():
                expected, met = graph.network(image), run_quantized(graph.network, image, ranges)
            total += float(output_distance(graph.outputs, met, expected, graph.reg_max))
        return total

    assert distance(fisher_ranges(graph, graph.network, images)) < distance(measure_ranges(graph.network, images))


def test_a_tensor_is_known_by_its_values_however_it_is_laid_out() -> None:
    values = [np.random.default_rng(seed).normal(size=(1, 4, 5, 6)).astype(np.float32) for seed in range(4)]
    other = [one * np.float32(1.01) for one in values]
    known = KnownRanges(np.array([[mark_of(one) for one in values]]), ((-1.0, 2.0),))
    assert known.find([mark_of(one.transpose(0, 2, 3, 1)) for one in values]) == (-1.0, 2.0)
    assert known.find([mark_of(one) for one in other]) is None
    assert known.find([mark_of(values[0])]) is None  # too few images to tell


def test_every_quantized_tensor_of_a_target_is_found(deployed_student: Any) -> None:
    from deploy.graph import export_onnx
    from deploy.onnx_graph import activations, silu_inputs

    graph = load_graph(deployed_student.checkpoint)
    inputs = _inputs(graph, deployed_student)
    known = known_ranges(graph, inputs, len(inputs))
    model = export_onnx(graph, 96)
    marks: dict[str, list[Any]] = {}
    for tensors in activations(model, inputs):
        for name, values in tensors.items():
            marks.setdefault(name, []).append(mark_of(values))
    read = {name for node in model.graph.node if node.op_type in ("Conv", "Add", "Concat") for name in node.input}
    wanted = [name for name in marks if name in read] + sorted(silu_inputs(model))
    assert len(wanted) > 120
    assert [name for name in wanted if known.find(marks[name]) is None] == []


def test_a_student_that_was_trained_for_ranges_brings_them_and_those_of_another_are_refused(
    deployed_student: Any,
) -> None:
    from dataclasses import replace

    graph = load_graph(deployed_student.checkpoint)
    inputs = _inputs(graph, deployed_student)[:4]
    found = known_ranges(graph, inputs, len(inputs))
    count = len(measure_ranges(graph.network, [torch.from_numpy(inputs[0])]))
    brought = replace(
        load_graph(deployed_student.checkpoint), ranges=tuple((-0.5, 1.0 + number) for number in range(count))
    )
    assert set(known_ranges(brought, inputs, len(inputs)).ranges) == set(brought.ranges or ())
    assert found.ranges != known_ranges(brought, inputs, len(inputs)).ranges
    fewer = replace(load_graph(deployed_student.checkpoint), ranges=((0.0, 1.0),))
    with pytest.raises(StudentError, match=rf"brings the ranges of 1 activations and has {count}: repair it again"):
        known_ranges(fewer, inputs, len(inputs))


def test_they_are_searched_once_for_the_same_weights_and_images(
    deployed_student: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deploy import fisher

    searched: list[int] = []

    def search(graph: Graph, network: nn.Module, images: list[Tensor]) -> tuple[Range, ...]:
        searched.append(len(images))
        return fisher_ranges(graph, network, images)

    inputs = _inputs(load_graph(deployed_student.checkpoint), deployed_student)
    monkeypatch.setattr(fisher, "_FOUND", {})
    monkeypatch.setattr(fisher, "fisher_ranges", search)
    for count in (2, 2, 3):
        known_ranges(load_graph(deployed_student.checkpoint), inputs[:count], count)
    changed = load_graph(deployed_student.checkpoint)
    next(iter(changed.network.parameters())).mul_(1.01)
    known_ranges(changed, inputs[:3], 3)
    assert searched == [2, 3, 3]
