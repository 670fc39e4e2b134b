"""Several teachers as one: what their logits become, and how much each counts."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from distill.losses import LOSSES, Activations, build_losses
from distill.losses.teachers import combine_teachers

Make = Callable[..., Activations]
REG_MAX = 4


def entropies(member: Activations) -> tuple[np.ndarray, np.ndarray]:
    """Of classes (batch, anchors), summed, and of edges, their mean; in numpy."""
    p = 1 / (1 + np.exp(-member.scores.double().numpy()))
    classes = -(p * np.log(p) + (1 - p) * np.log(1 - p)).sum(axis=1)
    logits = member.boxes.double().numpy().reshape(member.boxes.shape[0], 4, REG_MAX, -1)
    q = np.exp(logits) / np.exp(logits).sum(axis=2, keepdims=True)
    return classes, -(q * np.log(q)).sum(axis=2).mean(axis=1)


def test_the_mean_is_the_geometric_mean_of_the_predictions(head_activations: Make) -> None:
    members = [head_activations(seed) for seed in (0, 1, 2)]
    combined = combine_teachers(members, "mean", REG_MAX)
    odds = torch.stack([m.scores.double().exp() for m in members])  # p / (1 - p)
    expected = odds.prod(dim=0) ** (1 / 3)
    torch.testing.assert_close(combined.scores.double().exp(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(combined.boxes, sum(m.boxes for m in members) / 3)
    assert combined.shares.tolist() == pytest.approx([1 / 3] * 3)


def test_confidence_weighs_each_anchor_by_the_teachers_own_entropy(head_activations: Make) -> None:
    members = [head_activations(seed) for seed in (0, 1, 2)]
    combined = combine_teachers(members, "confidence", REG_MAX)
    for index, of in enumerate(("scores", "boxes")):
        cost = np.exp(np.stack([entropies(m)[index] for m in members]))
        weights = (1 - cost / cost.sum(axis=0)) / 2
        assert weights.sum(axis=0) == pytest.approx(1)
        logits = np.stack([getattr(m, of).double().numpy() for m in members])
        expected = (weights[:, :, None] * logits).sum(axis=0)
        assert getattr(combined, of).numpy() == pytest.approx(expected, abs=1e-5)


def test_a_sure_teacher_outvotes_an_unsure_one(head_activations: Make) -> None:
    sure, unsure = head_activations(0), head_activations(1)
    sure = replace(sure, scores=torch.full_like(sure.scores, 6.0))
    unsure = replace(unsure, scores=torch.zeros_like(unsure.scores))
    combined = combine_teachers([sure, unsure], "confidence", REG_MAX)
    p = 1 / (1 + math.exp(-6))
    costs = [-3 * (p * math.log(p) + (1 - p) * math.log(1 - p)), 3 * math.log(2)]  # of three classes
    share = math.exp(costs[1]) / (math.exp(costs[0]) + math.exp(costs[1]))
    assert share > 0.88
    assert float(combined.scores.mean()) == pytest.approx(6 * share, rel=1e-5)
    assert combined.shares.tolist() == pytest.approx([share, 1 - share], rel=1e-5)


@pytest.mark.parametrize("how", ["mean", "confidence"])
def test_a_teacher_given_twice_is_that_teacher(how: str, head_activations: Make) -> None:
    one = head_activations(0)
    combined = combine_teachers([one, one], how, REG_MAX)
    torch.testing.assert_close(combined.scores, one.scores)
    torch.testing.assert_close(combined.boxes, one.boxes)
    assert combined.shares.tolist() == pytest.approx([0.5, 0.5])


@pytest.mark.parametrize("how", ["mean", "confidence"])
def test_extremes_in_half_precision_and_teachers_that_see_nothing_stay_finite(how: str, head_activations: Make) -> None:
    for seeds, scale in (((0, 1), 5000.0), ((0, 1), 0.0)):
        members = [head_activations(seed) for seed in seeds]
        members = [replace(m, scores=(m.scores.abs() * -scale).half(), boxes=(m.boxes * scale).half()) for m in members]
        combined = combine_teachers(members, how, REG_MAX)
        assert combined.scores.dtype == combined.boxes.dtype == torch.float32
        assert all(bool(v.isfinite().all()) for v in (combined.scores, combined.boxes, combined.shares))
        assert float(combined.shares.sum()) == pytest.approx(1)


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_learns_from_teachers_of_other_widths(
    name: str, head_activations: Make, pair_of_heads: Make
) -> None:
    torch.manual_seed(0)
    pairs = [pair_of_heads((5, 6, 7), widths) for widths in ((5, 6, 7), (8, 9, 10))]
    loss = build_losses({name: 1.0}, pairs, 1.0)[name]
    student = head_activations(0)
    leaves = [v.requires_grad_() for v in (student.boxes, student.scores, *student.feats)]
    teachers = [head_activations(1), head_activations(2, (8, 9, 10))]
    torch.manual_seed(1)
    cost = loss(student, combine_teachers(teachers, "mean", REG_MAX))
    cost.backward()
    assert sum(float(v.grad.abs().sum()) for v in leaves if v.grad is not None) > 0
    if name not in ("response", "quality", "ld", "iou", "bounded"):
        torch.manual_seed(1)
        alone = [float(one(student, t).detach()) for one, t in zip(loss.losses, teachers, strict=True)]
        assert float(cost.detach()) == pytest.approx(sum(alone) / 2, rel=1e-5)
