"""Trainings that do not depend on each other, each in a process of its own."""

from __future__ import annotations

import ctypes
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from distill.errors import DistillError
from distill.recipe import RECIPE_FILE

__all__ = ["Job", "Runner", "job_command", "run_job", "run_one_by_one"]

log = logging.getLogger(__name__)

_LIBC: Final = ctypes.CDLL(None)
_PR_SET_PDEATHSIG: Final = 1  # of linux/prctl.h


@dataclass(frozen=True)
class Job:
    """One training of a study.

    Attributes:
        name: for the log.
        module: run with ``python -m``; it takes ``--out``, and ``--resume`` where ``resumable``.
        arguments: the rest of its command line.
        out: its run folder; ``out/student/student.json`` says that it is finished.
        resumable: whether a run that broke off goes on; one that cannot starts anew.
    """

    name: str
    module: str
    arguments: tuple[str, ...]
    out: Path
    resumable: bool = True

    def finished(self) -> dict[str, Any] | None:
        """What ``student.json`` says; None as long as the training is not finished."""
        described = self.out / "student" / "student.json"
        if not described.is_file():
            return None
        content: dict[str, Any] = json.loads(described.read_text("utf-8"))
        return content


#: Runs jobs in any order and calls back with each that is finished.
Runner = Callable[[Iterable[Job], Callable[[Job], None]], None]


def job_command(job: Job) -> list[str]:
    """The command that starts the job, or goes on with it where its folder holds a run that broke off."""
    state, stages = job.out / "train" / "weights" / "state.pt", job.out / "stages"  # a chain has both in time
    begun = job.resumable and (state.is_file() or stages.is_dir())
    rest = ["--resume", str(job.out)] if begun else [*job.arguments, "--out", str(job.out)]
    return [sys.executable, "-m", job.module, *rest]


def run_one_by_one(jobs: Iterable[Job], done: Callable[[Job], None]) -> None:
    """Run jobs here, in order, with the output of each in ``OUT.log`` beside its folder.

    Raises:
        DistillError: when one fails, with the last line that it printed.
    """
    for job in jobs:
        log.info("%s ...", job.name)
        run_job(job)
        done(job)


def run_job(job: Job) -> None:
    """Run one job to its end in this machine's next free process.

    Raises:
        DistillError: when it fails.
    """
    job.out.parent.mkdir(parents=True, exist_ok=True)
    command = job_command(job)
    if "--resume" not in command and (job.out / RECIPE_FILE).is_file() and job.finished() is None:
        shutil.rmtree(job.out)  # killed before anything could be resumed: a run begins in a folder of its own
    path = job.out.with_name(f"{job.out.name}.log")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in (_root(), os.getenv("PYTHONPATH")) if p)}
    with path.open("ab") as output:
        code = subprocess.run(
            command,
            stdout=output,
            stderr=output,
            env=environment,
            check=False,
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        ).returncode
    if code:
        lines = path.read_text("utf-8", errors="replace").strip().splitlines() or ["nothing printed"]
        raise DistillError(f"{job.name} failed with exit code {code}: {lines[-1].strip()[:300]}; its log is {path}")


def _end_with_parent() -> None:
    """Have the kernel end this process when its parent is killed: resumed elsewhere, two would write in one folder."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _root() -> str:
    """The folder that holds this package: a checkout need not be installed for its jobs to find it."""
    return str(Path(__file__).resolve().parents[1])
