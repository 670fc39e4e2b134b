"""``python -m distill.yolo``: distil a YOLOv8 teacher into a small student."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

try:
    from distill.arguments import at_least, number_within
    from distill.command import new_run_folder, run_training
    from distill.data import DataSet, open_data_set
    from distill.errors import DistillError
    from distill.losses import DEFAULT_LOSSES, LOSSES, parse_losses
    from distill.recipe import Recipe, read_recipe
    from distill.settings import parse_settings
    from distill.teacher import file_sha256, find_weights
    from distill.training import new_run, resumable_epoch, resume_run
except ModuleNotFoundError as missing:
    package = str(missing.name).partition(".")[0]
    advice = "pip install -e '.[train]' in the checkout of edge-distill"
    raise SystemExit(f"error: {package} is not installed: {advice}") from None

__all__ = ["main"]

_DEFAULTS: Final[dict[str, Any]] = {
    "student": "yolov8n.pt",
    "data": "coco128.yaml",
    "epochs": 100,
    "imgsz": 640,
    "batch": 16,
    "seed": 0,
    "losses": DEFAULT_LOSSES,
    "temperature": 1.0,
    "device": "",
    "workers": 8,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 done, 1 refused or failed, 2 usage, 130 interrupted."""
    args = _parser().parse_args(argv)
    return run_training(_Run(args), args, _summary)


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
            _refuse_other_values(args, read_recipe(args.resume))
            self.described = resume_run(args.resume, teacher=args.teacher, device=args.device, workers=args.workers)
            return
        recipe, data = _new_recipe(args)
        self._out = new_run_folder(args.out, Path(recipe.student).stem)
        self.described = new_run(recipe, data, self._out)

    def how_to_continue(self) -> str:
        """The end of the sentence that begins with ``interrupted``."""
        epochs = None if self._out is None else resumable_epoch(self._out)
        if self._out is None or epochs is None:
            return " before the first epoch was complete: nothing was kept"
        total, folder = read_recipe(self._out).epochs, shlex.quote(str(self._out))
        return f" after {epochs} of {total} epochs: continue with python -m distill.yolo --resume {folder}"


def _new_recipe(args: argparse.Namespace) -> tuple[Recipe, DataSet]:
    """Fill in the defaults, find the teacher and open the data set."""
    value = {name: getattr(args, name) for name in _DEFAULTS}
    value |= {name: default for name, default in _DEFAULTS.items() if value[name] is None}
    losses = parse_losses(value["losses"])
    teacher = None
    if losses:
        if args.teacher is None:
            raise DistillError("no teacher: give --teacher yolov8x.pt, or --losses none for plain training")
        teacher = find_weights(args.teacher, "teacher").resolve()
    data = open_data_set(value["data"])
    recipe = Recipe(
        **{**value, "losses": losses, "data": str(data.yaml)},
        settings=parse_settings(args.set or ()),
        teacher=None if teacher is None else str(teacher),
        teacher_sha256=None if teacher is None else file_sha256(teacher),
        data_sha256=data.train_sha256,
    )
    return recipe, data


def _refuse_other_values(args: argparse.Namespace, recipe: Recipe) -> None:
    """Refuse flags that contradict the run to resume; device and workers may change."""
    if args.set is not None and parse_settings(args.set) != recipe.settings:
        raise DistillError(
            f"--set {' '.join(args.set)} contradicts the run, which has {dict(recipe.settings)}: "
            "drop the flag, or start a new run without --resume"
        )
    if args.out is not None:
        raise DistillError("--out and --resume exclude each other: a resumed run stays in its folder")
    for name in ("student", "data", "epochs", "imgsz", "batch", "seed", "losses", "temperature"):
        given, recorded = getattr(args, name), getattr(recipe, name)
        if given is None:
            continue
        if name == "losses":
            given = parse_losses(given)
        elif name == "data" and Path(given).exists():
            given = str(Path(given).resolve())
        same = Path(recorded).name == given if name == "data" and "/" not in str(given) else given == recorded
        if not same:
            raise DistillError(
                f"--{name} {getattr(args, name)} contradicts the run, which has {recorded}: "
                "drop the flag, or start a new run without --resume"
            )


def _summary(student: dict[str, Any], folder: Path) -> str:
    """What is printed of a finished run: where the student is, and how good."""
    taught = "no teacher" if student["teacher"] is None else f"taught by {student['teacher']['file']}"
    accuracy = student["metrics"]
    return (
        f"student   {folder / student['student']['file']}\n"
        f"          {student['student']['parameters']:,} parameters, {taught}, {student['epochs']} epochs, "
        f"{student['imgsz']} px\n"
        f"mAP50-95  {accuracy['map50_95']:.4f}    mAP50 {accuracy['map50']:.4f}    (ultralytics, validation images)\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distill.yolo",
        description="Distil a YOLOv8 teacher into a small student. Published weights and data sets are downloaded "
        "where there is internet. Writes OUT/student/student.pt and student.json.",
    )
    add, default = parser.add_argument, _DEFAULTS
    add("--teacher", metavar="PT", help="checkpoint to learn from, such as yolov8x.pt")
    add("--student", metavar="PT|YAML", help=f".pt to start from, .yaml trains from scratch ({default['student']})")
    add("--data", metavar="YAML", help=f"detection data set ({default['data']})")
    add("--epochs", type=at_least(1), metavar="N", help=f"epochs ({default['epochs']})")
    add("--imgsz", type=_image_size, metavar="PX", help=f"image size, a multiple of 32 ({default['imgsz']})")
    add("--batch", type=at_least(1), metavar="N", help=f"images per step ({default['batch']})")
    add("--device", help="cpu, 0, or 0,1 for several GPUs (the first GPU if there is one, else cpu)")
    add("--seed", type=at_least(0), metavar="N", help=f"random seed ({default['seed']})")
    add("--workers", type=at_least(0), metavar="N", help=f"data-loading processes on a GPU ({default['workers']})")
    add(
        "--losses",
        metavar="NAME=WEIGHT,...",
        help=f"distillation losses out of {', '.join(LOSSES)}; none trains plainly ({default['losses']})",
    )
    add(
        "--temperature",
        type=number_within(0, "above 0"),
        metavar="T",
        help=f"softens logits before they are compared ({default['temperature']:g})",
    )
    add(
        "--set",
        nargs="+",
        metavar="NAME=VALUE",
        help="other ultralytics training settings, such as lr0=0.002 nbs=16 mosaic=0.5 (ultralytics' defaults)",
    )
    add("--resume", type=Path, metavar="RUN", help="run folder to continue after its last complete epoch")
    add("--out", type=Path, metavar="RUN", help="new run folder (runs/distill/STUDENT, numbered)")
    add("--json", action="store_true", help="print student.json instead of the summary")
    return parser


def _image_size(text: str) -> int:
    size = at_least(64)(text)
    if size % 32:
        raise argparse.ArgumentTypeError(
            f"{size} is not a multiple of 32: try {size // 32 * 32} or {-(-size // 32) * 32}"
        )
    return size


if __name__ == "__main__":
    sys.exit(main())
