"""FitNets in its two stages: first the hint, then the task."""

from __future__ import annotations

from distill.classification.classifier import Classifier
from distill.classification.learner import Lesson
from distill.classification.run import Run
from distill.errors import DistillError

__all__ = ["hint_then_teach"]


def hint_then_teach(run: Run) -> Classifier:
    """FitNets (Romero et al. 2015, "FitNets: Hints for Thin Deep Nets", section 2.2 and algorithm 1).

    Stage one trains the student up to its guided layer to predict the teacher's middle map through a learned
    regressor (equation 3). Stage two trains the whole student, from there, with Hinton's loss (equation 2). Both
    together take the epochs that other methods take: a quarter for the hint, or ``hint_epochs``. The balance of stage
    two is constant, where the paper lets the teacher's weight fall.
    """
    hint_epochs = run.settings.hint_epochs or max(1, run.recipe.epochs // 4)
    if hint_epochs >= run.recipe.epochs:
        raise DistillError(
            f"fitnets: {hint_epochs} of {run.recipe.epochs} epochs are for the hint, none is left for the task: "
            "raise --epochs, or lower --set hint_epochs"
        )
    teacher, student = run.teacher(), run.student()
    answers = run.answering(teacher, run.images, maps=True)
    hint = Lesson(answers, teacher.classifier.layers, {"fitnets": 1.0}, 1.0)
    run.train("hint", run.learning(student, [hint], balance=1.0, fixed=True), epochs=hint_epochs, choose=False)
    learner = run.taught(student, teacher, weights={"kd": 1.0}, balance=0.9)
    return run.train("student", learner, epochs=run.recipe.epochs - hint_epochs)
