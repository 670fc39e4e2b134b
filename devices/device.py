"""What every device can do: run a command, receive files, give files back, say what it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Completed:
    """A command that has ended.

    Attributes:
        argv: what was run.
        returncode: its exit status; for one that was killed, negative here and 255 behind SSH.
        stdout: all of its output.
        stderr: the end of its error output, at most some thousand lines.
    """

    argv: tuple[str, ...]
    returncode: int
    stdout: str
    stderr: str


class Device(Protocol):
    """A machine that results are measured on, this one or another.

    Every method raises `DeviceError` where the device itself fails; a command that merely exits non-zero is returned.
    """

    @property
    def name(self) -> str:
        """What the user calls it."""

    @property
    def shares_files(self) -> bool:
        """Whether paths of this machine are valid there as they are, so that nothing need be pushed."""

    @property
    def threads(self) -> int | None:
        """Threads the inventory wants an inference to use there; None leaves it to the device."""

    @property
    def meter(self) -> str | None:
        """File there of an energy meter, as the inventory has it, absolute; None without one."""

    @property
    def python(self) -> tuple[str, ...]:
        """Start of a command line that runs Python there."""

    @property
    def workdir(self) -> str:
        """Absolute path of the folder there that pushed files live in."""

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        hold_stdin: bool = False,
        on_stderr: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run a command there and wait for it; arguments arrive as they are, nothing is evaluated by a shell.

        Args:
            argv: the program and its arguments.
            timeout_s: give up after this long without an end and without a line on stderr.
            stdin: what the command can read.
            hold_stdin: keep stdin open after that until the command ends, with an empty line every ten seconds. A
                command that watches it learns from the end of file that this process has gone, however it went, and
                from silence that the network has.
            on_stderr: is given each line of stderr as it comes.
        """

    def push(self, files: Mapping[str, Path], folder: str) -> str:
        """Copy files there, all or nothing; a folder that is there already is left as it is.

        The folders beside it are a cache of which the newest stay, see `devices.transfer.prune`.

        Args:
            files: relative name in the folder (with `/`) to the file here.
            folder: relative to `workdir`; named by content, so that a folder once pushed never changes.

        Returns:
            Absolute path of the folder there.
        """

    def pull(self, folder: str, destination: Path) -> None:
        """Copy a folder from there (absolute path) to `destination`, which must not exist; all or nothing."""

    def facts(self, folders: Sequence[str] = ()) -> Mapping[str, Any]:
        """Python, packages, processor and space there, see `devices.probe.facts`.

        Args:
            folders: relative to `workdir`, as `push` takes them. Those that are there count as used now, and the next
                `push` of each takes no further word.
        """

    def stop(self) -> None:
        """End what another thread runs there, in order; it fails with `DeviceError`, and so does all that follows."""

    def close(self) -> None:
        """End what was left open for speed."""
