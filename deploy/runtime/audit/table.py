"""An audit as text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from deploy.runtime.audit.operators import EXECUTED_AS


def audit_table(record: Mapping[str, Any]) -> str:
    """What `audit_record` gives, as a heading, a table of the kinds of operators, notes, and the verdict last."""
    kinds: Sequence[Mapping[str, Any]] = record["kinds"]
    columns = [name for name in EXECUTED_AS if any(name in one["precisions"] for one in kinds)]
    timed = sum(one["seconds"] or 0.0 for one in kinds)
    multiplied = sum(one["macs"] for one in kinds)
    rows = [["operator", "count", *columns, "accelerated", "multiplications", "time"]]
    for one in sorted(kinds, key=lambda kind: (-kind["macs"], -(kind["seconds"] or 0.0), -kind["count"])):
        counts = [str(one["precisions"].get(name, "")) for name in columns]
        fast = "all" if one["accelerated"] == one["count"] else str(one["accelerated"])
        rows.append(
            [
                one["kind"],
                str(one["count"]),
                *counts,
                fast,
                _percent(one["macs"], multiplied),
                _percent(one["seconds"] or 0.0, timed),
            ]
        )
    threads = f"{record['threads']} thread{'' if record['threads'] == 1 else 's'}"
    heading = f"{record['bundle']}: {record['library']} {record['version']}, {threads}, {record['precision']} asked"
    moved = f"{record['conversions']} conversions between precisions, {record['reorders']} changes of layout"
    return "\n".join([heading, *_aligned(rows), moved, *record["notes"], str(record["verdict"])])


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole and part else "-"


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [cell.ljust(width) if not place else cell.rjust(width) for place, (cell, width) in
                 enumerate(zip(row, widths, strict=True))]  # fmt: skip
        lines.append("  ".join(cells).rstrip())
    return lines
