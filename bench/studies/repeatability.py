"""`python -m bench.studies.repeatability`: how far runs of one bundle differ, and what the gate makes of it.

A bundle is measured again and again by `bench/run.py`, each time in a fresh process, in turns with the same bundle
slowed down on purpose (see `bench.studies.slowed`). The spread over the runs is written down, and how often
`bench.compare` calls a regression where there is none, and where there is one.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.compare import percent
from bench.compare_figures import CPU
from bench.compare_pair import Tolerances
from bench.compare_sides import load_side
from bench.errors import BenchError
from bench.rows import Row
from bench.studies.page_file import refuse_existing, write_page
from bench.studies.repeatability_gate import accuracy_gate, gate_rates
from bench.studies.repeatability_page import page
from deploy.cli import log, positive_whole_number, run_command

RUN = Path(__file__).resolve().parents[1] / "run.py"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(given)
    command = shlex.join(["python", "-m", "bench.studies.repeatability", *given])
    return run_command(lambda: _study(arguments, command), BenchError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.repeatability",
        description="Measure one bundle many times, in turns with itself slowed down, and judge the gate by it.",
    )
    add = parser.add_argument
    add("--bundle", type=Path, required=True, metavar="DIR", help="the bundle to measure")
    add("--work", type=Path, required=True, metavar="DIR",
        help="folder for the results; turns that are there already are not measured again")  # fmt: skip
    add("--runs", type=positive_whole_number, default=10, metavar="N", help="turns (default: 10)")
    add("--slowdown", type=percent, default=0.1, metavar="P%",
        help="work added to each image of the slowed runs, of what the first run took (default: 10%%)")  # fmt: skip
    add("--data", type=Path, metavar="DATA.YAML", help="passed on to bench/run.py")
    add("--images", type=positive_whole_number, metavar="N", help="passed on")
    add("--threads", type=positive_whole_number, metavar="N", help="passed on")
    add("--samples", type=positive_whole_number, default=100, metavar="N", help="passed on (default: 100)")
    add("--min-seconds", type=float, default=5.0, metavar="S", help="passed on (default: 5)")
    add("--out", type=Path, metavar="FILE", help="markdown file to write (default: print to stdout)")
    return parser


def _study(arguments: argparse.Namespace, command: str) -> int:
    refuse_existing(arguments.out)
    if arguments.runs < 3:
        raise BenchError(f"{arguments.runs} runs tell of no spread: give --runs 3 or more (10 is usual)")
    plain, slowed = _measured(arguments)
    rates = {name: gate_rates(plain, slowed, Tolerances(statistic=name)) for name in ("p50", CPU)}
    accuracy = accuracy_gate(plain, arguments.work / "injected")
    text = page(plain, slowed, rates, accuracy, arguments.slowdown, command)
    write_page(text, arguments.out)
    log(f"next: python -m bench.compare {arguments.work / 'plain'} {arguments.work / 'slowed'} --paired --gate")
    return 0


def _measured(arguments: argparse.Namespace) -> tuple[list[Row], list[Row]]:
    """The runs in the order they were made, plain and slowed."""
    given = ["--bundle", str(arguments.bundle.absolute()), "--samples", str(arguments.samples)]
    given += ["--min-seconds", str(arguments.min_seconds)]
    given += [] if arguments.data is None else ["--data", str(arguments.data.absolute())]
    for flag in ("images", "threads"):
        if getattr(arguments, flag) is not None:
            given += [f"--{flag}", str(getattr(arguments, flag))]
    for turn in range(arguments.runs):
        plain, slowed = (arguments.work / side / f"run-{turn:02d}" for side in ("plain", "slowed"))
        _run([str(RUN), *given], plain)
        first = load_side([arguments.work / "plain" / "run-00"])[0]
        # On a busy machine the median is mostly waiting, which work added would not lengthen by itself.
        spin_s = arguments.slowdown * min(first.p50_s, first.result.cpu_s_per_image or first.p50_s)
        _run(["-m", "bench.studies.slowed", repr(spin_s), *given], slowed)
    sides = [load_side([arguments.work / side]) for side in ("plain", "slowed")]
    if {len(side) for side in sides} != {arguments.runs}:
        raise BenchError(f"{arguments.work} holds results of other runs: choose another --work or remove it")
    return sides[0], sides[1]


def _run(command: Sequence[str], out: Path) -> None:
    if out.exists():
        return
    log(f"measuring {out.parent.name} {out.name}")
    done = subprocess.run(
        [sys.executable, *command, "--out", str(out.absolute())],
        cwd=RUN.parent.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise BenchError(f"bench/run.py ended with exit code {done.returncode}: {done.stderr.strip()[-300:]}")


if __name__ == "__main__":
    sys.exit(main())
