"""What is compared with what: the results of two sides, grouped into repeated runs of one bundle, and paired."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.errors import BenchError
from bench.records import RESULT_NAME, read_result
from bench.report import load_rows
from bench.rows import Row, result_row

Key = tuple[str, ...]


@dataclass(frozen=True)
class Pair:
    """One bundle measured on both sides, each at least once.

    Attributes:
        name: what it is called in the output.
        baseline: its runs, oldest first.
        candidate: its runs, oldest first.
    """

    name: str
    baseline: tuple[Row, ...]
    candidate: tuple[Row, ...]


@dataclass(frozen=True)
class Pairing:
    """All pairs, and the names of what is on one side alone."""

    pairs: tuple[Pair, ...]
    only_baseline: tuple[str, ...]
    only_candidate: tuple[str, ...]


def load_side(paths: Sequence[Path]) -> list[Row]:
    """Read results.

    Args:
        paths: result files, or folders that hold some at any depth.

    Returns:
        Each result once, oldest first.

    Raises:
        BenchError: no result there, or one that cannot be read.
    """
    rows: dict[Path, Row] = {}
    for path in paths:
        if path.is_file() and path.name != RESULT_NAME:
            rows[path.resolve()] = result_row(read_result(path), path.resolve())
        else:
            rows |= {row.folder: row for row in load_rows([path])}
    return sorted(rows.values(), key=lambda row: (row.result.created, str(row.folder)))


def pair_up(baseline: Sequence[Row], candidate: Sequence[Row]) -> Pairing:
    """Pair the sides by bundle name, engine and precision, and by device where a side has several.

    What remains is paired by engine and precision alone where that is not ambiguous (the bundle was given another
    name), and a lone bundle on each side is paired whatever it is: whether they are alike is asked later.

    Raises:
        BenchError: a result is on both sides, or no pair is left.
    """
    shared = {row.folder for row in baseline} & {row.folder for row in candidate}
    if shared:
        raise BenchError(f"{min(shared)} is on both sides: name each result once")
    several = max(len({row.device for row in rows}) for rows in (baseline, candidate)) > 1
    first, second = _grouped(baseline, several), _grouped(candidate, several)
    matched = [(key, key) for key in second if key in first]
    matched += _matched_without_name(set(first) - set(second), set(second) - set(first))
    if not matched and len(first) == len(second) == 1:
        matched = [(next(iter(first)), next(iter(second)))]
    if not matched:
        raise BenchError(
            f"no bundle is on both sides: {_names(first)} against {_names(second)}; "
            "give results of the same bundle, or one result on each side"
        )
    return Pairing(
        tuple(Pair(_name(there), tuple(first[here]), tuple(second[there])) for here, there in matched),
        tuple(_name(key) for key in first if key not in {here for here, _ in matched}),
        tuple(_name(key) for key in second if key not in {there for _, there in matched}),
    )


def group_key(row: Row, with_device: bool = False) -> Key:
    """What repeated runs of one bundle have in common: engine, precision and name, and the device if asked."""
    key = (row.engine, row.precision, row.bundle)
    return (*key, row.device) if with_device else key


def _grouped(rows: Sequence[Row], with_device: bool) -> dict[Key, list[Row]]:
    groups: dict[Key, list[Row]] = {}
    for row in rows:
        groups.setdefault(group_key(row, with_device), []).append(row)
    return groups


def _matched_without_name(first: set[Key], second: set[Key]) -> list[tuple[Key, Key]]:
    matched = []
    for key in sorted(second):
        bare = _bare(key)
        here, there = ([other for other in keys if _bare(other) == bare] for keys in (first, second))
        if len(here) == len(there) == 1:
            matched.append((here[0], key))
    return matched


def _bare(key: Key) -> Key:
    return key[:2] + key[3:]


def _name(key: Key) -> str:
    return " @ ".join(key[2:])


def _names(groups: dict[Key, list[Row]]) -> str:
    return ", ".join(map(_name, groups))
