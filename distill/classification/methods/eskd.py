"""An early-stopped teacher: which of its epochs teaches best?"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from distill.classification.classifier import Classifier
from distill.classification.fit import accuracy
from distill.classification.lessons import FrozenTeacher
from distill.classification.methods.choices import numbers
from distill.classification.run import Run
from distill.classification.saved import is_trained, load_classifier
from distill.classification.stage import Stage
from distill.errors import DistillError
from distill.teacher import file_sha256

__all__ = ["kept_weights", "teach_by_the_best_epoch"]

log = logging.getLogger(__name__)

_HELD_OUT = 0.1


def teach_by_the_best_epoch(run: Run) -> Classifier:
    """An early-stopped teacher (Cho and Hariharan 2019, "On the Efficacy of Knowledge Distillation").

    A teacher that is trained to the end can be harder to follow than one that is stopped early. Its weights after
    several epochs of one training each teach a short-trained student on nine tenths of the training set; the one
    whose student does best on the tenth that was held out teaches the real one, on all of it. The teacher itself has
    learned from that tenth too; the test images choose nothing.

    The paper's other half, to stop *distilling* before the student's training ends, is not part of this: every epoch
    of the student is taught.
    """
    candidates = _candidates(run)
    chosen = max(candidates, key=lambda epoch: (_probe(run, epoch, candidates[epoch]), -epoch))
    log.info("eskd: the teacher of epoch %d teaches best", chosen)
    teacher = _teacher(run, candidates[chosen])
    run.used.append(teacher)
    return run.train("student", run.taught(run.student(), teacher, weights={"kd": 1.0}, balance=0.9))


def kept_weights(source: str, epochs: Sequence[int]) -> dict[int, Path]:
    """Files with the weights of a trained teacher after these epochs, as ``--set teach_epochs=`` left them.

    Raises:
        DistillError: when there is none of them.
    """
    stage = Stage(Path(source) / "training" / "student")
    found = {epoch: stage.kept(epoch) for epoch in epochs if stage.kept(epoch).is_file()}
    if not found:
        raise DistillError(
            f"{source} does not keep its weights of epoch {' or '.join(map(str, epochs))}: train it with "
            "--method none --set teach_epochs=..., or give --teacher an architecture"
        )
    return found


def _candidates(run: Run) -> dict[int, Path]:
    """The teacher's weights after each epoch that may teach."""
    source, total = run.teacher_source(), run.teacher_epochs
    text = run.settings.teach_epochs
    epochs = numbers(text, "teach_epochs", total) or tuple(sorted({-(-total // 4), -(-total // 2), total}))
    if is_trained(source):
        return kept_weights(source, epochs)
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
    learned, held_out = run.learned.divided(_HELD_OUT)
    assert held_out is not None  # a share above 0 was asked for
    images, judged = run.training_images(learned), run.pixels(held_out)
    learner = run.taught(run.student(), _teacher(run, weights), weights={"kd": 1.0}, balance=0.9, images=images)
    epochs = run.settings.probe_epochs or max(1, run.recipe.epochs // 3)
    student = run.train(f"probe-{file_sha256(weights)[:8]}", learner, images=images, epochs=epochs)
    score = accuracy(student, judged, run.precision)
    log.info("eskd: the student of the teacher of epoch %d has held-out top-1 %.2f", epoch, 100 * score)
    return score
