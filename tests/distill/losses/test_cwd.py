"""Channel-wise distillation works out its own gradients: they are those of the formula."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from distill.losses import cwd
from distill.losses.protocol import FeaturePair, HeadPair

PAIR: FeaturePair = HeadPair(student_channels=(3, 4), teacher_channels=(5, 4), reg_max=2)
SHAPES = ((3, 6, 5), (4, 3, 2))


def maps(seed: int, shapes: tuple[tuple[int, int, int], ...]) -> list[Tensor]:
    torch.manual_seed(seed)
    return [torch.randn(7, *shape) * 3 + 1 for shape in shapes]


def by_formula(weights: list[Tensor], student: list[Tensor], teacher: list[Tensor]) -> Tensor:
    """The loss as the docstring has it, in float64, its gradient left to autograd."""
    per_map = []
    for weight, s_map, t_map in zip(weights, student, teacher, strict=True):
        s, t = torch.einsum("oc,bchw->bohw", weight, s_map), t_map.double()
        size = (min(s.shape[2], t.shape[2]), min(s.shape[3], t.shape[3]))
        s, t = (F.batch_norm(F.adaptive_avg_pool2d(f, size), None, None, training=True).flatten(2) for f in (s, t))
        per_map.append((t.softmax(2) * (t.log_softmax(2) - s.log_softmax(2))).sum(2).mean())
    return torch.stack(per_map).mean()


@pytest.mark.parametrize("teacher_shapes", [((5, 6, 5), (4, 3, 2)), ((5, 3, 4), (4, 5, 6))], ids=["equal", "resized"])
@pytest.mark.parametrize(("precision", "bound"), [(torch.float32, 1e-5), (torch.float16, 1e-5), (torch.bfloat16, 0.03)])
@pytest.mark.parametrize("block", [1, 1 << 19], ids=["image by image", "at once"])
def test_value_and_gradients_are_those_of_the_formula(
    teacher_shapes: tuple[tuple[int, int, int], ...],
    precision: torch.dtype,
    bound: float,
    block: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cwd, "_BLOCK", block)
    teacher = [m.to(precision) for m in maps(1, teacher_shapes)]
    student = [m.requires_grad_() for m in maps(2, SHAPES)]
    loss = cwd.ChannelWiseDistillation(PAIR, 1.0)
    value = 3 * loss(SimpleNamespace(feats=student), SimpleNamespace(feats=teacher))
    torch.autograd.backward(value)
    weights = [p.detach().flatten(1).double().requires_grad_() for p in loss.parameters()]
    exact = [m.detach().double().requires_grad_() for m in student]
    expected = 3 * by_formula(weights, exact, teacher)
    torch.autograd.backward(expected)
    assert value.item() == pytest.approx(expected.item(), rel=bound)
    for mine, theirs in zip([*loss.parameters(), *student], [*weights, *exact], strict=True):
        assert mine.grad is not None
        assert theirs.grad is not None
        assert mine.grad.dtype == torch.float32
        assert (mine.grad.flatten(1) - theirs.grad.flatten(1)).norm() <= bound * theirs.grad.norm()
