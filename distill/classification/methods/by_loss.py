"""Methods that are nothing but a loss: one teacher, one training, the papers' weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from distill.classification.classifier import Classifier
from distill.classification.run import Run

__all__ = ["taught_with"]


def taught_with(
    weights: Mapping[str, float], *, balance: float = 0.5, temperature: float = 4.0
) -> Callable[[Run], Classifier]:
    """A method that trains the student on labels and these losses.

    Args:
        weights: of the losses, by their names in ``distill.losses``; at a balance of 0.5 they count against a cross
            entropy of weight 1, as papers give them.
        balance: weight of the teacher against labels. Hinton's own loss takes 0.9, as Tian et al. 2020 do.
        temperature: of losses on logits; 4 in most later papers.
    """

    def teach(run: Run) -> Classifier:
        teacher = run.teacher()
        learner = run.taught(run.student(), teacher, weights=weights, balance=balance, temperature=temperature)
        return run.train("student", learner)

    return teach
