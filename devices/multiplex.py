"""One SSH connection that many commands share, ended when this process ends, however it ends."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

OPTIONS = {
    "BatchMode": "yes",  # never a prompt
    "ConnectTimeout": "10",
    "ServerAliveInterval": "5",
    "ServerAliveCountMax": "3",
    "ControlMaster": "auto",  # one login for many commands: 7 ms instead of 200 ms each
    "ControlPersist": "60",  # for the case that the guard below is killed too
    # What a configuration has for sitting at the machine would get in the way of a batch run.
    "ClearAllForwardings": "yes",
    "RemoteCommand": "none",
    "LogLevel": "ERROR",
}
_GRACE_S = 5.0

# Waits for its stdin to end, which it does when this process does, then ends the connection and its folder.
_GUARD = 'read -r line; "$@"; rm -rf -- "$0"'


class SharedConnection:
    """The connection to one host: how to start an `ssh` that uses it, and its end.

    The first `ssh` opens it in the background. It and its socket go with `close`, or with this process: a shell that
    holds the other end of a pipe sees to that, even after SIGKILL.
    """

    def __init__(self, host: str, ssh_config: Path | None) -> None:
        """Nothing is opened yet.

        Args:
            host: what `ssh` takes as a destination.
            ssh_config: used in place of ~/.ssh/config.
        """
        self._host = host
        self._ssh_config = ssh_config
        self._guard: subprocess.Popen[bytes] | None = None
        self.folder: Path | None = None

    def argv(self, *rest: str) -> list[str]:
        """A command line of `ssh` over the shared connection; `rest` are options that come before the host."""
        if self.folder is None:
            # Not the user's temporary folder: the path of a socket may have only about 100 characters.
            self.folder = Path(tempfile.mkdtemp(prefix="edge-distill-", dir="/tmp"))
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, str(self.folder), *self.argv("-O", "exit")],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is not for it
            )
        options: Mapping[str, str] = {**OPTIONS, "ControlPath": f"{self.folder}/%C"}
        config = [] if self._ssh_config is None else ["-F", str(self._ssh_config)]
        settings = [word for pair in options.items() for word in ("-o", "=".join(pair))]
        return ["ssh", "-T", *config, *settings, *rest, "--", self._host]

    def stands(self) -> bool:
        """Whether the connection is open now."""
        argv = self.argv("-O", "check")
        return subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, check=False).returncode == 0

    def close(self) -> None:
        """End the connection, if there is one."""
        if self.folder is None or self._guard is None or self._guard.stdin is None:
            return
        self._guard.stdin.close()
        try:
            self._guard.wait(_GRACE_S)
        except subprocess.TimeoutExpired:  # a connection that does not even answer here
            with suppress(ProcessLookupError):
                self._guard.kill()
            self._guard.wait()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder = self._guard = None
