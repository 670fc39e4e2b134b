"""Several teachers that answer as one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import functional as F

from distill.classification.classifier import Classifier
from distill.classification.learner import Learner, Lesson, class_pair, needs_maps, shared_maps
from distill.classification.lessons import Batch, FrozenTeacher, Teacher
from distill.classification.methods.choices import refuse
from distill.classification.run import Run
from distill.classification.taps import Layers
from distill.errors import DistillError
from distill.losses import ClassActivations
from distill.losses.ensemble import FeatureEnsemble, combine_logits, combine_probabilities, confidence_weights
from distill.losses.kd import softened_kl

__all__ = ["Ensemble", "teach_by_features", "teach_by_logits", "teach_by_parts", "teach_by_unlike"]

_TEMPERATURE = 4.0

Combine = Callable[[Sequence[Tensor], Tensor], Tensor]


class Ensemble:
    """Several teachers as one: logits combined; maps and embedding of the first."""

    def __init__(self, teachers: Sequence[Teacher], combine: Combine) -> None:
        """Take the teachers, and what makes one out of their logits and the labels."""
        self._teachers, self._combine = list(teachers), combine

    def __call__(self, batch: Batch) -> ClassActivations:
        """Ask all of them."""
        answers = [teacher(batch) for teacher in self._teachers]
        return replace(answers[0], logits=self._combine([a.logits for a in answers], batch.labels))


def teach_by_logits(run: Run) -> Classifier:
    """An ensemble's mean prediction teaches (Hinton et al. 2015, sections 1 and 3; You et al. 2017).

    The arithmetic mean of the softened predictions. One architecture alone is trained twice, with weights and an
    order of images of its own.
    """
    temperature = run.temperature(_TEMPERATURE)
    return _taught_by(run, run.teachers(), lambda logits, labels: combine_probabilities(logits, temperature))


def teach_by_unlike(run: Run) -> Classifier:
    """Teachers of different architectures, trusted image by image (CA-MKD, Zhang et al. 2022, equations 2 and 3).

    A teacher that is wrong about an image counts less on it. The paper's second term, on features, is not part of
    this.
    """
    teachers = run.teachers()
    names = [t.classifier.name for t in teachers]
    if len(set(names)) < 2:
        raise DistillError(
            f"heterogeneous: all {len(names)} teachers are {names[0]}: give --teacher different architectures, "
            "or --method ensemble-logits"
        )
    temperature = run.temperature(_TEMPERATURE)
    return _taught_by(
        run,
        teachers,
        lambda logits, labels: combine_probabilities(logits, temperature, confidence_weights(logits, labels)),
    )


def teach_by_parts(run: Run) -> Classifier:
    """Unified data sources: each teacher knows a part of the data, the student learns on their union from all.

    The setting of Vongkulbhisal et al. 2019, "Unifying Heterogeneous Classifiers with Distillation", where the data
    of each source stays with its owner, in its simplest case: all sources have all classes. Their predictions are
    combined by a geometric mean (the mean of logits). ``parts`` sources are made by dividing the training set.
    """
    name, parts = run.architecture(), run.settings.parts
    teachers = []
    for number in range(parts):
        # Every parts-th image of the sorted list: all classes in each, and no image in two.
        own = run.training_images(run.learned.part(_every(len(run.learned.files), number, parts)), seed=run.recipe.seed)
        teachers.append(run.ready(name, f"teacher-{number + 1}", own))
    return _taught_by(run, teachers, lambda logits, labels: combine_logits(logits))


def teach_by_features(run: Run) -> Classifier:
    """An ensemble's feature maps teach (FEED, Park and Kwak 2019, "Feature-level Ensemble Knowledge Distillation").

    The student's last map follows each teacher's through a transform of its own beside labels and the
    mean prediction.
    """
    refuse(run.recipe, "losses")
    with run.drawing():
        teachers, student = run.teachers(), run.student()
        learner = FeatureTaught(
            student,
            [run.answering(teacher, run.images, maps=True) for teacher in teachers],
            [t.classifier.layers for t in teachers],
            weight=run.settings.hint_weight,
            balance=run.balance(0.5),
            temperature=run.temperature(_TEMPERATURE),
            label_smoothing=run.settings.label_smoothing,
        )
    return run.train("student", learner)


class FeatureTaught(Learner):
    """A student of several teachers' last maps: ``(1 - B) CE + B (KD of the mean + weight * FEED)``."""

    def __init__(
        self,
        student: Classifier,
        teachers: Sequence[Teacher],
        layers: Sequence[Layers],
        *,
        weight: float,
        balance: float,
        temperature: float,
        label_smoothing: float = 0.0,
    ) -> None:
        """Build one transform per teacher.

        Raises:
            DistillError: when a network has no feature maps.
        """
        super().__init__()
        for theirs in layers:
            shared_maps(student, theirs)
        self.student = student
        self.loss = FeatureEnsemble([class_pair(student, theirs, 1) for theirs in layers])
        self._teachers = list(teachers)
        self._weight, self._balance, self._temperature = weight, balance, temperature
        self._label_smoothing = label_smoothing

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Return ``labels``, ``kd`` and ``features``."""
        found = self.student.activations(batch.images, batch.labels, batch.indices)
        answers = [teacher(batch) for teacher in self._teachers]
        mean = combine_probabilities([a.logits for a in answers], self._temperature)
        kd = softened_kl(found.logits, mean, self._temperature).mean()
        labels = F.cross_entropy(found.logits.float(), batch.labels, label_smoothing=self._label_smoothing)
        return {
            "labels": (1 - self._balance) * labels,
            "kd": self._balance * kd,
            "features": self._balance * self._weight * self.loss(found, answers),
        }


def _taught_by(run: Run, teachers: Sequence[FrozenTeacher], combine: Combine) -> Classifier:
    weights = {"kd": 1.0} if run.recipe.losses is None else run.recipe.losses
    ensemble = Ensemble([run.answering(t, run.images, maps=needs_maps(weights)) for t in teachers], combine)
    lesson = Lesson(ensemble, teachers[0].classifier.layers, weights, run.temperature(_TEMPERATURE))
    return run.train("student", run.learning(run.student(), [lesson], balance=0.9))


def _every(images: int, first: int, step: int) -> Tensor:
    return torch.arange(first, images, step)
