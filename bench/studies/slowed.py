"""Measure a bundle by `bench/run.py` with a known, real slowdown: every image takes so much processor time more.

    python -m bench.studies.slowed SECONDS ARGUMENTS-OF-BENCH-RUN...

The worker is started through this file, which makes `preprocess` of the runtime spin, and then runs the worker
unchanged: same process, same loop, same clock, nothing in the product knows of it.
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # started by its path, as the worker: import from the folder above
    from pathlib import Path as _Path

    sys.path[0] = str(_Path(__file__).resolve().parents[2])

import argparse
import runpy
import time
from collections.abc import Callable, Sequence
from typing import Any
from unittest.mock import patch

import deploy.runtime
from deploy.cli import number_within
from devices import LocalDevice


class SlowedDevice(LocalDevice):
    """This machine, with a worker that takes `seconds` longer per image."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds

    @property
    def python(self) -> tuple[str, ...]:
        """What a worker is started with: its own path follows."""
        return (*super().python, __file__, repr(self._seconds))


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code of `bench/run.py`."""
    import bench.run

    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.slowed",
        description="bench/run.py on this machine, slowed.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "seconds", type=_seconds, help="of processor time more per image; arguments of bench/run.py follow"
    )
    slowed, given = parser.parse_known_args(argv)
    with patch.object(bench.run, "open_device", lambda *_, **__: SlowedDevice(slowed.seconds)):
        return bench.run.main(given)


def _seconds(text: str) -> float:
    return number_within(0.0, 60.0, text)


def spinning(function: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """`function`, with `seconds` of processor time more: where others use the processor it takes longer than that."""

    def slowed(*arguments: Any, **named: Any) -> Any:
        until = time.thread_time() + seconds
        while time.thread_time() < until:
            pass
        return function(*arguments, **named)

    return slowed


def _work(seconds: float, worker: str, arguments: Sequence[str]) -> None:
    """Be the worker, slowed."""
    for name in ("Detector", "Classifier"):
        kind = getattr(deploy.runtime, name, None)
        if kind is not None:
            kind.preprocess = spinning(kind.preprocess, seconds)
    sys.argv = [worker, *arguments]
    runpy.run_path(worker, run_name="__main__")


if __name__ == "__main__":
    if __package__ in (None, ""):  # started by its path: seconds, the worker, its arguments
        _work(float(sys.argv[1]), sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main())
