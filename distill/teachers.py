"""Several teachers: found, hashed, and run as one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from distill.losses import Activations
from distill.losses.teachers import COMBINATIONS, EnsembleActivations, combine_teachers
from distill.recipe import TeacherFile
from distill.teacher import file_sha256, find_weights
from distill.teacher_cache import CachedTeacher
from distill.teacher_running import RunningTeacher

__all__ = ["COMBINATIONS", "TeacherEnsemble", "find_teachers"]


class TeacherEnsemble:
    """Several frozen teachers that answer as one; not a module, as :class:`distill.teacher.Teacher` is none."""

    def __init__(self, members: Sequence[RunningTeacher | CachedTeacher], how: str, reg_max: int) -> None:
        """Take teachers on one device, how to combine them, and the DFL bins that they share."""
        self.members = tuple(members)
        self._how, self._reg_max = how, reg_max

    @torch.no_grad()
    def __call__(self, images: torch.Tensor, *context: Any) -> EnsembleActivations:
        """Run images (batch, channels, height, width), 0 to 1, through each; ``context`` is handed on to each."""
        answers: list[Activations] = [teacher(images, *context) for teacher in self.members]
        return combine_teachers(answers, self._how, self._reg_max)


def find_teachers(names: Sequence[str]) -> tuple[TeacherFile, ...]:
    """Find and hash teachers' checkpoints, in the order given.

    Raises:
        DistillError: when one is neither here nor downloadable.
    """
    paths = [find_weights(name, "teacher").resolve() for name in names]
    return tuple(TeacherFile(str(path), file_sha256(path)) for path in paths)
