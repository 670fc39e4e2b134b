"""The latency of several bundles side by side: each in a process of its own, in turns, so that a slow spell of the
machine meets them all."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from deploy.errors import EngineError
from deploy.runtime.latency import LatencyHistogram

ROUNDS = 20
CALLS_PER_ROUND = 6
_WARM_UP_CALLS = 4
_LEADING_CALLS = 1  # of every turn: the others' turns have emptied the caches
_ROOT = Path(__file__).resolve().parent.parent.parent


@dataclass(frozen=True)
class Timing:
    """How fast one bundle is beside the others.

    Attributes:
        p50_s: median of all inferences in seconds.
        p99_s: 99th percentile in seconds.
        ratio: its time over the reference's: median over the rounds of the ratio of both medians of a round.
        ratio_spread: half the distance of that ratio's quartiles.
        samples: how many inferences.
    """

    p50_s: float
    p99_s: float
    ratio: float
    ratio_spread: float
    samples: int


def time_bundles(
    bundles: Mapping[str, Path],
    reference: str,
    threads: int,
    rounds: int = ROUNDS,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Timing]:
    """Time bundles in turns.

    Args:
        bundles: name to folder.
        reference: name of the one that `Timing.ratio` is relative to.
        threads: of one inference.
        rounds: turns of each bundle.
        advance: called after each round.

    Raises:
        EngineError: a bundle cannot be run.
    """
    with ExitStack() as opened:
        contenders = {name: _Contender(path, threads, opened) for name, path in bundles.items()}
        for one in contenders.values():
            one.run(_WARM_UP_CALLS)
        turns: dict[str, list[list[float]]] = {name: [] for name in bundles}
        order = list(bundles)
        for turn in range(rounds):
            # Forwards and backwards in turns, so that nobody always runs after the same one.
            for name in order if turn % 2 == 0 else reversed(order):
                turns[name].append(contenders[name].run(_LEADING_CALLS + CALLS_PER_ROUND)[_LEADING_CALLS:])
            advance()
    base = np.array([np.median(turn) for turn in turns[reference]])
    return {name: _timing(samples, base) for name, samples in turns.items()}


def _timing(turns: list[list[float]], base: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Timing:
    histogram = LatencyHistogram()
    for duration_s in (one for turn in turns for one in turn):
        histogram.add(duration_s)
    ratios = np.array([np.median(turn) for turn in turns]) / base
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return Timing(
        histogram.percentile_s(50), histogram.percentile_s(99), float(middle), float(high - low) / 2, len(histogram)
    )


class _Contender:
    """A bundle in a process of its own."""

    def __init__(self, bundle: Path, threads: int, opened: ExitStack) -> None:
        self._bundle = bundle
        self._errors: IO[bytes] = opened.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        path = os.pathsep.join([str(_ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        self._process = subprocess.Popen(
            [sys.executable, "-m", "deploy.search.worker", str(bundle), str(threads)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        opened.callback(self._end)

    def run(self, calls: int) -> list[float]:
        """Seconds of each of `calls` inferences."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(f"{calls}\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._errors.seek(0)
            said = self._errors.read().decode(errors="replace").strip().splitlines() or ["nothing on stderr"]
            raise EngineError(f"{self._bundle} cannot be timed: {said[-1]}")
        return [float(one) for one in json.loads(line)]

    def _end(self) -> None:
        for stream in (self._process.stdin, self._process.stdout):
            assert stream is not None
            stream.close()
        self._process.wait()
