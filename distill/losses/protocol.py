"""What every distillation loss sees and what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = ["Activations", "DistillLoss", "HeadPair"]


@dataclass(frozen=True)
class Activations:
    """Raw outputs of one ``Detect`` head for one batch, before any decoding.

    Attributes:
        boxes: DFL logits, shape (batch, 4 * reg_max, anchors); edge-major, bins innermost.
        scores: class logits, shape (batch, classes, anchors).
        feats: the neck levels the head reads (P3, P4, P5), each (batch, channels, height, width).
    """

    boxes: Tensor
    scores: Tensor
    feats: tuple[Tensor, ...]

    @classmethod
    def of_head(cls, output: Mapping[str, Any]) -> Activations:
        """Wrap what ``Detect.forward`` returns in training: ``{"boxes", "scores", "feats"}``."""
        return cls(output["boxes"], output["scores"], tuple(output["feats"]))

    def detached(self) -> Activations:
        """The same values outside the graph: a teacher is never trained."""
        return Activations(self.boxes.detach(), self.scores.detach(), tuple(f.detach() for f in self.feats))


@dataclass(frozen=True)
class HeadPair:
    """The sizes a loss may need to build its own layers.

    Attributes:
        student_channels: channels of each neck level of the student, finest level first.
        teacher_channels: the same of the teacher; as many levels, at the same strides.
        reg_max: DFL bins per box edge, equal in both.
    """

    student_channels: tuple[int, ...]
    teacher_channels: tuple[int, ...]
    reg_max: int


class DistillLoss(Protocol):
    """A distillation loss: a module, so that what it learns trains, moves and is saved with it.

    Calling it returns a scalar that is zero when student and teacher activations are identical (up to what the
    loss itself learns), is finite when the activations are float16, and has no gradient to the teacher.
    """

    def __call__(self, student: Activations, teacher: Activations) -> Tensor:
        """Return the loss of one batch, averaged so that it does not grow with the batch."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """What the loss itself learns: a projector, or nothing."""
        ...
