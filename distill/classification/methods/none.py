"""No teacher: the baseline that every method is compared with."""

from __future__ import annotations

from distill.classification.classifier import Classifier
from distill.classification.methods.choices import numbers, refuse
from distill.classification.run import Run
from distill.errors import DistillError

__all__ = ["train_plainly"]


def train_plainly(run: Run) -> Classifier:
    """Train the student on labels alone; keep it after the epochs of ``teach_epochs``, if any, to teach by ESKD."""
    if run.recipe.teachers:
        raise DistillError("method none has no teacher: drop --teacher, or give --method kd")
    refuse(run.recipe, "losses", "temperature", "balance")
    keep = numbers(run.settings.teach_epochs, "teach_epochs", run.recipe.epochs)
    return run.train("student", run.plain(run.student()), keep=keep)
