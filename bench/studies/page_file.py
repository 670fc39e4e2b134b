"""How a study starts and ends: its command line, and the page that it writes."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench.errors import BenchError
from deploy.cli import run_command


def run_study(
    parser: argparse.ArgumentParser,
    study: Callable[[argparse.Namespace, str], int],
    argv: Sequence[str] | None,
) -> int:
    """Parse a command line and run the study; returns the exit code.

    Args:
        parser: its `prog` is how the study is called.
        study: takes the arguments, and the command as it was typed, for the page; returns the exit code.
        argv: the arguments; None for those of this process.
    """
    typed = list(sys.argv[1:] if argv is None else argv)
    arguments = parser.parse_args(typed)
    return run_command(lambda: study(arguments, f"{parser.prog} {shlex.join(typed)}"), BenchError)


def refuse_existing(out: Path | None) -> None:
    """Refuse, before anything is measured, a file that is there already.

    Raises:
        BenchError: it exists.
    """
    if out is not None and out.exists():
        raise BenchError(f"{out} already exists: choose another --out or remove it")


def write_page(text: str, out: Path | None) -> None:
    """Write a page to `out`, and its path to stdout; without `out`, the page itself.

    Raises:
        OSError: the file cannot be written.
    """
    if out is None:
        sys.stdout.write(text)
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    sys.stdout.write(f"{out}\n")
