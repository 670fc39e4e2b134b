"""Devices on this machine for studies: an sshd on loopback for each, with keys of its own, gone at the end."""

from __future__ import annotations

import getpass
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from bench.errors import BenchError

_START_S = 20.0
_SSHD_PLACES = "/usr/sbin:/usr/local/sbin:/sbin"
_SERVER = {
    "UsePAM": "no",
    "StrictModes": "no",
    "PermitRootLogin": "prohibit-password",
    "PasswordAuthentication": "no",
    "MaxStartups": "100:30:200",
}


@contextmanager
def loopback_devices(names: Sequence[str], folder: Path) -> Iterator[Path]:
    """Start an sshd for each name.

    Args:
        names: of the devices.
        folder: for keys, configurations and the devices' work folders; must exist.

    Yields:
        An inventory that lists them, each with this Python.

    Raises:
        BenchError: OpenSSH's server is not installed, or does not start.
    """
    program = shutil.which("sshd", path=_SSHD_PLACES)
    if program is None or shutil.which("ssh-keygen") is None:
        raise BenchError("no sshd here: install it (Debian: apt install openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where Debian's sshd gives up its privileges
    for key in ("host_key", "user_key"):
        if not (folder / key).exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / key], check=True)
    tables, known = [], []
    with ExitStack() as servers:
        for name in names:
            port = servers.enter_context(_server(program, folder, name))
            known.append(f"[127.0.0.1]:{port} {(folder / 'host_key.pub').read_text(encoding='utf-8').strip()}\n")
            tables.append(_table(folder, name, port))
        (folder / "known_hosts").write_text("".join(known), encoding="utf-8")
        inventory = folder / "devices.toml"
        inventory.write_text("\n".join(tables), encoding="utf-8")
        yield inventory


@contextmanager
def _server(program: str, folder: Path, name: str) -> Iterator[int]:
    """A running sshd; gives its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "user_key.pub",
        "PidFile": "none",
        **_SERVER,
    }
    config = folder / f"sshd_config_{name}"
    config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()), encoding="utf-8")
    said = folder / f"log_{name}"
    with said.open("wb") as log:
        server = subprocess.Popen([program, "-D", "-e", "-f", config], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + _START_S
        while b"Server listening" not in said.read_bytes():
            if server.poll() is not None or time.monotonic() > deadline:
                last = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()[-1:]
                raise BenchError(f"sshd does not start: {' '.join(last) or 'it says nothing'}")
            time.sleep(0.02)
        yield port
    finally:
        server.terminate()
        server.wait()


def _table(folder: Path, name: str, port: int) -> str:
    """The lines of the inventory for one device; writes its SSH configuration."""
    config = folder / f"ssh_config_{name}"
    options = {
        "HostName": "127.0.0.1",
        "Port": port,
        "User": getpass.getuser(),
        "IdentityFile": f'"{folder / "user_key"}"',
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": f'"{folder / "known_hosts"}"',
        "GlobalKnownHostsFile": "/dev/null",
    }
    lines = "".join(f"  {key} {value}\n" for key, value in options.items())
    config.write_text(f"Host {name}\n{lines}", encoding="utf-8")
    fields = {
        "host": name,
        "python": sys.executable,
        "workdir": str(folder / f"work_{name}"),
        "ssh_config": str(config),
    }
    return f"[device.{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in fields.items())
