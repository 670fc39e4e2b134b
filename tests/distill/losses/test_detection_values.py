"""Each detection loss against its published formula, worked out in numpy."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from distill.errors import DistillError
from distill.losses import LOSSES, HeadPair

Array = NDArray[np.float64]
Make = Callable[..., Any]
REG_MAX, BATCH = 4, 4
WIDTHS = (5, 6, 7)
PAIR = HeadPair(student_channels=WIDTHS, teacher_channels=WIDTHS, reg_max=REG_MAX)
WIDER = HeadPair(student_channels=WIDTHS, teacher_channels=(8, 9, 10), reg_max=REG_MAX)
STARTS = (0, 16, 20, 22)  # first anchor of each level: 4x4, 2x2 and 1x2 positions
ANCHORS = STARTS[-1]


def build(name: str, pair: HeadPair = WIDER) -> Any:
    torch.manual_seed(0)
    return LOSSES[name](pair, 1.0)


def cost(loss: nn.Module, student: Any, teacher: Any) -> float:
    return float(loss(student, teacher).detach())


def array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().double().numpy())


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max())
    return np.asarray(e / e.sum())


def projected(layer: Any, features: Tensor) -> Array:
    return np.asarray(np.einsum("oc,bchw->bohw", array(layer.weight)[:, :, 0, 0], array(features)))


def sureness(teacher: Any) -> list[Array]:
    """The teacher's highest class probability at each position, (batch, height, width) by level."""
    best = sigmoid(array(teacher.scores)).max(axis=1)
    shapes = [f.shape[2:] for f in teacher.feats]
    levels = zip(itertools.pairwise(STARTS), shapes, strict=True)
    return [best[:, first:last].reshape(BATCH, *shape) for (first, last), shape in levels]


def decoded(boxes: Tensor, image: int, anchor: int) -> list[float]:
    """Left, top, right, bottom: the mean of each edge's distribution."""
    bins = array(boxes)[image, :, anchor].reshape(4, REG_MAX)
    return [float(softmax(edge) @ np.arange(REG_MAX)) for edge in bins]


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_response_is_the_bernoulli_kl_over_the_teachers_mass(temperature: float, head_activations: Make) -> None:
    student, teacher = head_activations(0), head_activations(1)
    s, t = (a.scores.double().numpy() for a in (student, teacher))
    p, q = sigmoid(t / temperature), sigmoid(s / temperature)
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    mass = sum(sigmoid(t[b, :, a]).max() for b in range(BATCH) for a in range(ANCHORS))
    expected = temperature**2 * kl.sum() / mass
    assert float(LOSSES["response"](PAIR, temperature)(student, teacher)) == pytest.approx(expected, rel=1e-5)


def test_response_at_temperature_one_pulls_like_ultralytics_class_loss_with_soft_targets(
    head_activations: Make,
) -> None:
    student, teacher = head_activations(0), head_activations(1)
    student.scores.requires_grad_()
    (ours,) = torch.autograd.grad(LOSSES["response"](PAIR, 1.0)(student, teacher), student.scores)
    targets = teacher.scores.sigmoid()
    bce = torch.nn.functional.binary_cross_entropy_with_logits(student.scores, targets, reduction="sum")
    (theirs,) = torch.autograd.grad(bce / targets.amax(1).sum(), student.scores)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("temperature", [1.0, 10.0])
def test_localization_is_the_kl_of_edge_distributions_where_the_teacher_is_sure(
    temperature: float, head_activations: Make
) -> None:
    student, teacher = head_activations(0), head_activations(1)
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


def test_localization_ignores_anchors_where_the_teacher_sees_nothing(head_activations: Make) -> None:
    student, teacher = head_activations(0), head_activations(1)
    teacher.scores[:, :, 3:] = -60.0
    loss = LOSSES["ld"](PAIR, 1.0)
    before = float(loss(student, teacher))
    student.boxes[:, :, 3:] += 5 * torch.randn(student.boxes[:, :, 3:].shape)
    assert float(loss(student, teacher)) == pytest.approx(before, rel=1e-6)


def test_cwd_is_the_channel_wise_kl_over_positions(head_activations: Make) -> None:
    student, teacher = head_activations(0), head_activations(1, (8, 9, 10))
    loss = LOSSES["cwd"](WIDER, 1.0)
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


def test_cwd_does_not_depend_on_the_scale_of_the_teachers_features(head_activations: Make) -> None:
    student, teacher = head_activations(0), head_activations(1)
    loss = LOSSES["cwd"](PAIR, 1.0)
    louder = replace(teacher, feats=tuple(f * 10 for f in teacher.feats))
    assert float(loss(student, louder).detach()) == pytest.approx(float(loss(student, teacher).detach()), rel=1e-4)


def test_cwd_and_feature_are_one_loss_under_two_names() -> None:
    assert LOSSES["feature"] is LOSSES["cwd"]


def test_quality_is_the_quality_focal_loss_labelled_by_the_teacher(head_activations: Make) -> None:
    student, teacher = head_activations(0), head_activations(1)
    q, y = sigmoid(array(student.scores)), sigmoid(array(teacher.scores))
    focal = np.abs(y - q) ** 2 * -((1 - y) * np.log(1 - q) + y * np.log(q))
    assert cost(build("quality"), student, teacher) == pytest.approx(focal.sum() / y.max(axis=1).sum(), rel=1e-5)


def test_iou_is_the_overlap_with_the_teachers_box_where_it_is_sure(head_activations: Make) -> None:
    student, teacher = head_activations(0), head_activations(1)
    best = sigmoid(array(teacher.scores)).max(axis=1)
    total = 0.0
    for image, anchor in itertools.product(range(BATCH), range(ANCHORS)):
        ours, theirs = (decoded(a.boxes, image, anchor) for a in (student, teacher))
        x, y = 37.0, 11.0  # wherever the anchor stands, its two boxes overlap alike
        a, b = ((x - e[0], y - e[1], x + e[2], y + e[3]) for e in (ours, theirs))
        meet = (min(a[2], b[2]) - max(a[0], b[0])) * (min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - meet
        total += float(best[image, anchor]) * (1 - meet / union)
    assert cost(build("iou"), student, teacher) == pytest.approx(total / best.sum(), rel=1e-5)


def test_bounded_costs_only_where_the_teacher_is_closer_to_the_label(head_activations: Make) -> None:
    student, teacher = head_activations(0), head_activations(1)
    labels, foreground = array(student.assigned.edges), student.assigned.foreground
    total, outdone = 0.0, 0
    for image, anchor in itertools.product(range(BATCH), range(ANCHORS)):
        if not foreground[image, anchor]:
            continue
        ours, theirs = (
            sum((e - y) ** 2 for e, y in zip(decoded(a.boxes, image, anchor), labels[image, :, anchor], strict=True))
            for a in (student, teacher)
        )
        if ours > theirs:
            total += float(ours)
        else:
            outdone += 1
    assert outdone > 5
    expected = total / int(foreground.sum())
    assert cost(build("bounded"), student, teacher) == pytest.approx(expected, rel=1e-5)


def test_bounded_without_labels_is_refused(head_activations: Make) -> None:
    with pytest.raises(DistillError, match="no assigned boxes"):
        build("bounded")(replace(head_activations(0), assigned=None), head_activations(1))


def test_fitnets_regresses_every_level(head_activations: Make) -> None:
    student, teacher = head_activations(0), head_activations(1, (8, 9, 10))
    loss = build("fitnets")
    levels = zip(loss.projectors, student.feats, teacher.feats, strict=True)
    expected = np.mean([((projected(layer, s) - array(t)) ** 2).mean() / 2 for layer, s, t in levels])
    assert cost(loss, student, teacher) == pytest.approx(float(expected), rel=1e-5)


def test_mimic_regresses_where_the_teacher_is_sure(head_activations: Make) -> None:
    student, teacher = head_activations(0), head_activations(1, (8, 9, 10))
    loss = build("mimic")
    weights = sureness(teacher)
    total = 0.0
    for layer, s, t, weight in zip(loss.projectors, student.feats, teacher.feats, weights, strict=True):
        total += float((((array(t) - projected(layer, s)) ** 2).mean(axis=1) * weight).sum())
    expected = total / (2 * sum(float(w.sum()) for w in weights))
    assert cost(loss, student, teacher) == pytest.approx(expected, rel=1e-5)


def test_at_compares_normalised_attention_maps(head_activations: Make) -> None:
    student, teacher = head_activations(0), head_activations(1, (8, 9, 10))
    expected = 0.0
    for s, t in zip(student.feats, teacher.feats, strict=True):
        a, b = ((array(f) ** 2).sum(axis=1).reshape(BATCH, -1) for f in (s, t))
        a, b = (q / np.linalg.norm(q, axis=1, keepdims=True) for q in (a, b))
        expected += float(((a - b) ** 2).mean())
    assert cost(build("at"), student, teacher) == pytest.approx(expected, rel=1e-5)


def test_pkd_is_one_minus_the_correlation_of_channels(head_activations: Make) -> None:
    student, teacher = head_activations(0), head_activations(1, (8, 9, 10))
    loss = build("pkd")
    levels = []
    for layer, s, t in zip(loss.projectors, student.feats, teacher.feats, strict=True):
        ours, theirs = (np.moveaxis(x, 1, 0).reshape(x.shape[1], -1) for x in (projected(layer, s), array(t)))
        pairs = zip(ours, theirs, strict=True)
        levels.append(np.mean([1 - np.corrcoef(a, b)[0, 1] for a, b in pairs]))
    assert cost(loss, student, teacher) == pytest.approx(float(np.mean(levels)), rel=1e-4)


def convolved(layer: Any, features: Array) -> Array:
    """A 3x3 convolution with zeros around the map."""
    padded = np.pad(features, ((0, 0), (0, 0), (1, 1), (1, 1)))
    height, width = features.shape[2:]
    out = np.zeros((len(features), layer.weight.shape[0], height, width)) + array(layer.bias)[None, :, None, None]
    for y, x in itertools.product(range(3), range(3)):
        kernel = array(layer.weight)[:, :, y, x]
        out += np.einsum("oc,bchw->bohw", kernel, padded[:, :, y : y + height, x : x + width])
    return np.asarray(out)


def test_mgd_generates_the_teachers_map_from_a_third_of_the_students(head_activations: Make) -> None:
    student, teacher = head_activations(0), head_activations(1, (8, 9, 10))
    loss = build("mgd")
    torch.manual_seed(3)
    kept = [torch.rand(BATCH, 1, *f.shape[2:]).numpy() >= 0.65 for f in student.feats]
    levels = []
    for index, mask in enumerate(kept):
        first, _, second = loss.generators[index]
        hidden = convolved(first, projected(loss.projectors[index], student.feats[index]) * mask)
        generated = convolved(second, np.maximum(hidden, 0))
        levels.append(((generated - array(teacher.feats[index])) ** 2).mean())
    torch.manual_seed(3)
    assert cost(loss, student, teacher) == pytest.approx(float(np.mean(levels)), rel=1e-5)


def attention(features: Array) -> tuple[Array, Array]:
    """Spatial (height, width) and channel (channels,) attention of one image's map, at temperature 0.5."""
    strength = np.abs(features)
    where = softmax(strength.mean(axis=0) / 0.5) * strength[0].size
    return where, softmax(strength.mean(axis=(1, 2)) / 0.5) * len(features)


def related(context: Any, features: Array) -> Array:
    """The global context block of one image's map."""
    flat = features.reshape(len(features), -1)
    scores = array(context.position.weight)[0, :, 0, 0] @ flat + array(context.position.bias)[0]
    hidden = array(context.reduce.weight) @ (flat @ softmax(scores)) + array(context.reduce.bias)
    normal = (hidden - hidden.mean()) / np.sqrt(hidden.var() + context.norm.eps)
    normal = np.maximum(normal * array(context.norm.weight) + array(context.norm.bias), 0)
    added = array(context.expand.weight) @ normal + array(context.expand.bias)
    return np.asarray(features + added[:, None, None])


def test_fgd_is_the_sum_of_its_focal_attention_and_global_parts(head_activations: Make) -> None:
    student, teacher = head_activations(0), head_activations(1, (8, 9, 10))
    loss = build("fgd")
    for context in (*loss.student_context, *loss.teacher_context):  # the identity at first
        nn.init.normal_(context.expand.weight)
    focal = attentive = relation = 0.0
    for index, best in enumerate(sureness(teacher)):
        ours = projected(loss.projectors[index], student.feats[index])
        for s, t, p in zip(ours, array(teacher.feats[index]), best, strict=True):
            (where_s, what_s), (where_t, what_t) = attention(s), attention(t)
            mask = 0.001 * p / max(1.0, p.sum()) + 0.0005 * (1 - p) / (1 - p).sum()
            focal += float((mask * where_t * what_t[:, None, None] * (t - s) ** 2).sum())
            attentive += float(np.abs(where_t - where_s).sum() + np.abs(what_t - what_s).sum())
            contexts = loss.teacher_context[index], loss.student_context[index]
            relation += float(((related(contexts[0], t) - related(contexts[1], s)) ** 2).sum())
    expected = (focal + 0.001 * attentive + 5e-6 * relation) / BATCH
    assert cost(loss, student, teacher) == pytest.approx(expected, rel=1e-4)


def test_rkd_relates_images_by_their_pooled_levels(head_activations: Make) -> None:
    student, teacher = head_activations(0), head_activations(1, (8, 9, 10))
    images = range(BATCH)

    def huber(x: float) -> float:
        return x * x / 2 if abs(x) < 1 else abs(x) - 0.5

    levels = []
    for s, t in zip(student.feats, teacher.feats, strict=True):
        distances, angles = [], []
        for points in (array(f).mean(axis=(2, 3)) for f in (s, t)):
            apart = {(i, j): np.linalg.norm(points[i] - points[j]) for i, j in itertools.permutations(images, 2)}
            mean = np.mean(list(apart.values()))
            distances.append({pair: float(d / mean) for pair, d in apart.items()})
            unit = {(j, i): (points[i] - points[j]) / d for (i, j), d in apart.items()}
            angles.append({(j, i, k): float(unit[j, i] @ unit[j, k]) for j, i in unit for k in images if k != j})
        distance = sum(huber(distances[0][pair] - distances[1][pair]) for pair in distances[0]) / BATCH**2
        angle = sum(huber(angles[0][triplet] - angles[1][triplet]) for triplet in angles[0]) / BATCH**3
        levels.append(distance + 2 * angle)
    assert cost(build("rkd"), student, teacher) == pytest.approx(float(np.mean(levels)), rel=1e-4)


def test_scored_weighs_squared_errors_of_each_level_by_the_teachers_scores(head_activations: Make) -> None:
    student, teacher = head_activations(0), head_activations(1, (8, 9, 10))
    loss = build("scored")
    expected = 0.0
    for layer, s, t, weight in zip(loss.projectors, student.feats, teacher.feats, sureness(teacher), strict=True):
        first, _, second = layer
        hidden = np.maximum(biased(first, array(s)), 0)
        error = (biased(second, hidden) - array(t)) ** 2
        expected += float((error * weight[:, None]).sum() / (t.shape[1] * weight.sum()))
    assert cost(loss, student, teacher) == pytest.approx(expected, rel=1e-5)


def test_scored_costs_nothing_where_the_teacher_is_what_the_projector_makes(head_activations: Make) -> None:
    student, teacher = head_activations(0), head_activations(1, (8, 9, 10))
    loss = build("scored")
    feats = tuple(layer(s).detach() for layer, s in zip(loss.projectors, student.feats, strict=True))
    assert cost(loss, student, replace(teacher, feats=feats)) == pytest.approx(0.0, abs=1e-10)


def biased(layer: Any, maps: Array) -> Array:
    """A 1x1 convolution with bias."""
    made = np.einsum("oc,bchw->bohw", array(layer.weight)[:, :, 0, 0], maps)
    return np.asarray(made + array(layer.bias)[None, :, None, None])
