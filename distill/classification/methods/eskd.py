"""An early-stopped teacher: which of its epochs teaches best?"""

from __future__ import annotations

import logging
from pathlib import Path

from distill.classification.classifier import Classifier
from distill.classification.fit import accuracy
from distill.classification.lessons import FrozenTeacher
from distill.classification.methods.choices import numbers
from distill.classification.run import Run
from distill.classification.saved import is_trained, load_classifier
from distill.teacher import file_sha256

__all__ = ["teach_by_the_best_epoch"]

log = logging.getLogger(__name__)

_HELD_OUT = 0.1


def teach_by_the_best_epoch(run: Run) -> Classifier:
    """ESKD (Cho and Hariharan 2019, "On the Efficacy of Knowledge Distillation", section 4.3).

    A teacher that is trained to the end can be harder to follow than one that is stopped early. Its weights after
    several epochs each teach a short-trained student on nine tenths of the training set; the one whose student
    does best on the tenth that was held out teaches the real one, on all of it. The test images choose nothing.
    """
    candidates = _candidates(run)
    chosen = max(candidates, key=lambda epoch: (_probe(run, epoch, candidates[epoch]), -epoch))
    log.info("eskd: the teacher of epoch %d teaches best", chosen)
    teacher = _teacher(run, candidates[chosen])
    run.used.append(teacher)
    return run.train("student", run.taught(run.student(), teacher, weights={"kd": 1.0}, balance=0.9))


def _candidates(run: Run) -> dict[int, Path]:
    """The teacher's weights after each epoch that may teach."""
    source, total = run.teacher_source(), run.teacher_epochs
    text = run.settings.teach_epochs
    epochs = numbers(text, "teach_epochs", total) or tuple(sorted({-(-total // 4), -(-total // 2), total}))
    if is_trained(source):
        return run.kept(source, epochs)
    run.train_teacher("teacher", run.plain(run.student(source, role="teacher")), keep=epochs)
    run.used.clear()  # the one that is chosen counts
    return {epoch: run.stage("teacher").kept(epoch) for epoch in epochs}


def _teacher(run: Run, weights: Path) -> FrozenTeacher:
    source = run.teacher_source()
    if is_trained(source):
        size = run.recipe.imgsz
        classifier, _ = load_classifier(source, run.data.names, height=size, width=size)
    else:
        classifier = run.student(source, role="teacher")
    return run.at(classifier, weights)


def _probe(run: Run, epoch: int, weights: Path) -> float:
    """Held-out accuracy of a short-trained student of this candidate."""
    learned, held_out = run.data.train.divided(_HELD_OUT)
    assert held_out is not None  # a share above 0 was asked for
    images, judged = run.training_images(learned), run.pixels(held_out)
    learner = run.taught(run.student(), _teacher(run, weights), weights={"kd": 1.0}, balance=0.9, images=images)
    epochs = run.settings.probe_epochs or max(1, run.recipe.epochs // 3)
    student = run.train(f"probe-{file_sha256(weights)[:8]}", learner, images=images, epochs=epochs)
    score = accuracy(student, judged, run.precision)
    log.info("eskd: the student of the teacher of epoch %d has held-out top-1 %.2f", epoch, 100 * score)
    return score
