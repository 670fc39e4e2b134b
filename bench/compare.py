"""`python -m bench.compare`: did latency, memory or accuracy change, beyond what a machine's own noise does?

python -m bench.compare runs/bench/before runs/bench/after
python -m bench.compare runs/bench/today --history history --gate --record
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # started by its path: import from the folder above
    from pathlib import Path as _Path

    sys.path[0] = str(_Path(__file__).resolve().parent.parent)

import argparse
import json
import shlex
from collections.abc import Sequence
from pathlib import Path

from bench.compare_figures import JUDGED
from bench.compare_likeness import field_names
from bench.compare_pair import Comparison, Tolerances, compare
from bench.compare_sides import Pair, group_key, load_side, pair_up
from bench.compare_text import json_figures, text
from bench.errors import BenchError
from bench.history import keep, like_runs
from bench.rows import Row
from deploy.cli import log, number_within, run_command


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code: 0, 1 for a refusal or with `--gate` a regression, 2 for a wrong call."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.baseline and arguments.history:
        parser.error("give --baseline or --history, not both")
    if not arguments.baseline and not arguments.history and len(arguments.results) != 2:
        parser.error("give two results, A B, or name what to compare with by --baseline or --history")
    if arguments.record and not arguments.history:
        parser.error("--record needs --history, the folder to record in")
    return run_command(_Comparer(arguments), BenchError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.compare",
        description="Compare bench results: latency, memory and accuracy, each with an interval. Runs that are not "
        "alike are refused.",
    )
    add = parser.add_argument
    add("results", nargs="+", type=Path, metavar="RESULT",
        help="A B: result files or folders, A the baseline, B the candidate; repeated runs of a bundle in a folder are "
        "taken together. With --baseline or --history all of them are the candidate's")  # fmt: skip
    add("--baseline", action="append", type=Path, default=[], metavar="RESULT",
        help="a result or folder of the baseline; may be given several times")  # fmt: skip
    add("--history", type=Path, metavar="DIR", help="take the newest like runs kept in this folder as the baseline")
    add("--record", action="store_true",
        help="keep the results in the history unless one regressed; a first run is then no failure")  # fmt: skip
    add("--paired", action="store_true",
        help="the runs of the two sides were taken in turns: compare first with first, second with second")  # fmt: skip
    add("--gate", action="store_true", help="exit with 1 if anything regressed or a bundle is missing")
    add("--max-latency-change", type=percent, default=0.05, metavar="P%", help="slowdown tolerated (default: 5%%)")
    add("--max-memory-change", type=percent, default=0.05, metavar="P%",
        help="growth of the peak memory tolerated (default: 5%%)")  # fmt: skip
    add("--max-map-drop", type=_points, default=0.3, metavar="POINTS",
        help="loss of mAP50-95, or of top-1 for a classifier, tolerated, in points of 100 (default: 0.3)")  # fmt: skip
    add("--statistic", choices=JUDGED, default="p50",
        help="of the time per image, that is judged (default: p50; on a busy machine cpu, processor time)")  # fmt: skip
    add("--run-spread", type=percent, default=0.02, metavar="P%",
        help="least spread from run to run to assume where few runs tell of it (default: 2%%)")  # fmt: skip
    add("--allow", action="append", choices=field_names(), default=[], metavar="FIELD",
        help=f"let a condition differ: {', '.join(field_names())}; may be given several times")  # fmt: skip
    add("--json", action="store_true", help="print the figures as JSON instead of text")
    return parser


class _Comparer:
    """One call of the command line."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._tolerances = Tolerances(
            latency=arguments.max_latency_change,
            memory=arguments.max_memory_change,
            points=arguments.max_map_drop,
            statistic=arguments.statistic,
            run_spread=arguments.run_spread,
            paired=arguments.paired,
            allowed=tuple(arguments.allow),
        )
        self._missing: tuple[str, ...] = ()
        self._new: tuple[str, ...] = ()
        self._kept: list[Path] = []

    def __call__(self) -> int:
        arguments = self._arguments
        if arguments.history:
            comparisons = self._with_history(load_side(arguments.results))
        elif arguments.baseline:
            comparisons = self._of_sides(load_side(arguments.baseline), load_side(arguments.results))
        else:
            comparisons = self._of_sides(load_side(arguments.results[:1]), load_side(arguments.results[1:]))
        return self._end(comparisons)

    def _of_sides(self, baseline: Sequence[Row], candidate: Sequence[Row]) -> list[Comparison]:
        pairing = pair_up(baseline, candidate)
        self._missing, self._new = pairing.only_baseline, pairing.only_candidate
        return [compare(pair, self._tolerances) for pair in pairing.pairs]

    def _with_history(self, candidate: Sequence[Row]) -> list[Comparison]:
        history: Path = self._arguments.history
        several = len({row.device for row in candidate}) > 1
        groups: dict[tuple[str, ...], list[Row]] = {}
        for row in candidate:
            groups.setdefault(group_key(row, several), []).append(row)
        comparisons = []
        for key, rows in groups.items():
            name = " @ ".join(key[2:])
            found = like_runs(history, rows, self._tolerances.allowed)
            if found.rows:
                comparisons.append(compare(Pair(name, found.rows, tuple(rows)), self._tolerances))
            else:
                comparisons.append(self._first_of_its_kind(name, len(rows), found.unlike))
        if self._arguments.record and not any(comparison.regressed for comparison in comparisons):
            good = [
                row
                for rows, comparison in zip(groups.values(), comparisons, strict=True)
                if not comparison.refused
                for row in rows
            ]
            self._kept = keep(history, good)
        return comparisons

    def _first_of_its_kind(self, name: str, runs: int, unlike: dict[str, int]) -> Comparison:
        said = f"no like run in {self._arguments.history}"
        if unlike:
            said += "; others differ in " + " / ".join(f"{fields} ({count})" for fields, count in unlike.items())
        if self._arguments.record:
            return Comparison(name, 0, runs, remarks=(f"{said}: recorded as the first, nothing was compared",))
        return Comparison(name, 0, runs, refused=(f"{said}: keep this one as the first with --record",))

    def _end(self, comparisons: Sequence[Comparison]) -> int:
        regressed = [comparison.name for comparison in comparisons if comparison.regressed]
        refused = [comparison.name for comparison in comparisons if comparison.refused]
        failed = bool(refused or (self._arguments.gate and (regressed or self._missing)))
        if self._arguments.json:
            figures = {
                "passed": not failed,
                "regressed": regressed,
                "refused": refused,
                "missing": self._missing,
                "new": self._new,
                "recorded": [str(folder) for folder in self._kept],
                "comparisons": [json_figures(comparison) for comparison in comparisons],
            }
            print(json.dumps(figures, indent=1, ensure_ascii=False))  # noqa: T201
        else:
            print("\n\n".join(map(text, comparisons)))  # noqa: T201
        for names, what in (
            (self._missing, "measured for the baseline alone"),
            (self._new, "measured for the candidate alone, nothing to compare with"),
            (refused, "refused"),
            (regressed, "regressed"),
        ):
            if names:
                log(f"{what}: {', '.join(names)}")
        if self._kept:
            log(f"recorded: {len(self._kept)} in {self._arguments.history}")
        if not failed:
            log("passed" if self._arguments.gate else "compared; with --gate a regression exits with 1")
        shown = [*self._arguments.baseline, *self._arguments.results]
        log(f"next: python -m bench.report {shlex.join(map(str, shown))}")
        return 1 if failed else 0


def percent(text: str) -> float:
    """ "5%" or "5" as 0.05.

    Raises:
        argparse.ArgumentTypeError: no number, or not from 0 to 1000.
    """
    return number_within(0.0, 1000.0, text.removesuffix("%")) / 100.0


def _points(text: str) -> float:
    return number_within(0.0, 100.0, text)


if __name__ == "__main__":
    sys.exit(main())
