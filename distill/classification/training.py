"""One classification run, started or resumed, to its published student."""

from __future__ import annotations

import shutil
from pathlib import Path

from distill.classification.classifier import Classifier
from distill.classification.fit import accuracy
from distill.classification.folders import ImageFolder
from distill.classification.lessons import Precision
from distill.classification.methods import find_method
from distill.classification.networks import build_classifier
from distill.classification.processes import Processes
from distill.classification.publish import publish_classifier
from distill.classification.recipe import ClassRecipe, read_recipe, write_recipe
from distill.classification.run import Run
from distill.classification.saved import is_trained, load_classifier
from distill.classification.sources import open_data
from distill.errors import DistillError

__all__ = ["new_run", "resumable", "resume_run", "train"]


def new_run(recipe: ClassRecipe, data: ImageFolder, out: Path, processes: Processes, *, workers: int = 0) -> Path:
    """Train a student as the recipe says, in a new folder ``out``.

    What can be refused is refused before the folder exists; a run that ends before its first epoch leaves none.

    Returns:
        Path of ``student.json``.

    Raises:
        DistillError: when networks and data do not go together, or the training fails.
    """
    _check(recipe, data)
    if processes.first:
        out.mkdir(parents=True)
        write_recipe(recipe, out)
    processes.wait()
    try:
        return _finish(recipe, data, out, processes, workers)
    finally:
        if processes.first and not resumable(out):
            shutil.rmtree(out, ignore_errors=True)


def resume_run(out: Path, processes: Processes, *, workers: int = 0) -> Path:
    """Continue the run in folder ``out`` after its last complete epoch.

    Raises:
        DistillError: when there is nothing to resume, or the data is not that of the run.
    """
    recipe = read_recipe(out)
    if (out / "student").exists():
        raise DistillError(f"{out} is finished, its student is in {out / 'student'}: nothing to resume")
    data = open_data(recipe.data)
    if data.train.sha256 != recipe.data_sha256:
        raise DistillError(
            f"training data {recipe.data} changed since the run was started: restore it, or start without --resume"
        )
    return _finish(recipe, data, out, processes, workers)


def resumable(out: Path) -> bool:
    """Whether any epoch of any stage was completed."""
    return any((out / "training").glob("*/*.pt"))


def train(
    recipe: ClassRecipe, data: ImageFolder, out: Path, processes: Processes, *, answers: Path | None, workers: int = 0
) -> tuple[Classifier, Run]:
    """Run the method, every unfinished stage of it; publish nothing."""
    run = Run(recipe, data, out, processes, answers=answers, workers=workers)
    student = find_method(recipe.method)(run)
    return student.eval(), run


def _finish(recipe: ClassRecipe, data: ImageFolder, out: Path, processes: Processes, workers: int) -> Path:
    student, run = train(recipe, data, out, processes, answers=None, workers=workers)
    if processes.first:
        # In float32 whatever the training ran in: what is published is a float32 program.
        score, exact = run.pixels(data.val), Precision(run.precision.device)
        metrics = {f"top{top}": accuracy(student, score, exact, top=top) for top in (1, 5)}
        publish_classifier(student, out, recipe=recipe, data=data, teachers=run.used, metrics=metrics)
    processes.wait()
    return out / "student" / "student.json"


def _check(recipe: ClassRecipe, data: ImageFolder) -> None:
    """Refuse what cannot work, before anything is written."""
    find_method(recipe.method)
    frame = recipe.frame
    classes, height, width = len(data.names), frame.height, frame.width
    settings = recipe.settings
    build_classifier(recipe.student, classes=classes, height=height, width=width, pretrained=settings.pretrained)
    for source in recipe.teachers:
        if is_trained(source):
            load_classifier(source, data.names, height=height, width=width)
        else:
            pretrained = settings.teacher_pretrained
            build_classifier(source, classes=classes, height=height, width=width, pretrained=pretrained)
    if recipe.batch < 2:
        raise DistillError(f"--batch {recipe.batch}: expected 2 or more, batch norm needs several images")
