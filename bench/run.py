"""Measure bundles here or on a device: latency, memory, accuracy, and the facts of the machine.

python bench/run.py                        the newest bundles, the student's validation set, this machine
python bench/run.py --device pi@raspberry  the same over SSH
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
from typing import Any

from bench.columns import json_row, text_table
from bench.errors import BenchError
from bench.inputs import RUNS, MeasuredImages, bundle_data, load_images, newest_bundles
from bench.progress import ProgressLine
from bench.records import RESULT_NAME
from bench.remote import Site
from bench.report import default_out, load_rows, write_report
from bench.results import in_short, make_result, write_findings
from bench.rows import Row
from deploy.bundle import Bundle
from deploy.cli import (
    file_name,
    log,
    number_within,
    one_line,
    positive_whole_number,
    run_command,
    unused_path,
    whole_folder,
    whole_number,
)
from deploy.errors import DeployError
from devices import LOCAL, DeviceError, open_device


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    given = list(sys.argv[1:] if argv is None else argv)
    arguments = _parser().parse_args(given)
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
    add("--device", default=LOCAL, metavar="NAME",
        help="a name from devices.toml, user@host or an ssh alias (default: this machine)")  # fmt: skip
    add("--threads", type=positive_whole_number, metavar="N",
        help="threads of one inference (default: all cores of the device)")  # fmt: skip
    add("--samples", type=positive_whole_number, default=100, metavar="N",
        help="time at least so many images (default: 100)")  # fmt: skip
    add("--min-seconds", type=_seconds, default=5.0, metavar="S", help="and at least so long (default: 5)")
    add("--warmup", type=_count, default=10, metavar="N", help="inferences before that are not counted (default: 10)")
    add("--images", type=positive_whole_number, metavar="N",
        help="use only N images: the first, or of class folders some of each (default: all)")  # fmt: skip
    add("--no-accuracy", action="store_true", help="measure latency and memory only")
    add("--model-cache", action="store_true",
        help="let engines find the opened model on disk (default: every load is a first one)")  # fmt: skip
    add("--inventory", type=Path, metavar="FILE",
        help="device inventory (default: ./devices.toml, then ~/.config/edge-distill/devices.toml)")  # fmt: skip
    add("--out", type=Path, metavar="DIR", help="folder to write (default: runs/bench/NAME-OF-THE-STUDENT)")
    add("--json", action="store_true", help="print the figures as JSON instead of a table")
    return parser


class _Run:
    """One call of the command line."""

    def __init__(self, arguments: argparse.Namespace, command: str) -> None:
        self._arguments = arguments
        self._command = command
        self._failures: dict[str, str] = {}
        self._finished: list[Path] = []
        self._images: dict[Path, MeasuredImages] = {}

    def __call__(self) -> int:
        arguments = self._arguments
        if arguments.out is not None and (arguments.out.exists() or arguments.out.is_symlink()):
            raise BenchError(f"{arguments.out} already exists: choose another --out or remove it")
        bundles = self._opened(arguments.bundle or newest_bundles())
        if not bundles:
            return self._end(None)
        out = arguments.out or unused_path(RUNS / "bench" / _student_name(bundles[0][0]))
        device = open_device(arguments.device, arguments.inventory)
        try:
            site = Site(device)
            for bundle, images in bundles:
                self._attempt(site, bundle, images, out)
        except KeyboardInterrupt:
            if self._finished:
                log(f"what was finished is kept: python -m bench.report {shlex.quote(str(out))}")
            raise
        finally:
            device.close()
        return self._end(out)

    def _opened(self, paths: Sequence[Path]) -> list[tuple[Bundle, MeasuredImages]]:
        """The bundles that can be measured at all, each with its images."""
        usable = []
        for path in paths:
            try:
                bundle = Bundle.open(path)
                data = self._arguments.data or bundle_data(bundle)
                if data not in self._images:
                    self._images[data] = load_images(data, self._arguments.images)
                if not self._arguments.no_accuracy:
                    self._images[data].check_truth(bundle)
            except (DeployError, BenchError) as error:
                self._fail(path, error)
            else:
                usable.append((bundle, self._images[data]))
        return usable

    def _attempt(self, site: Site, bundle: Bundle, images: MeasuredImages, out: Path) -> None:
        name = bundle.path.resolve().name
        progress = ProgressLine(f"{name} on {site.device.name}")
        job = {
            "threads": self._arguments.threads or site.device.threads,
            "warmup": self._arguments.warmup,
            "samples": self._arguments.samples,
            "min_seconds": self._arguments.min_seconds,
            "accuracy": images.labelled and not self._arguments.no_accuracy,
            "model_cache": self._arguments.model_cache,
        }
        try:
            try:
                measured = site.measure(bundle, images.paths, job, progress.show)
            finally:
                progress.clear()
            result = make_result(site.device.name, bundle, images, measured, self._command)
            folder = unused_path(out / f"{file_name(name)}@{file_name(site.device.name)}")
            with whole_folder(folder) as partial:
                (partial / RESULT_NAME).write_text(result.to_json(), encoding="utf-8")
                write_findings(partial, bundle, images, measured)
        except (DeployError, BenchError, DeviceError) as error:
            self._fail(bundle.path, error)
        else:
            self._finished.append(folder)
            log(f"{name} on {site.device.name}: {in_short(result)}")
            if measured.audit.get("passed") is False:
                log(f"warning: {name}: {measured.audit['verdict']}")

    def _fail(self, path: Path, error: Exception) -> None:
        self._failures[str(path)] = one_line(error)
        log(f"error: {path.name or path}: {one_line(error)}")

    def _end(self, out: Path | None) -> int:
        """Show what was measured and what was not; returns the exit code."""
        rows = load_rows(self._finished) if self._finished else []
        report = write_report(rows, default_out([out])) if rows and out is not None else None
        if self._arguments.json:
            figures = {
                "report": None if report is None else str(report),
                "results": [json_row(row) for row in rows],
                "failures": self._failures,
            }
            print(json.dumps(figures, indent=1))  # noqa: T201
        elif rows:
            print(text_table(rows))  # noqa: T201
        if report is not None:
            log(f"results: {out}")
            log(f"report: {report}")
            log(f"next: {self._next(rows[0])}")
        if self._failures:
            count = len(self._failures) + len(self._finished)
            names = " ".join(map(shlex.quote, self._failures))
            log(f"error: {len(self._failures)} of {count} bundles failed: {names}")
        return 1 if self._failures else 0

    def _next(self, row: Row) -> str:
        if self._arguments.device == LOCAL:
            return "python bench/run.py --device user@host"
        return f"python -m deploy.detect --bundle {shlex.quote(str(row.result.bundle['path']))} image.jpg"


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
