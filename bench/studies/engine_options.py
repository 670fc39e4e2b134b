"""`python -m bench.studies.engine_options`: what every engine option costs or saves, one changed at a time.

The defaults of `deploy.runtime.options` are held against every other value, in turns, each in a process of its own. An
option that changes what is kept on disk (`model_cache`) changes no inference and is left out.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.machine import machine_facts
from bench.studies.page_file import refuse_existing, run_study, write_page
from bench.studies.runtime_equality import CONF, IOU, MAX_DET
from bench.studies.runtime_latency import OURS, Cell, Entrant, Timing, ceil_to, measure_cell, speedup
from bench.studies.runtime_memory import MEMORY_IMAGES, Memory, measure_memory
from bench.studies.runtime_models import ENGINE_NAMES
from deploy.bundle import Bundle
from deploy.cli import positive_whole_number
from deploy.runtime.image import images_below
from deploy.runtime.options import OPTIONS, Value

DEFAULTS = "defaults"
_ABOUT_THE_DISK = "model_cache"
_SEVERAL = (2,)  # of an option that takes any number


@dataclass(frozen=True)
class Study:
    """One bundle's measurement: the defaults first, then every change."""

    cell: Cell
    memories: Mapping[str, Memory]


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    return run_study(_parser(), _study, argv)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.studies.engine_options",
        description="Hold the default of every engine option against its other values: latency and peak memory.",
    )
    add = parser.add_argument
    add("--bundle", type=Path, action="append", required=True, help="bundle folder; may be repeated")
    add("--images", type=Path, required=True, help="folder of images to detect in")
    add("--threads", type=positive_whole_number, default=2, help="of one inference (default: %(default)s)")
    add("--rounds", type=positive_whole_number, default=10, help="default: %(default)s")
    add("--per-round", type=positive_whole_number, default=20, help="images of a round (default: %(default)s)")
    add("--out", type=Path, help="markdown file to write (default: print to stdout)")
    return parser


def _study(arguments: argparse.Namespace, command: str) -> int:
    refuse_existing(arguments.out)
    bundles = [Bundle.open(path) for path in arguments.bundle]
    images = [str(path) for path in images_below(arguments.images)]
    with tempfile.TemporaryDirectory() as folder:
        studies = [_measured(bundle, images, arguments, Path(folder) / "workers.log") for bundle in bundles]
    text = page(studies, command, machine_facts(), arguments)
    write_page(text, arguments.out)
    return 1 if any(study.cell.failures for study in studies) else 0


def variants(engine: str) -> dict[str, dict[str, Value]]:
    """The defaults, and every other value of every option of an engine, by the name of its row."""
    found: dict[str, dict[str, Value]] = {DEFAULTS: {}}
    for name, option in OPTIONS[engine].items():
        for value in () if name == _ABOUT_THE_DISK else option.values or _SEVERAL:
            if value != option.default:
                found[f"{name} = {value}"] = {name: value}
    return found


def _measured(bundle: Bundle, images: Sequence[str], arguments: argparse.Namespace, log_file: Path) -> Study:
    manifest = bundle.manifest
    common: dict[str, Any] = {
        "kind": "bundle", "model": str(bundle.path.resolve()), "engine": manifest.engine, "imgsz": manifest.input.width,
        "threads": arguments.threads, "cpus": arguments.threads, "conf": CONF, "iou": IOU, "max_det": MAX_DET,
    }  # fmt: skip
    requests = {name: {**common, "options": options} for name, options in variants(manifest.engine).items()}
    cell = (manifest.input.width, manifest.engine, manifest.precision)
    memories = {
        name: measure_memory(name, cell[0], cell[1], request, images, log_file) for name, request in requests.items()
    }
    entrants = [Entrant(name, OURS, request) for name, request in requests.items()]
    return Study(measure_cell(cell, entrants, images, arguments.rounds, arguments.per_round, log_file), memories)


def page(studies: Sequence[Study], command: str, machine: Mapping[str, Any], arguments: argparse.Namespace) -> str:
    """Markdown: one table, and how it was measured."""
    lines = [
        "## Engine options",
        "",
        "| bundle | option | p50, ms | time over that of the defaults | peak, MB |",
        "| --- | --- | ---: | ---: | ---: |",
        *(line for study in studies for line in _lines(study)),
        "",
        "```",
        command,
        "```",
        "",
        f"- From a decoded image to boxes, {arguments.threads} threads, {arguments.rounds} rounds of "
        f"{arguments.per_round} images in turns, each row in a process of its own. Ratios are of mean times, paired "
        "round by round: their median and range.",
        f"- Peak resident memory of a fresh process that opens the bundle and detects in {MEMORY_IMAGES} image files.",
        f"- Machine: {machine['model']}, {machine['cores']} cores, {machine['architecture']}, {machine['system']}, "
        f"{' '.join(machine['cpu_flags'])}.",
    ]
    return "\n".join(lines) + "\n"


def _lines(study: Study) -> Iterator[str]:
    cell = study.cell
    name = f"{ENGINE_NAMES[cell.engine]} {cell.precision.upper()} {cell.imgsz} px"
    defaults = next((timing for timing in cell.timings if timing.entrant.name == DEFAULTS), None)
    for timing in cell.timings:
        memory = study.memories[timing.entrant.name]
        peak = memory.failure or ceil_to(memory.peak_rss_bytes / 1e6, 1)
        p50 = ceil_to(1e3 * timing.percentile_s(50), 2)
        yield f"| {name} | {timing.entrant.name} | {p50} | {_ratio(defaults, timing)} | {peak} |"
    for failed, why in cell.failures.items():
        yield f"| {name} | {failed} | did not run: {why} | | |"


def _ratio(defaults: Timing | None, changed: Timing) -> str:
    if defaults is None or changed is defaults:
        return ""
    found = speedup(defaults, changed)  # how much faster the defaults are is how much longer the change takes
    return f"{found.median:.3f} [{found.low:.3f}, {found.high:.3f}]"


if __name__ == "__main__":
    sys.exit(main())
