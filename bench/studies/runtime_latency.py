"""From a decoded image to boxes, contenders interleaved: what is measured, and what follows from the samples."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import BenchError
from bench.studies.runtime_process import WorkerProcess
from deploy.cli import log

OURS, THEIRS = "ours", "theirs"

# Least throughput against ultralytics' at the same settings; anything else must not be slower.
SPEEDUP_TARGETS: Mapping[tuple[int, str, str], float] = {
    (320, "openvino", "int8"): 1.3,
    (320, "tflite", "int8"): 1.5,
    (320, "onnx", "int8"): 3.0,
}
# Most of the total over the engine's own call, INT8.
OVERHEAD_TARGETS: Mapping[int, float] = {320: 1.25, 640: 1.12}


@dataclass(frozen=True)
class Entrant:
    """One contender of a cell.

    Attributes:
        name: what the table calls it.
        side: `OURS` or `THEIRS`.
        request: what opens it; see `runtime_contenders.open_contender`.
        as_it_comes: nothing was set that a user would not set.
    """

    name: str
    side: str
    request: Mapping[str, Any]
    as_it_comes: bool = False


@dataclass(frozen=True)
class Timing:
    """What one contender took.

    Attributes:
        entrant: who.
        rounds_s: seconds per image, one tuple per round.
        stages_s: (preprocess, inference, postprocess) seconds per image of a round of its own.
        facts: what the contender says of itself.
        threads_of_process: threads its process had.
        overheads: total over the engine's own call per image, one tuple per round; of bundles alone.
        calls_s: seconds of the engine's own call, of all rounds.
    """

    entrant: Entrant
    rounds_s: tuple[tuple[float, ...], ...]
    stages_s: tuple[tuple[float, float, float], ...] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    threads_of_process: int = 0
    overheads: tuple[tuple[float, ...], ...] = ()
    calls_s: tuple[float, ...] = ()

    def percentile_s(self, percent: float) -> float:
        """Percentile of the latency over all rounds."""
        return float(np.percentile(np.concatenate(self.rounds_s), percent))

    @property
    def images_per_s(self) -> float:
        """Images per second: one over the mean latency of all rounds."""
        return 1.0 / float(np.mean(np.concatenate(self.rounds_s)))

    @property
    def round_medians_s(self) -> tuple[float, ...]:
        """The median latency of each round."""
        return tuple(float(np.median(one)) for one in self.rounds_s)

    @property
    def stage_medians_s(self) -> tuple[float, ...]:
        """Median seconds of preprocessing, inference, postprocessing."""
        return tuple(float(median) for median in np.median(np.array(self.stages_s), axis=0)) if self.stages_s else ()


@dataclass(frozen=True)
class Cell:
    """One runtime at one precision and size.

    Attributes:
        imgsz: side of the input in pixels.
        engine: "onnx", "openvino" or "tflite".
        precision: "fp32" or "int8".
        timings: of every contender that ran.
        failures: why a contender did not run, by name.
    """

    imgsz: int
    engine: str
    precision: str
    timings: tuple[Timing, ...]
    failures: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Spread:
    """Median and range of a figure over the rounds."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        return Spread(float(np.median(values)), min(values), max(values))


def speedup(ours: Timing, theirs: Timing) -> Spread:
    """Our throughput over theirs, paired round by round: the two rounds of a pair ran one after the other."""
    pairs = zip(ours.rounds_s, theirs.rounds_s, strict=True)
    return Spread.of([sum(other) / len(other) * len(own) / sum(own) for own, other in pairs])


def overhead(timing: Timing) -> Spread | None:
    """Total over the engine's own call: of each round the median over its images; None where not measured."""
    return Spread.of([float(np.median(one)) for one in timing.overheads]) if timing.overheads else None


def speedup_target(cell: Cell) -> float:
    """The least throughput ratio asked for."""
    return SPEEDUP_TARGETS.get((cell.imgsz, cell.engine, cell.precision), 1.0)


def floor_to(value: float, digits: int) -> str:
    """A figure that should be high, never rounded up."""
    return f"{math.floor(value * 10**digits + 1e-9) / 10**digits:.{digits}f}"


def ceil_to(value: float, digits: int) -> str:
    """A figure that should be low, never rounded down."""
    return f"{math.ceil(value * 10**digits - 1e-9) / 10**digits:.{digits}f}"


def round_indices(number: int, per_round: int, images: int) -> list[int]:
    """Which images a round takes: each round goes on where the one before it ended."""
    return [(number * per_round + index) % images for index in range(per_round)]


# Contenders, their processes by name, number of images, rounds, images per round.
Sampler = Callable[[Sequence[Entrant], Mapping[str, WorkerProcess], int, int, int], list[Timing]]


def measure_cell(
    cell: tuple[int, str, str],
    entrants: Sequence[Entrant],
    images: Sequence[str],
    rounds: int,
    per_round: int,
    log_file: Path,
    sample: Sampler | None = None,
) -> Cell:
    """Measure all contenders of a cell in turn, round by round; one that cannot run is left out with its reason.

    Args:
        cell: side of the input in pixels, engine, precision.
        entrants: who competes.
        images: paths of the images.
        rounds: how many, at least 1.
        per_round: images of a round, at least 1.
        log_file: where the workers' stderr goes.
        sample: takes the samples of those that opened; default the whole way from image to boxes, and its parts.
    """
    imgsz, engine, precision = cell
    failures: dict[str, str] = {}
    with ExitStack() as stack:
        workers: dict[str, WorkerProcess] = {}
        for entrant in entrants:
            log(f"{engine} {precision} {imgsz} px: opening {entrant.name}")
            try:
                worker = WorkerProcess(entrant.name, {**entrant.request, "images": list(images)}, log_file)
                stack.enter_context(worker)
                worker.ask({"do": "time", "images": list(range(len(images)))})  # warm-up; decodes the images too
            except BenchError as error:
                failures[entrant.name] = str(error).removeprefix(f"{entrant.name}: ")
                continue
            workers[entrant.name] = worker
        running = [entrant for entrant in entrants if entrant.name in workers]
        try:
            timings = (sample or _rounds)(running, workers, len(images), rounds, per_round)
        except BenchError as error:  # one that ran at first and then failed spoils the comparison of all
            timings = []
            failures["the comparison"] = str(error)
    return Cell(imgsz, engine, precision, tuple(timings), failures)


def _rounds(
    entrants: Sequence[Entrant], workers: Mapping[str, WorkerProcess], images: int, rounds: int, per_round: int
) -> list[Timing]:
    samples: dict[str, list[dict[str, Any]]] = {entrant.name: [] for entrant in entrants}
    engine: dict[str, list[dict[str, Any]]] = {entrant.name: [] for entrant in entrants}
    for number in range(rounds):
        indices = round_indices(number, per_round, images)
        # Whoever goes first in one round goes last in the next.
        for entrant in entrants if number % 2 == 0 else reversed(entrants):
            samples[entrant.name].append(workers[entrant.name].ask({"do": "time", "images": indices}))
        for entrant in entrants:
            if entrant.side == OURS and not entrant.request.get("options"):
                engine[entrant.name].append(workers[entrant.name].ask({"do": "engine", "images": indices}))
    first = round_indices(0, per_round, images)
    timings = []
    for entrant in entrants:
        stages = workers[entrant.name].ask({"do": "stages", "images": first})["stages_s"]
        both = engine[entrant.name]
        timings.append(
            Timing(
                entrant,
                rounds_s=tuple(tuple(one["totals_s"]) for one in samples[entrant.name]),
                stages_s=tuple(tuple(one) for one in stages),
                facts=workers[entrant.name].facts,
                threads_of_process=int(samples[entrant.name][-1]["threads"]),
                overheads=tuple(
                    tuple(total / call for total, call in zip(one["totals_s"], one["calls_s"], strict=True))
                    for one in both
                ),
                calls_s=tuple(call for one in both for call in one["calls_s"]),
            )
        )
    return timings
