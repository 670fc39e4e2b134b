"""What every distillation loss promises, of a detector and of a classifier."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill.losses import CLASS_LOSSES, LOSSES, ClassPair

Make = Callable[..., Any]
CASES = [*(("detector", name) for name in LOSSES), *(("classifier", name) for name in CLASS_LOSSES)]
WIDTHS, WIDER = (5, 6, 7), (8, 9, 10)
#: Identical activations do not cost 0: what these losses promise instead is tested with their values.
NEVER_ZERO = {"crd", "crosskd", "extractive", "mgd", "scored"}
#: How far 150 steps on the activations themselves must bring a loss, where it has a floor or noise of its own.
REACHED = {"crd": 0.6, "crosskd": 0.7, "extractive": 0.5, "mgd": 0.7}
every_loss = pytest.mark.parametrize(("kind", "name"), CASES)


@pytest.fixture
def build(pair_of_heads: Make) -> Callable[[str, str, float], Callable[..., nn.Module]]:
    def make(kind: str, name: str, temperature: float = 1.0, teacher: tuple[int, ...] = WIDTHS) -> nn.Module:
        torch.manual_seed(0)
        if kind == "detector":
            return LOSSES[name](pair_of_heads(WIDTHS, teacher), temperature)
        wide = 8 if teacher == WIDTHS else 12
        pair = ClassPair(WIDTHS, teacher, student_dim=8, teacher_dim=wide, classes=3, train_size=20)
        return CLASS_LOSSES[name](pair, temperature)

    return make  # type: ignore[return-value]


@pytest.fixture
def activations(head_activations: Make, class_activations: Make) -> Make:
    def make(kind: str, seed: int, wider: bool = False) -> Any:
        if kind == "detector":
            return head_activations(seed, WIDER if wider else WIDTHS)
        return class_activations(seed, WIDER if wider else WIDTHS, 12 if wider else 8)

    return make


def floats(value: Any) -> Iterator[Tensor]:
    """The floating point tensors of activations."""
    for part in vars(value).values():
        for tensor in part if isinstance(part, tuple) else (part,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                yield tensor


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[1] not in NEVER_ZERO])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_identical_activations_cost_nothing(
    kind: str, name: str, temperature: float, build: Make, activations: Make
) -> None:
    same = activations(kind, 0)
    assert float(build(kind, name, temperature)(same, same).detach()) == pytest.approx(0.0, abs=1e-6)


@every_loss
def test_different_activations_cost_something(kind: str, name: str, build: Make, activations: Make) -> None:
    assert float(build(kind, name)(activations(kind, 0), activations(kind, 1)).detach()) > 1e-3


@every_loss
def test_only_the_student_receives_a_gradient(
    kind: str, name: str, build: Make, activations: Make, mapped: Make
) -> None:
    student, teacher = (mapped(activations(kind, seed), lambda v: v.requires_grad_()) for seed in (0, 1))
    build(kind, name)(student, teacher).backward()
    assert sum(float(v.grad.abs().sum()) for v in floats(student) if v.grad is not None) > 0
    assert all(v.grad is None for v in floats(teacher))


@every_loss
def test_half_precision_extremes_stay_finite(
    kind: str, name: str, build: Make, activations: Make, mapped: Make
) -> None:
    student = mapped(activations(kind, 0), lambda v: (v * 5000).half().requires_grad_())
    teacher = mapped(activations(kind, 1), lambda v: (v * -5000).half())
    value = build(kind, name, 2.0)(student, teacher)
    value.backward()
    assert value.dtype == torch.float32
    assert value.shape == ()
    assert math.isfinite(float(value.detach()))
    assert all(v.grad is None or bool(v.grad.isfinite().all()) for v in floats(student))


@every_loss
def test_mixed_precision_changes_a_loss_little(kind: str, name: str, build: Make, activations: Make) -> None:
    student, teacher = activations(kind, 0), activations(kind, 1)
    torch.manual_seed(1)
    exact = float(build(kind, name)(student, teacher).detach())
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = build(kind, name)(student, teacher)
    assert mixed.dtype == torch.float32
    assert float(mixed.detach()) == pytest.approx(exact, rel=0.03)


@every_loss
def test_dead_activations_stay_finite(kind: str, name: str, build: Make, activations: Make, mapped: Make) -> None:
    student = mapped(activations(kind, 0), lambda v: torch.zeros_like(v).requires_grad_())
    value = build(kind, name)(student, mapped(activations(kind, 1), torch.zeros_like))
    if value.requires_grad:
        value.backward()
    assert math.isfinite(float(value.detach()))
    assert all(v.grad is None or bool(v.grad.isfinite().all()) for v in floats(student))


@every_loss
def test_descending_a_loss_brings_the_student_to_the_teacher(
    kind: str, name: str, build: Make, activations: Make, mapped: Make
) -> None:
    teacher = activations(kind, 1, wider=True)
    student = mapped(activations(kind, 0), lambda v: v.requires_grad_())
    loss = build(kind, name, 1.0, WIDER)
    optimizer = torch.optim.Adam([*floats(student), *loss.parameters()], lr=0.02 if name == "mgd" else 0.1)
    values = []
    for _ in range(150):
        optimizer.zero_grad()
        value = loss(student, teacher)
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert sum(values[-10:]) / 10 < REACHED.get(name, 0.1) * values[0]


@pytest.mark.parametrize(("kind", "name"), [case for case in CASES if case[1] != "mgd"])  # it masks at random
def test_a_repeated_batch_costs_the_same(kind: str, name: str, build: Make, activations: Make, mapped: Make) -> None:
    once = activations(kind, 0), activations(kind, 1)
    twice = [mapped(v, lambda x: torch.cat([x, x]), labels=True) for v in once]
    costs = []
    for student, teacher in (once, twice):
        loss = build(kind, name)
        torch.manual_seed(1)  # crd draws its negatives
        costs.append(float(loss(student, teacher).detach()))
    assert costs[1] == pytest.approx(costs[0], rel=1e-5)


@every_loss
def test_a_loss_is_restored_from_its_state(kind: str, name: str, build: Make, activations: Make) -> None:
    student, teacher = activations(kind, 0), activations(kind, 1)
    trained = build(kind, name)
    trained(student, teacher)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter += 0.1
    restored = build(kind, name)
    restored.load_state_dict(trained.state_dict())
    costs = []
    for loss in (trained, restored):
        torch.manual_seed(1)
        costs.append(float(loss(student, teacher).detach()))
    assert costs[0] == costs[1]
