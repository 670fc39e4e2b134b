"""The targets of the runtime study, each judged by its unrounded figure; nothing is rounded in our favour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.studies.runtime_equality import BOX_TARGET_PX, MAP_TARGET_POINTS, SCORE_TARGET, Equality
from bench.studies.runtime_latency import (
    OURS,
    OVERHEAD_TARGETS,
    THEIRS,
    Cell,
    Timing,
    ceil_to,
    floor_to,
    overhead,
    speedup,
    speedup_target,
)
from bench.studies.runtime_memory import IMPORT_TARGET_S, MEMORY_TARGET_IMGSZ, MEMORY_TARGETS, Memory, median_s
from bench.studies.runtime_models import ENGINE_NAMES


@dataclass(frozen=True)
class Findings:
    """What it found; a part that was not run is empty."""

    cells: tuple[Cell, ...] = ()
    equalities: tuple[Equality, ...] = ()
    memories: tuple[Memory, ...] = ()
    imports_s: tuple[float, ...] = ()


@dataclass(frozen=True)
class Verdict:
    """One target and what was met.

    Attributes:
        what: what is asked of what.
        target: the figure asked for.
        met: the figure met, with its spread.
        holds: whether it is reached.
        narrow: whether the spread over the rounds reaches to the other side of the target.
    """

    what: str
    target: str
    met: str
    holds: bool
    narrow: bool = False

    @property
    def word(self) -> str:
        """The verdict in words."""
        return ("met" if self.holds else "**missed**") + (", but not in every round alike" if self.narrow else "")


def verdicts(findings: Findings) -> list[Verdict]:
    """Every target that was measured."""
    return [
        *(one for cell in findings.cells for one in _speed_verdicts(cell)),
        *(one for cell in findings.cells for one in _overhead_verdicts(cell)),
        *(one for equality in findings.equalities for one in _equality_verdicts(equality)),
        *(one for memory in findings.memories for one in _memory_verdicts(memory)),
        *_import_verdicts(findings.imports_s),
    ]


def pairs(cell: Cell) -> Iterator[tuple[Timing, Timing]]:
    """Which of our rows is held against which of theirs.

    Both sides as they come; and every row of theirs against the one of ours that executed at the same precision,
    where the engine tells it. The same twice, once by default and once by option, is one comparison.
    """
    different: dict[tuple[str, object], Timing] = {}
    for timing in cell.timings:
        if timing.entrant.side == OURS:
            different.setdefault((executed(timing), timing.entrant.request.get("resize")), timing)
    ours = list(different.values())
    for other in cell.timings:
        if other.entrant.side == THEIRS:
            as_they_come = (own for own in ours if own.entrant.as_it_comes and other.entrant.as_it_comes)
            alike = (own for own in ours if executed(own) == executed(other))
            yield from ((own, other) for own in {id(own): own for own in [*as_they_come, *alike]}.values())


def executed(timing: Timing) -> str:
    """The precision the engine says it executes floats at; "" where it does not tell."""
    return str(timing.facts.get("precision_hint_executed", ""))


def cell_name(cell: Cell) -> str:
    """E.g. "320 px OpenVINO INT8"."""
    return f"{cell.imgsz} px {ENGINE_NAMES[cell.engine]} {cell.precision.upper()}"


def _speed_verdicts(cell: Cell) -> Iterator[Verdict]:
    target = speedup_target(cell)
    for own, other in pairs(cell):
        ratio = speedup(own, other)
        met = f"{floor_to(ratio.median, 2)} [{floor_to(ratio.low, 2)}, {floor_to(ratio.high, 2)}]"
        what = f"{cell_name(cell)}: throughput of {_described(own)} over {_described(other)}"
        yield Verdict(what, f"≥ {target:g}", met, ratio.median >= target, ratio.low < target <= ratio.high)
    for name, reason in cell.failures.items():
        yield Verdict(f"{cell_name(cell)}: {name} did not run ({reason})", f"≥ {target:g}", "none", False)


def _described(timing: Timing) -> str:
    """Its name, and what its engine says of precision and threads beyond that."""
    threads = timing.facts.get("threads")
    told = [executed(timing), f"{threads} threads" if threads else ""]
    told = [one for one in told if one and one not in timing.entrant.name]
    return f"{timing.entrant.name} ({', '.join(told)})" if told else timing.entrant.name


def _overhead_verdicts(cell: Cell) -> Iterator[Verdict]:
    if cell.precision != "int8" or cell.imgsz not in OVERHEAD_TARGETS:
        return
    target = OVERHEAD_TARGETS[cell.imgsz]
    for timing in cell.timings:
        found = overhead(timing)
        if found is None:
            continue
        met = f"{ceil_to(found.median, 3)} [{ceil_to(found.low, 3)}, {ceil_to(found.high, 3)}]"
        what = f"{cell_name(cell)}: total of {timing.entrant.name} over the engine's call"
        yield Verdict(what, f"≤ {target:g}", met, found.median <= target, found.low <= target < found.high)


def _equality_verdicts(one: Equality) -> Iterator[Verdict]:
    name = f"{one.dataset} {one.imgsz} px {ENGINE_NAMES[one.engine]} FP32"
    if one.failure:
        yield Verdict(f"{name}: not compared ({one.failure})", "the same detections", "none", False)
        return
    different = len(one.different)
    yield Verdict(f"{name}: detections that one side alone has", "0", str(different), different == 0)
    yield Verdict(
        f"{name}: box difference, px", f"≤ {BOX_TARGET_PX:g}", ceil_to(one.box_px, 4), one.box_px <= BOX_TARGET_PX
    )
    yield Verdict(f"{name}: score difference", f"≤ {SCORE_TARGET:g}", ceil_to(one.score, 6), one.score <= SCORE_TARGET)
    points = abs(one.map_points)
    yield Verdict(
        f"{name}: mAP50-95 difference, points",
        f"≤ {MAP_TARGET_POINTS:g}",
        ceil_to(points, 3),
        points <= MAP_TARGET_POINTS,
    )


def _memory_verdicts(memory: Memory) -> Iterator[Verdict]:
    if not memory.name.startswith("bundle") or memory.imgsz != MEMORY_TARGET_IMGSZ:
        return
    target = MEMORY_TARGETS[memory.engine]
    name = f"{memory.imgsz} px {ENGINE_NAMES[memory.engine]} INT8: peak memory of {memory.name}, MB"
    met = memory.failure or ceil_to(memory.peak_rss_bytes / 1e6, 1)
    yield Verdict(name, f"≤ {target / 1e6:g}", met, not memory.failure and memory.peak_rss_bytes <= target)


def _import_verdicts(imports_s: Sequence[float]) -> Iterator[Verdict]:
    if imports_s:
        middle = median_s(imports_s)
        met = f"{ceil_to(middle, 3)} [{ceil_to(min(imports_s), 3)}, {ceil_to(max(imports_s), 3)}]"
        narrow = min(imports_s) < IMPORT_TARGET_S <= max(imports_s)
        yield Verdict("`import deploy.runtime`, s", f"< {IMPORT_TARGET_S:g}", met, middle < IMPORT_TARGET_S, narrow)
