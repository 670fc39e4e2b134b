"""``python -m distill.study``: does distilling help? Every recipe against none, and against ultralytics' own."""

from __future__ import annotations

import argparse
import json
import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from distill.arguments import at_least
from distill.cluster import ray_runner
from distill.command import run_command
from distill.data import DataSet, open_data_set
from distill.errors import DistillError
from distill.jobs import Job, run_one_by_one
from distill.loss_recipes import known_recipes, read_loss_recipe
from distill.settings import parse_settings
from distill.study_page import study_page
from distill.study_section import write_section
from distill.teacher import file_sha256, find_weights
from distill.whole import write_whole

__all__ = ["Arm", "Study", "main", "parse_arm"]

log = logging.getLogger("distill.study")  # also where it is run as __main__

_PLAIN: Final = "none"
_PEER: Final = "distill_model"
_STUDY_FILE: Final = "study.json"


@dataclass(frozen=True)
class Arm:
    """One way of training the student.

    Attributes:
        name: as it was asked for.
        recipe: ``none``, ``distill_model``, a named recipe, or the path of a TOML file.
        teachers: checkpoints; several teach together.
        assistants: between the teacher and the student, in this order.
    """

    name: str
    recipe: str
    teachers: tuple[str, ...]
    assistants: tuple[str, ...]


@dataclass(frozen=True)
class Study:
    """What is compared on what budget.

    Attributes:
        student: where all students start: ``.yaml`` from scratch, or a ``.pt`` checkpoint.
        data: yaml of the data set.
        data_sha256: hash of its training and its validation part.
        epochs, imgsz, batch: of every training.
        settings: ultralytics' settings of every training, as ``--set`` takes them.
        teachers: SHA-256 of every teacher by its path.
    """

    student: str
    data: str
    data_sha256: tuple[str, str]
    epochs: int
    imgsz: int
    batch: int
    settings: tuple[str, ...]
    teachers: Mapping[str, str]

    def job(self, arm: Arm, seed: int, out: Path) -> Job:
        """The training of an arm with a seed."""
        common = {
            "student": self.student,
            "data": self.data,
            "epochs": self.epochs,
            "imgsz": self.imgsz,
            "batch": self.batch,
            "seed": seed,
        }
        arguments = [text for name, value in common.items() for text in (f"--{name}", str(value))]
        if arm.recipe == _PLAIN:
            arguments += ["--losses", "none"]
        else:
            arguments += ["--teacher", ",".join(arm.teachers)]
        if arm.recipe not in {_PLAIN, _PEER}:
            arguments += ["--recipe", arm.recipe]
        if arm.assistants:
            arguments += ["--assistants", ",".join(arm.assistants)]
        if self.settings:
            arguments += ["--set", *self.settings]
        module = "distill.peer" if arm.recipe == _PEER else "distill.yolo"
        folder = out / "students" / _folder_name(arm.name) / f"seed-{seed}"
        return Job(f"{arm.name}, seed {seed}", module, tuple(arguments), folder, resumable=arm.recipe != _PEER)


def parse_arm(text: str, teacher: str | None) -> Arm:
    """Read one of ``--arms``: ``RECIPE``, ``RECIPE@T.pt``, ``RECIPE@T.pt+T2.pt`` or ``RECIPE@T.pt:ASSISTANT...``.

    Args:
        text: with ``none`` and ``distill_model`` among the recipes.
        teacher: of arms that name none.

    Raises:
        DistillError: for an unknown recipe, or an arm without a teacher.
    """
    recipe, _, taught_by = text.partition("@")
    teachers, *assistants = taught_by.split(":") if taught_by else [teacher or ""]
    if recipe == _PLAIN:
        if taught_by:
            raise DistillError(f"arm {text!r}: none has no teacher; write none")
        return Arm(text, recipe, (), ())
    if recipe != _PEER:
        read_loss_recipe(recipe)
    if not teachers:
        raise DistillError(f"arm {text!r} has no teacher: give --teacher s.pt, or write {text}@s.pt")
    several = tuple(str(find_weights(name, "teacher").resolve()) for name in teachers.split("+"))
    if recipe == _PEER and (len(several) > 1 or assistants):
        raise DistillError(f"arm {text!r}: ultralytics' distill_model takes one teacher and no assistants")
    return Arm(text, recipe, several, tuple(assistants))


def main(argv: Sequence[str] | None = None) -> int:
    """Run the study; return 0 done, 1 refused or failed, 2 usage, 130 interrupted."""
    argv = sys.argv[1:] if argv is None else argv
    args = _parser().parse_args(argv)
    command = f"python -m distill.study {shlex.join(argv)}"
    code = run_command(lambda: _run(args, command), lambda: ": the same command goes on where it stopped")
    if code == 0:
        sys.stdout.write(f"{args.report}\n")
    return code


def _run(args: argparse.Namespace, command: str) -> None:
    arms = [parse_arm(text, args.teacher) for text in args.arms]
    if len({_folder_name(arm.name) for arm in arms}) < len(arms):
        raise DistillError("--arms names one twice: give each once")
    data = open_data_set(args.data)
    study = _study(args, arms, data)
    _same_study(study, args.out)
    image = args.report.parent.parent / "images" / f"{args.section}.png"

    def write_page() -> None:
        found = {arm.name: _results(study, arm, args.seeds, args.out) for arm in arms}
        text = study_page(study, found, data, args.title or args.section, command, image, args.report)
        write_section(args.report, args.section, text)

    if not args.only_report:
        # Seed by seed, so that what has been run at any moment compares all arms.
        jobs = [study.job(arm, seed, args.out) for seed in range(args.seeds) for arm in arms]
        waiting = [job for job in jobs if job.finished() is None]
        log.info("%d trainings, %d of them finished", len(jobs), len(jobs) - len(waiting))
        run = run_one_by_one if args.ray is None else ray_runner(args.ray)
        run(waiting, lambda job: _finished(job, write_page))
    write_page()


def _finished(job: Job, write_page: Any) -> None:
    described = job.finished()
    if described is None:
        raise DistillError(f"{job.name} ended without a student: its log is {job.out}.log")
    log.info("%s: mAP50-95 %.4f", job.name, described["metrics"]["map50_95"])
    write_page()


def _study(args: argparse.Namespace, arms: Sequence[Arm], data: DataSet) -> Study:
    parse_settings(args.set)
    settings = {pair.partition("=")[0]: pair for pair in ("val=False", *args.set)}
    return Study(
        student=args.student,
        data=str(data.yaml),
        data_sha256=(data.train_sha256, data.val_sha256),
        epochs=args.epochs,
        imgsz=args.imgsz,
        batch=args.batch,
        settings=tuple(settings.values()),
        teachers={path: file_sha256(Path(path)) for arm in arms for path in arm.teachers},
    )


def _same_study(study: Study, out: Path) -> None:
    """Refuse a folder whose trainings had another budget, data or teachers; further teachers may come."""
    path = out / _STUDY_FILE
    asked = json.loads(json.dumps(asdict(study)))
    if path.is_file():
        before = json.loads(path.read_text("utf-8"))
        changed = [key for key in asked if key != "teachers" and before.get(key) != asked[key]]
        changed += [p for p, sha256 in asked["teachers"].items() if before["teachers"].get(p, sha256) != sha256]
        if changed:
            raise DistillError(f"{out} holds a study with another {changed[0]}: give another --out, or the same values")
        asked["teachers"] = {**before["teachers"], **asked["teachers"]}
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(asked, indent=2) + "\n")


def _results(study: Study, arm: Arm, seeds: int, out: Path) -> dict[int, dict[str, Any]]:
    """``student.json`` of the finished trainings of an arm, by seed."""
    found = {seed: study.job(arm, seed, out).finished() for seed in range(seeds)}
    return {seed: described for seed, described in found.items() if described is not None}


def _folder_name(arm: str) -> str:
    """An arm's name without what folders of a path may not hold."""
    recipe, _, teachers = arm.partition("@")
    parts = [recipe, *teachers.replace(":", "+").split("+")] if teachers else [recipe]
    return "-".join(Path(part).stem for part in parts)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distill.study",
        description="Train one student on one budget without distillation, with ultralytics' own, and by each recipe, "
        "several seeds each, and write what came out as one section of a Markdown page. The same command goes on after "
        "an interruption.",
    )
    add, whole = parser.add_argument, at_least(1)
    add("--teacher", metavar="PT", help="checkpoint that teaches the arms which name no other")
    add("--student", default="yolov8n.yaml", metavar="PT|YAML", help="what every training starts from (yolov8n.yaml)")
    add("--data", default="coco128.yaml", metavar="YAML", help="detection data set (coco128.yaml)")
    add(
        "--arms",
        nargs="+",
        default=[_PLAIN, _PEER, *known_recipes()],
        metavar="RECIPE[@T.pt[+T2.pt][:A.pt]]",
        help="none, distill_model (ultralytics' own), a named recipe or a .toml file; @ names its teachers, : "
        "assistants (all recipes)",
    )
    add("--seeds", type=whole, default=3, metavar="N", help="trainings of each arm, paired by seed (3)")
    add("--epochs", type=whole, default=100, metavar="N", help="of every training (100)")
    add("--imgsz", type=whole, default=640, metavar="PX", help="image size (640)")
    add("--batch", type=whole, default=16, metavar="N", help="images per step (16)")
    add("--set", nargs="+", default=[], metavar="NAME=VALUE", help="settings of all trainings, as in distill.yolo")
    add(
        "--ray",
        metavar="ADDRESS",
        help="spread the trainings over a Ray cluster that shares its files; local starts one",
    )
    add("--only-report", action="store_true", help="train nothing: write the page of what is finished")
    add("--out", type=Path, default=Path("runs/study"), metavar="DIR", help="all trainings (runs/study)")
    add("--report", type=Path, default=Path("runs/study/study.md"), metavar="MD", help="page (runs/study/study.md)")
    add("--section", default="distillation", metavar="NAME", help="of the page; the plot is images/NAME.png")
    add("--title", metavar="TEXT", help="heading of the section (its name)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
