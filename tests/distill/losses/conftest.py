"""Random activations of a detector and of a classifier, and the arithmetic that reference values are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest

torch = pytest.importorskip("torch", reason="distillation needs the [train] extra")

from ultralytics.nn.modules.head import Detect  # noqa: E402

from distill.losses import Activations, AssignedBoxes, ClassActivations, HeadPair  # noqa: E402

REG_MAX, CLASSES, BATCH = 4, 3, 4
SIZES = ((4, 4), (2, 2), (1, 2))
ANCHORS = sum(h * w for h, w in SIZES)


@pytest.fixture(scope="session")
def head_activations() -> Callable[..., Activations]:
    """Raw outputs of a detection head: (seed, widths) -> batch of 4 images, 3 levels, 3 classes, 4 bins."""

    def make(seed: int, widths: tuple[int, ...] = (5, 6, 7)) -> Activations:
        normal = _normal(seed)
        return Activations(
            boxes=normal(BATCH, 4 * REG_MAX, ANCHORS),
            scores=normal(BATCH, CLASSES, ANCHORS) - 1,
            feats=tuple(normal(BATCH, c, h, w) for c, (h, w) in zip(widths, SIZES, strict=True)),
            assigned=AssignedBoxes(
                edges=normal(BATCH, 4, ANCHORS).abs().clamp(max=REG_MAX - 1), foreground=normal(BATCH, ANCHORS) > 0
            ),
        )

    return make


@pytest.fixture(scope="session")
def pair_of_heads() -> Callable[..., HeadPair]:
    """A student's and a teacher's head, as YOLOv8's are: (widths, the teacher's widths) -> pair with 4 bins."""

    class YOLOv8Head(Detect):  # type: ignore[misc]
        legacy = True

    def make(student: tuple[int, ...], teacher: tuple[int, ...]) -> HeadPair:
        ours, theirs = (YOLOv8Head(nc=CLASSES, reg_max=REG_MAX, ch=widths) for widths in (student, teacher))
        return HeadPair(student, teacher, REG_MAX, ours, theirs.eval().requires_grad_(False))

    return make


@pytest.fixture(scope="session")
def class_activations() -> Callable[..., ClassActivations]:
    """Outputs of a classifier: (seed, widths, dimensions, logits) -> batch of 4 images out of 20."""

    def make(seed: int, widths: tuple[int, ...] = (5, 6, 7), dimensions: int = 8, logits: int = 3) -> ClassActivations:
        normal = _normal(seed)
        return ClassActivations(
            logits=normal(BATCH, logits),
            feats=tuple(normal(BATCH, c, h, w) for c, (h, w) in zip(widths, SIZES, strict=True)),
            embedding=normal(BATCH, dimensions),
            labels=torch.tensor([0, 1, 2, 1]),
            indices=torch.tensor([11, 3, 7, 0]),
        )

    return make


@pytest.fixture(scope="session")
def mapped() -> Callable[..., Any]:
    """Applies a function to every tensor that a network computed, or to labels and indices too."""

    def apply(value: Any, function: Callable[[Any], Any], labels: bool = False) -> Any:
        if isinstance(value, torch.Tensor):
            return function(value) if labels or value.is_floating_point() else value
        if isinstance(value, tuple):
            return tuple(apply(v, function, labels) for v in value)
        if isinstance(value, AssignedBoxes) and not labels:
            return value
        return replace(value, **{f.name: apply(getattr(value, f.name), function, labels) for f in fields(value)})

    return apply


def _normal(seed: int) -> Callable[..., Any]:
    generator = torch.Generator().manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator) * 2
