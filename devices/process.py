"""One local process, watched: output collected, stderr passed on line by line, never left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO

from devices.errors import DeviceError

_KEPT_STDERR_LINES = 2000
_GRACE_S = 3.0  # for a process to end by itself once its stdin is closed
_HEARTBEAT_S = 10.0
_LOOK_S = 0.2  # how soon a stop is noticed
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")  # would move the cursor of whoever reads it in a terminal

_STOPPED = "stopped"

Feed = Callable[[IO[bytes]], None]


@dataclass(frozen=True)
class Output:
    """What a process left: exit status (negative for a signal), all of stdout, the end of stderr as printable text."""

    returncode: int
    stdout: bytes
    stderr: str


def run_process(
    argv: Sequence[str],
    *,
    timeout_s: float,
    feed: Feed | None = None,
    hold_stdin: bool = False,
    on_stderr: Callable[[str], None] | None = None,
    stop: threading.Event | None = None,
) -> Output:
    """Run a program of this machine to its end; on any exception, Ctrl-C included, it is ended first.

    Args:
        argv: the program and its arguments.
        timeout_s: give up after this long without an end and without a line on stderr.
        feed: writes to the process' stdin, in a thread of its own.
        hold_stdin: keep stdin open after `feed` until the process ends, with an empty line every ten seconds: where
            the network is cut without a word, only their absence tells the other end.
        on_stderr: is given each line of stderr as it comes.
        stop: once it is set, by another thread, the process is ended.

    Raises:
        DeviceError: the time is up, there is no such program, or `stop` was set.
    """
    if stop is not None and stop.is_set():
        raise DeviceError(_STOPPED)
    try:
        # A session of its own: Ctrl-C reaches this process, which then ends that one in order.
        process = subprocess.Popen(
            list(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError, NotADirectoryError) as error:
        raise DeviceError(f"cannot start {argv[0]} ({error.strerror}): is it installed and executable?") from error
    conversation = _Conversation(process, feed, hold_stdin, on_stderr)
    try:
        conversation.wait(timeout_s, stop)
        return conversation.output()
    finally:
        conversation.end()


class _Conversation:
    """The three streams of a process, each served by a thread."""

    def __init__(
        self,
        process: subprocess.Popen[bytes],
        feed: Feed | None,
        hold_stdin: bool,
        on_stderr: Callable[[str], None] | None,
    ) -> None:
        self._process = process
        self._stdout: list[bytes] = []
        self._stderr: deque[str] = deque(maxlen=_KEPT_STDERR_LINES)
        self._last_sign_of_life = time.monotonic()
        self._ending = threading.Event()
        # `Popen.wait` with a time-out sleeps up to 50 ms too long, which adds up over many short commands.
        self._over = threading.Event()
        self._writer = threading.Thread(target=self._write, args=(feed, hold_stdin), daemon=True)
        self._readers = [
            threading.Thread(target=self._read_stdout, daemon=True),
            threading.Thread(target=self._read_stderr, args=(on_stderr,), daemon=True),
        ]
        waiter = threading.Thread(target=self._await_end, daemon=True)
        for thread in (waiter, self._writer, *self._readers):
            thread.start()

    def wait(self, timeout_s: float, stop: threading.Event | None) -> None:
        while True:
            left_s = max(0.0, self._last_sign_of_life + timeout_s - time.monotonic())
            if self._over.wait(left_s if stop is None else min(left_s, _LOOK_S)):
                return
            if time.monotonic() - self._last_sign_of_life >= timeout_s:
                raise DeviceError(
                    f"no sign of life for {timeout_s:g} s from {_shown(self._process.args)}: gave up and ended it"
                )
            if stop is not None and stop.is_set():
                raise DeviceError(_STOPPED)

    def output(self) -> Output:
        # An ssh that left a connection open for reuse may keep these pipes open: what is not there soon never comes.
        for reader in self._readers:
            reader.join(_GRACE_S)
        return Output(self._process.returncode, b"".join(self._stdout), "\n".join(self._stderr))

    def end(self) -> None:
        """End the process if it still runs: by closing its stdin, then by asking, then by force."""
        self._ending.set()
        self._writer.join(0.1)
        if not self._writer.is_alive():  # it has closed stdin; one that is blocked in writing cannot
            self._ended_within(_GRACE_S)
        for sign in (signal.SIGTERM, signal.SIGKILL):
            if self._ended_within(0.0):
                return
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, sign)
            self._ended_within(_GRACE_S)

    def _ended_within(self, seconds: float) -> bool:
        return self._over.wait(seconds)

    def _await_end(self) -> None:
        self._process.wait()
        self._over.set()

    def _write(self, feed: Feed | None, hold_stdin: bool) -> None:
        stdin = self._process.stdin
        assert stdin is not None
        with suppress(BrokenPipeError, ValueError):  # the process ended first; its exit status tells
            try:
                if feed is not None:
                    feed(stdin)
                stdin.flush()
                while hold_stdin and not self._ending.wait(_HEARTBEAT_S):
                    stdin.write(b"\n")
                    stdin.flush()
            finally:  # whatever went wrong, the other end must not wait for more
                stdin.close()

    def _read_stdout(self) -> None:
        stdout = self._process.stdout
        assert stdout is not None
        with suppress(ValueError):
            while chunk := os.read(stdout.fileno(), 1 << 16):
                self._stdout.append(chunk)

    def _read_stderr(self, on_stderr: Callable[[str], None] | None) -> None:
        stderr = self._process.stderr
        assert stderr is not None
        with suppress(ValueError):
            for raw in stderr:
                self._last_sign_of_life = time.monotonic()
                line = _CONTROL.sub("�", raw.decode("utf-8", "replace").rstrip("\r\n"))
                self._stderr.append(line)
                if on_stderr is not None:
                    on_stderr(line)


def _shown(argv: object) -> str:
    words = argv if isinstance(argv, list) else [argv]
    text = " ".join(str(word) for word in words)
    return text if len(text) <= 120 else text[:120] + "…"
