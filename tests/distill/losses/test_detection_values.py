"""Every distillation loss: zero at its target, gradient to the student alone, and the published number."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.errors import DistillError
from distill.losses import LOSSES, Activations, HeadPair, build_losses, parse_losses

Array = NDArray[np.float64]
REG_MAX, CLASSES, BATCH = 4, 3, 2
SIZES = ((4, 4), (2, 2), (1, 2))
WIDTHS = (5, 6, 7)
ANCHORS = sum(h * w for h, w in SIZES)
PAIR = HeadPair(student_channels=WIDTHS, teacher_channels=WIDTHS, reg_max=REG_MAX)
WIDER = HeadPair(student_channels=WIDTHS, teacher_channels=(8, 9, 10), reg_max=REG_MAX)


def activations(seed: int, widths: tuple[int, ...] = WIDTHS) -> Activations:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator) * 2

    return Activations(
        boxes=normal(BATCH, 4 * REG_MAX, ANCHORS),
        scores=normal(BATCH, CLASSES, ANCHORS) - 1,
        feats=tuple(normal(BATCH, c, h, w) for c, (h, w) in zip(widths, SIZES, strict=True)),
    )


def mapped(values: Activations, function: object) -> Activations:
    return Activations(function(values.boxes), function(values.scores), tuple(function(f) for f in values.feats))  # type: ignore[operator]


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_identical_activations_cost_nothing(name: str, temperature: float) -> None:
    loss = LOSSES[name](PAIR, temperature)
    same = activations(0)
    assert float(loss(same, same).detach()) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_different_activations_cost_something(name: str) -> None:
    assert float(LOSSES[name](PAIR, 1.0)(activations(0), activations(1)).detach()) > 0.01


@pytest.mark.parametrize("name", LOSSES)
def test_only_the_student_receives_a_gradient(name: str) -> None:
    student = mapped(activations(0), lambda v: v.requires_grad_())
    teacher = mapped(activations(1), lambda v: v.requires_grad_())
    LOSSES[name](PAIR, 1.0)(student, teacher).backward()
    taught = [v.grad for v in (student.boxes, student.scores, *student.feats)]
    assert any(g is not None and float(g.abs().sum()) > 0 for g in taught)
    assert all(v.grad is None for v in (teacher.boxes, teacher.scores, *teacher.feats))


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_extremes_stay_finite(name: str) -> None:
    student = mapped(activations(0), lambda v: (v * 5000).half().requires_grad_())
    teacher = mapped(activations(1), lambda v: (v * -5000).half())
    value = LOSSES[name](PAIR, 2.0)(student, teacher)
    value.backward()
    assert value.dtype == torch.float32
    assert math.isfinite(float(value.detach()))
    for tensor in (student.boxes, student.scores, *student.feats):
        assert tensor.grad is None or bool(tensor.grad.isfinite().all())


@pytest.mark.parametrize("name", LOSSES)
def test_descending_a_loss_brings_the_student_to_the_teacher(name: str) -> None:
    teacher = activations(1, (8, 9, 10))
    student = mapped(activations(0), lambda v: v.requires_grad_())
    loss = LOSSES[name](WIDER, 1.0)
    optimizer = torch.optim.Adam([student.boxes, student.scores, *student.feats, *loss.parameters()], lr=0.1)
    values = []
    for _ in range(150):
        optimizer.zero_grad()
        value = loss(student, teacher)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < 0.1 * values[0]


@pytest.mark.parametrize("name", LOSSES)
def test_a_repeated_batch_costs_the_same(name: str) -> None:
    student, teacher = activations(0), activations(1)
    loss = LOSSES[name](PAIR, 1.0)
    once = float(loss(student, teacher).detach())
    twice = float(loss(*(mapped(v, lambda x: torch.cat([x, x])) for v in (student, teacher))).detach())
    assert twice == pytest.approx(once, rel=1e-5)


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_response_is_the_bernoulli_kl_over_the_teachers_mass(temperature: float) -> None:
    student, teacher = activations(0), activations(1)
    s, t = (a.scores.double().numpy() for a in (student, teacher))
    p, q = sigmoid(t / temperature), sigmoid(s / temperature)
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    mass = sum(sigmoid(t[b, :, a]).max() for b in range(BATCH) for a in range(ANCHORS))
    expected = temperature**2 * kl.sum() / mass
    assert float(LOSSES["response"](PAIR, temperature)(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_response_at_temperature_one_pulls_like_ultralytics_class_loss_with_soft_targets() -> None:
    student, teacher = mapped(activations(0), lambda v: v.requires_grad_()), activations(1)
    (ours,) = torch.autograd.grad(LOSSES["response"](PAIR, 1.0)(student, teacher), student.scores)
    targets = teacher.scores.sigmoid()
    bce = torch.nn.functional.binary_cross_entropy_with_logits(student.scores, targets, reduction="sum")
    (theirs,) = torch.autograd.grad(bce / targets.amax(1).sum(), student.scores)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_localization_is_the_kl_of_edge_distributions_where_the_teacher_is_sure(temperature: float) -> None:
    student, teacher = activations(0), activations(1)
    s, t, scores = student.boxes.double().numpy(), teacher.boxes.double().numpy(), teacher.scores.double().numpy()
    total = weights = 0.0
    for b in range(BATCH):
        for a in range(ANCHORS):
            weight = float(sigmoid(scores[b, :, a]).max())
            for edge in range(4):
                bins = slice(edge * REG_MAX, (edge + 1) * REG_MAX)
                p, q = softmax(t[b, bins, a] / temperature), softmax(s[b, bins, a] / temperature)
                total += weight / 4 * float((p * np.log(p / q)).sum())
            weights += weight
    expected = temperature**2 * total / weights
    assert float(LOSSES["ld"](PAIR, temperature)(student, teacher)) == pytest.approx(expected, rel=1e-4)


def test_localization_ignores_anchors_where_the_teacher_sees_nothing() -> None:
    student, teacher = activations(0), activations(1)
    teacher.scores[:, :, 3:] = -60.0
    loss = LOSSES["ld"](PAIR, 1.0)
    before = float(loss(student, teacher))
    student.boxes[:, :, 3:] += 5 * torch.randn(student.boxes[:, :, 3:].shape)
    assert float(loss(student, teacher)) == pytest.approx(before, rel=1e-6)


def test_feature_is_the_channel_wise_kl_over_positions() -> None:
    student, teacher = activations(0), activations(1, (8, 9, 10))
    loss = LOSSES["feature"](WIDER, 1.0)
    per_level = []
    for projector, s, t in zip(loss.projectors, student.feats, teacher.feats, strict=True):  # type: ignore[arg-type]
        kernel = projector.weight.detach().double().numpy()[:, :, 0, 0]
        projected = np.einsum("oc,bchw->bohw", kernel, s.double().numpy())
        normal = [
            (x - x.mean((0, 2, 3), keepdims=True)) / np.sqrt(x.var((0, 2, 3), keepdims=True) + 1e-5)
            for x in (projected, t.double().numpy())
        ]
        kls = []
        for b in range(BATCH):
            for channel in range(t.shape[1]):
                q, p = (softmax(x[b, channel].ravel()) for x in normal)
                kls.append(float((p * np.log(p / q)).sum()))
        per_level.append(np.mean(kls))
    assert float(loss(student, teacher).detach()) == pytest.approx(float(np.mean(per_level)), rel=1e-4)


def test_feature_does_not_depend_on_the_scale_of_the_teachers_features() -> None:
    student, teacher = activations(0), activations(1)
    loss = LOSSES["feature"](PAIR, 1.0)
    louder = mapped(teacher, lambda v: v * 10)
    assert float(loss(student, louder).detach()) == pytest.approx(float(loss(student, teacher).detach()), rel=1e-4)


def test_losses_are_read_with_their_weights_in_order() -> None:
    assert parse_losses("ld=0.25, response") == {"ld": 0.25, "response": 1.0}
    assert parse_losses("none") == {}
    assert list(build_losses({"ld": 1.0, "feature": 1.0}, PAIR, 1.0)) == ["ld", "feature"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("mimic=1.0", ("'mimic'", "response, ld, feature", "none")),
        ("", ("''", "response, ld, feature")),
        ("ld=1,ld=2", ("'ld'", "twice")),
        ("ld=heavy", ("'heavy'", "ld=1.0")),
        ("ld=-1", ("'-1'", "above 0")),
        ("ld=nan", ("'nan'", "above 0")),
        ("none,ld=1", ("'none'", "response, ld, feature")),
    ],
)
def test_a_loss_that_makes_no_sense_is_refused_with_what_would(text: str, words: tuple[str, ...]) -> None:
    with pytest.raises(DistillError) as refusal:
        parse_losses(text)
    assert all(word in str(refusal.value) for word in words)
    assert "\n" not in str(refusal.value)
