"""``python -m distill.killed``: kill a distillation with SIGKILL again and again, resume it, compare what remains."""

from __future__ import annotations

import argparse
import csv
import json
import logging
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch

from distill.arguments import at_least
from distill.command import run_command
from distill.errors import DistillError
from distill.teacher import load_weights
from distill.teacher_running import RECORD_FILE
from distill.teacher_speed import SpeedRecord
from distill.training import resumable_epoch

__all__ = ["Kill", "Verdict", "compare_runs", "main"]

log = logging.getLogger(__name__)

_CHECKPOINTS: Final = ("train/weights/last.pt", "train/weights/best.pt", "student/student.pt")


@dataclass(frozen=True)
class Kill:
    """One SIGKILL.

    Attributes:
        run: which of the killed runs.
        after_s: seconds from the start of its process.
        epochs: complete epochs that could be resumed from then; None when there was nothing to resume.
        published: whether the student was there already, and the run had nothing left but measuring its agreement.
    """

    run: int
    after_s: float
    epochs: int | None
    published: bool = False


@dataclass(frozen=True)
class Verdict:
    """What the killed runs have in common with the uninterrupted one.

    Attributes:
        kills: all of them, in order.
        same_results: whether every results.csv is the same but for its column of seconds.
        largest_difference: of any weight or buffer of any checkpoint; 0 is bit for bit.
    """

    kills: list[Kill]
    same_results: bool = True
    largest_difference: float = 0.0
    differing: list[str] = field(default_factory=list)

    @property
    def equal(self) -> bool:
        """Whether nothing differs."""
        return self.same_results and not self.differing


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return 0 when nothing differs, 1 otherwise or when it failed, 2 usage, 130 interrupted."""
    args, training = _parser().parse_known_args(argv)
    found: list[Verdict] = []
    code = run_command(lambda: found.append(_study(args, training)), lambda: "")
    for verdict in found:
        if args.json:
            sys.stdout.write(json.dumps({**asdict(verdict), "equal": verdict.equal}, indent=2) + "\n")
        else:
            sys.stdout.write(_words(verdict))
        code = code or (0 if verdict.equal else 1)
    return code


def compare_runs(whole: Path, killed: Path, verdict: Verdict) -> Verdict:
    """Add a finished run folder to the verdict, by the folder of the run that nobody killed."""
    largest, differing = verdict.largest_difference, list(verdict.differing)
    for name in _CHECKPOINTS:
        one, other = (load_weights(run / name, "student").state_dict() for run in (whole, killed))
        if one.keys() != other.keys():
            differing.append(f"{killed.name}/{name}")
            continue
        if not all(torch.equal(one[key], other[key]) for key in one):
            differing.append(f"{killed.name}/{name}")
            largest = max(largest, *(float((one[k].double() - other[k].double()).abs().max()) for k in one))
    same = _rows(whole) == _rows(killed)
    return Verdict(verdict.kills, verdict.same_results and same, largest, differing)


def _study(args: argparse.Namespace, training: Sequence[str]) -> Verdict:
    if args.out.exists():
        raise DistillError(f"--out {args.out} exists and is never overwritten: give another folder")
    args.out.mkdir(parents=True)
    whole, draw = args.out / "whole", random.Random(args.seed)
    start = time.monotonic()
    _finish(_start([*training, "--out", str(whole)]))
    took = time.monotonic() - start
    training = [*training, *_same_layout(whole)]
    # Moments spread over a whole run mostly fall before its first complete epoch, where there is nothing to resume, if
    # they are counted from each new start; so also short ones count, and the longest is half a run.
    log.info("the uninterrupted run took %.1f s; killing %d times, each within %.1f s", took, args.kills, took / 2)
    verdict, run = Verdict([]), 0
    while len(verdict.kills) < args.kills:
        run += 1
        folder = args.out / f"killed-{run}"
        while not _finished(folder):
            kill = _once(folder, run, training, draw.uniform(0, took / 2) if len(verdict.kills) < args.kills else None)
            if kill is not None:
                verdict.kills.append(kill)
                log.info("kill %d of %d: %s", len(verdict.kills), args.kills, kill)
        verdict = compare_runs(whole, folder, verdict)
    return verdict


def _same_layout(whole: Path) -> list[str]:
    """The flag by which a run that begins anew runs its teachers as ``whole`` did, measuring nothing.

    Two layouts may be as fast, and a run that measures for itself may choose the other one: it is another run then.
    """
    chosen = {layout.option for layout in SpeedRecord(whole / "train" / RECORD_FILE).layouts()}
    return ["--teacher-precision", chosen.pop()] if len(chosen) == 1 else []


def _once(folder: Path, run: int, training: Sequence[str], seconds: float | None) -> Kill | None:
    """Start or resume the run and kill it after some seconds, or let it end; None when it ended by itself."""
    if resumable_epoch(folder) is None and not _finished(folder):
        shutil.rmtree(folder, ignore_errors=True)  # no epoch was complete: a run begins anew
    resumed = folder.exists()
    process = _start(["--resume", str(folder)] if resumed else [*training, "--out", str(folder)])
    if seconds is None:
        _finish(process)
        return None
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.communicate()
        return Kill(run, round(seconds, 2), resumable_epoch(folder), _finished(folder))
    _finish(process)
    return None


def _start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "distill.yolo", *arguments]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def _finish(process: subprocess.Popen[str]) -> None:
    errors = process.communicate()[1]
    if process.returncode:
        said = (errors.strip() or "nothing").splitlines()[-1]
        raise DistillError(f"a training ended with code {process.returncode}, and said: {said}")


def _finished(folder: Path) -> bool:
    return (folder / "student" / "student.json").exists()


def _rows(folder: Path) -> list[dict[str, str]]:
    """results.csv without the seconds."""
    with (folder / "train" / "results.csv").open(encoding="utf-8", newline="") as file:
        return [{k: v for k, v in row.items() if k != "time"} for row in csv.DictReader(file)]


def _words(verdict: Verdict) -> str:
    lines = [f"run {kill.run}: killed after {kill.after_s:6.2f} s, {_left(kill)}" for kill in verdict.kills]
    results = "equal" if verdict.same_results else "DIFFERENT"
    weights = f"DIFFERENT by up to {verdict.largest_difference:.3g}: {', '.join(verdict.differing)}"
    lines.append(f"results.csv: {results}")
    lines.append(f"weights of {', '.join(_CHECKPOINTS)}: {weights if verdict.differing else 'equal bit for bit'}")
    return "\n".join(lines) + "\n"


def _left(kill: Kill) -> str:
    if kill.published:
        return "its student published"
    return "no epoch complete: begun anew" if kill.epochs is None else f"resumable after epoch {kill.epochs}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m distill.killed",
        allow_abbrev=False,  # the training's flags pass through
        description="Train once undisturbed, then the same killed with SIGKILL at random moments and resumed each "
        "time; compare weights and results.csv. Every other flag is one of distill.yolo.",
    )
    add: Any = parser.add_argument
    add("--kills", type=at_least(1), default=10, metavar="N", help="how often (%(default)s)")
    add("--kill-seed", dest="seed", type=at_least(0), default=0, metavar="N", help="of the moments (%(default)s)")
    add("--out", type=Path, required=True, metavar="DIR", help="new folder for all runs")
    add("--json", action="store_true", help="print the verdict as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
