"""``python -m distill.classify``: distil an image classifier into a small student."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

try:
    from PIL import Image

    from distill.arguments import at_least, number_within
    from distill.classification.folders import ImageFolder
    from distill.classification.methods import METHODS, find_method
    from distill.classification.processes import Processes, joined
    from distill.classification.recipe import ClassRecipe
    from distill.classification.saved import is_trained
    from distill.classification.settings import parse_settings
    from distill.classification.sources import SOURCES, open_data
    from distill.classification.training import new_run, resumable, resume_run
    from distill.command import new_run_folder, run_training
    from distill.errors import DistillError
    from distill.losses import CLASS_LOSSES, parse_class_losses
except ModuleNotFoundError as missing:
    package = str(missing.name).partition(".")[0]
    advice = "pip install -e '.[train]' in the checkout of edge-distill"
    raise SystemExit(f"error: {package} is not installed: {advice}") from None

__all__ = ["main", "natural_size"]

_DEFAULTS: Final[dict[str, Any]] = {
    "student": "mobilenet_v2",
    "data": "cifar10",
    "epochs": 30,
    "batch": 128,
    "seed": 0,
}
#: Flags that a resumed run has from its recipe.
_FIXED: Final = ("teacher", "method", "imgsz", "losses", "temperature", "balance", "set", "out", *_DEFAULTS)
_EXTRACTIVE: Final = "extractive is second hand, not from its paper: not a reproduction"


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
        """Start or resume; sets ``described``, the path of ``student.json``, in the process that reports it."""
        with joined(self._args.device) as processes:
            described = self._train(processes)
        self.described = described if processes.first else None

    def _train(self, processes: Processes) -> Path:
        args = self._args
        if args.resume is not None:
            if given := next((name for name in _FIXED if getattr(args, name) is not None), None):
                raise DistillError(f"--resume goes on with the run's own {given}: drop --{given}, or start a new run")
            self._out = args.resume
            return resume_run(args.resume, processes, workers=args.workers)
        recipe, data = _new_recipe(args, processes)
        stem = Path(recipe.student.replace(":", "-")).stem
        self._out = processes.agree(new_run_folder(args.out, stem))
        return new_run(recipe, data, self._out, processes, workers=args.workers)

    def how_to_continue(self) -> str:
        """The end of the sentence that begins with ``interrupted``."""
        if self._out is None or not resumable(self._out):
            return " before the first epoch was complete: nothing was kept"
        return f": continue with python -m distill.classify --resume {shlex.quote(str(self._out))}"


def _new_recipe(args: argparse.Namespace, processes: Processes) -> tuple[ClassRecipe, ImageFolder]:
    """Fill in the defaults and open the data set."""
    value = {
        name: default if getattr(args, name) is None else getattr(args, name) for name, default in _DEFAULTS.items()
    }
    method = args.method or "kd"
    find_method(method)
    settings = parse_settings(args.set or ())
    losses = None if args.losses is None else parse_class_losses(args.losses)
    if losses == {}:
        raise DistillError("--losses none: give --method none, which trains without a teacher")
    if not args.teacher and method not in {"none", "mutual"}:
        raise DistillError(f"method {method} needs a teacher: give --teacher resnet50, or --method none")
    if processes.first:
        data = open_data(value["data"])
    processes.wait()
    data = open_data(value["data"])
    recipe = ClassRecipe(
        method=method,
        teachers=tuple(str(Path(t).resolve()) if is_trained(t) and Path(t).exists() else t for t in args.teacher or ()),
        imgsz=args.imgsz or natural_size(data),
        losses=losses,
        temperature=args.temperature,
        balance=args.balance,
        settings=settings,
        data_sha256=data.train.sha256,
        **{**value, "data": value["data"] if value["data"] in SOURCES else str(data.root)},
    )
    return recipe, data


def natural_size(data: ImageFolder) -> int:
    """The side of small images; 224 px for larger ones."""
    try:
        with Image.open(data.train.files[0]) as image:
            side = max(image.size)
    except OSError as error:
        raise DistillError(f"{data.train.files[0]} cannot be read as an image: replace or remove it") from error
    return side if side <= 64 else 224


def _summary(student: dict[str, Any], folder: Path) -> str:
    """What is printed of a finished run: where the student is, and how good."""
    names = [teacher["name"] for teacher in student["teachers"]]
    taught = f"taught by {', '.join(names)}" if names else "no teacher"
    return (
        f"student  {folder / student['student']['file']}\n"
        f"         {student['student']['parameters']:,} parameters, method {student['method']}, {taught}, "
        f"{student['epochs']} epochs, {student['imgsz']} px\n"
        f"top-1    {100 * student['metrics']['top1']:.2f} %    top-5 {100 * student['metrics']['top5']:.2f} %    "
        f"({student['data']['val']} images)\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distill.classify",
        description="Distil an image classifier into a small student. Writes OUT/student/student.pt2, weights.pt and "
        "student.json. A teacher given by name is trained first. Under torchrun, several processes share a batch.",
    )
    add, default = parser.add_argument, _DEFAULTS
    add(
        "--teacher",
        nargs="+",
        metavar="NAME|PATH",
        help="architectures to train first (resnet50, course-cifar10-teacher, ...), run folders of this command, "
        "or ultralytics -cls .pt",
    )
    add("--student", metavar="NAME", help=f"architecture to train ({default['student']})")
    add("--data", metavar="NAME|ROOT", help=f"{', '.join(SOURCES)}, or an image folder ({default['data']})")
    add("--method", metavar="NAME", help=f"one of {', '.join(METHODS)} (kd). {_EXTRACTIVE}")
    add(
        "--losses",
        metavar="NAME=WEIGHT,...",
        help=f"instead of the method's own losses on the teacher: {', '.join(CLASS_LOSSES)}. {_EXTRACTIVE}",
    )
    add("--temperature", type=number_within(0, "above 0"), metavar="T", help="softens logits (the method's: 4)")
    add(
        "--balance",
        type=number_within(0, "from 0 to 1", 1),
        metavar="B",
        help="weight of the teacher; labels get 1 - B",
    )
    add("--epochs", type=at_least(1), metavar="N", help=f"epochs of the student ({default['epochs']})")
    add("--imgsz", type=at_least(8), metavar="PX", help="side of the input (that of small images, else 224)")
    add("--batch", type=at_least(2), metavar="N", help=f"images per step, over all processes ({default['batch']})")
    add("--seed", type=at_least(0), metavar="N", help=f"random seed ({default['seed']})")
    add("--device", default="", help="cpu, or a GPU's number (the first GPU if there is one, else cpu)")
    add("--workers", type=at_least(0), default=4, metavar="N", help="loading processes for large data (4)")
    add("--set", nargs="+", metavar="NAME=VALUE", help="other settings: lr=0.01 ema=0.999 ... (docs/classification.md)")
    add("--resume", type=Path, metavar="RUN", help="run folder to continue after its last complete epoch")
    add("--out", type=Path, metavar="RUN", help="new run folder (runs/distill/STUDENT, numbered)")
    add("--json", action="store_true", help="print student.json instead of the summary")
    return parser


if __name__ == "__main__":
    sys.exit(main())
