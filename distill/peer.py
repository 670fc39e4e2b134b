"""``python -m distill.peer``: ultralytics' own distillation in this trainer, as the study's other baseline."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from distill import yolo
from distill.command import run_command
from distill.errors import DistillError
from distill.teacher import check_pair, find_weights, load_weights, student_model
from distill.training import new_run

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Train with ``distill_model``; takes the arguments of ``distill.yolo`` that start a run of one teacher.

    Returns:
        0 done, 1 refused or failed, 2 usage, 130 interrupted.
    """
    return run_command(lambda: _train(sys.argv[1:] if argv is None else argv), lambda: ": nothing was kept")


def _train(argv: Sequence[str]) -> None:
    """The plain training of the same arguments, with ``distill_model`` among ultralytics' settings.

    Everything else is this trainer's: order of images, precision, last epoch. ``dis`` is ultralytics' default, 6.
    """
    args = yolo.parse_arguments([*argv, "--losses", "none"])
    if args.teacher is None or args.resume is not None or args.out is None:
        raise DistillError("ultralytics' own distillation needs --teacher and --out, and cannot be resumed exactly")
    teacher, args.teacher = find_weights(args.teacher, "teacher").resolve(), None
    recipe, data = yolo.new_recipe(args)
    check_pair(load_weights(teacher, "teacher"), student_model(recipe.student, data.description), data.description)
    new_run(replace(recipe, settings={**recipe.settings, "distill_model": str(teacher)}), data, Path(args.out))


if __name__ == "__main__":
    sys.exit(main())
