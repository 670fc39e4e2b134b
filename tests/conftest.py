"""Shared fixtures: where the real data and weights are, a quiet, offline ultralytics, and an sshd on loopback."""

from __future__ import annotations

import getpass
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

# Before ultralytics is imported anywhere: it must neither install packages nor write into the user's settings.
os.environ.setdefault("YOLO_AUTOINSTALL", "false")
os.environ.setdefault("YOLO_OFFLINE", "true")

REPOSITORY = Path(__file__).resolve().parent.parent


def edge_data() -> Path:
    """Folder with real data and weights: $EDGE_DATA, or `shared` beside the checkout."""
    return Path(os.environ.get("EDGE_DATA", REPOSITORY.parent / "shared")).resolve()


def _need(relative: str) -> Path:
    path = edge_data() / relative
    if not path.exists():
        pytest.skip(f"real data is absent: {path} does not exist (set EDGE_DATA)")
    return path


@pytest.fixture(scope="session")
def coco_mini() -> Path:
    """Folder of the COCO sample, with coco-mini.yaml."""
    return _need("data/coco-mini")


@pytest.fixture(scope="session")
def bccd() -> Path:
    """Folder of the blood-cell data set, with bccd.yaml."""
    return _need("data/bccd")


@pytest.fixture(scope="session")
def coco_weights() -> Path:
    """A COCO-trained YOLOv8-n checkpoint."""
    return _need("weights/yolov8n-coco.pt")


@dataclass(frozen=True)
class Loopback:
    """A real sshd on this machine that lets this user in.

    Attributes:
        host: alias that `ssh_config` knows.
        port: on 127.0.0.1.
        ssh_config: for `ssh -F`; checks the host key against `known_hosts`.
        known_hosts: holds the server's key.
        key: private key that the server accepts.
    """

    host: str
    port: int
    ssh_config: Path
    known_hosts: Path
    key: Path

    def config(self, path: Path, **changed: str) -> Path:
        """Write a variant of the SSH configuration, e.g. with another `Port`, and return its path."""
        options = {
            "HostName": "127.0.0.1",
            "Port": str(self.port),
            "User": getpass.getuser(),
            "IdentityFile": f'"{self.key}"',
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": f'"{self.known_hosts}"',
            "GlobalKnownHostsFile": "/dev/null",
            "StrictHostKeyChecking": "yes",
            **changed,
        }
        path.write_text(f"Host {self.host}\n" + "".join(f"  {key} {value}\n" for key, value in options.items()))
        return path


@pytest.fixture(scope="session")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loopback]:
    """A running sshd; skips where OpenSSH's server is not installed."""
    program = shutil.which("sshd", path="/usr/sbin:/usr/local/sbin:/sbin")
    if program is None or shutil.which("ssh") is None:
        pytest.skip("no sshd: apt-get install openssh-server openssh-client")
    folder = tmp_path_factory.mktemp("sshd")
    for name in ("host_key", "user_key"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    (folder / "authorized_keys").write_text((folder / "user_key.pub").read_text())
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where Debian's sshd gives up its privileges
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    settings = {
        "Port": port,
        "ListenAddress": "127.0.0.1",
        "HostKey": folder / "host_key",
        "AuthorizedKeysFile": folder / "authorized_keys",
        "PidFile": folder / "pid",
        "UsePAM": "no",
        "StrictModes": "no",
        "PermitRootLogin": "prohibit-password",
        "PasswordAuthentication": "no",
        "MaxStartups": "100:30:200",
    }
    config = folder / "sshd_config"
    config.write_text("".join(f"{key} {value}\n" for key, value in settings.items()))
    host_key = (folder / "host_key.pub").read_text().split()
    (folder / "known_hosts").write_text(f"[127.0.0.1]:{port} {host_key[0]} {host_key[1]}\n")
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([program, "-D", "-e", "-f", config], stdout=log, stderr=log)
    try:
        _wait_for_banner(port, server, folder / "log")
        loopback = Loopback("edge-loopback", port, folder / "ssh_config", folder / "known_hosts", folder / "user_key")
        loopback.config(loopback.ssh_config)
        yield loopback
    finally:
        server.terminate()
        server.wait(10)


def _wait_for_banner(port: int, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with socket.create_connection(("127.0.0.1", port), 1) as connection:
                if connection.recv(4) == b"SSH-":
                    return
        except OSError:
            time.sleep(0.05)
    server.kill()
    pytest.fail(f"sshd did not start: {log.read_text()}")
