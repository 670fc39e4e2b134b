"""Each classification loss against its published formula, worked out in numpy."""

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
from distill.losses import CLASS_LOSSES, ClassPair
from distill.losses.ensemble import FeatureEnsemble, combine_logits, combine_probabilities, confidence_weights
from distill.losses.mutual import peer_losses
from distill.losses.sftn import student_friendly_loss
from distill.losses.subclass import class_logits, spread_loss

Array = NDArray[np.float64]
Make = Callable[..., Any]
PAIR = ClassPair((5, 6, 7), (8, 9, 10), student_dim=8, teacher_dim=12, classes=3, train_size=20)


def build(name: str, temperature: float = 1.0, pair: ClassPair = PAIR) -> nn.Module:
    torch.manual_seed(0)
    return CLASS_LOSSES[name](pair, temperature)


def cost(loss: nn.Module, student: Any, teacher: Any) -> float:
    return float(loss(student, teacher).detach())


def array(tensor: Tensor) -> Array:
    return np.asarray(tensor.detach().double().numpy())


def softmax(x: Array, axis: int = -1) -> Array:
    e = np.exp(x - x.max(axis=axis, keepdims=True))
    return np.asarray(e / e.sum(axis=axis, keepdims=True))


def kl(p: Array, q: Array) -> float:
    return float(sum(a * np.log(a / b) for a, b in zip(p.ravel(), q.ravel(), strict=True) if a > 0))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_kd_is_the_softened_kl_times_the_squared_temperature(temperature: float, class_activations: Make) -> None:
    s, t = class_activations(0), class_activations(1)
    rows = [
        kl(softmax(b / temperature), softmax(a / temperature))
        for a, b in zip(array(s.logits), array(t.logits), strict=True)
    ]
    expected = temperature**2 * float(np.mean(rows))
    assert cost(build("kd", temperature), s, t) == pytest.approx(expected, rel=1e-5)


def test_kd_at_a_high_temperature_is_half_the_squared_distance_of_centred_logits(class_activations: Make) -> None:
    s, t = class_activations(0), class_activations(1)  # Hinton et al. 2015, equation 4
    centred = [a - a.mean(axis=1, keepdims=True) for a in (array(s.logits), array(t.logits))]
    expected = ((centred[0] - centred[1]) ** 2).sum(axis=1).mean() / (2 * 3)
    assert cost(build("kd", 300.0), s, t) == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_dkd_weighs_the_true_class_and_the_others_apart(temperature: float, class_activations: Make) -> None:
    s, t = class_activations(0, logits=5), class_activations(1, logits=5)
    total = 0.0
    for zs, zt, y in zip(array(s.logits), array(t.logits), s.labels.tolist(), strict=True):
        q, p = softmax(zs / temperature), softmax(zt / temperature)
        target = kl(np.array([p[y], 1 - p[y]]), np.array([q[y], 1 - q[y]]))
        p_others, q_others = np.delete(p, y) / (1 - p[y]), np.delete(q, y) / (1 - q[y])
        total += temperature**2 * (target + 8 * kl(p_others, q_others))
    assert cost(build("dkd", temperature), s, t) == pytest.approx(total / 4, rel=1e-5)


def test_extractive_is_the_kl_from_what_the_teacher_finds_likelier_than_chance(class_activations: Make) -> None:
    s, t = class_activations(0), class_activations(1)
    total = 0.0
    for zs, zt in zip(array(s.logits), array(t.logits), strict=True):
        above = np.clip(softmax(zt / 4) - 1 / 3, 0, None)
        q = 0.8 * above / above.sum() + 0.2 / 3
        assert q.sum() == pytest.approx(1.0)
        total += kl(q, softmax(zs))
    assert cost(build("extractive", 4.0), s, t) == pytest.approx(total / 4, rel=1e-5)


def test_extractive_extracts_the_only_class_above_chance_whole(class_activations: Make) -> None:
    teacher = replace(class_activations(1), logits=torch.tensor([[5.0, 0.0, 0.0]]).expand(4, 3))
    student = replace(teacher, logits=torch.log(torch.tensor([[0.8 + 0.2 / 3, 0.2 / 3, 0.2 / 3]])).expand(4, 3))
    assert cost(build("extractive", 2.0), student, teacher) == pytest.approx(0.0, abs=1e-6)


def test_extractive_learns_a_uniform_guess_from_a_teacher_that_cannot_decide(class_activations: Make) -> None:
    teacher, student = replace(class_activations(1), logits=torch.full((4, 3), 2.5)), class_activations(0)
    rows = [kl(np.full(3, 1 / 3), softmax(z)) for z in array(student.logits)]
    assert cost(build("extractive", 2.0), student, teacher) == pytest.approx(float(np.mean(rows)), rel=1e-5)


def test_subclass_is_the_kl_over_all_subclasses(class_activations: Make) -> None:
    s, t = class_activations(0, logits=6), class_activations(1, logits=6)
    rows = [kl(softmax(b / 2), softmax(a / 2)) for a, b in zip(array(s.logits), array(t.logits), strict=True)]
    assert cost(build("subclass", 2.0), s, t) == pytest.approx(4 * float(np.mean(rows)), rel=1e-5)


def test_a_class_is_as_likely_as_its_subclasses_together(class_activations: Make) -> None:
    logits = class_activations(0, logits=6).logits
    expected = softmax(array(logits)).reshape(4, 3, 2).sum(axis=2)
    np.testing.assert_allclose(softmax(array(class_logits(logits, 3))), expected, rtol=1e-5)


@pytest.mark.parametrize(("ours", "theirs"), [(6, 9), (7, 7)])
def test_subclasses_that_do_not_fit_are_refused(ours: int, theirs: int, class_activations: Make) -> None:
    with pytest.raises(DistillError, match=f"teacher has {theirs} logits, student {ours}, for 3 classes"):
        build("subclass")(class_activations(0, logits=ours), class_activations(1, logits=theirs))


def test_the_spread_of_a_teachers_subclasses_is_the_published_contrast(class_activations: Make) -> None:
    logits = class_activations(0, logits=6).logits
    rows = array(logits) - array(logits).mean(axis=1, keepdims=True)
    v = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    total = 0.0
    for i in range(4):
        mean = np.mean([np.exp(v[i] @ v[j] / 0.5) for j in range(4)])
        total -= np.log(np.exp(v[i] @ v[i] / 0.5) / mean)
    assert float(spread_loss(logits, 0.5)) == pytest.approx(total / 4, rel=1e-5)


def test_the_spread_is_largest_where_all_images_look_alike(class_activations: Make) -> None:
    logits = class_activations(0, logits=6).logits
    assert float(spread_loss(logits[:1].repeat(4, 1))) == pytest.approx(0.0, abs=1e-6)
    assert float(spread_loss(logits)) < -0.1


def test_mutual_is_the_kl_to_the_peer_whatever_the_temperature(class_activations: Make) -> None:
    s, t = class_activations(0), class_activations(1)
    rows = [kl(softmax(b), softmax(a)) for a, b in zip(array(s.logits), array(t.logits), strict=True)]
    assert cost(build("mutual", 5.0), s, t) == pytest.approx(float(np.mean(rows)), rel=1e-5)


def test_each_peer_learns_from_the_mean_of_the_others(class_activations: Make) -> None:
    logits = [class_activations(seed).logits.requires_grad_() for seed in range(3)]
    probabilities = [softmax(array(z)) for z in logits]
    losses = peer_losses(logits)
    for own, loss in enumerate(losses):
        others = [k for k in range(3) if k != own]
        expected = np.mean([kl(probabilities[k], probabilities[own]) / 4 for k in others])
        assert float(loss.detach()) == pytest.approx(float(expected), rel=1e-5)
    losses[1].backward()
    assert [z.grad is None for z in logits] == [True, False, True]


def hint(projector: Tensor, student: Tensor, teacher: Tensor) -> float:
    projected = np.einsum("oc,bchw->bohw", array(projector)[:, :, 0, 0], array(student))
    return float(((projected - array(teacher)) ** 2).mean() / 2)


def test_fitnets_regresses_the_middle_map_alone(class_activations: Make) -> None:
    s, t = class_activations(0), class_activations(1, (8, 9, 10))
    loss = build("fitnets")
    expected = hint(loss.projector.weight, s.feats[1], t.feats[1])  # type: ignore[union-attr, arg-type]
    assert cost(loss, s, t) == pytest.approx(expected, rel=1e-5)


def test_a_hint_alone_trains_nothing_behind_the_guided_map(class_activations: Make, mapped: Make) -> None:
    student = mapped(class_activations(0), lambda v: v.requires_grad_())
    build("fitnets")(student, class_activations(1, (8, 9, 10))).backward()
    assert [f.grad is not None for f in student.feats] == [False, True, False]
    assert student.logits.grad is None
    assert student.embedding.grad is None


def test_a_finer_map_is_pooled_to_the_coarser(class_activations: Make) -> None:
    s, t = class_activations(0), class_activations(1, (8, 9, 10))
    fine = t.feats[1].repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    finer = replace(t, feats=(t.feats[0], fine, t.feats[2]))
    for name in ("fitnets", "at", "cwd"):
        assert cost(build(name), s, finer) == pytest.approx(cost(build(name), s, t), rel=1e-5)


def attention(maps: Tensor) -> Array:
    q = (array(maps) ** 2).sum(axis=1).reshape(len(maps), -1)
    return np.asarray(q / np.linalg.norm(q, axis=1, keepdims=True))


def test_at_compares_normalised_attention_maps(class_activations: Make) -> None:
    s, t = class_activations(0), class_activations(1, (8, 9, 10))
    expected = sum(((attention(a) - attention(b)) ** 2).mean() for a, b in zip(s.feats, t.feats, strict=True))
    assert cost(build("at"), s, t) == pytest.approx(float(expected), rel=1e-5)


def huber(x: float) -> float:
    return x * x / 2 if abs(x) < 1 else abs(x) - 0.5


def relations(points: Array) -> tuple[dict[Any, float], dict[Any, float]]:
    """Distances of ordered pairs in units of their mean, and cosines of ordered triplets i, j, k at j."""
    n = range(len(points))
    distances = {(i, j): float(np.linalg.norm(points[i] - points[j])) for i, j in itertools.product(n, n)}
    mean = np.mean([d for d in distances.values() if d > 0])
    angles = {}
    for i, j, k in itertools.product(n, n, n):
        a, b = points[i] - points[j], points[k] - points[j]
        lengths = np.linalg.norm(a) * np.linalg.norm(b)
        angles[i, j, k] = float(a @ b / lengths) if lengths > 0 else 0.0
    return {pair: float(d / mean) for pair, d in distances.items()}, angles


def test_rkd_is_the_huber_loss_of_distances_and_angles(class_activations: Make) -> None:
    s, t = class_activations(0), class_activations(1, dimensions=12)
    (ds, as_), (dt, at) = (relations(array(v.embedding)) for v in (s, t))
    distance = np.mean([huber(ds[pair] - dt[pair]) for pair in ds])
    angle = np.mean([huber(as_[triplet] - at[triplet]) for triplet in as_])
    assert cost(build("rkd"), s, t) == pytest.approx(float(distance + 2 * angle), rel=1e-5)


def test_rkd_does_not_see_a_turned_moved_and_scaled_embedding(class_activations: Make) -> None:
    s, t = class_activations(0), class_activations(1)
    turn = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(0))).Q
    moved = replace(t, embedding=3 * t.embedding @ turn + 5)
    assert cost(build("rkd"), s, moved) == pytest.approx(cost(build("rkd"), s, t), rel=1e-4)
    assert cost(build("rkd"), t, moved) == pytest.approx(0.0, abs=1e-6)


def test_rkd_of_one_image_has_nothing_to_compare(class_activations: Make, mapped: Make) -> None:
    one = mapped(class_activations(0), lambda v: v[:1].requires_grad_())
    value = build("rkd")(one, mapped(class_activations(1), lambda v: v[:1]))
    value.backward()
    assert float(value.detach()) == 0.0


def embedded(layer: Any, features: Tensor) -> Array:
    raw = array(features) @ array(layer.weight).T + array(layer.bias)
    return np.asarray(raw / np.linalg.norm(raw, axis=1, keepdims=True))


def test_crd_is_the_noise_contrast_against_remembered_images_of_other_classes(class_activations: Make) -> None:
    s, t = class_activations(0), class_activations(1, dimensions=12)
    loss: Any = build("crd")
    loss.known_labels[:10] = torch.arange(10) % 3  # half of the training set was seen already
    es, et = embedded(loss.student_embedding, s.embedding), embedded(loss.teacher_embedding, t.embedding)
    memories = {"s": array(loss.student_memory).copy(), "t": array(loss.teacher_memory).copy()}
    torch.manual_seed(1)
    drawn = torch.randint(20, (20,)).tolist()
    expected = 0.0
    for anchors, positives, memory in ((es, et, memories["t"]), (et, es, memories["s"])):
        pull = [np.exp(anchors[i] @ positives[i] / 0.07) for i in range(4)]
        push = [
            [
                np.exp(anchors[i] @ memory[c] / 0.07)
                for c in drawn
                if c != int(s.indices[i]) and (c >= 10 or c % 3 != int(s.labels[i]))
            ]
            for i in range(4)
        ]
        z = np.mean([*pull, *itertools.chain(*push)]) * 20
        for i in range(4):
            noise = len(push[i]) / 20
            expected -= np.log(pull[i] / z / (pull[i] / z + noise)) / 4
            expected -= sum(np.log(1 - e / z / (e / z + noise)) for e in push[i]) / 4
    torch.manual_seed(1)
    assert cost(loss, s, t) == pytest.approx(expected, rel=1e-4)
    updated = memories["s"][3] / 2 + es[1] / 2  # the second image is number 3 of the training set
    np.testing.assert_allclose(array(loss.student_memory)[3], updated / np.linalg.norm(updated), rtol=1e-4)
    np.testing.assert_allclose(array(loss.student_memory)[4], memories["s"][4])
    assert loss.known_labels[s.indices].tolist() == s.labels.tolist()


def test_crd_costs_less_for_matched_than_for_mismatched_pairs_once_the_embeddings_agree(
    class_activations: Make,
) -> None:
    same = class_activations(0)
    loss: Any = build("crd", pair=replace(PAIR, teacher_dim=8)).eval()
    loss.teacher_embedding.load_state_dict(loss.student_embedding.state_dict())
    costs = []
    for teacher in (same, replace(same, embedding=same.embedding.roll(1, dims=0))):
        torch.manual_seed(1)
        costs.append(cost(loss, same, teacher))
    assert costs[0] < 0.5 * costs[1]


def test_crd_remembers_nothing_while_it_is_only_evaluated(class_activations: Make) -> None:
    loss = build("crd").eval()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    loss(class_activations(0), class_activations(1, dimensions=12))
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


def test_crd_remembers_the_images_of_all_processes(class_activations: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes, of which this one is played: the other's rows arrive through ``all_gather``."""
    theirs = {torch.Size([4, 128]): torch.eye(4, 128), torch.Size([4]): torch.tensor([15, 16, 17, 18])}

    def gather(parts: list[Tensor], rows: Tensor) -> None:
        parts[0].copy_(rows)
        parts[1].copy_(theirs[rows.shape])

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather", gather)
    loss: Any = build("crd")
    before = array(loss.student_memory).copy()
    student = class_activations(0)
    loss(student, class_activations(1, dimensions=12))
    moved = np.flatnonzero((array(loss.student_memory) != before).any(axis=1)).tolist()
    assert moved == sorted([*student.indices.tolist(), 15, 16, 17, 18])
    updated = before[16] + np.eye(4, 128)[1]
    np.testing.assert_allclose(array(loss.student_memory)[16], updated / np.linalg.norm(updated), rtol=1e-5)


def test_a_student_friendly_teacher_pays_for_branches_that_cannot_follow(class_activations: Make) -> None:
    teacher, *branches = (class_activations(seed).logits.requires_grad_() for seed in range(3))
    labels = torch.tensor([0, 1, 2, 1])
    p = softmax(array(teacher))

    def ce(probabilities: Array) -> float:
        return float(-np.mean([np.log(probabilities[i, y]) for i, y in enumerate(labels.tolist())]))

    soft = [softmax(array(z) / 2) for z in (teacher, *branches)]
    followed = float(np.mean([4 * kl(q, soft[0]) / 4 for q in soft[1:]]))
    expected = ce(p) + 3 * followed + 0.5 * float(np.mean([ce(softmax(array(b))) for b in branches]))
    loss = student_friendly_loss(teacher, branches, labels, temperature=2.0, branch_ce=0.5)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(z.grad is not None and float(z.grad.abs().sum()) > 0 for z in (teacher, *branches))


def test_teachers_are_averaged_geometrically_and_arithmetically(class_activations: Make) -> None:
    logits = [class_activations(seed).logits for seed in range(3)]
    geometric = np.exp(np.mean([np.log(softmax(array(z))) for z in logits], axis=0))
    geometric /= geometric.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(softmax(array(combine_logits(logits))), geometric, rtol=1e-5)
    arithmetic = np.mean([softmax(array(z) / 4) for z in logits], axis=0)
    np.testing.assert_allclose(softmax(array(combine_probabilities(logits, 4.0)) / 4), arithmetic, rtol=1e-5)


def test_a_teacher_that_knows_the_label_is_trusted_more(class_activations: Make) -> None:
    logits = [class_activations(seed).logits for seed in range(3)]
    labels = class_activations(0).labels
    ce = np.array([[-np.log(softmax(array(z))[i, y]) for i, y in enumerate(labels.tolist())] for z in logits])
    expected = (1 - np.exp(ce) / np.exp(ce).sum(axis=0)) / 2
    weights = confidence_weights(logits, labels)
    np.testing.assert_allclose(array(weights), expected, rtol=1e-5)
    np.testing.assert_allclose(array(weights.sum(dim=0)), 1.0, rtol=1e-6)
    mixed = sum(w[:, None] * array(z) for w, z in zip(expected, logits, strict=True))
    np.testing.assert_allclose(array(combine_logits(logits, weights)), mixed, rtol=1e-5)
    blended = sum(w[:, None] * softmax(array(z)) for w, z in zip(expected, logits, strict=True))
    np.testing.assert_allclose(softmax(array(combine_probabilities(logits, 1.0, weights))), blended, rtol=1e-5)
    assert confidence_weights(logits[:1], labels).tolist() == [[1.0] * 4]


def test_a_feature_ensemble_follows_each_teachers_last_map(class_activations: Make) -> None:
    s, teachers = class_activations(0), [class_activations(1, (8, 9, 10)), class_activations(2)]
    torch.manual_seed(0)
    ensemble = FeatureEnsemble([PAIR, replace(PAIR, teacher_channels=(5, 6, 7))])
    total = 0.0
    for layer, teacher in zip(ensemble.projectors, teachers, strict=True):
        projected = np.einsum("oc,bchw->bohw", array(layer.weight)[:, :, 0, 0], array(s.feats[2]))  # type: ignore[arg-type]
        for a, b in zip(projected, array(teacher.feats[2]), strict=True):
            total += float(np.abs(a / np.linalg.norm(a) - b / np.linalg.norm(b)).sum())
    assert float(ensemble(s, teachers).detach()) == pytest.approx(total / 8, rel=1e-5)
