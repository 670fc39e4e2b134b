"""Teachers as a training runs them: in the layout that is fastest here, compiled or smaller where that was asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import nn

from distill.errors import DistillError
from distill.losses import Activations
from distill.ranks import agreed
from distill.teacher import Teacher
from distill.teacher_options import TeacherOptions
from distill.teacher_speed import Layout, SpeedRecord, candidates, fastest

__all__ = ["RECORD_FILE", "RunningTeacher", "run_teachers"]

#: In the run folder's ``train/``: how the teachers run, and what the measurement said.
RECORD_FILE: Final = "teacher.json"


class RunningTeacher:
    """A teacher that chooses its layout on the first batch, or takes the one that the run chose before it was resumed.

    Not a module, as :class:`distill.teacher.Teacher` is none.
    """

    def __init__(
        self, teacher: Teacher, tried: Sequence[Layout], record: SpeedRecord, index: int, *, compiled: bool = False
    ) -> None:
        """Run ``teacher``, the ``index``-th of the run, in one of the layouts ``tried``."""
        self._teacher, self._tried, self._record, self._index = teacher, tuple(tried), record, index
        self._compiled = compiled
        self.layout: Layout | None = None

    @property
    def model(self) -> nn.Module:
        """The frozen network."""
        return self._teacher.model

    def prepare(self, images: torch.Tensor) -> Layout:
        """Choose the layout by images like those to come, once; later calls return it."""
        if self.layout is None:
            self.layout = self._choose(self._teacher.resized(images))
            self._teacher.run_as(self.layout.dtype, self.layout.memory_format, self._compiled)
        return self.layout

    def __call__(self, images: torch.Tensor, *context: Any) -> Activations:
        """Run images (batch, channels, height, width), 0 to 1, and return the raw head outputs.

        Raises:
            DistillError: when ``torch.compile`` cannot compile it here.
        """
        first = self.layout is None
        self.prepare(images)
        if not (first and self._compiled):
            return self._teacher(images, *context)
        try:
            return self._teacher(images, *context)
        except Exception as error:  # dynamo's, inductor's and the C++ compiler's own have no common class
            reason = " ".join(str(error).split())[:160]
            raise DistillError(
                f"--teacher-compile failed ({type(error).__name__}: {reason}): start again without the flag"
            ) from error

    def _choose(self, images: torch.Tensor) -> Layout:
        return agreed(lambda: self._chosen_here(images))  # processes that chose apart would teach apart

    def _chosen_here(self, images: torch.Tensor) -> Layout:
        kind = images.device.type
        known = self._record.read(self._index, kind)
        if known is not None:
            return known
        chosen = self._tried[0] if len(self._tried) == 1 else fastest(self._teacher.model, images, self._tried)
        self._record.write(self._index, kind, chosen)
        return chosen


def run_teachers(loaded: Iterable[nn.Module], trainer: Any, options: TeacherOptions) -> list[RunningTeacher]:
    """Freeze loaded models and make them run as fast as they can beside the trainer's student.

    Args:
        loaded: detectors in float32; they are changed in place.
        trainer: its ``device``, ``amp`` and ``save_dir``.
        options: what was asked.
    """
    tried = candidates(trainer.device, _student_precision(trainer), options.precision)
    record = SpeedRecord(Path(trainer.save_dir) / RECORD_FILE)
    return [
        RunningTeacher(
            Teacher(model, device=trainer.device, imgsz=options.imgsz), tried, record, index, compiled=options.compiled
        )
        for index, model in enumerate(loaded)
    ]


def _student_precision(trainer: Any) -> str:
    """What the student's forward pass runs in."""
    if not trainer.amp:  # what was asked for and this device can do; on the CPU that is bf16 or nothing
        return "fp32"
    return "bf16" if trainer.args.amp == "bf16" else "fp16"
