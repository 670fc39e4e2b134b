"""A machine reached by the system's own `ssh`, so that the user's configuration, agent, jump hosts and host-key
policy apply as they do by hand.
"""

from __future__ import annotations

import io
import json
import re
import shlex
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from devices import probe, transfer
from devices.device import Completed
from devices.errors import ConnectionFailedError, DeviceError, TransferError
from devices.facts import reported_facts
from devices.multiplex import SharedConnection
from devices.process import Feed, Output, run_process
from devices.programs import program_argv, program_stdin

DEFAULT_PYTHON = "python3"
DEFAULT_WORKDIR = "~/.cache/edge-distill"

_SSH_FAILED = 255
_QUICK_S = 60.0
_TRANSFER_SILENCE_S = 3600.0
_DEVICE_PATIENCE_S = 600  # until a megabyte has come; then the network is gone, though its own sshd has not noticed

# What OpenSSH itself refuses since 9.6 (CVE-2023-51385), plus what would be taken for an option or split.
_UNSAFE_HOST = re.compile(r"^-|[\s\x00-\x1f\x7f'\"`$\\;&<>|(){}*?!#]|^$")

_OF_SSH = re.compile(
    r"ssh[:_]|kex_|client_loop|mux_|Connection |Timeout|Host key|Bad |command-line|.*(Permission denied|host key)", re.I
)
_OTHER_KEY = re.compile("host key verification failed|identification has changed", re.I)
_ADVICE = (
    ("host key verification failed", "connect once by hand and check its key: ssh {host}"),
    ("identification has changed", "connect once by hand and check its key: ssh {host}"),
    ("permission denied", "let your key in: ssh-copy-id {host}"),
    ("could not resolve", "{if_unknown}"),
    ("", "see that it is on and that this works: ssh {host}"),
)


class SshDevice:
    """A machine behind SSH, as a `devices.Device`. Close it to end the shared connection."""

    shares_files = False

    def __init__(
        self,
        name: str,
        host: str,
        *,
        python: str = DEFAULT_PYTHON,
        workdir: str = DEFAULT_WORKDIR,
        threads: int | None = None,
        ssh_config: Path | None = None,
        meter: str | None = None,
        if_unknown: str = "check the name",
    ) -> None:
        """Describe the machine; nothing is connected yet.

        Args:
            name: what the user calls it.
            host: anything `ssh` takes as a destination: user@host, an alias, ssh://user@host:port.
            python: the interpreter there, a name or a path; `~/` is its home folder.
            workdir: where pushed files live there; `~/` is its home folder.
            threads: for an inference there; None leaves it to the device.
            ssh_config: used in place of the user's configuration (`ssh -F`).
            meter: file of an energy meter there; `~/` is its home folder.
            if_unknown: what to advise where `host` does not resolve.

        Raises:
            DeviceError: `host` could be taken for an option or for shell text.
        """
        if _UNSAFE_HOST.search(host):
            raise DeviceError(f"{host!r} is no SSH destination: give user@host or an ssh alias")
        self.name = name
        self.threads = threads
        self._host = host
        self._given_python = python
        self._given_workdir = workdir
        self._given_meter = meter
        self._if_unknown = if_unknown
        self._connection = SharedConnection(host, ssh_config)
        self._was_connected = False
        self._stop = threading.Event()
        self._there: set[str] = set()  # what `facts` found and `push` has not asked for yet

    @cached_property
    def python(self) -> tuple[str, ...]:
        """The Python there, `~` resolved."""
        return (self._resolved(self._given_python),)

    @cached_property
    def workdir(self) -> str:
        """The folder there that pushed files live in, absolute."""
        return self._resolved(self._given_workdir)

    @cached_property
    def meter(self) -> str | None:
        """File of an energy meter there, absolute."""
        return None if self._given_meter is None else self._resolved(self._given_meter)

    def run(
        self,
        argv: Sequence[str],
        *,
        timeout_s: float,
        stdin: bytes = b"",
        hold_stdin: bool = False,
        on_stderr: Callable[[str], None] | None = None,
    ) -> Completed:
        """Run a command there; see `devices.Device.run`.

        Raises:
            ConnectionFailedError: SSH failed, or the link was lost meanwhile.
        """

        def feed(stream: IO[bytes]) -> None:
            stream.write(stdin)

        output = self._ssh(shlex.join(argv), timeout_s=timeout_s, feed=feed, hold_stdin=hold_stdin, on_stderr=on_stderr)
        return Completed(tuple(argv), output.returncode, output.stdout.decode("utf-8", "replace"), output.stderr)

    def push(self, files: Mapping[str, Path], folder: str) -> str:
        """Copy files below `workdir` there; see `devices.Device.push`."""
        target = f"{self.workdir}/{folder}"
        if folder in self._there:
            self._there.remove(folder)  # by `facts`, for once: it may be gone the next time
            return target
        if self.run(["test", "-d", target], timeout_s=_QUICK_S).returncode == 0:
            # For `transfer.prune`; on a disk that cannot be written to, nothing is removed either.
            self.run(["touch", "-c", "--", target], timeout_s=_QUICK_S)
            return target
        broken: list[str] = []

        def feed(stream: IO[bytes]) -> None:
            try:
                transfer.write_files(stream, files)
            except BrokenPipeError:  # the other end has gone, and says why
                raise
            except (transfer.BrokenTransferError, OSError) as error:
                broken.append(str(error))  # the other end meets the end of the stream and keeps nothing

        output = self._program(transfer, {"do": "receive", "folder": target, "silence_s": _DEVICE_PATIENCE_S}, feed)
        if output.returncode != 0 or broken:
            megabytes = sum(path.stat().st_size for path in files.values() if path.is_file()) / 1e6
            reason = broken[0] if broken else _reason(output)
            raise TransferError(f"{self.name}: cannot push {megabytes:.1f} MB to {target}: {reason}")
        return target

    def pull(self, folder: str, destination: Path) -> None:
        """Copy a folder from there; see `devices.Device.pull`."""
        output = self._program(transfer, {"do": "send", "folder": folder}, None)
        try:
            if output.returncode != 0:
                raise transfer.BrokenTransferError(_reason(output))
            transfer.read_files(io.BytesIO(output.stdout), destination)
        except transfer.BrokenTransferError as error:
            raise TransferError(f"{self.name}: cannot pull {folder}: {error}") from error

    def facts(self, folders: Sequence[str] = ()) -> Mapping[str, Any]:
        """Facts of that machine; see `devices.Device.facts`.

        Each command starts the account's shell there, whose start-up files may take longer than the command: what can
        be asked with another question is.
        """
        targets = [f"{self.workdir}/{folder}" for folder in folders]
        output = self._program(probe, {"folders": targets}, None)
        facts = reported_facts(output.stdout.decode("utf-8", "replace"), self.name)
        if facts is not None:
            found = facts.pop("folders", None)
            there = found if isinstance(found, list) else []
            self._there = {folder for folder, target in zip(folders, targets, strict=True) if target in there}
            return facts
        raise DeviceError(
            f"{self.name}: {self._given_python} does not run there (exit code {output.returncode}: {_reason(output)}): "
            "set python in devices.toml to a Python 3.11 or newer, or let this make one: "
            f"python -m devices setup {shlex.quote(self.name)}"
        )

    def stop(self) -> None:
        """End what another thread runs there; see `devices.Device.stop`."""
        self._stop.set()

    def close(self) -> None:
        """End the shared connection, if there is one."""
        self._connection.close()

    @cached_property
    def _home(self) -> str:
        output = self._ssh('echo "$HOME"', timeout_s=_QUICK_S)  # the one text that a shell there is to evaluate
        lines = output.stdout.decode("utf-8", "replace").splitlines()
        if output.returncode != 0 or not lines or not lines[-1].startswith("/"):
            raise DeviceError(
                f"{self.name}: no home folder there (exit code {output.returncode}: {_reason(output)}): "
                "give absolute paths for python and workdir in devices.toml"
            )
        return lines[-1]

    def _resolved(self, path: str) -> str:
        return f"{self._home}/{path[2:]}" if path.startswith("~/") else path

    def _program(self, module: ModuleType, request: Mapping[str, Any] | None, feed_files: Feed | None) -> Output:
        """Run one of this package's programs there: its source, its request, then what it is to receive."""

        def feed(stream: IO[bytes]) -> None:
            stream.write(program_stdin(module))
            if request is not None:
                stream.write(json.dumps(request).encode() + b"\n")
            if feed_files is not None:
                feed_files(stream)

        command = shlex.join(program_argv(self.python))
        shown = f"{self.python[0]} -c <{module.__name__}>"
        return self._ssh(command, timeout_s=_TRANSFER_SILENCE_S, feed=feed, shown=shown)

    def _ssh(
        self,
        command: str,
        *,
        timeout_s: float,
        feed: Feed | None = None,
        hold_stdin: bool = False,
        on_stderr: Callable[[str], None] | None = None,
        shown: str | None = None,
    ) -> Output:
        argv = [*self._connection.argv(), command]
        output = run_process(
            argv, timeout_s=timeout_s, feed=feed, hold_stdin=hold_stdin, on_stderr=on_stderr, stop=self._stop
        )
        # The same code means a command there that exited with it or was killed: then the connection still stands.
        if output.returncode < 0 or (output.returncode == _SSH_FAILED and not self._connection.stands()):
            raise self._failure(shown or command, output)
        self._was_connected = True
        return output

    def _failure(self, command: str, output: Output) -> ConnectionFailedError:
        said = _ssh_words(output.stderr, self._was_connected)
        advice = next(advice for words, advice in _ADVICE if words in said.lower())
        shown = command if len(command) <= 80 else command[:80] + "…"
        # Another key than before is another machine, or someone in between: no attempt more.
        may_return = self._was_connected and not _OTHER_KEY.search(said)
        return ConnectionFailedError(
            f"{self.name}: ssh to {self._host} failed (exit code {output.returncode}, running {shown}): "
            f"{said or 'the link was lost'}: {advice.format(host=self._host, if_unknown=self._if_unknown)}",
            may_return,
        )


def _ssh_words(stderr: str, was_connected: bool) -> str:
    """What ssh said, without the frame of @ around its warnings, on one line of at most some 300 characters."""
    lines = [line.strip(" @") for line in stderr.splitlines()]
    # Once a connection stood, most of it is what the command wrote before the link was lost.
    said = " / ".join(line for line in lines if line and (not was_connected or _OF_SSH.match(line)))
    return said if len(said) <= 300 else "… " + said[-300:]


def _reason(output: Output) -> str:
    """The line that a program ended with."""
    lines = [line.strip() for line in output.stderr.splitlines() if line.strip()]
    if not lines:
        return f"exit code {output.returncode}"
    return lines[-1].removeprefix("error: ")
