"""`python -m deploy.search`: the mix of float and INT8 layers with the best accuracy for a latency budget."""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

from deploy.build import calibration_list
from deploy.bundle import ENGINES
from deploy.calibration import YAML_SUFFIXES
from deploy.cli import log, number_within, positive_whole_number, run_command, unused_path, whole_folder
from deploy.errors import DatasetError, DeployError, StudentError
from deploy.graph_detect import STRIDES
from deploy.runtime import default_threads
from deploy.search.judge import Judge
from deploy.search.plan import Plan, make_plan
from deploy.search.search import PLAIN, Budget, Candidate, TargetSearch, within
from deploy.sensitivity.__main__ import add_student_flags, aligned, open_probe, open_student
from deploy.steps import step
from deploy.student import Student, find_student

SCHEMA = 1
DEFAULT_TARGETS = ("tflite", "onnx", "openvino")
DEFAULT_BUDGET = "1.1x"
DEFAULT_CALIBRATION_IMAGES = 48
# The plan is made on few images at half the size: the bundles that it proposes are measured anyway.
_PLAN_IMAGES = 8
_JUDGE_IMAGES = 32
_MOST_VERIFIED = 3
RECORD_NAME, PICTURE_NAME = "search.json", "pareto.png"


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_command(lambda: _run(arguments))


@dataclass(frozen=True)
class Outcome:
    """What one target's search came to.

    Attributes:
        candidates: all that were measured, fastest first.
        plain: the one with all layers in INT8, verified where a validation set is known.
        chosen: the best within both limits; None without any.
        nearest: the best within the latency, whatever it loses.
    """

    candidates: tuple[Candidate, ...]
    plain: Candidate
    chosen: Candidate | None
    nearest: Candidate | None


def _run(arguments: argparse.Namespace) -> int:
    student = find_student(arguments.student)
    out = arguments.out or unused_path(Path("runs/search") / student.name)
    if out.exists():
        raise DeployError(f"{out} already exists: choose another --out or remove it")
    data = _validation(student, arguments)
    graph, imgsz = open_student(student, arguments.calibration, arguments.imgsz)
    if graph.task == "classify":
        raise StudentError(f"{student.checkpoint} is a classifier: the search is for detectors, use deploy.sensitivity")
    images = calibration_list(student, arguments.calibration, _JUDGE_IMAGES)
    few = calibration_list(student, arguments.calibration, _PLAN_IMAGES)
    probe = open_probe(graph, few, max(STRIDES[-1], imgsz // 2 // STRIDES[-1] * STRIDES[-1]))
    with step("planning: what keeping each block in float would win"):
        plan = make_plan(probe)
    with step(f"the float student on {len(images)} training images"):
        judge = Judge(graph, images.images, imgsz)
    with whole_folder(out) as folder:
        outcomes = {}
        for engine in arguments.target:
            search = TargetSearch(
                import_module(f"deploy.{engine}").TARGET,
                student,
                graph,
                judge,
                folder / f".{engine}",
                arguments.threads,
                imgsz=imgsz,
                calibration=arguments.calibration,
                calibration_images=arguments.calibration_images,
            )
            outcomes[engine] = _one_target(search, plan, arguments, data, folder / engine)
        _write(outcomes, student, imgsz, arguments, folder)
        sys.stdout.write(_json(outcomes, student, imgsz, arguments) if arguments.json else _report(outcomes, arguments))
        if all(one.chosen is None for one in outcomes.values()):
            raise DeployError(_nearest(outcomes, arguments))
    log(f"{out}: {RECORD_NAME}, {PICTURE_NAME}, {', '.join(name for name, one in outcomes.items() if one.chosen)}")
    log(f"next: python bench/run.py --bundle {out}/{next(name for name, one in outcomes.items() if one.chosen)}")
    return 0


def _one_target(
    search: TargetSearch, plan: Plan, arguments: argparse.Namespace, data: Path | None, destination: Path
) -> Outcome:
    candidates = search.run(plan, arguments.max_latency)
    ranked = within(candidates, arguments.max_latency)
    plain = next(one for one in candidates if one.name == PLAIN)
    chosen: Candidate | None = ranked[0] if ranked else None
    nearest = chosen
    if data is not None:
        with step(f"{plain.target}: verifying"):
            plain = search.verify(plain, data)
            chosen = None
            for one in ranked[:_MOST_VERIFIED]:
                verified = plain if one.name == PLAIN else search.verify(one, data)
                if nearest is None or _drop(verified) < _drop(nearest):
                    nearest = verified
                if _drop(verified) <= arguments.max_drop:
                    chosen = verified
                    break
    verified_ones = {one.name: one for one in (plain, nearest, chosen) if one is not None}
    candidates = [verified_ones.get(one.name, one) for one in candidates]
    if chosen is not None:
        search.keep(chosen, destination)
    else:
        search.discard()
    return Outcome(tuple(candidates), plain, chosen, nearest)


def _drop(candidate: Candidate) -> float:
    return math.inf if candidate.drop_points is None else candidate.drop_points


def _report(outcomes: dict[str, Outcome], arguments: argparse.Namespace) -> str:
    rows = [["target", "mix", "damage %", "p50 ms", "times int8", "drop pts", ""]]
    for engine, outcome in outcomes.items():
        for one in outcome.candidates:
            drop = "" if one.drop_points is None else f"{one.drop_points:.2f}"
            mark = "chosen" if outcome.chosen is not None and one.name == outcome.chosen.name else ""
            ratio = f"{one.ratio:.2f}±{one.ratio_spread:.2f}"
            rows.append(
                [engine, one.name, f"{one.damage_percent:.2f}", f"{1e3 * one.latency_s:.2f}", ratio, drop, mark]
            )
    return aligned(rows) + "".join(_verdict(outcome, arguments) for outcome in outcomes.values())


def _verdict(outcome: Outcome, arguments: argparse.Namespace) -> str:
    plain, chosen = outcome.plain, outcome.chosen
    if chosen is None:
        return f"{plain.target}: nothing within {_limits(arguments)}\n"
    drops = ""
    if chosen.drop_points is not None and plain.drop_points is not None:
        drops = f", drop {chosen.drop_points:.2f} points (all in int8: {plain.drop_points:.2f})"
    return (
        f"{chosen.target}: {chosen.name}, damage {chosen.damage_percent:.2f} % (all in int8: "
        f"{plain.damage_percent:.2f} %), {chosen.ratio:.2f} times its latency{drops}: the least damage within "
        f"{_limits(arguments)}\n"
    )


def _limits(arguments: argparse.Namespace) -> str:
    return f"--max-latency {arguments.max_latency} and --max-drop {arguments.max_drop:g}"


def _nearest(outcomes: dict[str, Outcome], arguments: argparse.Namespace) -> str:
    found = []
    for engine, outcome in outcomes.items():
        one = outcome.nearest or min(outcome.candidates, key=lambda one: one.latency_s)
        drop = "" if one.drop_points is None else f" with a drop of {one.drop_points:.2f} points"
        found.append(f"{engine} {one.name} at {1e3 * one.latency_s:.1f} ms{drop}")
    return f"nothing within {_limits(arguments)}; nearest: {'; '.join(found)}: allow more of either"


def _json(outcomes: dict[str, Outcome], student: Student, imgsz: int, arguments: argparse.Namespace) -> str:
    record = {
        "schema": SCHEMA,
        "student": student.name,
        "student_sha256": student.sha256,
        "imgsz": imgsz,
        "threads": arguments.threads,
        "max_latency": str(arguments.max_latency),
        "max_drop_points": arguments.max_drop,
        "targets": {
            engine: {
                "chosen": None if one.chosen is None else one.chosen.name,
                "candidates": [asdict(candidate) for candidate in one.candidates],
            }
            for engine, one in outcomes.items()
        },
    }
    return json.dumps(record, indent=2) + "\n"


def _write(
    outcomes: dict[str, Outcome], student: Student, imgsz: int, arguments: argparse.Namespace, folder: Path
) -> None:
    from deploy.search.picture import draw

    (folder / RECORD_NAME).write_text(_json(outcomes, student, imgsz, arguments), encoding="utf-8")
    with step("drawing"):
        candidates = [one for outcome in outcomes.values() for one in outcome.candidates]
        draw(candidates, [one.chosen for one in outcomes.values() if one.chosen is not None], folder / PICTURE_NAME)


def _validation(student: Student, arguments: argparse.Namespace) -> Path | None:
    """The data.yaml to verify on, where one is known."""
    given: Path | None = arguments.data
    if given is not None and not given.is_file():
        raise DatasetError(f"no --data {given}: check the path of the data.yaml")
    for path in (given, student.data_yaml, arguments.calibration):
        if path is not None and path.is_file() and path.suffix in YAML_SUFFIXES:
            return path
    log("no validation set is known (give --data a data.yaml): --max-drop is not checked")
    return None


def _targets(text: str) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in ENGINES]
    if unknown or not names:
        raise argparse.ArgumentTypeError(
            f"no target {', '.join(unknown or [repr(text)])}: known are {', '.join(ENGINES)}"
        )
    return names


def _budget(text: str) -> Budget:
    match = re.fullmatch(r"(\d+(?:\.\d+)?|\.\d+)\s*(ms|x|)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(
            f"{text!r}: expected milliseconds (20ms) or times the plain INT8 bundle (1.1x)"
        )
    number = float(match[1])
    return Budget(ratio=number) if match[2] == "x" else Budget(latency_s=number / 1e3)


def _points(text: str) -> float:
    return number_within(0.0, 100.0, text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m deploy.search",
        description="Find the mix of float and INT8 layers with the best accuracy for a latency budget: plan by "
        "simulation, build, measure, verify.",
    )
    add_student_flags(parser)
    parser.add_argument(
        "--target",
        type=_targets,
        default=list(DEFAULT_TARGETS),
        metavar="A,B",
        help=f"some of {', '.join(ENGINES)} (default: {','.join(DEFAULT_TARGETS)})",
    )
    parser.add_argument("--data", type=Path, help="data.yaml to verify on (default: the student's, or --calibration)")
    parser.add_argument(
        "--max-drop",
        type=_points,
        default=1.0,
        metavar="POINTS",
        help="largest loss of mAP50-95 against the float student, in points (default: %(default)s)",
    )
    parser.add_argument(
        "--max-latency",
        type=_budget,
        default=DEFAULT_BUDGET,
        metavar="MS",
        help="slowest median accepted: 20ms, or 1.1x the bundle with all layers in INT8 (default: %(default)s)",
    )
    parser.add_argument(
        "--threads", type=positive_whole_number, default=default_threads(), help="of one inference (default: all)"
    )
    parser.add_argument(
        "--calibration-images",
        type=positive_whole_number,
        default=DEFAULT_CALIBRATION_IMAGES,
        metavar="N",
        help="how many images set the int8 ranges, at most (default: %(default)s)",
    )
    parser.add_argument("--out", type=Path, help="folder to make (default: runs/search/STUDENT)")
    parser.add_argument("--json", action="store_true", help="print search.json instead of the table")
    return parser


if __name__ == "__main__":
    sys.exit(main())
