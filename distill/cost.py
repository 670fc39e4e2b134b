"""``python -m distill.cost``: what a teacher adds to the time of a training, in turns against ultralytics' own."""

from __future__ import annotations

import argparse
import gc
import json
import logging
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
import ultralytics
from ultralytics.engine import trainer as engine
from ultralytics.nn.tasks import DetectionModel
from ultralytics.utils import callbacks as ultralytics_callbacks

from distill.arguments import at_least, image_size, split_names
from distill.callbacks import Distillation
from distill.command import run_command
from distill.data import DataSet, open_data_set
from distill.errors import DistillError
from distill.loss_recipes import DEFAULT_RECIPE, read_loss_recipe
from distill.losses import parse_losses
from distill.precision import cpu_bfloat16
from distill.settings import parse_settings
from distill.study_section import processor, public_command, write_section
from distill.teacher import file_sha256
from distill.teacher_options import CacheOptions, TeacherOptions
from distill.trainer import DistillationTrainer

__all__ = ["main"]

log = logging.getLogger(__name__)

PLAIN, PEER, EXACT, OURS, CACHED = "no teacher", "distill_model", "ours, fp32 teacher", "ours", "ours, cached"
_WORDS: Final = {
    PLAIN: "plain training",
    PEER: "ultralytics' `distill_model`",
    EXACT: "ours, the teacher held at float32",
    OURS: "ours",
    CACHED: "ours, teacher outputs from the disk cache",
}


@dataclass(frozen=True)
class Cost:
    """Seconds a step of each arm with one teacher, round by round.

    Attributes:
        teacher: its name.
        parameters: of the teacher.
        layout: how our teacher ran, and what was measured before it was chosen.
        seconds: by arm, one number a round; the same batch of images in the same round.
        steps: optimizer batches of an epoch.
        stored_bytes: of one image's teacher outputs on disk.
    """

    teacher: str
    parameters: int
    layout: str
    seconds: dict[str, list[float]]
    steps: int
    stored_bytes: int


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 done, 1 refused or failed, 2 usage, 130 interrupted."""
    args = _parser().parse_args(argv)
    given = sys.argv[1:] if argv is None else argv
    found: list[str] = []
    command = shlex.join(["python", "-m", "distill.cost", *given])
    code = run_command(lambda: found.append(_study(args, command)), lambda: "")
    sys.stdout.write("".join(found))  # while it runs, stdout belongs to the log
    return code


def _study(args: argparse.Namespace, command: str) -> str:
    """Measure with every teacher; return what is printed."""
    if args.threads:
        torch.set_num_threads(args.threads)
    data = open_data_set(args.data)
    with tempfile.TemporaryDirectory(prefix="distill-cost-") as scratch:
        costs = [
            measure(name, args, data, Path(scratch) / str(index))
            for index, name in enumerate(split_names(args.teachers, "--teachers"))
        ]
    text = section(costs, args, data, command)
    if args.report is not None:
        write_section(args.report, args.section, text)
    return json.dumps([vars(cost) for cost in costs]) + "\n" if args.json else text + "\n"


def measure(name: str, args: argparse.Namespace, data: DataSet, folder: Path) -> Cost:
    """Train every arm with one teacher step by step in turns, each with its own loader, on the same images.

    Args:
        name: the teacher's checkpoint, or a ``.yaml`` for random weights: they cost as much.
        args: of the command line.
        data: the data set.
        folder: for the arms' files.
    """
    folder.mkdir(parents=True)
    teacher = _checkpoint(name, data, folder)
    half = parse_settings(args.set or ()).get("amp") == "bf16"
    names = [PLAIN, PEER, *([] if half else [EXACT]), OURS, CACHED]
    arms = {arm: _Arm(arm, args, data, teacher, folder / str(index)) for index, arm in enumerate(names)}
    arms[CACHED].fill(args.rounds + args.warmup)
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for turn in range(args.warmup + args.rounds):
        order = names if turn % 2 == 0 else names[::-1]
        for arm in order:
            took = arms[arm].step()
            if turn >= args.warmup:
                seconds[arm].append(took)
        log.info("%s, round %d: %s", name, turn, ", ".join(f"{arm} {seconds[arm][-1:]}" for arm in names))
    layout = arms[OURS].teacher.layout
    cost = Cost(
        teacher=Path(name).stem,
        parameters=sum(p.numel() for p in arms[OURS].teacher.model.parameters()),
        layout=f"{layout.name} ({', '.join(f'{k} {1e3 * v:.0f} ms' for k, v in layout.seconds.items())})",
        seconds=seconds,
        steps=len(arms[PLAIN].trainer.train_loader),
        stored_bytes=arms[CACHED].teacher.store.entry_bytes,
    )
    arms.clear()
    gc.collect()
    return cost


class _Arm:
    """One training that is stepped by hand."""

    def __init__(self, arm: str, args: argparse.Namespace, data: DataSet, teacher: Path, folder: Path) -> None:
        settings = {
            **parse_settings(args.set or ()),
            **{"mode": "train", "task": "detect", "model": args.student, "data": str(data.yaml), "epochs": 1000},
            **{"imgsz": args.imgsz, "batch": args.batch, "device": args.device, "workers": args.workers, "seed": 0},
            **{"project": str(folder), "name": "train", "plots": False, "val": False},
        }
        attached = ultralytics_callbacks.get_default_callbacks()
        if arm == PEER:
            settings["distill_model"] = str(teacher)
        elif arm != PLAIN:
            attached["on_pretrain_routine_end"].append(_distillation(arm, args, data, teacher, folder))
        threads = torch.get_num_threads()
        self.trainer: Any = DistillationTrainer(overrides=settings, _callbacks=attached)
        torch.set_num_threads(threads)  # ultralytics changes it
        with cpu_bfloat16():
            self.trainer._setup_train()
        self.trainer.epoch = 0
        self.trainer.run_callbacks("on_train_epoch_start")
        self.trainer._model_train()
        self._batches = self._endless()
        self._step = 0

    @property
    def teacher(self) -> Any:
        """The teacher as the training runs it."""
        return self.trainer.prepared_distillation.teacher

    def fill(self, batches: int) -> None:
        """Let the teacher see the first batches, and begin the epochs again: their outputs are on disk then."""
        for _ in range(batches):
            batch = self.trainer.preprocess_batch(next(self._batches))
            self.teacher(batch["img"], batch)
        self._batches = self._endless()

    def step(self) -> float:
        """One batch: loaded, forward, backward, and an optimizer step when one is due; returns its seconds."""
        trainer = self.trainer
        start = time.perf_counter()
        batch = next(self._batches)
        with cpu_bfloat16(), engine.autocast(_amp(trainer), device=trainer.device.type):
            batch = trainer.preprocess_batch(batch)
            loss, _ = trainer.model(batch)
        trainer.scaler.scale(loss.sum()).backward()
        self._step += 1
        if self._step % trainer.accumulate == 0:
            trainer.optimizer_step()
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    def _endless(self) -> Iterator[dict[str, Any]]:
        epoch = 0
        while True:
            self.trainer.epoch = epoch
            self.trainer._start_epoch()
            yield from self.trainer.train_loader
            epoch += 1


def _distillation(arm: str, args: argparse.Namespace, data: DataSet, teacher: Path, folder: Path) -> Distillation:
    recipe = read_loss_recipe(DEFAULT_RECIPE)
    losses = dict(recipe.losses) if args.losses is None else parse_losses(args.losses)
    cache = CacheOptions(str(folder / "cache"), (file_sha256(teacher),), data.train_sha256) if arm == CACHED else None
    options = TeacherOptions(precision="fp32" if arm == EXACT else "auto", views=1 if cache else 0, cache=cache)
    return Distillation(str(teacher), losses, recipe.temperature, options=options)


def _amp(trainer: Any) -> Any:
    return torch.bfloat16 if trainer.args.amp == "bf16" else trainer.amp


def _checkpoint(name: str, data: DataSet, folder: Path) -> Path:
    """The teacher's file; of a ``.yaml``, one with random weights."""
    if Path(name).suffix == ".pt":
        return Path(name)
    torch.manual_seed(0)
    try:
        model = DetectionModel(name, nc=len(data.names), verbose=False)
    except FileNotFoundError as error:
        raise DistillError(
            f"teacher {name!r} not found: give a .pt, or an architecture such as yolov8s.yaml"
        ) from error
    model.names = dict(enumerate(data.names))
    path = folder / f"{Path(name).stem}.pt"
    torch.save({"model": model.half(), "train_args": {}, "epoch": -1}, path)
    return path


def section(costs: Sequence[Cost], args: argparse.Namespace, data: DataSet, command: str) -> str:
    """The Markdown section: machine, command, one table, and what may be said."""
    lines = [
        f"## {args.title}",
        "",
        f"Student `{Path(args.student).name}`, {args.imgsz} px, {args.batch} images a step, {data.train_images} "
        f"training images; {args.rounds} rounds after {args.warmup} that do not count. In each round every training "
        "makes one step, in turns: loading, forward and backward pass and optimizer step, without validation. Median "
        "of the steps, with quartiles; an epoch is the mean step times the steps of an epoch.",
        "",
        f"ultralytics {ultralytics.__version__}, PyTorch {torch.__version__}, {_machine(args)}:",
        "",
        "```bash",
        public_command(command),
        "```",
        "",
        "| teacher | training | ms a step | s an epoch | against plain | of what `distill_model` adds |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for cost in costs:
        lines += [_row(cost, arm) for arm in cost.seconds]
    lines += ["", *(f"- `{c.teacher}` ({c.parameters / 1e6:.1f} M parameters) ran in {c.layout}." for c in costs)]
    lines += [f"- The cache of `{c.teacher}` takes {c.stored_bytes / 1e6:.2f} MB a view of an image." for c in costs]
    return "\n".join(lines)


def _row(cost: Cost, arm: str) -> str:
    plain, peer = (np.array(cost.seconds[name]) for name in (PLAIN, PEER))
    own = np.array(cost.seconds[arm])
    low, middle, high = np.percentile(own * 1e3, [25, 50, 75])
    against = "1" if arm == PLAIN else _ratio(own, plain)
    share = "-" if arm == PLAIN else "1" if arm == PEER else _ratio(own - plain, peer - plain)
    return (
        f"| {cost.teacher} | {_WORDS[arm]} | {middle:.0f} ({low:.0f} to {high:.0f}) "
        f"| {own.mean() * cost.steps:.2f} | {against} | {share} |"
    )


def _ratio(above: np.ndarray[Any, Any], below: np.ndarray[Any, Any]) -> str:
    """Ratio of two means over the same rounds, with a bootstrap interval of 95 % over the rounds."""
    drawn = np.random.default_rng(0).integers(0, len(above), (2000, len(above)))
    low, high = np.percentile(above[drawn].mean(axis=1) / below[drawn].mean(axis=1), [2.5, 97.5])
    return f"{above.mean() / below.mean():.2f} ({low:.2f} to {high:.2f})"


def _machine(args: argparse.Namespace) -> str:
    if args.device not in {"", "cpu"} and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{processor()}, {torch.get_num_threads()} threads"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distill.cost",
        description="Time of a training with each teacher against plain training and ultralytics' distill_model, step "
        "by step in turns. Random weights cost as much as trained ones: name a .yaml.",
    )
    add = parser.add_argument
    add("--student", default="yolov8n.yaml", metavar="PT|YAML", help="(%(default)s)")
    add("--teachers", default="yolov8s.yaml,yolov8m.yaml,yolov8x.yaml", metavar="PT|YAML,...", help="(%(default)s)")
    add("--data", default="coco128.yaml", metavar="YAML", help="(%(default)s)")
    add("--losses", metavar="NAME=WEIGHT,...", help="(those of the default recipe)")
    add("--imgsz", type=image_size, default=320, metavar="PX", help="(%(default)s)")
    add("--batch", type=at_least(1), default=16, metavar="N", help="(%(default)s)")
    add("--rounds", type=at_least(2), default=10, metavar="N", help="steps of each training that count (%(default)s)")
    add("--warmup", type=at_least(1), default=2, metavar="N", help="steps before them (%(default)s)")
    add("--set", nargs="+", metavar="NAME=VALUE", help="ultralytics settings of all trainings, such as amp=bf16")
    add("--device", default="cpu", help="cpu, or 0 (%(default)s)")
    add("--workers", type=at_least(0), default=8, metavar="N", help="data-loading processes on a GPU (%(default)s)")
    add("--threads", type=at_least(1), metavar="N", help="(as many as torch takes)")
    add("--report", type=Path, metavar="MD", help="write the section into this page, too")
    add("--section", default="cost", metavar="NAME", help="which section of it is replaced (%(default)s)")
    add("--title", default="What a teacher costs", help="heading (%(default)s)")
    add("--json", action="store_true", help="print all seconds instead of the table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
