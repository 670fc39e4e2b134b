"""Measure bundles here or on a device: latency, memory, accuracy, and the facts of the machine.

python bench/run.py                        the newest bundles, the student's validation set, this machine
python bench/run.py --device pi@raspberry  the same over SSH
python bench/run.py --device pi4,pi5       the same on several devices at once
python bench/run.py --resume DIR           what is missing of a run that broke off
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # started by its path: import from the folder above
    from pathlib import Path as _Path

    sys.path[0] = str(_Path(__file__).resolve().parent.parent)

import argparse
import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.columns import json_row, text_table
from bench.errors import BenchError
from bench.fleet import Lane, Task, measure_all
from bench.inputs import RUNS, MeasuredImages, newest_bundles
from bench.opening import Opened, Opener
from bench.plan import Plan, check_devices_unchanged, check_unchanged, device_records, planned
from bench.progress import Board
from bench.records import RESULT_NAME
from bench.remote import code_digest
from bench.report import default_out, load_rows, write_report
from bench.reported import Measured
from bench.results import in_short, make_result, write_findings
from bench.rows import Row
from bench.run_folder import RunFolder
from deploy.bundle import Bundle
from deploy.cli import (
    file_name,
    log,
    number_within,
    positive_whole_number,
    run_command,
    unused_path,
    whole_number,
)
from devices import LOCAL, Device, DeviceError, chosen_names, load_inventory, open_device

# Flags that decide how is measured, and on what: a run that is resumed has those it began with.
SETTINGS = ("threads", "samples", "min_seconds", "warmup", "images", "no_accuracy", "model_cache", "streams")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    parser = _parser()
    arguments = parser.parse_args(given)
    if arguments.resume is not None:
        bare = vars(parser.parse_args([])) | {"resume": arguments.resume, "json": arguments.json}
        if vars(arguments) != bare:
            parser.error("--resume takes everything from the run that it resumes: give no other flag but --json")
    run = _Run(arguments, shlex.join(["python", "bench/run.py", *given]))
    return run_command(run, BenchError, DeviceError)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python bench/run.py",
        description="Measure bundles: latency, memory and accuracy, each in a fresh process, here or on a device.",
    )
    add = parser.add_argument
    add("--bundle", nargs="+", action="extend", type=Path, metavar="DIR",
        help="bundles to measure (default: the newest student's, below runs/)")  # fmt: skip
    add("--data", type=Path, metavar="DATA.YAML",
        help="data set whose validation images are used: a data.yaml or, for classifiers, the root of an image-folder "
        "data set; or a folder of images, to be timed only (default: what the student was trained with)")  # fmt: skip
    add("--device", metavar="NAME[,NAME...]",
        help="names from devices.toml, user@host or ssh aliases; several at once (default: this machine)")  # fmt: skip
    add("--tag", metavar="WORD", help="all devices of the inventory with this tag")
    add("--threads", type=positive_whole_number, metavar="N",
        help="threads of one inference (default: all cores of the device)")  # fmt: skip
    add("--samples", type=positive_whole_number, default=100, metavar="N",
        help="time at least so many images (default: 100)")  # fmt: skip
    add("--min-seconds", type=_seconds, default=5.0, metavar="S", help="and at least so long (default: 5)")
    add("--warmup", type=_count, default=10, metavar="N", help="inferences before that are not counted (default: 10)")
    add("--images", type=positive_whole_number, metavar="N",
        help="use only N images: the first, or of class folders some of each (default: all)")  # fmt: skip
    add("--streams", type=positive_whole_number, default=0, metavar="N",
        help="measure throughput as well, with N images at a time")  # fmt: skip
    add("--no-accuracy", action="store_true", help="measure latency and memory only")
    add("--model-cache", action="store_true",
        help="let engines find the opened model on disk (default: every load is a first one)")  # fmt: skip
    add("--inventory", type=Path, metavar="FILE",
        help="device inventory (default: ./devices.toml, then ~/.config/edge-distill/devices.toml)")  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="folder to write (default: runs/bench/NAME-OF-THE-STUDENT)")
    add("--resume", type=Path, metavar="DIR",
        help="measure what is missing of a run that broke off, with its settings; no flag but --json")  # fmt: skip
    add("--json", action="store_true", help="print the figures as JSON instead of a table")
    return parser


class _Run:
    """One call of the command line."""

    def __init__(self, arguments: argparse.Namespace, command: str) -> None:
        self._arguments = arguments
        self._command = command

    def __call__(self) -> int:
        arguments = self._arguments
        if arguments.resume is not None:
            folder = RunFolder.reopened(arguments.resume)
            try:
                return self._resumed(folder)
            finally:
                folder.close()
        if arguments.out is not None and (arguments.out.exists() or arguments.out.is_symlink()):
            raise BenchError(f"{arguments.out} already exists: choose another --out or remove it")
        paths = arguments.bundle or newest_bundles()
        opener = Opener(arguments.images, not arguments.no_accuracy)
        opened = [opener.open(path, arguments.data) for path in paths]
        first = next((one for one in opened if one is not None), None)
        if first is None:
            return self._end(None, opener.failures, [], [])
        names = chosen_names(arguments.device, arguments.tag, arguments.inventory)
        inventory = load_inventory(arguments.inventory).source
        plan = Plan(
            command=self._command,
            settings={name: getattr(arguments, name) for name in SETTINGS},
            inventory=None if inventory is None else str(inventory.absolute()),
            bundles=tuple(planned(*one, arguments.data) for one in zip(paths, opened, strict=True)),
            devices=device_records(names, arguments.inventory),
            code_sha256=code_digest(),
        )
        out = arguments.out or unused_path(RUNS / "bench" / _student_name(first.bundle))
        return self._measured(RunFolder(out, plan), opened, opener.failures)

    def _resumed(self, folder: RunFolder) -> int:
        """Measure what is missing in the folder of a run, under the settings that it began with."""
        plan, finished = folder.plan, folder.finished()
        for name in SETTINGS:
            setattr(self._arguments, name, plan.settings.get(name))
        inventory = None if plan.inventory is None else Path(plan.inventory)
        self._arguments.inventory = inventory
        check_devices_unchanged(plan, inventory)
        opener = Opener(self._arguments.images, not self._arguments.no_accuracy)
        opened: list[Opened | None] = []
        for place, was in enumerate(plan.bundles):
            there = [(device, place) in finished for device in plan.devices]
            if all(there):
                opened.append(None)
                continue
            opened.append(opener.open(Path(was.path), None if was.data is None else Path(was.data)))
            check_unchanged(was, opened[-1], any(there))
        missing = len(plan.bundles) * len(plan.devices) - len(finished)
        log(f"{len(finished)} of {len(finished) + missing} results are there, measuring {missing}")
        return self._measured(folder, opened, opener.failures)

    def _measured(self, folder: RunFolder, opened: Sequence[Opened | None], unusable: Mapping[str, str]) -> int:
        """Measure every bundle on every device but for the results that are there."""
        plan, earlier = folder.plan, folder.finished()
        results = plan.folder_names()
        lanes = []
        for name in plan.devices:
            device = open_device(name, self._arguments.inventory)
            tasks = [
                Task(one.bundle, one.images, self._job(device, one.images), results[name, place])
                for place, one in enumerate(opened)
                if one is not None and (name, place) not in earlier
            ]
            lanes.append(Lane(device, tasks))
        board = Board(list(plan.devices))

        def keep(task: Task, device: Device, measured: Measured) -> Path:
            result = make_result(device.name, task.bundle, task.images, measured, plan.command)

            def write(partial: Path) -> None:
                (partial / RESULT_NAME).write_text(result.to_json(), encoding="utf-8")
                write_findings(partial, task.bundle, task.images, measured)

            kept = folder.keep(task.folder, write)
            board.log(f"{task.name} on {device.name}: {in_short(result)}", device.name)
            if measured.audit.get("passed") is False:
                board.log(f"warning: {task.name}: {measured.audit['verdict']}")
            return kept

        try:
            measure_all(lanes, keep, board)
        except (KeyboardInterrupt, OSError):
            if folder.finished():
                out = shlex.quote(str(folder.path))
                log(f"what was finished is kept: python -m bench.report {out}")
                log(f"measure the rest: python bench/run.py --resume {out}")
            raise
        finally:
            folder.close()
        return self._end(folder, unusable, lanes, list(earlier.values()))

    def _job(self, device: Device, images: MeasuredImages) -> dict[str, Any]:
        given = self._arguments
        return {
            "threads": given.threads or device.threads,
            "warmup": given.warmup,
            "samples": given.samples,
            "min_seconds": given.min_seconds,
            "accuracy": images.labelled and not given.no_accuracy,
            "model_cache": given.model_cache,
            "streams": given.streams,
        }

    def _end(
        self, folder: RunFolder | None, unusable: Mapping[str, str], lanes: Sequence[Lane], earlier: Sequence[Path]
    ) -> int:
        """Show what was measured and what was not; returns the exit code."""
        finished = [*earlier, *(path for lane in lanes for path in lane.finished)]
        rows = load_rows(finished) if finished else []
        report = write_report(rows, default_out([folder.path])) if rows and folder is not None else None
        failures = dict(unusable)
        for lane in lanes:
            for path, why in lane.failures.items():
                failures[path] = why if path not in failures else f"{failures[path]}; {why}"
        if self._arguments.json:
            figures = {
                "report": None if report is None else str(report),
                "results": [json_row(row) for row in rows],
                "failures": failures,
                "devices": {lane.device.name: {"error": lane.error, "failures": lane.failures} for lane in lanes},
            }
            print(json.dumps(figures, indent=1))  # noqa: T201
        elif rows:
            print(text_table(rows))  # noqa: T201
        if report is not None and folder is not None:
            log(f"results: {folder.path}")
            log(f"report: {report}")
            log(f"next: {self._next(rows[0], folder, bool(failures))}")
        for line in _summary(unusable, lanes, len(finished)):
            log(f"error: {line}")
        return 1 if failures else 0

    def _next(self, row: Row, folder: RunFolder, failed: bool) -> str:
        if failed:
            return f"python bench/run.py --resume {shlex.quote(str(folder.path))}"
        if row.result.device == LOCAL:
            return "python bench/run.py --device user@host"
        return f"python -m deploy.detect --bundle {shlex.quote(str(row.result.bundle['path']))} image.jpg"


def _summary(unusable: Mapping[str, str], lanes: Sequence[Lane], finished: int) -> list[str]:
    """What failed and why, a line per device; of one device alone its errors were said already."""
    if len(lanes) > 1:
        lines = [f"{len(unusable)} bundles cannot be used: {_listed(unusable)}"] if unusable else []
        for lane in lanes:
            if lane.failures:
                why = lane.error or next(iter(lane.failures.values()))
                said = why if why.startswith(f"{lane.device.name}: ") else f"{lane.device.name}: {why}"
                lines.append(
                    f"{said} ({len(lane.failures)} of {len(lane.tasks)} bundles failed: {_listed(lane.failures)})"
                )
        return lines
    failures = [*unusable, *(path for lane in lanes for path in lane.failures)]
    if not failures or (lanes and lanes[0].error is not None and not finished):
        return []
    return [f"{len(failures)} of {len(failures) + finished} bundles failed: {_listed(failures)}"]


def _listed(paths: Iterable[str]) -> str:
    return " ".join(map(shlex.quote, paths))


def _student_name(bundle: Bundle) -> str:
    """What the results are called: the student's name, else what the bundle's folder starts with."""
    named: Any = bundle.manifest.student.get("name")
    suffix = f"-{bundle.manifest.engine}-{bundle.manifest.precision}"
    return file_name(str(named or bundle.path.resolve().name.partition(suffix)[0]))


def _count(text: str) -> int:
    return whole_number(0, text)


def _seconds(text: str) -> float:
    return number_within(0.0, 86400.0, text)


if __name__ == "__main__":
    sys.exit(main())
