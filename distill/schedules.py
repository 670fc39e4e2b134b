"""How strongly a student listens to its teacher as the training goes on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from distill.errors import DistillError

__all__ = ["Schedule", "parse_schedule"]


@dataclass(frozen=True)
class Schedule:
    """A factor on the weights of all distillation losses, by epoch.

    - ``constant``: 1.
    - ``cosine``: from 1 at the first epoch to almost 0 at the last, as DAMO-YOLO decays its distillation weight (Xu et
      al. 2022, section 2.5): ``(1 + cos(pi * epoch / epochs)) / 2``.
    - ``stop:N``: 1, and 0 in the last N epochs, which the student trains with the labels alone (RTMDet's recipe stops
      20 epochs before the end). The teacher is not run in them.

    Attributes:
        kind: ``constant``, ``cosine`` or ``stop``.
        last: N of ``stop``; 0 otherwise.
    """

    kind: str = "constant"
    last: int = 0

    def factor(self, epoch: int, epochs: int) -> float:
        """The factor in an epoch, counted from 0, out of ``epochs``; from 0 to 1."""
        if self.kind == "cosine":
            return (1 + math.cos(math.pi * epoch / epochs)) / 2
        return 0.0 if self.kind == "stop" and epoch >= epochs - self.last else 1.0

    def __str__(self) -> str:
        """As ``--schedule`` takes it."""
        return f"stop:{self.last}" if self.kind == "stop" else self.kind


def parse_schedule(text: Any) -> Schedule:
    """Read ``--schedule``.

    Raises:
        DistillError: for anything but ``constant``, ``cosine`` or ``stop:N`` with N of at least 1.
    """
    kind, _, last = str(text).partition(":")
    if kind in {"constant", "cosine"} and not last:
        return Schedule(kind)
    if kind == "stop" and last.isdecimal() and int(last) > 0:
        return Schedule(kind, int(last))
    raise DistillError(
        f"schedule {text!r}: expected constant, cosine, or stop:N with N epochs without a teacher at the end"
    )
