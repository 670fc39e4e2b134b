"""What the gate calls over real runs: false alarms among equals, and how often a known slowdown or loss is caught."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from bench.accuracy import DetectionsLike, ImageDetections, score
from bench.compare_figures import REGRESSED, UNCLEAR, assumed_spread, log_ratio, run_figure, run_variance, verdict
from bench.compare_pair import Comparison, Tolerances, compare
from bench.compare_sides import Pair, load_side
from bench.detections_file import DetectionsFile, read_detections, write_detections
from bench.records import DETECTIONS_NAME, RESULT_NAME
from bench.rows import Row

_DRAWS = 500
_LOST_POINTS = 0.5


@dataclass(frozen=True)
class Rate:
    """How often the gate came to which verdict.

    Attributes:
        what: which comparisons.
        runs: runs on each side, e.g. "5 against 5".
        comparisons: how many.
        regressed: how many were called a regression.
        unclear: how many of the others could have hidden one.
    """

    what: str
    runs: str
    comparisons: int
    regressed: int
    unclear: int


@dataclass(frozen=True)
class _Figures:
    """Judged statistic, its variance within the run, of each run."""

    values: tuple[float, ...]
    variances: tuple[float, ...]
    rows: tuple[Row, ...]


def gate_rates(plain: Sequence[Row], slowed: Sequence[Row], tolerances: Tolerances | None = None) -> list[Rate]:
    """Verdicts of the gate over comparisons of these runs.

    Args:
        plain: runs of one bundle, in order.
        slowed: as many runs slowed on purpose, taken in turns with them.
        tolerances: of the gate; None for its defaults.
    """
    judged = tolerances or Tolerances()
    here, there = (_figures(rows, judged) for rows in (plain, slowed))
    scaled = _Figures(tuple(1.1 * value for value in here.values), here.variances, here.rows)
    count = len(plain)
    rates = [
        _rate("equal: each against all others", [_others(index, count) for index in range(count)], here, here, judged)
    ]
    for size in sorted({1, 3, 5} & set(range(1, count // 2 + 1))):
        splits = _disjoint(count, size)
        rates.append(_rate("equal", splits, here, here, judged))
        rates.append(_rate("figures times 1.1", splits, here, scaled, judged))
        rates.append(_rate("slowed on purpose", _independent(count, size), here, there, judged))
        turns = [(tuple(range(first, first + size)),) * 2 for first in range(count - size + 1)]
        rates.append(_rate("slowed on purpose, --paired", turns, here, there, replace(judged, paired=True)))
    whole = [(tuple(range(count)),) * 2]
    rates.append(_rate("slowed on purpose", whole, here, there, judged))
    rates.append(_rate("slowed on purpose, --paired", whole, here, there, replace(judged, paired=True)))
    return rates


def accuracy_gate(plain: Sequence[Row], work: Path) -> tuple[bool, Comparison] | None:
    """Whether all runs found the same, and the comparison of the first with itself robbed of half a point of mAP.

    Detections that found an object are taken away, from one image after another, until `_LOST_POINTS` are lost.

    Args:
        plain: runs of one bundle.
        work: folder for the robbed result.

    Returns:
        None where the runs left no detections.
    """
    files = [row.folder / DETECTIONS_NAME for row in plain]
    if not all(file.is_file() for file in files):
        return None
    found = [read_detections(file) for file in files]
    equal = all(_same(found[0], other) for other in found[1:])
    robbed = _robbed(plain[0], found[0], work)
    return equal, compare(Pair(plain[0].bundle, (plain[0],), (robbed,)), Tolerances())


def _figures(rows: Sequence[Row], judged: Tolerances) -> _Figures:
    return _Figures(
        tuple(run_figure(row, judged.statistic) for row in rows),
        tuple(run_variance(row, judged.statistic) for row in rows),
        tuple(rows),
    )


_Split = tuple[tuple[int, ...], tuple[int, ...]]


def _others(index: int, count: int) -> _Split:
    return tuple(other for other in range(count) if other != index), (index,)


def _disjoint(count: int, size: int) -> list[_Split]:
    """Two sides of `size` runs each with none in common: all of them for single runs, else draws."""
    if size == 1:
        return [((a,), (b,)) for a in range(count) for b in range(count) if a != b]
    random = np.random.default_rng(size)
    drawn = (random.permutation(count).tolist() for _ in range(_DRAWS))
    return [(tuple(order[:size]), tuple(order[size : 2 * size])) for order in drawn]


def _independent(count: int, size: int) -> list[_Split]:
    """Two sides of `size` runs each, of two series."""
    if size == 1:
        return [((a,), (b,)) for a in range(count) for b in range(count)]
    random = np.random.default_rng(size)
    return [
        (tuple(random.permutation(count)[:size].tolist()), tuple(random.permutation(count)[:size].tolist()))
        for _ in range(_DRAWS)
    ]


def _rate(what: str, splits: Sequence[_Split], first: _Figures, second: _Figures, judged: Tolerances) -> Rate:
    met = [_verdict(split, first, second, judged) for split in splits]
    sizes = {(len(a), len(b)) for a, b in splits}
    runs = " / ".join(f"{b} against {a}" for a, b in sorted(sizes))
    return Rate(what, runs, len(met), met.count(REGRESSED), met.count(UNCLEAR))


def _verdict(split: _Split, first: _Figures, second: _Figures, judged: Tolerances) -> str:
    a, b = split
    within = float(np.mean([*(first.variances[i] for i in a), *(second.variances[i] for i in b)]))
    sides = [first.rows[i] for i in a], [second.rows[i] for i in b]
    assumed = assumed_spread(*sides, judged.run_spread, judged.paired, judged.statistic)
    values = [first.values[i] for i in a], [second.values[i] for i in b]
    ratio = log_ratio(*values, within, assumed, judged.paired)
    low, high = math.expm1(ratio.log - ratio.margin), math.expm1(ratio.log + ratio.margin)
    return verdict(low, high, judged.latency)


def _same(first: DetectionsFile, second: DetectionsFile) -> bool:
    return all(
        np.array_equal(a.boxes_xyxy, b.boxes_xyxy) and np.array_equal(a.scores, b.scores)
        for a, b in zip(first.detections, second.detections, strict=True)
    )


def _robbed(row: Row, file: DetectionsFile, work: Path) -> Row:
    """A result like `row`'s whose detections lack some, so that its mAP is `_LOST_POINTS` lower or a little more."""
    assert file.truths is not None
    classes = len(file.class_names)
    whole = score(file.detections, file.truths, classes).map50_95
    kept: list[DetectionsLike] = list(file.detections)
    lost = 0.0
    for index in np.random.default_rng(0).permutation(len(kept)):
        best = np.argsort(-file.detections[index].scores)[1:]
        one = file.detections[index]
        kept[index] = ImageDetections(one.boxes_xyxy[best], one.scores[best], one.class_ids[best])
        lost = 100 * (whole - score(kept, file.truths, classes).map50_95)
        if lost >= _LOST_POINTS:
            break
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    write_detections(work / DETECTIONS_NAME, file.images, kept, file.truths, file.class_names)
    fields = json.loads(row.result.to_json())
    fields["accuracy"] = {**asdict(row.result.accuracy), "map50_95": whole - lost / 100}  # type: ignore[arg-type]
    (work / RESULT_NAME).write_text(json.dumps(fields), encoding="utf-8")
    return load_side([work])[0]
