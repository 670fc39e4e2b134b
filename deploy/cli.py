"""What every command line of `deploy` and `bench` shares: exit codes, one-line errors, whole output folders."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterator
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
    except KeyboardInterrupt:
        log("interrupted: nothing half-written was left")
        return INTERRUPTED_EXIT_CODE


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
        destination: must not exist yet; its parent is created.

    Yields:
        A sibling folder to write into. After any exception, Ctrl-C included, it is removed.

    Raises:
        DeployError: `destination` exists.
    """
    if destination.exists() or destination.is_symlink():
        raise DeployError(f"{destination} already exists: choose another --out or remove it")
    destination.parent.mkdir(parents=True, exist_ok=True)
    partial = destination.parent / f".{destination.name}.partial-{os.getpid()}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        partial.rename(destination)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def unused_path(path: Path) -> Path:
    """`path`, or the first of `path-2`, `path-3`, … that does not exist."""
    candidate, number = path, 1
    while candidate.exists():
        number += 1
        candidate = path.with_name(f"{path.name}-{number}")
    return candidate
