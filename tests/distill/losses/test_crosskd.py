"""CrossKD: what comes out of the teacher's head when the student's hidden features go in."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from ultralytics.nn.modules.head import Detect
from ultralytics.nn.tasks import DetectionModel

from distill.errors import DistillError
from distill.losses import Activations, HeadPair
from distill.losses.crosskd import CrossHead, _again
from distill.teacher import head_pair

WIDTHS = (8, 12, 16)
SIZES = ((4, 4), (2, 2), (1, 2))


class YOLOv8Head(Detect):  # type: ignore[misc]  # ultralytics has no types
    legacy = True


def head(seed: int, widths: tuple[int, ...] = WIDTHS) -> Detect:
    torch.manual_seed(seed)
    made = YOLOv8Head(nc=3, ch=widths)
    module: Any
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return made


def features(seed: int, widths: tuple[int, ...] = WIDTHS) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(4, c, h, w, generator=generator, requires_grad=True)
        for c, (h, w) in zip(widths, SIZES, strict=True)
    )


def outputs(of: Detect, feats: tuple[Tensor, ...]) -> Activations:
    raw = of.forward_head(list(feats), **of.one2many)
    return Activations(raw["boxes"], raw["scores"], feats)


def cross(student: Detect, teacher: Detect) -> CrossHead:
    widths = tuple(branch[0].conv.in_channels for branch in student.cv2)
    wide = tuple(branch[0].conv.in_channels for branch in teacher.cv2)
    torch.manual_seed(5)
    return CrossHead(HeadPair(widths, wide, 16, student, teacher.eval().requires_grad_(False)), 1.0)


def test_identical_networks_cost_nothing() -> None:
    student = head(0).eval()
    feats = features(1)
    loss = cross(student, copy.deepcopy(student))
    assert float(loss(outputs(student, feats), outputs(student, feats).detached()).detach()) == pytest.approx(
        0, abs=1e-5
    )


def test_the_value_is_that_of_both_losses_on_predictions_worked_out_layer_by_layer() -> None:
    student, teacher = head(0).train(), head(1, (10, 12, 16))
    ours, theirs = features(2), features(3, (10, 12, 16))
    answer = outputs(teacher.eval(), theirs).detached()
    loss = cross(student, teacher)
    crossed: dict[str, list[Tensor]] = {"cv2": [], "cv3": []}
    for name, projectors in (("cv2", loss.box_projectors), ("cv3", loss.class_projectors)):
        for level, feats in enumerate(ours):
            first, rest = getattr(student, name)[level][0], getattr(teacher, name)[level]
            x = F.conv2d(feats, first.conv.weight, padding=1)
            mean, variance = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
            x = (x - mean) / (variance + first.bn.eps).sqrt()
            x = x * first.bn.weight[:, None, None] + first.bn.bias[:, None, None]
            x = F.conv2d(x * x.sigmoid(), projectors[level].weight)
            crossed[name].append(rest[2](rest[1](x)).flatten(2))
    scores, boxes = (torch.cat(crossed[name], dim=2) for name in ("cv3", "cv2"))
    y, q = answer.scores.sigmoid(), scores.sigmoid()
    sure = y.amax(1)
    bce = -(y * q.log() + (1 - y) * (1 - q).log())
    quality = ((y - q) ** 2 * bce).sum() / sure.sum().clamp(min=1)
    p, s = (x.view(4, 4, 16, -1).softmax(2) for x in (answer.boxes, boxes))
    edges = ((p * (p / s).log()).sum(2).mean(1) * sure).sum() / sure.sum().clamp(min=1)
    value = loss(outputs(student, ours), answer)
    assert float(value.detach()) == pytest.approx(float((quality + edges).detach()), rel=1e-4)


def test_the_student_gets_the_gradient_but_its_last_layers_and_the_teacher_do_not() -> None:
    student, teacher = head(0).train(), head(1)
    ours = features(2)
    loss = cross(student, teacher)
    loss(Activations(torch.empty(0), torch.empty(0), ours), outputs(teacher, features(3)).detached()).backward()
    assert all(f.grad is not None and float(f.grad.abs().sum()) > 0 for f in ours)
    for branches in (student.cv2, student.cv3):
        assert all(float(branch[0].conv.weight.grad.abs().sum()) > 0 for branch in branches)
        assert all(p.grad is None for branch in branches for p in branch[1:].parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert {name.split(".")[0] for name, _ in loss.named_parameters()} == {"box_projectors", "class_projectors"}


def test_the_students_statistics_are_counted_once_and_its_features_are_its_own() -> None:
    student, teacher = head(0).train(), head(1)
    loss = cross(student, teacher)
    seen: list[Tensor] = []
    student.cv2[0][0].register_forward_hook(lambda module, inputs, output: seen.append(output))
    own = outputs(student, features(2))
    before = copy.deepcopy(student.state_dict())
    loss(own, outputs(teacher, features(3)).detached())
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert torch.equal(_again(student.cv2[0][0], own.feats[0]), seen[0])


def test_half_precision_extremes_stay_finite() -> None:
    student, teacher = head(0).train(), head(1).half()
    ours = tuple((f.detach() * 5000).half().requires_grad_() for f in features(2))
    answer = outputs(teacher, tuple(f.half() for f in features(3))).detached()
    far = Activations(answer.boxes * 500, answer.scores * 500, answer.feats)
    value = cross(student, teacher)(Activations(torch.empty(0), torch.empty(0), ours), far)
    value.backward()
    assert value.dtype == torch.float32
    assert bool(value.isfinite())
    assert all(bool(f.grad.isfinite().all()) for f in ours if f.grad is not None)


def test_descending_it_brings_the_crossed_predictions_to_the_teachers() -> None:
    student, teacher = head(0).train(), head(1)
    feats = tuple(f.detach() for f in features(2))
    answer = outputs(teacher.eval(), features(3)).detached()
    loss = cross(student, teacher)
    optimizer = torch.optim.Adam(
        [*student.parameters(), *loss.parameters(), *(f.requires_grad_() for f in feats)], 0.02
    )
    values = []
    for _ in range(100):
        optimizer.zero_grad()
        value = loss(Activations(torch.empty(0), torch.empty(0), feats), answer)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.2 * values[0]


@pytest.mark.parametrize(("ours", "theirs"), [("yolov8n.yaml", "yolov8s.yaml"), ("yolo11n.yaml", "yolov8n.yaml")])
def test_published_heads_are_bridged(ours: str, theirs: str) -> None:
    student, teacher = (DetectionModel(name, nc=2, verbose=False) for name in (ours, theirs))
    loss = CrossHead(head_pair(teacher, student), 1.0)
    feats = student(torch.rand(2, 3, 64, 64))["feats"]
    teacher.eval()
    teacher.model[-1].training = True
    with torch.no_grad():
        answer = Activations.of_head(teacher(torch.rand(2, 3, 64, 64)))
    assert float(loss(Activations(torch.empty(0), torch.empty(0), tuple(feats)), answer).detach()) > 0


def test_a_pair_without_heads_is_refused() -> None:
    with pytest.raises(DistillError, match="needs the heads"):
        CrossHead(HeadPair(WIDTHS, WIDTHS, 16), 1.0)
