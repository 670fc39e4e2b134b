"""Steps of a longer command: one line each with its time, and libraries kept quiet meanwhile."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO

from deploy.cli import log
from deploy.errors import DeployError

_KEPT_CHARACTERS = 4000


@contextmanager
def step(text: str) -> Iterator[None]:
    """Do one step quietly and log a line with its seconds; on a terminal the line shows while the step runs."""
    terminal = sys.stderr.isatty()
    if terminal:
        sys.stderr.write(f"{text} … ")
        sys.stderr.flush()
    start_s = time.perf_counter()
    try:
        with quiet():
            yield
    except BaseException:
        if terminal:
            sys.stderr.write("\n")
        raise
    elapsed_s = time.perf_counter() - start_s
    log(f"{elapsed_s:.1f} s" if terminal else f"{text}: {elapsed_s:.1f} s")


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what libraries write to stdout and stderr, from C++ too, off the user's screen.

    Exporters print banners, bars and advice, some of it to stdout, where only results belong. If the block fails with
    something that is not reported in one line anyway, the end of what they wrote is shown: it may hold the reason.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    with _scratch_file() as kept:
        saved = os.dup(1), os.dup(2)
        os.dup2(kept.fileno(), 1)
        os.dup2(kept.fileno(), 2)
        try:
            yield
        except (DeployError, OSError, KeyboardInterrupt):
            raise
        except BaseException:
            _restore(saved)
            kept.seek(0)
            sys.stderr.write(kept.read().decode(errors="replace")[-_KEPT_CHARACTERS:])
            raise
        finally:
            _restore(saved)
            for descriptor in saved:
                os.close(descriptor)


def _scratch_file() -> IO[bytes]:
    """In memory where the system can, so that a full disk does not swallow the message that says so."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("chatter"), "w+b")
    return tempfile.TemporaryFile()


def _restore(saved: tuple[int, int]) -> None:
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    for target, descriptor in enumerate(saved, start=1):
        os.dup2(descriptor, target)
