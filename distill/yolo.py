"""``python -m distill.yolo``: distil a YOLOv8 teacher into a small student."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

try:
    from distill.arguments import at_least, image_size, number_within, split_names
    from distill.chain import broke_off, new_chain, resume_chain
    from distill.command import new_run_folder, run_training
    from distill.data import DataSet, open_data_set
    from distill.errors import DistillError
    from distill.loss_recipes import DEFAULT_RECIPE, known_recipes, read_loss_recipe
    from distill.losses import LOSSES, parse_losses
    from distill.peers import parse_peers, peer_losses
    from distill.ranks import FIRST, agreed_folder
    from distill.recipe import Recipe, TeacherFile, read_recipe
    from distill.schedules import parse_schedule
    from distill.settings import parse_settings
    from distill.teacher import student_task
    from distill.teacher_arguments import TEACHER_FIELDS, add_teacher_arguments, recipe_fields
    from distill.teachers import COMBINATIONS, find_teachers
    from distill.training import new_run, resumable_epoch, resume_run
except ModuleNotFoundError as missing:
    package = str(missing.name).partition(".")[0]
    advice = "pip install -e '.[train]' in the checkout of edge-distill"
    raise SystemExit(f"error: {package} is not installed: {advice}") from None

__all__ = ["main", "new_recipe", "parse_arguments"]

_DEFAULTS: Final[dict[str, Any]] = {
    "student": "yolov8n.pt",
    "data": "coco128.yaml",
    "epochs": 100,
    "imgsz": 640,
    "batch": 16,
    "seed": 0,
    "device": "",
    "workers": 8,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 done, 1 refused or failed, 2 usage, 130 interrupted."""
    args = parse_arguments(argv)
    return run_training(_Run(args), args, _summary)


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; None stands for the process's own."""
    return _parser().parse_args(argv)


class _Run:
    """One invocation: remembers the run folder, for the message after Ctrl-C."""

    def __init__(self, args: argparse.Namespace) -> None:
        self._args = args
        self._out: Path | None = None
        self.described: Path | None = None

    def __call__(self) -> None:
        """Start or resume; sets ``described``, the path of ``student.json``."""
        args = self._args
        if args.resume is not None:
            self._out = args.resume
            recipe = read_recipe(args.resume)
            _refuse_other_values(args, recipe)
            resume = resume_chain if recipe.assistants else resume_run
            done = resume(args.resume, teacher=args.teacher, device=args.device, workers=args.workers)
            self.described = done if FIRST else None
            return
        recipe, data = new_recipe(args)
        self._out = agreed_folder(args.out, recipe) or new_run_folder(args.out, Path(recipe.student).stem)
        done = (new_chain if recipe.assistants else new_run)(recipe, data, self._out)
        self.described = done if FIRST else None

    def how_to_continue(self) -> str:
        """The end of the sentence that begins with ``interrupted``."""
        where = None if self._out is None or not self._out.exists() else _where(self._out)
        if where is None:
            return " before the first epoch was complete: nothing was kept"
        return f"{where}: continue with python -m distill.yolo --resume {shlex.quote(str(self._out))}"


def _where(out: Path) -> str | None:
    """Where a run broke off; None when nothing is kept."""
    recipe = read_recipe(out)
    if recipe.assistants:
        return broke_off(out)
    epochs = resumable_epoch(out)
    return None if epochs is None else f" after {epochs} of {recipe.epochs} epochs"


def new_recipe(args: argparse.Namespace) -> tuple[Recipe, DataSet]:
    """Fill in the defaults, find the teacher and open the data set."""
    value = {name: getattr(args, name) for name in _DEFAULTS}
    value |= {name: default for name, default in _DEFAULTS.items() if value[name] is None}
    taught = read_loss_recipe(args.recipe or DEFAULT_RECIPE)
    losses = taught.losses if args.losses is None else parse_losses(args.losses)
    taught_by: dict[str, Any]
    if args.peers is None:
        taught_by = _teachers(args, losses)
    else:
        taught_by = {"teachers": (), "peers": _peers(args, value["student"])}
        losses = peer_losses(losses, given=args.losses is not None)
    data = open_data_set(value["data"])
    recipe = Recipe(
        **{**value, "data": str(data.yaml)},
        losses=losses,
        temperature=taught.temperature if args.temperature is None else args.temperature,
        schedule=str(taught.schedule if args.schedule is None else parse_schedule(args.schedule)),
        settings=parse_settings(args.set or ()),
        data_sha256=data.train_sha256,
        task=student_task(value["student"]),
        **taught_by,
        **recipe_fields(args, losses if args.peers is None else {}, value["imgsz"]),
    )
    return recipe, data


def _teachers(args: argparse.Namespace, losses: Mapping[str, float]) -> dict[str, Any]:
    """Teachers, how they are combined, and assistants, as the recipe has them; none for plain training."""
    teachers: tuple[TeacherFile, ...] = ()
    if losses:
        if args.teacher is None:
            raise DistillError("no teacher: give --teacher yolov8x.pt, or --losses none for plain training")
        teachers = find_teachers(split_names(args.teacher, "--teacher"))
    if args.assistants is not None and not teachers:
        raise DistillError(f"--assistants {args.assistants} have no teacher: give --teacher, and losses to learn by")
    if args.combine is not None and len(teachers) < 2:
        raise DistillError(
            f"--combine {args.combine} is for several teachers: give --teacher two or more, as a.pt,b.pt"
        )
    assistants = () if args.assistants is None else split_names(args.assistants, "--assistants")
    return {"teachers": teachers, "combine": args.combine or "mean", "assistants": assistants}


def _peers(args: argparse.Namespace, student: str) -> tuple[str, ...]:
    """The peers, which learn from nobody else."""
    for flag in ("teacher", "assistants", "combine"):
        if getattr(args, flag) is not None:
            raise DistillError(f"--peers teach each other, without --{flag}: drop one of the two")
    return parse_peers(args.peers, student)


def _refuse_other_values(args: argparse.Namespace, recipe: Recipe) -> None:
    """Refuse flags that contradict the run to resume; device and workers may change."""
    if args.set is not None and parse_settings(args.set) != recipe.settings:
        raise DistillError(
            f"--set {' '.join(args.set)} contradicts the run, which has {dict(recipe.settings)}: "
            "drop the flag, or start a new run without --resume"
        )
    if args.out is not None:
        raise DistillError("--out and --resume exclude each other: a resumed run stays in its folder")
    if args.recipe is not None:
        taught = read_loss_recipe(args.recipe)
        if (taught.losses, taught.temperature, str(taught.schedule)) != (
            dict(recipe.losses),
            recipe.temperature,
            recipe.schedule,
        ):
            raise DistillError(
                f"--recipe {args.recipe} contradicts the run, which has losses {dict(recipe.losses)}, temperature "
                f"{recipe.temperature:g} and schedule {recipe.schedule}: drop the flag, or start without --resume"
            )
    compared = ("student", "data", "epochs", "imgsz", "batch", "seed", "losses", "temperature", "schedule", "combine")
    for name in (*compared, "assistants", "peers", *TEACHER_FIELDS):
        given, recorded = getattr(args, name), getattr(recipe, name)
        if given is None:
            continue
        if name == "losses":
            given = parse_losses(given)
        elif name == "assistants":
            given = split_names(given, "--assistants")
        elif name == "peers":
            given = parse_peers(given, recipe.student)
        elif name == "data" and Path(given).exists():
            given = str(Path(given).resolve())
        same = Path(recorded).name == given if name == "data" and "/" not in str(given) else given == recorded
        if not same:
            raise DistillError(
                f"--{name.replace('_', '-')} {getattr(args, name)} contradicts the run, which has {recorded}: "
                "drop the flag, or start a new run without --resume"
            )


def _summary(student: dict[str, Any], folder: Path) -> str:
    """What is printed of a finished run: where the student is, and how good."""
    teacher = student["teacher"]
    taught = f"taught by {teacher.get('name') or teacher['file']}" if teacher else "no teacher"
    taught = f"learned with {len(student['peers'])} peers" if student["peers"] else taught
    accuracy = student["metrics"]
    more = "".join(
        f"{kind:<10}mAP50-95 {accuracy[f'{kind}_map50_95']:.4f}    mAP50 {accuracy[f'{kind}_map50']:.4f}\n"
        for kind in ("mask", "pose")
        if f"{kind}_map50" in accuracy
    )
    return (
        f"student   {folder / student['student']['file']}\n"
        f"          {student['student']['parameters']:,} parameters, {taught}, {student['epochs']} epochs, "
        f"{student['imgsz']} px\n"
        f"mAP50-95  {accuracy['map50_95']:.4f}    mAP50 {accuracy['map50']:.4f}    (ultralytics, validation images)\n"
        f"{more}"
        f"page      python -m distill.page {shlex.quote(str(folder.parent))}\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distill.yolo",
        usage="%(prog)s --teacher PT --student PT|YAML --data YAML [...]",
        description="Distil a YOLOv8 teacher into a small student. Published weights and data sets are downloaded "
        "where there is internet. Writes OUT/student/student.pt and student.json.",
    )
    _add_training(parser.add_argument_group("what is trained"))
    _add_teaching(parser.add_argument_group("who teaches"))
    _add_losses(parser.add_argument_group("what is learned from them"))
    add_teacher_arguments(parser)
    add = parser.add_argument_group("the run").add_argument
    add("--device", help="cpu, 0, or 0,1 for several GPUs (the first GPU if there is one, else cpu)")
    add("--workers", type=at_least(0), metavar="N", help=f"data-loading processes on a GPU ({_DEFAULTS['workers']})")
    add("--resume", type=Path, metavar="RUN", help="run folder to continue after its last complete epoch")
    add("--out", type=Path, metavar="RUN", help="new run folder (runs/distill/STUDENT, numbered)")
    add("--json", action="store_true", help="print student.json instead of the summary")
    return parser


def _add_training(group: argparse._ArgumentGroup) -> None:
    add, default = group.add_argument, _DEFAULTS
    add("--student", metavar="PT|YAML", help=f".pt to start from, .yaml trains from scratch ({default['student']})")
    add("--data", metavar="YAML", help=f"detection data set ({default['data']})")
    add("--epochs", type=at_least(1), metavar="N", help=f"epochs ({default['epochs']})")
    add("--imgsz", type=image_size, metavar="PX", help=f"image size, a multiple of 32 ({default['imgsz']})")
    add("--batch", type=at_least(1), metavar="N", help=f"images per step ({default['batch']})")
    add("--seed", type=at_least(0), metavar="N", help=f"random seed ({default['seed']})")
    add(
        "--set",
        nargs="+",
        metavar="NAME=VALUE",
        help="other ultralytics training settings, such as lr0=0.002 nbs=16 mosaic=0.5 (ultralytics' defaults)",
    )


def _add_teaching(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--teacher", metavar="PT,...", help="checkpoint to learn from, such as yolov8x.pt, or several")
    add("--combine", choices=COMBINATIONS, help="several teachers as one: mean, or each where it is sure (mean)")
    add("--assistants", metavar="PT|YAML,...", help="students in between, largest first: each teaches the next")
    add(
        "--peers",
        metavar="N|PT|YAML,...",
        help="no teacher: students that learn from each other; the first, --student, is kept",
    )


def _add_losses(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--recipe",
        metavar="NAME|TOML",
        help=f"losses, temperature and schedule at once: {', '.join(known_recipes())}, or a file ({DEFAULT_RECIPE})",
    )
    add(
        "--losses",
        metavar="NAME=WEIGHT,...",
        help=f"distillation losses out of {', '.join(LOSSES)}; none trains plainly (the recipe's)",
    )
    add("--schedule", metavar="constant|cosine|stop:N", help="how the losses fade by epoch (the recipe's)")
    add(
        "--temperature",
        type=number_within(0, "above 0"),
        metavar="T",
        help="softens logits before they are compared (the recipe's)",
    )


if __name__ == "__main__":
    sys.exit(main())
