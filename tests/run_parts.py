"""Runs the parts of the test suite, a process each and several at a time: what ``make test`` calls.

Engines, exporters and trainers of several libraries do not share one process for long, and one process leaves cores
idle while it waits for a device or a download.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Final

_TESTS: Final = Path(__file__).resolve().parent
_NOTHING_SELECTED: Final = 5  # pytest's exit code where no test was collected or selected


@dataclass(frozen=True)
class Part:
    """A part of the suite that has ended.

    Attributes:
        name: its path.
        code: pytest's exit code.
        seconds: how long it took.
        output: what it printed.
    """

    name: str
    code: int
    seconds: float
    output: bytes


def parts() -> list[str]:
    """The parts from the top of the checkout, the longest texts first: what takes longest should not begin last."""
    folders = [p for p in _TESTS.iterdir() if p.is_dir() and p.name not in {"distill", "__pycache__"}]
    folders += [p for p in (_TESTS / "distill").iterdir() if p.is_dir() and p.name != "__pycache__"]
    files = [*_TESTS.glob("test_*.py"), *(_TESTS / "distill").glob("test_*.py")]
    found = sorted([*folders, *files], key=lambda p: (-_size(p), p))
    return [str(p.relative_to(_TESTS.parent)) for p in found]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the parts; return 0 passed, 1 failed or nothing ran, 130 interrupted."""
    args = _parser().parse_args(argv)
    if args.list:
        sys.stdout.write("\n".join(parts()) + "\n")
        return 0
    running: list[subprocess.Popen[bytes]] = []
    ended: list[Part] = []
    with ThreadPoolExecutor(args.jobs) as pool:
        names = args.part or parts()
        futures = [pool.submit(_run, name, args.pytest, running) for name in names]
        try:
            for future in as_completed(futures):
                ended.append(future.result())
                _show(ended[-1], len(ended), len(futures))
        except KeyboardInterrupt:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in running:
                _end(process)
            return 130
    ended.sort(key=lambda part: names.index(part.name))
    return _verdict(ended, selecting=bool(args.pytest))


def _run(name: str, arguments: Sequence[str], running: list[subprocess.Popen[bytes]]) -> Part:
    began = time.monotonic()
    # Threads of a part that wait for each other must not spin on the core that another part needs.
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "pytest", name, *arguments],
            cwd=_TESTS.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # Ctrl-C is passed on by this process, which knows what it started
        )
        running.append(process)
        sys.stdout.write(f"... {name}\n")
        sys.stdout.flush()
        code = process.wait()
        code = 128 - code if code < 0 else code  # died of a signal: as a shell writes it
        running.remove(process)
        output.seek(0)
        return Part(name, code, time.monotonic() - began, output.read())


def _show(part: Part, count: int, total: int) -> None:
    sys.stdout.write(f"=== {part.name}  ({count}/{total}, {part.seconds:.0f} s)\n")
    sys.stdout.flush()
    sys.stdout.buffer.write(part.output)
    sys.stdout.flush()


def _verdict(ended: Sequence[Part], *, selecting: bool) -> int:
    """The last lines, and the exit code; a part without a test is fine where arguments select, never in all."""
    empty = [part for part in ended if part.code == _NOTHING_SELECTED and selecting]
    failed = [part for part in ended if part.code and part not in empty]
    sys.stdout.write(f"=== parts that ran: {len(ended) - len(empty)}, parts where ARGS selects nothing: {len(empty)}\n")
    sys.stdout.flush()
    if failed:
        names = "".join(f"\n  {part.name} (exit code {part.code})" for part in failed)
        sys.stderr.write(f"error: failed parts:{names}\n")
        return 1
    if len(empty) == len(ended):
        sys.stderr.write("error: no part has a test that ARGS selects\n")
        return 1
    return 0


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a part as a terminal would, and kill what is left of it."""
    for number, patience in ((signal.SIGINT, 20.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(process.pid, number)
            process.wait(patience)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


def _size(path: Path) -> int:
    files = [path] if path.is_file() else path.rglob("*.py")
    return sum(file.stat().st_size for file in files)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python tests/run_parts.py", description=__doc__)
    parser.add_argument("part", nargs="*", help="folders or files of tests (all parts)")
    parser.add_argument(
        "--jobs",
        type=int,
        default=min(2, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1),
        metavar="N",
        help="parts at a time (2, or 1 on one core)",
    )
    parser.add_argument("--list", action="store_true", help="print the parts and end")
    parser.add_argument("--pytest", nargs=argparse.REMAINDER, default=[], metavar="...", help="the rest is pytest's")
    return parser


if __name__ == "__main__":
    sys.exit(main())
