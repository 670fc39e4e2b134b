"""A comparison as text for people and as JSON for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from bench.columns import figure_text
from bench.compare_figures import REGRESSED, SHOWN, UNCLEAR, Change
from bench.compare_pair import Comparison


def text(comparison: Comparison) -> str:
    """One bundle: a line per figure, then what was refused or should be known."""
    head = f"{comparison.name}: {comparison.candidate_runs} against {_runs(comparison.baseline_runs)}"
    lines = [head, *_table(comparison.changes)]
    lines += [f"  refused: {reason}" for reason in comparison.refused]
    lines += [f"  {remark}" for remark in comparison.remarks]
    return "\n".join(lines)


def json_figures(comparison: Comparison) -> dict[str, Any]:
    """The same, unrounded."""
    return asdict(comparison)


def _table(changes: Sequence[Change]) -> list[str]:
    cells = [
        [
            f"  {change.figure}",
            f"{_number(change, change.baseline)} -> {_number(change, change.candidate)} {change.unit}",
            _change(change),
            _interval(change),
            _verdict(change),
        ]
        for change in changes
    ]
    widths = [max(len(row[index]) for row in cells) for index in range(4)] if cells else []
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, [*widths, 0], strict=True)).rstrip() for row in cells
    ]


def _number(change: Change, value: float) -> str:
    return f"{value:.2f}" if change.spread is None else figure_text(value)


def _change(change: Change) -> str:
    return f"{change.change:+z.2f} points" if change.spread is None else f"{100 * change.change:+z.1f} %"


def _interval(change: Change) -> str:
    if change.low is None or change.high is None:
        return ""
    if change.spread is None:
        return f"[{change.low:+z.2f}, {change.high:+z.2f}]"
    return f"[{100 * change.low:+z.1f}, {100 * change.high:+z.1f}]"


def _verdict(change: Change) -> str:
    if change.verdict == SHOWN or change.limit is None:
        return "not judged"
    limit = f"{change.limit:g} points" if change.spread is None else f"{100 * change.limit:g} %"
    if change.verdict == REGRESSED:
        return f"REGRESSED, tolerated {limit}"
    if change.verdict == UNCLEAR and change.detectable is not None:
        return f"unclear: only {100 * change.detectable:.1f} % or more would be called, tolerated {limit}"
    return f"{change.verdict} {limit}" if change.verdict == "within" else change.verdict


def _runs(count: int) -> str:
    return "1 run" if count == 1 else f"{count} runs"
