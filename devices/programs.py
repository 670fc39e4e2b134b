"""Running a file of this package on a device that has nothing of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

# The program travels on stdin: no shell sees it, whatever shell the account there has.
_BOOT = "import sys; exec(compile(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())), '<sent>', 'exec'))"


def program_argv(python: Sequence[str]) -> list[str]:
    """The command that runs whatever `program_stdin` gives it."""
    return [*python, "-c", _BOOT]


def program_stdin(module: ModuleType) -> bytes:
    """What to write first on the stdin of `program_argv`: the source of `module`, run there as the main program."""
    assert module.__file__ is not None
    source = Path(module.__file__).read_bytes()
    return b"%d\n" % len(source) + source
