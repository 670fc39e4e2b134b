"""What the training commands have in common: exit codes, the run folder, and what to type next."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, Protocol

from distill.console import log_to_stderr
from distill.errors import DistillError

__all__ = ["TrainingRun", "new_run_folder", "run_command", "run_training"]

_NEXT: Final = "python -m deploy.tflite --int8"


class TrainingRun(Protocol):
    """One invocation of a training command.

    Attributes:
        described: path of the finished student's ``student.json``; None before, and where another process reports it.
    """

    described: Path | None

    def __call__(self) -> None:
        """Start or resume the run, and set ``described``."""

    def how_to_continue(self) -> str:
        """The end of the line that begins with ``interrupted``."""


def run_training(run: TrainingRun, args: argparse.Namespace, summary: Callable[[dict[str, Any], Path], str]) -> int:
    """Run a training command: the result on stdout, what to type next on stderr.

    Args:
        run: what to do.
        args: its ``json``, ``out`` and ``resume``.
        summary: text for a person of ``student.json``'s content and folder.

    Returns:
        The exit code, as of `run_command`.
    """
    code = run_command(run, run.how_to_continue)
    if run.described is not None:
        text = run.described.read_text(encoding="utf-8")
        sys.stdout.write(text if args.json else summary(json.loads(text), run.described.parent))
        # What lies outside runs/ is not found as the newest student.
        folder = args.out or args.resume
        student = "" if folder is None else f" --student {shlex.quote(str(folder))}"
        sys.stderr.write(f"next: {_NEXT}{student}\n")
    return code


def run_command(work: Callable[[], None], after_ctrl_c: Callable[[], str]) -> int:
    """Do the work of a command with its log on stderr; what fails is one line there.

    Args:
        work: what to do; its `DistillError` and `OSError` are shown.
        after_ctrl_c: gives the end of the line that begins with ``interrupted``.

    Returns:
        The exit code: 0 done, 1 refused or failed, 130 interrupted.
    """
    try:
        with log_to_stderr():
            work()
    except (DistillError, OSError) as error:
        sys.stderr.write(f"error: {' '.join(str(error).split())}\n")
        return 1
    except KeyboardInterrupt:
        sys.stderr.write(f"interrupted{after_ctrl_c()}\n")
        return 130
    return 0


def new_run_folder(out: Path | None, stem: str) -> Path:
    """The run folder: ``--out`` as given, else the first free ``runs/distill/STEM``, ``STEM-2``, ...

    Raises:
        DistillError: ``--out`` exists.
    """
    if out is not None:
        if out.exists():
            raise DistillError(f"--out {out} exists and is never overwritten: give another folder, or --resume it")
        return out
    first = Path("runs") / "distill" / stem
    number, folder = 1, first
    while folder.exists():
        number += 1
        folder = first.with_name(f"{first.name}-{number}")
    return folder
