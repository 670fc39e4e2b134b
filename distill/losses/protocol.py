"""What every distillation loss sees and what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

__all__ = [
    "Activations",
    "AssignedBoxes",
    "ClassActivations",
    "ClassPair",
    "DistillLoss",
    "FeatureActivations",
    "FeaturePair",
    "HeadPair",
]


@dataclass(frozen=True)
class AssignedBoxes:
    """The labelled boxes a detector's criterion assigned to its anchors for one batch.

    Attributes:
        edges: distances from the anchor to the left, top, right and bottom of its labelled box, in strides of the
            anchor's level, cut to what DFL can say (0 to reg_max - 1); float32 (batch, 4, anchors), meaningless where
            there is no box.
        foreground: which anchors have a box, bool (batch, anchors).
    """

    edges: Tensor
    foreground: Tensor


@dataclass(frozen=True)
class Activations:
    """Raw outputs of one ``Detect`` head for one batch, before any decoding.

    Attributes:
        boxes: DFL logits, shape (batch, 4 * reg_max, anchors); edge-major, bins innermost.
        scores: class logits, shape (batch, classes, anchors).
        feats: the neck levels the head reads (P3, P4, P5), each (batch, channels, height, width).
        assigned: the labelled boxes, given to a student by its own criterion; None for a teacher.
    """

    boxes: Tensor
    scores: Tensor
    feats: tuple[Tensor, ...]
    assigned: AssignedBoxes | None = None

    @classmethod
    def of_head(cls, output: Mapping[str, Any], assigned: AssignedBoxes | None = None) -> Activations:
        """Wrap what ``Detect.forward`` returns in training: ``{"boxes", "scores", "feats"}``."""
        return cls(output["boxes"], output["scores"], tuple(output["feats"]), assigned)

    def detached(self) -> Activations:
        """The same values outside the graph: a teacher is never trained."""
        feats = tuple(f.detach() for f in self.feats)
        return Activations(self.boxes.detach(), self.scores.detach(), feats, self.assigned)


@dataclass(frozen=True)
class ClassActivations:
    """What one classifier makes of one batch, and which images it holds.

    Attributes:
        logits: class logits, shape (batch, classes).
        feats: feature maps along the network, each (batch, channels, height, width), finest first.
        embedding: what the last linear layer reads, shape (batch, dimensions).
        labels: true classes, shape (batch,), int64.
        indices: positions of the images in the training set, shape (batch,), int64; the same on both sides.
    """

    logits: Tensor
    feats: tuple[Tensor, ...]
    embedding: Tensor
    labels: Tensor
    indices: Tensor

    def detached(self) -> ClassActivations:
        """The same values outside the graph: a teacher is never trained."""
        return ClassActivations(
            logits=self.logits.detach(),
            feats=tuple(f.detach() for f in self.feats),
            embedding=self.embedding.detach(),
            labels=self.labels,
            indices=self.indices,
        )


@dataclass(frozen=True)
class HeadPair:
    """The sizes a detection loss may need to build its own layers.

    Attributes:
        student_channels: channels of each neck level of the student, finest level first.
        teacher_channels: the same of the teacher; as many levels, at the same strides.
        reg_max: DFL bins per box edge, equal in both.
        student_head, teacher_head: the heads themselves, for a loss that runs features through their layers.
    """

    student_channels: tuple[int, ...]
    teacher_channels: tuple[int, ...]
    reg_max: int
    student_head: nn.Module | None = None
    teacher_head: nn.Module | None = None


@dataclass(frozen=True)
class ClassPair:
    """The sizes a classification loss may need to build its own layers.

    Attributes:
        student_channels: channels of each of the student's ``feats``.
        teacher_channels: the same of the teacher; as many maps.
        student_dim: width of the student's ``embedding``.
        teacher_dim: width of the teacher's.
        classes: how many classes both tell apart.
        train_size: images in the training set, which ``indices`` point into.
    """

    student_channels: tuple[int, ...]
    teacher_channels: tuple[int, ...]
    student_dim: int
    teacher_dim: int
    classes: int
    train_size: int


class FeaturePair(Protocol):
    """What a loss on feature maps needs of a pair, detector or classifier."""

    @property
    def student_channels(self) -> tuple[int, ...]:
        """Channels of each of the student's maps."""
        ...

    @property
    def teacher_channels(self) -> tuple[int, ...]:
        """Channels of each of the teacher's maps, as many."""
        ...


class FeatureActivations(Protocol):
    """What a loss on feature maps sees, of a detector or a classifier."""

    @property
    def feats(self) -> tuple[Tensor, ...]:
        """Feature maps, each (batch, channels, height, width), finest first."""
        ...


class DistillLoss(Protocol):
    """A distillation loss: a module, so that what it learns trains, moves and is saved with it.

    Calling it returns a scalar that is zero when student and teacher activations are identical (up to what the
    loss itself learns), is finite when the activations are float16, and has no gradient to the teacher. Student and
    teacher are both :class:`Activations` or both :class:`ClassActivations`; a loss on feature maps takes either.
    """

    def __call__(self, student: Any, teacher: Any) -> Tensor:
        """Return the loss of one batch, averaged so that it does not grow with the batch."""
        ...

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """What the loss itself learns: a projector, or nothing."""
        ...
