"""What every command line of `deploy` and `bench` shares: exit codes, one-line errors, whole output folders."""

from __future__ import annotations

import argparse
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from deploy.errors import DeployError

INTERRUPTED_EXIT_CODE = 130  # 128 + SIGINT, what a shell reports for Ctrl-C


def run_command(command: Callable[[], int], *errors: type[Exception]) -> int:
    """Run a command and turn the failures a user can mend into one line and an exit code.

    Args:
        command: does the work and returns the exit code.
        errors: further root exceptions to report as one line, beside `DeployError`.

    Returns:
        What `command` returned; 1 after a reported failure; 130 after Ctrl-C.
    """
    # OSError (no space, no permission, a folder that vanished) names the file in the system's own words.
    reported: tuple[type[Exception], ...] = (DeployError, OSError, *errors)
    try:
        return command()
    except reported as error:
        log(f"error: {one_line(error)}")
        return 1
    except (KeyboardInterrupt, ImportError) as error:
        if not _is_interrupt(error):
            raise
        log("interrupted: nothing half-written was left")
        return INTERRUPTED_EXIT_CODE


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether it is Ctrl-C, or what a compiled module makes of a Ctrl-C that meets it while it is imported."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__cause__
    return error is not None


def one_line(error: BaseException) -> str:
    """The message of `error` on a single line."""
    return " ".join(str(error).split()) or type(error).__name__


def log(message: str) -> None:
    """Write one line of progress to stderr; results alone go to stdout."""
    print(message, file=sys.stderr, flush=True)  # noqa: T201


@contextmanager
def whole_folder(destination: Path) -> Iterator[Path]:
    """Give a folder to fill that becomes `destination` only once the block has ended well.

    Args:
        destination: must not exist yet; its parents are created where they are missing.

    Yields:
        A sibling folder to write into. After any exception, Ctrl-C included, it is removed, and so are
        the parents made for it.

    Raises:
        DeployError: `destination` exists.
    """
    if destination.exists() or destination.is_symlink():
        raise DeployError(f"{destination} already exists: choose another --out or remove it")
    made = [parent for parent in destination.parents if not parent.exists()]  # innermost first
    partial = destination.parent / f".{destination.name}.partial-{os.getpid()}"
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        yield partial
        partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if not destination.exists():
            _remove_empty(made)


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove folders up to the first one that holds something, perhaps another command's output."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return


def number_within(lowest: float, highest: float, text: str) -> float:
    """A flag's number.

    Raises:
        argparse.ArgumentTypeError: `text` is no number, or not within the bounds.
    """
    expected = f"{text!r}: expected a number from {lowest:g} to {highest:g}"
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(expected) from None
    if not lowest <= value <= highest:
        raise argparse.ArgumentTypeError(expected)
    return value


def positive_whole_number(text: str) -> int:
    """A flag's whole number of at least 1; see `whole_number`."""
    return whole_number(1, text)


def whole_number(least: int, text: str) -> int:
    """A flag's whole number.

    Raises:
        argparse.ArgumentTypeError: `text` is no whole number, or below `least`.
    """
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, at least {least}")
    return int(text)


def file_name(text: str) -> str:
    """`text` as one file name, with everything that is awkward in it replaced."""
    return re.sub(r"[^\w.@+-]", "_", text).lstrip(".-")[:100] or "unnamed"


def unused_path(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3`, … that does not exist."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
