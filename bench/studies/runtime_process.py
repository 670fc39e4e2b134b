"""Workers of the runtime study seen from the host: started, asked, and held still while another one works."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.errors import BenchError

_END_TIMEOUT_S = 30.0
_KEPT_LINES = 5


class WorkerProcess:
    """One `bench.studies.runtime_worker`. It is stopped (SIGSTOP) at all times but while it answers.

    The threads of an engine wait for work by spinning, some of them for good: asleep by itself, a worker would take
    processor time from the one that is measured.
    """

    def __init__(self, name: str, request: Mapping[str, Any], log: Path) -> None:
        """Start a worker and have it open its contender.

        Args:
            name: to call it in errors.
            request: the first one; see `Worker`.
            log: file to append what it writes to stderr to.

        Raises:
            BenchError: it could not open the contender.
        """
        self.name = name
        self._log = log
        with log.open("ab") as stderr:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "bench.studies.runtime_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                text=True,
            )
        try:
            self.facts: dict[str, Any] = self.ask(request)["facts"]
        except BaseException:
            self.close()
            raise

    def ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Let it run, send one request, wait for the answer, and stop it again.

        Raises:
            BenchError: it ended, or answered that it failed.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._signal(signal.SIGCONT)
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise BenchError(f"the worker for {self.name} ended ({self._process.wait()}): {_last_lines(self._log)}")
        self._signal(signal.SIGSTOP)
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise BenchError(f"{self.name}: {answer['error']}")
        return answer

    def close(self) -> None:
        """Let it end."""
        self._signal(signal.SIGCONT)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        try:
            self._process.wait(_END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _signal(self, number: int) -> None:
        if self._process.poll() is None:
            os.kill(self._process.pid, number)


def _last_lines(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return " ".join(lines[-_KEPT_LINES:]) or "it said nothing"
