"""One bundle compared on two sides: refused, or every figure with its verdict."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.compare_accuracy import accuracy_change
from bench.compare_figures import (
    REGRESSED,
    Change,
    assumed_spread,
    latency_changes,
    memory_change,
    run_figure,
    stage_changes,
)
from bench.compare_likeness import differences, held_back, remarks
from bench.compare_sides import Pair
from bench.rank_tests import mann_whitney
from bench.rows import Row


@dataclass(frozen=True)
class Tolerances:
    """What may change without being a regression, and how it is judged.

    Attributes:
        latency: relative, e.g. 0.05.
        memory: relative.
        points: of mAP50-95 or top-1 on 0..100.
        statistic: of the time per image that is judged, of `compare_figures.JUDGED`.
        run_spread: least standard deviation of that from run to run to assume, relative.
        paired: take runs in pairs by their order.
        allowed: fields that may differ, see `compare_likeness.field_names`.
    """

    latency: float = 0.05
    memory: float = 0.05
    points: float = 0.3
    statistic: str = "p50"
    run_spread: float = 0.02
    paired: bool = False
    allowed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    """What was found for one bundle.

    Attributes:
        name: of the bundle.
        baseline_runs: how many results were used.
        candidate_runs: how many results were used.
        changes: one per figure; empty where the comparison was refused.
        refused: why it could not be made, one line per reason.
        remarks: what a reader should know.
        rank_test_p: of a Mann-Whitney test of the judged statistic over the runs; None where a side has one run.
    """

    name: str
    baseline_runs: int
    candidate_runs: int
    changes: tuple[Change, ...] = ()
    refused: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()
    rank_test_p: float | None = None

    @property
    def regressed(self) -> bool:
        """Whether any figure did."""
        return any(change.verdict == REGRESSED for change in self.changes)


def compare(pair: Pair, tolerances: Tolerances) -> Comparison:
    """Compare the two sides of a pair.

    Runs that the machine held back (heat, power) are left out, and if a side has no other the comparison is refused;
    so it is where any condition of `compare_likeness.FIELDS` differs.

    Raises:
        BenchError: the detections beside a result cannot be read or are not its own.
    """
    baseline, left_out = _unhindered(pair.baseline, "baseline")
    candidate, also_left_out = _unhindered(pair.candidate, "candidate")
    notes = [*left_out, *also_left_out]
    found = Comparison(pair.name, len(baseline), len(candidate))
    if not baseline or not candidate:
        return replace(found, refused=tuple(notes))
    first, second = ([row.result for row in rows] for rows in (baseline, candidate))
    unlike = [f"unlike runs, {difference}" for difference in differences(first, second, tolerances.allowed)]
    if tolerances.paired and len(baseline) != len(candidate):
        unlike.append(f"runs cannot be paired, {len(baseline)} against {len(candidate)}: give as many on both sides")
    if unlike:
        return replace(found, refused=(*unlike, *notes))
    statistic, paired = tolerances.statistic, tolerances.paired
    assumed = assumed_spread(baseline, candidate, tolerances.run_spread, paired, statistic)
    judged = latency_changes(baseline, candidate, statistic, tolerances.latency, assumed, paired)
    memory = memory_change(baseline, candidate, tolerances.memory, paired)
    accuracy = accuracy_change(baseline, candidate, tolerances.points)
    changes = [judged[0], memory, *([accuracy] if accuracy else []), *judged[1:]]
    changes += stage_changes(baseline, candidate, assumed, paired)
    notes += [_spread_note(len(baseline) + len(candidate), judged[0], assumed)]
    notes += remarks(first, second, tolerances.allowed)
    rank_test_p = _rank_test(baseline, candidate, statistic)
    return replace(found, changes=tuple(changes), remarks=tuple(notes), rank_test_p=rank_test_p)


def _unhindered(rows: Sequence[Row], side: str) -> tuple[list[Row], list[str]]:
    kept, notes = [], []
    for row in rows:
        causes = held_back(row.result)
        if causes:
            notes.append(
                f"{side} {row.folder.name} was held back while it was measured ({', '.join(causes)}): left out"
            )
        else:
            kept.append(row)
    return kept, notes


def _spread_note(runs: int, change: Change, assumed: float) -> str:
    assert change.spread is not None
    assert change.detectable is not None
    source = f"{runs} runs, assumed {100 * assumed:.1f} %" if runs > 2 else "assumed, one run a side"
    detectable = f"a slowdown of {100 * change.detectable:.1f} % would have been called"
    return f"run-to-run spread of {change.figure} {100 * change.spread:.1f} % ({source}); {detectable}"


def _rank_test(baseline: Sequence[Row], candidate: Sequence[Row], statistic: str) -> float | None:
    if min(len(baseline), len(candidate)) < 2:
        return None
    first, second = ([run_figure(row, statistic) for row in rows] for rows in (baseline, candidate))
    return mann_whitney(first, second).p_value
