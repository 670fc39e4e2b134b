"""What one stage of training optimises: a student, and what its losses learn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from distill.classification.classifier import Classifier
from distill.classification.lessons import Batch, Teacher
from distill.classification.taps import Layers
from distill.errors import DistillError
from distill.losses import ClassActivations, ClassPair, build_class_losses
from distill.losses.classification import CLASS_LOSSES

__all__ = ["Learner", "Lesson", "Taught", "class_pair", "needs_maps"]

#: Losses that read no feature map: a teacher's maps need neither be kept nor computed twice for them.
_WITHOUT_MAPS: Final = frozenset({"kd", "dkd", "extractive", "subclass", "mutual", "rkd", "crd"})


class Learner(nn.Module):
    """A module whose call returns the named, weighted parts of a batch's loss; their sum is minimised.

    What is in its state dict is what training changes: the student and the layers and buffers of its losses.
    """

    student: Classifier

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return the parts; the base has none."""
        return {}


@dataclass(frozen=True)
class Lesson:
    """What is learned from one teacher.

    Attributes:
        teacher: who answers.
        layers: where its answers were read, for the losses that bridge widths.
        weights: of the losses, by name.
        temperature: of the losses on logits.
    """

    teacher: Teacher
    layers: Layers
    weights: Mapping[str, float]
    temperature: float


class Taught(Learner):
    """A student that learns from labels and from teachers.

        L = (1 - B) * cross entropy + B * sum over lessons and losses of weight * loss

    B is the balance (Hinton et al. 2015, section 2: "a weighted average of two different objective functions").
    """

    def __init__(
        self,
        student: Classifier,
        lessons: Sequence[Lesson],
        *,
        balance: float,
        train_size: int,
        label_smoothing: float = 0.0,
    ) -> None:
        """Build the losses of every lesson.

        Args:
            student: learns.
            lessons: none for plain training.
            balance: weight B of what teachers say, from 0 to 1; labels get the rest.
            train_size: images of the training set.
            label_smoothing: of the cross entropy.

        Raises:
            DistillError: when a loss compares feature maps and a network has none.
        """
        super().__init__()
        for lesson in lessons:
            if needs_maps(lesson.weights):
                shared_maps(student, lesson.layers)
        self.student = student
        self.losses = nn.ModuleList(
            build_class_losses(x.weights, class_pair(student, x.layers, train_size), x.temperature) for x in lessons
        )
        self._lessons = list(lessons)
        self._balance, self._label_smoothing = balance, label_smoothing

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``labels`` and one part per loss name, summed over teachers."""
        found = self.student.activations(batch.images, batch.labels, batch.indices)
        logits = self.student.class_logits(found.logits).float()
        parts: dict[str, Tensor] = {}
        if self._balance < 1:
            labels = F.cross_entropy(logits, batch.labels, label_smoothing=self._label_smoothing)
            parts["labels"] = (1 - self._balance) * labels
        for lesson, losses in zip(self._lessons, self.losses, strict=True):
            ours, theirs = matched(found, lesson.teacher(batch), lesson.weights)
            for name, weight in lesson.weights.items():
                loss = losses[name](ours, theirs) * (self._balance * weight)  # type: ignore[index]
                parts[name] = parts[name] + loss if name in parts else loss
        return parts


def needs_maps(weights: Mapping[str, float]) -> bool:
    """Whether any of these losses reads feature maps."""
    return not _WITHOUT_MAPS.issuperset(set(weights) & set(CLASS_LOSSES))


def shared_maps(student: Classifier, teacher: Layers) -> int:
    """How many feature maps of both networks are compared: as many as the shallower has.

    Raises:
        DistillError: when one has none, such as a transformer.
    """
    ours, theirs = len(student.layers.maps), len(teacher.maps)
    if not ours or not theirs:
        raise DistillError(
            f"{student.name} has {ours} feature maps and its teacher {theirs}, expected some in both to compare: "
            "give convolutional networks, or losses without maps such as kd, dkd, rkd or crd"
        )
    return min(ours, theirs)


def class_pair(student: Classifier, teacher: Layers, train_size: int) -> ClassPair:
    """The sizes by which losses build their layers; of both networks as many maps as the shallower has, deepest."""
    maps = min(len(student.layers.channels), len(teacher.channels))
    head = student.network.get_submodule(student.layers.head)
    assert isinstance(head, nn.Linear | nn.Conv2d)  # found as one; outputs are the first axis of either's weight
    return ClassPair(
        student_channels=student.layers.channels[len(student.layers.channels) - maps :],
        teacher_channels=teacher.channels[len(teacher.channels) - maps :],
        student_dim=student.layers.dim,
        teacher_dim=teacher.dim,
        classes=head.weight.shape[0] // student.subclasses,
        train_size=train_size,
    )


def matched(
    student: ClassActivations, teacher: ClassActivations, weights: Mapping[str, float]
) -> tuple[ClassActivations, ClassActivations]:
    """Both with the same number of feature maps, the deepest ones; unchanged where none is compared."""
    if not needs_maps(weights):
        return student, teacher
    maps = min(len(student.feats), len(teacher.feats))
    return _deepest(student, maps), _deepest(teacher, maps)


def _deepest(found: ClassActivations, maps: int) -> ClassActivations:
    feats = found.feats[len(found.feats) - maps :]
    return ClassActivations(found.logits, feats, found.embedding, found.labels, found.indices)


def total(parts: Mapping[str, Tensor]) -> Tensor:
    """The sum of a batch's parts."""
    return torch.stack(list(parts.values())).sum()
