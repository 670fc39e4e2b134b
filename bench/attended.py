"""A worker and whoever watches it: the job comes on stdin, its end is the worker's end, and workers take turns."""

from __future__ import annotations

import fcntl
import os
import select
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from deploy.cli import log

HOST_GONE_EXIT_CODE = 3

_LOOKS = 12  # at stdin, before its silence is taken for the end
_LOCK_INTERVAL_S = 1.0


def line_of_stdin() -> str:
    """The first line of stdin, unbuffered: the rest is the watcher's."""
    line = b""
    while not line.endswith(b"\n"):
        chunk = os.read(0, 1 << 16)
        if not chunk:
            break
        line += chunk
    return line.decode("utf-8", "replace")


def end_with_stdin(silence_s: float | None) -> None:
    """End this process once stdin ends, or nothing came on it for so long: then the network is cut.

    Args:
        silence_s: None to wait for the end alone, where nobody promised to write.
    """
    looks = 0
    while looks < _LOOKS:
        ready, _, _ = select.select([0], [], [], None if silence_s is None else silence_s / _LOOKS)
        if not ready:
            looks += 1  # counted, not timed: a machine that was asleep has not been listening
        elif os.read(0, 1 << 16):
            looks = 0
        else:
            break
    os._exit(HOST_GONE_EXIT_CODE)  # nobody is left to tell


@contextmanager
def alone(lock: str | None) -> Iterator[None]:
    """Wait until no other worker measures on this machine: one of another host, or one whose host was cut off.

    Args:
        lock: a file that is made if it is not there; None not to wait.
    """
    if lock is None:
        yield
        return
    with ExitStack() as stack:
        try:
            file = stack.enter_context(Path(lock).open("ab"))  # the system lets go of it however this process ends
        except OSError:  # a disk that is full or read-only is no reason not to measure
            yield
            return
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log("progress waiting-for-another-bench")
                time.sleep(_LOCK_INTERVAL_S)
            else:
                break
        yield
