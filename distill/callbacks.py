"""Attaches distillation to an ultralytics trainer, through its callbacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from ultralytics.utils.torch_utils import unwrap_model

from distill.errors import DistillError
from distill.losses import Activations, AssignedBoxes, build_losses
from distill.schedules import Schedule
from distill.teacher import check_pair, head_pair, load_weights
from distill.teacher_cache import CachedTeacher, remember_outputs
from distill.teacher_options import TeacherOptions
from distill.teacher_running import RunningTeacher, run_teachers
from distill.teachers import TeacherEnsemble

__all__ = ["Distillation", "DistillationCriterion", "Loudness", "PreparedDistillation", "assigned_boxes"]


@dataclass(frozen=True)
class Distillation:
    """The callback for ``on_pretrain_routine_end``, and all it needs to know.

    Holds the teacher as a path, so that it travels to the processes of a multi-GPU training::

        model.add_callback("on_pretrain_routine_end", Distillation("yolov8s.pt", {"response": 1.0, "ld": 0.25}, 1.0))

    With a loss that learns a projector it needs :class:`distill.trainer.DistillationTrainer`, because a callback
    comes too late to put the projector into the optimizer in a way that resuming survives.

    Attributes:
        teacher: path of the teacher's checkpoint, or of several.
        weights: weight of each loss, by name.
        temperature: T of the losses on logits.
        schedule: the factor on the weights by epoch.
        combine: how several teachers become one.
        options: how teachers are run and remembered.
    """

    teacher: str | tuple[str, ...]
    weights: Mapping[str, float]
    temperature: float
    schedule: Schedule = field(default_factory=Schedule)
    combine: str = "mean"
    options: TeacherOptions = field(default_factory=TeacherOptions)

    def __call__(self, trainer: Any) -> None:
        """Wrap the student's criterion. The average of the weights exists by now and stays clean."""
        prepared = getattr(trainer, "prepared_distillation", None)
        if prepared is None:
            prepared = self.prepare(trainer)
            if any(True for _ in prepared.losses.parameters()):
                raise DistillError(
                    f"losses {', '.join(self.weights)} learn a projector: train with trainer=DistillationTrainer"
                )
        model = unwrap_model(trainer.model)
        model.criterion = DistillationCriterion(model.init_criterion(), prepared, Loudness(self.schedule, trainer))

    def prepare(self, trainer: Any) -> PreparedDistillation:
        """Load the teachers and build the losses for the trainer's student, on its device.

        Raises:
            DistillError: when a teacher cannot be loaded or does not fit the student.
        """
        model = unwrap_model(trainer.model)
        paths = (self.teacher,) if isinstance(self.teacher, str) else self.teacher
        loaded = [load_weights(Path(path), "teacher") for path in paths]
        for teacher in loaded:
            check_pair(teacher, model, trainer.data)
        pairs = [head_pair(teacher, model) for teacher in loaded]
        losses = build_losses(self.weights, pairs, self.temperature)
        running = run_teachers(loaded, trainer, self.options)
        cached = self.options.cache is not None
        teachers = remember_outputs(running, trainer, self.weights, self.options) if cached else running
        return PreparedDistillation(
            teacher=teachers[0] if len(teachers) == 1 else TeacherEnsemble(teachers, self.combine, pairs[0].reg_max),
            losses=losses.to(trainer.device),
            weights=dict(self.weights),
        )


@dataclass(frozen=True)
class PreparedDistillation:
    """A teacher, or several as one, on its device, the losses with what they learn, and their weights."""

    teacher: RunningTeacher | CachedTeacher | TeacherEnsemble
    losses: nn.ModuleDict
    weights: dict[str, float]

    @property
    def learned(self) -> nn.Module:
        """What trains with the student without being a part of it."""
        return self.losses

    def __deepcopy__(self, memo: dict[int, Any]) -> None:
        """Copy to nothing: a teacher is never duplicated or saved."""


@dataclass(frozen=True)
class Loudness:
    """The factor of a schedule in the trainer's current epoch."""

    schedule: Schedule
    trainer: Any

    def __call__(self) -> float:
        """From 0, where the teacher is not heard, to 1."""
        return self.schedule.factor(self.trainer.epoch, self.trainer.epochs)


class DistillationCriterion:
    """The student's own criterion plus the weighted distillation losses.

    Called as ultralytics calls a criterion, with the student's raw outputs and the batch, inside autocast.
    Returns the loss vector times the batch size (ultralytics' convention, so that ``nbs`` and the gains keep their
    meaning) and the named parts, each as it enters the sum: ``box_loss``, ``cls_loss``, ``dfl_loss``, ``kd_NAME``.

    A copy of it is the plain criterion: ultralytics copies the model for its average and when it recovers from a
    NaN, and no copy may carry the teacher.
    """

    def __init__(self, plain: Any, distillation: PreparedDistillation, loudness: Callable[[], float]) -> None:
        """Wrap the criterion ``plain`` of the student; ``loudness`` gives the factor on all weights now."""
        self.plain = plain
        self.distillation = distillation
        self.loudness = loudness

    def __call__(self, outputs: Any, batch: Mapping[str, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return (loss vector of the label losses and one element per distillation loss, its named parts)."""
        if isinstance(outputs, tuple):  # evaluation: (decoded, raw); the teacher has no part in it
            plain: tuple[Tensor, dict[str, Tensor]] = self.plain(outputs, batch)
            return plain
        images = batch["img"].shape[0]
        loss, parts, targets = self._plain_and_assignment(outputs, batch)
        student = Activations.of_head(outputs, assigned_boxes(targets, self.plain.reg_max))
        factor = self.loudness()
        if factor:
            teacher = self.distillation.teacher(batch["img"], batch)
            distilled = {
                name: factor * weight * self.distillation.losses[name](student, teacher)
                for name, weight in self.distillation.weights.items()
            }
        else:  # the columns stay, the teacher need not run
            distilled = {name: loss.new_zeros(()) for name in self.distillation.weights}
        total = torch.cat([loss, torch.stack(list(distilled.values())) * images])
        return total, {**parts, **{f"kd_{name}": value.detach() for name, value in distilled.items()}}

    def _plain_and_assignment(
        self, outputs: Any, batch: Mapping[str, Any]
    ) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, ...]]:
        """What the plain criterion returns, whatever the task, and the assignment that it made on the way."""
        seen: list[tuple[Tensor, ...]] = []
        assign = self.plain.get_assigned_targets_and_loss

        def assign_and_keep(*args: Any, **kwargs: Any) -> Any:
            result = assign(*args, **kwargs)
            seen.append(tuple(tensor.clone() for tensor in result[0]))  # ultralytics' keypoint loss divides in place
            return result

        self.plain.get_assigned_targets_and_loss = assign_and_keep
        try:
            loss, parts = self.plain(outputs, batch)
        finally:
            del self.plain.get_assigned_targets_and_loss  # the class's own again
        return loss, parts, seen[0]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """Return a copy of the plain criterion."""
        return deepcopy(self.plain, memo)


def assigned_boxes(targets: tuple[Tensor, ...], reg_max: int) -> AssignedBoxes:
    """The labelled boxes as edge distances, as ultralytics' DFL loss sees them.

    Args:
        targets: foreground (batch, anchors), label indices, boxes (batch, anchors, 4) in pixels as x1 y1 x2 y2,
            anchor points (anchors, 2) in strides, strides (anchors, 1).
        reg_max: DFL bins per edge.
    """
    foreground, _, boxes, points, strides = targets
    boxes = boxes / strides
    edges = torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=2)
    return AssignedBoxes(edges.clamp(0, reg_max - 1).transpose(1, 2).float(), foreground.bool())
