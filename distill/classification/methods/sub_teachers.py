"""Many teachers in one network: its random sub-networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from distill.classification.classifier import Classifier
from distill.classification.learner import Lesson
from distill.classification.lessons import Batch, FrozenTeacher
from distill.classification.run import Run
from distill.losses import ClassActivations
from distill.losses.ensemble import combine_probabilities

__all__ = ["SubTeachers", "teach_by_sub_networks"]


def teach_by_sub_networks(run: Run) -> Classifier:
    """Sub-networks of one teacher, drawn anew for every batch, teach by their mean prediction.

    Dropout distillation (Bulò et al. 2016, "Dropout distillation", section 3) with the sampling of noisy teachers
    (Sau and Balasubramanian 2016, "Deep Model Compression: Distilling Knowledge from Noisy Teachers"). The teacher's
    own dropout and stochastic depth stay on; where it has neither, its embedding is dropped out at ``dropout``.
    """
    teacher = run.teacher()
    temperature = run.temperature(4.0)
    many = SubTeachers(teacher, count=run.settings.sub_teachers, dropout=run.settings.dropout, temperature=temperature)
    lesson = Lesson(many, teacher.classifier.layers, run.recipe.losses or {"kd": 1.0}, temperature)
    return run.train("student", run.learning(run.student(), [lesson], balance=0.9))


class SubTeachers:
    """One network that answers as the mean of some of its random sub-networks."""

    def __init__(self, teacher: FrozenTeacher, *, count: int, dropout: float, temperature: float) -> None:
        """Draw ``count`` sub-networks per batch."""
        self._teacher, self._count, self._dropout, self._temperature = teacher, count, dropout, temperature
        self._random = [m for m in teacher.classifier.modules() if _drops_out(m)]

    @torch.no_grad()
    def __call__(self, batch: Batch) -> ClassActivations:
        """Ask all of them."""
        with self._awake():
            if self._random:
                answers = [self._teacher(batch) for _ in range(self._count)]
                logits = [answer.logits for answer in answers]
                return replace(answers[0], logits=combine_probabilities(logits, self._temperature))
            return self._by_embedding(batch)

    def _by_embedding(self, batch: Batch) -> ClassActivations:
        """The layers below the last run once: only what that one reads is dropped."""
        classifier = self._teacher.classifier
        head: Any = classifier.network.get_submodule(classifier.layers.head)
        inputs: list[Tensor] = []
        handle = head.register_forward_pre_hook(lambda module, given: inputs.append(given[0]))
        try:
            answer = self._teacher(batch)
        finally:
            handle.remove()
        drawn = [head(F.dropout(inputs[0].float(), self._dropout)).flatten(1) for _ in range(self._count)]
        logits = [classifier.class_logits(raw) for raw in drawn]
        return replace(answer, logits=combine_probabilities(logits, self._temperature))

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """What drops out does so while the block runs; norms and all else stay in evaluation."""
        for module in self._random:
            module.training = True
        try:
            yield
        finally:
            for module in self._random:
                module.training = False


def _drops_out(module: nn.Module) -> bool:
    """Whether it is dropout or stochastic depth (torchvision's, or timm's ``DropPath``) that does anything."""
    if isinstance(module, nn.Dropout | nn.Dropout2d | StochasticDepth):
        return module.p > 0
    return type(module).__name__ == "DropPath" and float(getattr(module, "drop_prob", 0.0)) > 0
