"""Subclass distillation: the teacher invents subclasses, the student learns them."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from distill.classification.classifier import Classifier
from distill.classification.learner import Learner
from distill.classification.lessons import Batch
from distill.classification.run import Run
from distill.errors import DistillError
from distill.losses.subclass import spread_loss

__all__ = ["teach_subclasses"]


def teach_subclasses(run: Run) -> Classifier:
    """Subclass Distillation (Müller, Kornblith and Hinton 2020, "Subclass Distillation", section 2).

    The teacher ends in ``subclasses`` logits for each class and is trained with the sum of their probabilities, and
    with a loss that keeps images of a class apart. The student has as many logits and follows all of them.
    """
    if "dkd" in (run.recipe.losses or ()):
        raise DistillError("subclass: dkd tells the true class from others, not subclasses: drop it from --losses")
    pairs = run.settings.subclasses
    network = run.student(run.architecture(), role="teacher", subclasses=pairs)
    run.train_teacher("teacher", SubclassTeacher(network, run.settings.spread, run.settings.label_smoothing))
    run.used.clear()  # it counts once, as what it teaches with
    teacher = run.frozen(network, run.stage("teacher").weights_sha256(), raw=True)
    student = run.student(subclasses=pairs)
    return run.train("student", run.taught(student, teacher, weights={"subclass": 1.0}, balance=0.9))


class SubclassTeacher(Learner):
    """Cross entropy of the pooled classes, and the auxiliary loss of the paper's section 2.1."""

    def __init__(self, teacher: Classifier, spread: float, label_smoothing: float = 0.0) -> None:
        """Take the network to train and the weight of the auxiliary loss."""
        super().__init__()
        self.student = teacher
        self._spread, self._label_smoothing = spread, label_smoothing

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``labels`` and ``spread``."""
        raw = self.student.activations(batch.images, batch.labels, batch.indices).logits
        logits = self.student.class_logits(raw).float()
        labels = F.cross_entropy(logits, batch.labels, label_smoothing=self._label_smoothing)
        return {"labels": labels, "spread": self._spread * spread_loss(raw)}
