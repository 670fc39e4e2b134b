"""``python -m distill.classification.study``: does a method help? Every method against none, seed by seed."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from distill.arguments import at_least
from distill.classification.folders import ImageFolder
from distill.classification.methods import METHODS, find_method
from distill.classification.methods.choices import numbers
from distill.classification.networks import build_classifier
from distill.classification.recipe import ClassRecipe
from distill.classification.settings import parse_settings
from distill.classification.sources import SOURCES, open_data
from distill.classification.study_page import eskd_page, methods_page, takd_page
from distill.classification.study_tasks import Task, plain_teacher, run_tasks, teacher_folder
from distill.classify import natural_size
from distill.command import run_command
from distill.errors import DistillError
from distill.study_section import write_section

__all__ = ["Study", "main"]

log = logging.getLogger("distill.classification.study")  # also where it is run as __main__

_UNTAUGHT: Final = ("none", "mutual")
_OWN_TEACHER: Final = ("subclass", "sftn", "unified")  # trained in their own way
_SEVERAL: Final = ("ensemble-logits", "ensemble-features")


@dataclass(frozen=True)
class Study:
    """What is compared with what, on what budget.

    Attributes:
        recipe: plain training of the student with the first seed: data, epochs, batch and settings of all.
        data: opened.
        teachers: architectures: of ``methods`` the teacher and, for ``heterogeneous``, another; of ``takd`` all
            teachers, smallest first.
        seeds: how many; they pair methods with the baseline by weights at the start and order of images.
        teacher_epochs: epochs of every teacher and assistant.
        keep: epochs of teachers that are kept to teach.
        out: folder of all trainings.
        jobs: trainings at a time; 0 only writes the page.
    """

    recipe: ClassRecipe
    data: ImageFolder
    teachers: tuple[str, ...]
    seeds: int
    teacher_epochs: int
    keep: tuple[int, ...]
    out: Path
    jobs: int

    def seeded(self, seed: int) -> ClassRecipe:
        """The plain recipe with that seed."""
        return replace(self.recipe, seed=seed)

    def teacher_task(self, name: str, seed: int) -> Task:
        """The plain training of a teacher."""
        return plain_teacher(self.seeded(seed), name, self.teacher_epochs, self.keep)

    def trained(self, name: str, seed: int) -> str:
        """Where that teacher will be."""
        return str(teacher_folder(self.out, name, seed).resolve())

    def plain_task(self, seed: int) -> Task:
        """The baseline."""
        return Task(f"none-s{seed}", self.seeded(seed))

    def method_task(self, method: str, seed: int) -> Task | None:
        """A method with its teachers; None where the study has too few."""
        if method == "none":
            return self.plain_task(seed)
        name, recipe = self.teachers[0], replace(self.seeded(seed), method=method)
        if method in _OWN_TEACHER:
            sources: tuple[str, ...] = (name,)
        elif method in _SEVERAL:
            sources = tuple(self.trained(name, s % self.seeds) for s in (seed, seed + 1)) if self.seeds > 1 else ()
        elif method == "heterogeneous":
            sources = tuple(self.trained(n, seed) for n in self.teachers[:2]) if len(self.teachers) > 1 else ()
        else:
            sources = () if method in _UNTAUGHT else (self.trained(name, seed),)
        if not sources and method not in _UNTAUGHT:
            return None
        settings = replace(recipe.settings, teacher_epochs=self.teacher_epochs)
        if method == "eskd":
            settings = replace(settings, teach_epochs="+".join(map(str, self.keep)))
        return Task(f"{method}-s{seed}", replace(recipe, teachers=sources, settings=settings))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; return 0 done, 1 refused or failed, 2 usage, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv)
    code = run_command(lambda: _run(args, argv), lambda: ": the same command goes on where it stopped")
    if code == 0:
        sys.stdout.write(f"{args.report}\n")
    return code


def _run(args: argparse.Namespace, argv: Sequence[str]) -> None:
    study, methods = _study(args)
    # The plot of a section that another study writes is another file.
    image = args.report.parent.parent / "images" / f"{args.section}.png"
    command = f"python -m distill.classification.study {shlex.join(argv)}"
    phases = {"methods": _method_phases, "eskd": _eskd_phases, "takd": _takd_phases}[args.experiment](study, methods)
    for phase in phases:
        run_tasks(phase, study.out, study.jobs)
        page = {"methods": methods_page, "eskd": eskd_page, "takd": takd_page}[args.experiment]
        text = page(study, methods, args.title or args.section, command, image, args.report)
        write_section(args.report, args.section, text)
        log.info("%s written", args.report)


def _method_phases(study: Study, methods: Sequence[str]) -> Iterator[list[Task]]:
    """All teachers, then every method with the first seed, with the second, and so on."""
    others = study.teachers[1:2] if "heterogeneous" in methods else ()
    seeds = range(study.seeds)
    teachers = [study.teacher_task(name, seed) for name in (study.teachers[0], *others) for seed in seeds]
    run_tasks(teachers, study.out, study.jobs)
    for seed in seeds:
        yield [task for m in methods if (task := study.method_task(m, seed)) is not None]


def _eskd_phases(study: Study, _: Sequence[str]) -> Iterator[list[Task]]:
    """One student for each kept epoch of the teacher."""
    run_tasks([study.teacher_task(study.teachers[0], s) for s in range(study.seeds)], study.out, study.jobs)
    for seed in range(study.seeds):
        yield [study.plain_task(seed), *(eskd_task(study, epoch, seed) for epoch in study.keep)]


def _takd_phases(study: Study, _: Sequence[str]) -> Iterator[list[Task]]:
    """One student for each teacher alone, and one through all teachers between the largest and it."""
    seeds = range(study.seeds)
    run_tasks([study.teacher_task(n, s) for n in study.teachers for s in seeds], study.out, study.jobs)
    for seed in seeds:
        direct = [direct_task(study, name, seed) for name in study.teachers]
        chains = [chain_task(study, number, seed) for number in range(1, len(study.teachers))]
        yield [study.plain_task(seed), *direct, *chains]


def eskd_task(study: Study, epoch: int, seed: int) -> Task:
    """A student of the teacher as it was after an epoch."""
    task = direct_task(study, study.teachers[0], seed)
    return replace(task, key=f"kd-of-epoch-{epoch}-s{seed}", teacher_epoch=epoch)


def direct_task(study: Study, name: str, seed: int) -> Task:
    """A student of one teacher."""
    recipe = replace(study.seeded(seed), method="kd", teachers=(study.trained(name, seed),))
    return Task(f"kd-of-{name}-s{seed}", recipe)


def chain_task(study: Study, number: int, seed: int) -> Task:
    """A student that the largest teacher reaches through its next ``number`` smaller ones."""
    largest, assistants = study.teachers[-1], study.teachers[-1 - number : -1][::-1]
    recipe = replace(study.seeded(seed), method="takd", teachers=(study.trained(largest, seed),))
    settings = replace(recipe.settings, assistants="+".join(assistants), teacher_epochs=study.teacher_epochs)
    return Task(f"takd-{number}-s{seed}", replace(recipe, settings=settings))


def _study(args: argparse.Namespace) -> tuple[Study, list[str]]:
    methods = list(METHODS) if args.methods == ["all"] else args.methods
    for method in methods:
        find_method(method)
    if args.experiment == "takd" and len(args.teacher) < 2:
        raise DistillError("--experiment takd compares teachers: give --teacher two or more, smallest first")
    data = open_data(args.data)
    size = natural_size(data)
    for name in (args.student, *args.teacher):
        build_classifier(name, classes=len(data.names), height=size, width=size)
    teacher_epochs = args.teacher_epochs or args.epochs
    keep = numbers(args.keep, "teach_epochs", teacher_epochs)
    if not keep:
        keep = tuple(sorted({-(-teacher_epochs * part // 8) for part in (1, 2, 4, 8)}))
    recipe = ClassRecipe(
        method="none",
        teachers=(),
        student=args.student,
        data=args.data if args.data in SOURCES else str(data.root),
        data_sha256=data.train.sha256,
        epochs=args.epochs,
        imgsz=size,
        batch=args.batch,
        seed=0,
        settings=parse_settings(args.set or ()),
    )
    teachers = tuple(args.teacher)
    return Study(recipe, data, teachers, args.seeds, teacher_epochs, keep, args.out, args.jobs), methods


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distill.classification.study",
        description="Train students with and without distillation on one budget, several seeds each, and write what "
        "came out as one section of a Markdown page. The same command goes on after an interruption.",
    )
    add = parser.add_argument
    whole = at_least(1)
    add(
        "--experiment",
        choices=("methods", "eskd", "takd"),
        default="methods",
        help="methods compares methods; "
        "eskd students of the teacher at several epochs; takd students of teachers of several sizes (methods)",
    )
    add("--data", default="digits", metavar="NAME|ROOT", help="named set or image folder (digits)")
    add(
        "--teacher",
        nargs="+",
        default=["grey-cnn-64-128"],
        metavar="NAME",
        help="architecture; for methods also "
        "another one, for heterogeneous; for takd all of them, smallest first (grey-cnn-64-128)",
    )
    add("--student", default="grey-cnn-4-8", metavar="NAME", help="architecture (grey-cnn-4-8)")
    add(
        "--methods",
        nargs="+",
        default=["all"],
        metavar="NAME",
        help="of --experiment methods; extractive is second hand, not from its paper: not a reproduction (all)",
    )
    add("--seeds", type=whole, default=3, metavar="N", help="trainings of each, paired by seed (3)")
    add("--epochs", type=whole, default=20, metavar="N", help="of every student (20)")
    add("--teacher-epochs", type=whole, metavar="N", help="of every teacher (as many)")
    add("--keep", default="", metavar="E+E", help="epochs of the teacher that teach, in eskd (1/8, 1/4, 1/2 and all)")
    add("--batch", type=whole, default=64, metavar="N", help="images per step (64)")
    add("--set", nargs="+", metavar="NAME=VALUE", help="settings of all trainings, as in python -m distill.classify")
    add(
        "--jobs",
        type=at_least(0),
        default=1,
        metavar="N",
        help="trainings at a time; 0 writes the page of what is finished (1)",
    )
    add("--out", type=Path, default=Path("runs/study"), metavar="DIR", help="all trainings (runs/study)")
    add("--report", type=Path, default=Path("runs/study/study.md"), metavar="MD", help="page (runs/study/study.md)")
    add("--section", default="study", metavar="NAME", help="of the page; the plot is images/NAME.png (study)")
    add("--title", metavar="TEXT", help="heading of the section (its name)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
