"""Teacher assistants: knowledge goes down a chain of networks of falling size."""

from __future__ import annotations

import math

from distill.classification.classifier import Classifier
from distill.classification.course import COURSE_NAMES, course_widths
from distill.classification.networks import build_classifier
from distill.classification.run import Run
from distill.classification.saved import is_trained
from distill.errors import DistillError

__all__ = ["teach_through_assistants"]


def teach_through_assistants(run: Run) -> Classifier:
    """TAKD (Mirzadeh et al. 2020, "Improved Knowledge Distillation via Teacher Assistant", section 3).

    Each assistant learns from the network above it by Hinton's loss, the student from the last. Every link is a
    stage that is resumed on its own.
    """
    source = run.teacher_source()
    # Refused before an untrained teacher takes its time.
    names = None if is_trained(source) else _assistants(run, source)
    teacher = run.teacher()
    for number, name in enumerate(names or _assistants(run, teacher.classifier.name), start=1):
        role = f"assistant-{number}"
        learner = run.taught(run.student(name, role=role), teacher, weights={"kd": 1.0}, balance=0.9)
        assistant = run.train(role, learner, epochs=run.teacher_epochs)
        teacher = run.frozen(assistant, run.stage(role).weights_sha256())
    return run.train("student", run.taught(run.student(), teacher, weights={"kd": 1.0}, balance=0.9))


def _assistants(run: Run, teacher: str) -> list[str]:
    """The named assistants; for the course's networks, one half-way between the widths on a logarithmic scale."""
    if run.settings.assistants:
        names = run.settings.assistants.split("+")
        for name in names:  # refused now, not after the teacher's training
            build_classifier(name, classes=2, height=run.recipe.imgsz, width=run.recipe.imgsz)
        return names
    above, below = course_widths(teacher), course_widths(run.recipe.student)
    if above is None or below is None:
        raise DistillError(
            "takd: name the networks between teacher and student, largest first, "
            "such as --set assistants=resnet34+resnet18"
        )
    middle = [round(math.sqrt(a * b)) for a, b in zip(above[1], below[1], strict=True)]
    grey = "grey-" if COURSE_NAMES.get(run.recipe.student, run.recipe.student).startswith("grey-") else ""
    return [f"{grey}cnn-{middle[0]}-{middle[1]}"]
