"""This machine."""

from __future__ import annotations

import io
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from devices.device import Completed
from devices.errors import TransferError
from devices.probe import facts
from devices.process import run_process
from devices.transfer import BrokenTransferError, files_below, prune, read_files, write_files

LOCAL = "local"


class LocalDevice:
    """This machine and this Python, as a `devices.Device`."""

    name = LOCAL
    shares_files = True
    threads: int | None = None
    meter: str | None = None

    def __init__(self, workdir: Path | None = None, python: str | None = None) -> None:
        self._workdir = workdir or Path.home() / ".cache" / "edge-distill"
        self._python = sys.executable if python is None else os.path.expanduser(python)  # noqa: PTH111
        self._stop = threading.Event()

    @property
    def python(self) -> tuple[str, ...]:
        """The Python that runs this, unless another was given."""
        return (self._python,)

    @property
    def workdir(self) -> str:
        """Folder that `push` copies into."""
        return str(self._workdir)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        hold_stdin: bool = False,
        on_stderr: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run a program of this machine; see `devices.Device.run`."""

        def feed(stream: IO[bytes]) -> None:
            stream.write(stdin)

        output = run_process(
            argv, timeout_s=timeout_s, feed=feed, hold_stdin=hold_stdin, on_stderr=on_stderr, stop=self._stop
        )
        return Completed(tuple(argv), output.returncode, output.stdout.decode("utf-8", "replace"), output.stderr)

    def push(self, files: Mapping[str, Path], folder: str) -> str:
        """Copy files below `workdir`; see `devices.Device.push`."""
        target = self._workdir / folder
        if target.is_dir():
            os.utime(target)
        else:
            _copy(files, target)
            prune(target)
        return str(target)

    def pull(self, folder: str, destination: Path) -> None:
        """Copy a folder; see `devices.Device.pull`."""
        if not Path(folder).is_dir():
            raise TransferError(f"{self.name}: there is no folder {folder}")
        _copy(files_below(Path(folder)), destination)

    def facts(self, folders: Sequence[str] = ()) -> Mapping[str, Any]:
        """Facts of this machine; see `devices.Device.facts`. Looking for a folder takes no time here."""
        return facts()

    def stop(self) -> None:
        """End what another thread runs; see `devices.Device.stop`."""
        self._stop.set()

    def close(self) -> None:
        """Nothing is open."""


def _copy(files: Mapping[str, Path], target: Path) -> None:
    stream = io.BytesIO()
    try:
        write_files(stream, files)
        stream.seek(0)
        read_files(stream, target)
    except BrokenTransferError as error:
        raise TransferError(f"cannot copy to {target}: {error}") from error
