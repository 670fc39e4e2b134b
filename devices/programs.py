"""Running a file of this package on a device that has nothing of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from devices.device import Completed, Device
from devices.errors import DeviceError

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


def run_program(
    device: Device,
    python: Sequence[str],
    module: ModuleType,
    request: Mapping[str, Any] | None = None,
    *,
    timeout_s: float,
    on_stderr: Callable[[str], None] | None = None,
) -> Completed:
    """Run a file of this package on a device, where it can see on its stdin that this side is there.

    Args:
        device: where.
        python: start of a command line that runs Python there.
        module: standard library only.
        request: sent to it as one line of JSON.
        timeout_s: give up after this long without a line on stderr.
        on_stderr: is given each line of stderr.

    Raises:
        DeviceError: the device failed.
    """
    line = b"" if request is None else json.dumps(request).encode() + b"\n"
    stdin = program_stdin(module) + line
    return device.run(
        program_argv(python), timeout_s=timeout_s, stdin=stdin, hold_stdin=request is not None, on_stderr=on_stderr
    )


def marked(output: str, mark: str, name: str) -> dict[str, Any] | None:
    """The JSON object behind `mark` in the output of a program, among whatever a login script wrote; None without one.

    Raises:
        DeviceError: what is behind the mark is no JSON object.
    """
    for line in output.splitlines():
        _, found, text = line.partition(mark)
        if found:
            try:
                answer = json.loads(text)
            except (ValueError, RecursionError) as error:
                raise DeviceError(f"{name}: it answered {text!r:.80}, which is garbled ({error}): try again") from error
            if not isinstance(answer, dict):
                raise DeviceError(f"{name}: it answered {text!r:.80}, expected a JSON object: try again")
            return answer
    return None
