"""`python -m bench.report`: results as a printed table and as one self-contained HTML page."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import webbrowser
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from bench.class_samples import draw_mistakes
from bench.classes_file import read_classes
from bench.columns import json_row, text_table
from bench.detections_file import read_detections
from bench.errors import BenchError
from bench.records import CLASSES_NAME, DETECTIONS_NAME, RESULT_NAME, read_result
from bench.report_page import render_page
from bench.rows import Row, in_order, labels, result_row, with_drops
from bench.samples import draw_samples
from deploy.cli import log, run_command

RUNS = Path("runs/bench")
REPORT_NAME = "report.html"

File = TypeVar("File")


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; returns the exit code."""
    arguments = _parser().parse_args(argv)
    return run_command(lambda: _report(arguments), BenchError)


def load_rows(folders: Sequence[Path]) -> list[Row]:
    """Read every result in or below the folders.

    Args:
        folders: result folders, or bench runs that hold some.

    Returns:
        One row per result, by device, task, runtime and precision.

    Raises:
        BenchError: no result there, or one that cannot be read.
    """
    found: list[Path] = []
    for folder in folders:
        below = _result_folders(_folder(folder))
        if not below:
            raise BenchError(f"no {RESULT_NAME} in or below {folder}: run python bench/run.py, or give another folder")
        found += below
    unique = list(dict.fromkeys(path.resolve() for path in found))
    return in_order(with_drops([result_row(read_result(path), path) for path in unique]))


def write_report(rows: Sequence[Row], out: Path) -> Path:
    """Render the page.

    Args:
        rows: at least one.
        out: file to write; it must not exist, its folder is made.

    Returns:
        `out`.

    Raises:
        BenchError: `out` exists, or a file of findings beside a result cannot be read.
    """
    if out.exists():
        raise BenchError(f"{out} already exists: choose another --out or remove it")
    samples, notes = draw_samples(_findings(rows, DETECTIONS_NAME, read_detections))
    mistakes, more = draw_mistakes(_findings(rows, CLASSES_NAME, read_classes))
    page = render_page(rows, samples, [*notes, *more], mistakes)
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        # Names on a device may hold bytes that are no text; they are shown, never fatal.
        partial.write_text(page, encoding="utf-8", errors="replace")
        partial.replace(out)
    finally:
        partial.unlink(missing_ok=True)
    return out


def newest_run(root: Path = RUNS) -> Path:
    """The bench run below `root` that holds the newest result.

    Raises:
        BenchError: there is none.
    """
    results = [path for path in root.rglob(RESULT_NAME) if not _unfinished(path, root)]
    if not results:
        raise BenchError(f"no {RESULT_NAME} below {root}: run python bench/run.py, or give a result folder")
    newest = max(results, key=lambda path: (path.stat().st_mtime_ns, str(path)))
    # runs/bench/NAME/<bundle>@<device>/result.json; a lone result right below the root is its own run.
    return newest.parent if newest.parent.parent == root else newest.parent.parent


def default_out(folders: Sequence[Path]) -> Path:
    """`report.html` in the one run that is shown, else here; with a number where that exists."""
    runs = {(folder.parent if (folder / RESULT_NAME).is_file() else folder) for folder in map(_folder, folders)}
    place = runs.pop() if len(runs) == 1 else Path()
    out, number = place / REPORT_NAME, 1
    while out.exists():
        number += 1
        out = place / f"{Path(REPORT_NAME).stem}-{number}.html"
    return out


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.report", description="Print the table of bench results and write an HTML report of them."
    )
    parser.add_argument(
        "results",
        nargs="*",
        type=Path,
        metavar="RESULT_DIR",
        help="result folders, or bench runs that hold some (default: the newest run below runs/bench)",
    )
    parser.add_argument("--out", type=Path, help="file to write (default: report.html in the run's folder)")
    parser.add_argument("--json", action="store_true", help="print the figures as JSON instead of a table")
    parser.add_argument("--open", action="store_true", help="open the report in the browser when it is written")
    return parser


def _report(arguments: argparse.Namespace) -> int:
    folders = list(arguments.results) or [newest_run()]
    rows = load_rows(folders)
    out = write_report(rows, arguments.out or default_out(folders))
    if arguments.json:
        figures = {"report": str(out), "results": [json_row(row) for row in rows]}
        print(json.dumps(figures, indent=1, ensure_ascii=False))  # noqa: T201
    else:
        print(text_table(rows))  # noqa: T201
    log(f"report: {out}")
    if arguments.open and not webbrowser.open(out.resolve().as_uri()):
        log(f"no browser to open it with: open {out} yourself")
    log(f"next: python -m deploy.detect --bundle {shlex.quote(_bundle_path(rows))} image.jpg")
    return 0


def _folder(given: Path) -> Path:
    return given.parent if given.name == RESULT_NAME else given


def _result_folders(folder: Path) -> list[Path]:
    if (folder / RESULT_NAME).is_file():
        return [folder]
    return sorted(path.parent for path in folder.rglob(RESULT_NAME) if not _unfinished(path, folder))


def _unfinished(path: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(root).parts)


def _findings(rows: Sequence[Row], file_name: str, read: Callable[[Path], File]) -> list[tuple[str, File]]:
    """What every bundle found, once, from the first device that ran it."""
    first: dict[str, Row] = {}
    for row in rows:
        if (row.folder / file_name).is_file():
            first.setdefault(str(row.result.bundle.get("sha256", row.folder)), row)
    drawn = list(first.values())
    files = (read(row.folder / file_name) for row in drawn)
    return list(zip(labels(drawn), files, strict=True))


def _bundle_path(rows: Sequence[Row]) -> str:
    """Where the fastest bundle lies, as far as is known here."""
    fastest = min(rows, key=lambda row: (row.emulated, row.p50_s))
    path = Path(str(fastest.result.bundle.get("path") or Path("runs/deploy") / fastest.bundle))
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


if __name__ == "__main__":
    sys.exit(main())
