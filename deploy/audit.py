"""`python -m deploy.audit`: the precision that the engine really executed, per operator, and a verdict.

    python -m deploy.audit runs/deploy/yolov8n-openvino-int8

Exit code 1 where a bundle does not run as it claims. It needs numpy and the engine alone: on a device it runs as
well, or from here by `python -m bench.audit --device NAME`.
"""

from __future__ import annotations

import sys

if __package__ in (None, ""):  # started by its path, as on a device: import from the folder above
    from pathlib import Path as _Path

    sys.path[0] = str(_Path(__file__).resolve().parent.parent)

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.bundle import Bundle
from deploy.cli import log, positive_whole_number, run_command
from deploy.runtime import default_threads
from deploy.runtime.audit import audit_record, audit_table, executed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.audit", description="Show the precision that the engine really executed, per operator."
    )
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    return run_command(lambda: _audit(arguments.bundles, arguments.threads, arguments.json))


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments that an audit has wherever it runs."""
    parser.add_argument("bundles", nargs="+", type=Path, metavar="BUNDLE", help="bundle folder")
    parser.add_argument(
        "--threads",
        type=positive_whole_number,
        metavar="N",
        help="threads of one inference (default: all that this process may use)",
    )
    parser.add_argument("--json", action="store_true", help="print JSON, with every operator, a line per bundle")


def show(record: Mapping[str, Any], as_json: bool) -> None:
    """Print one audit to stdout."""
    sys.stdout.write((json.dumps(record) if as_json else audit_table(record)) + "\n")
    sys.stdout.flush()


def exit_code(records: Sequence[Mapping[str, Any]]) -> int:
    """0 if every audit passed; else 1, and a line that names those that did not."""
    failed = [str(record["bundle"]) for record in records if not record["passed"]]
    if failed:
        log(f"error: {len(failed)} of {len(records)} bundles do not run as they claim: {' '.join(failed)}")
    return 1 if failed else 0


def _audit(paths: Sequence[Path], threads: int | None, as_json: bool) -> int:
    records = []
    bundles = [Bundle.open(path) for path in paths]  # a slip of the keyboard is known before the first one runs
    for place, bundle in enumerate(bundles):
        count = threads or default_threads()
        found = executed(bundle, count)
        records.append(audit_record(bundle, count, found, every_operator=as_json))
        if place and not as_json:
            sys.stdout.write("\n")
        show(records[-1], as_json)
    return exit_code(records)


if __name__ == "__main__":
    sys.exit(main())
