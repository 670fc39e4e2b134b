"""Devices behind the loopback sshd, a network that can be cut or stalled, and wheels that hold next to nothing."""

from __future__ import annotations

import base64
import hashlib
import os
import pwd
import shlex
import socket
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from devices import SshDevice

MakeDevice = Callable[..., SshDevice]


@pytest.fixture
def far(sshd: Any, tmp_path: Path) -> Iterator[MakeDevice]:
    """Makes a device behind the loopback sshd; keyword arguments change its SSH configuration or its Python."""
    made: list[SshDevice] = []

    def make(python: str = sys.executable, workdir: str | None = None, **changed: str) -> SshDevice:
        config = sshd.config(tmp_path / f"config-{len(made)}", **changed)
        workdir = workdir or str(tmp_path / "work")
        made.append(SshDevice("far", sshd.host, python=python, workdir=workdir, ssh_config=config))
        return made[-1]

    yield make
    for device in made:
        device.close()


@pytest.fixture
def wrapper() -> Callable[[Path, str], str]:
    """Writes a Python that runs some shell first, e.g. one that takes memory away."""

    def write(path: Path, first: str) -> str:
        path.write_text(f'#!/bin/sh\n{first}\nexec {shlex.quote(sys.executable)} "$@"\n')
        path.chmod(0o755)
        return str(path)

    return write


@pytest.fixture
def running() -> Callable[[str], list[int]]:
    """Ids of living processes whose command line holds a text."""

    def find(token: str) -> list[int]:
        found = []
        for folder in Path("/proc").iterdir():
            if folder.name.isdigit() and int(folder.name) != os.getpid():
                with suppress(OSError):
                    state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
                    if state != "Z" and token.encode() in (folder / "cmdline").read_bytes():
                        found.append(int(folder.name))
        return found

    return find


@pytest.fixture
def eventually() -> Callable[[Callable[[], object]], None]:
    """Waits until something is so, and fails where it never is."""

    def wait(is_so: Callable[[], object]) -> None:
        deadline = time.monotonic() + 15
        while not is_so():
            assert time.monotonic() < deadline, "it never came"
            time.sleep(0.02)

    return wait


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Name of a file that would appear if some text were evaluated, here or there; checked at the end."""
    name = f"edge-canary-{os.getpid()}"
    monkeypatch.chdir(tmp_path)
    yield name
    login_home = Path(pwd.getpwuid(os.getuid()).pw_dir)
    for place in (login_home, tmp_path, Path("/tmp"), Path.home()):
        assert not (place / name).exists(), f"text was evaluated: {place / name}"


class Network:
    """A TCP proxy before the sshd that can fall silent or close."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._flowing = threading.Event()
        self._flowing.set()
        self._delay_s = 0.0
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.after_bytes: int | None = None
        self.when_reached: Callable[[], None] = self.stall
        threading.Thread(target=self._accept, daemon=True).start()

    def stall(self) -> None:
        """Forward nothing more, and say nothing about it."""
        self._flowing.clear()

    def cut(self) -> None:
        """Close every connection, and forget the silence."""
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._flowing.set()

    def slow(self) -> None:
        """Forward some hundred kilobytes a second."""
        self._delay_s = 0.1

    def at(self, after_bytes: int, do: Callable[[], None]) -> None:
        """Do something once the host has sent so much more."""
        self.when_reached, self.after_bytes = do, after_bytes

    def end(self) -> None:
        self.cut()
        self._listener.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._sockets += [near, far]
                for pair in ((near, far, True), (far, near, False)):
                    threading.Thread(target=self._forward, args=pair, daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, from_host: bool) -> None:
        with suppress(OSError):
            while chunk := source.recv(1 << 16):
                if from_host and self.after_bytes is not None:
                    self.after_bytes -= len(chunk)
                    if self.after_bytes <= 0:
                        self.after_bytes = None
                        self.when_reached()
                self._flowing.wait()
                time.sleep(self._delay_s)
                target.sendall(chunk)
            target.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def network(sshd: Any) -> Iterator[Network]:
    """A proxy before the loopback sshd; SSH through it checks the same host key."""
    made = Network(sshd.port)
    yield made
    made.end()


@pytest.fixture
def through(network: Network, sshd: Any, far: MakeDevice) -> Callable[..., SshDevice]:
    """Makes a device behind `network`."""

    def make(**changed: str) -> SshDevice:
        return far(Port=str(network.port), HostKeyAlias=f"[127.0.0.1]:{sshd.port}", **changed)

    return make


@pytest.fixture(scope="session")
def wheel_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Wheels by the names of an engine's packages, a few bytes each."""
    folder = tmp_path_factory.mktemp("wheels")
    numpy = "class _Ones:\n def __matmul__(self, other): return self\ndef ones(shape): return _Ones()\n"
    write_wheel(folder, "numpy-1.26.4-py3-none-any", {"numpy.py": numpy})
    write_wheel(folder, "pillow-11.0-py3-none-any", {"PIL/__init__.py": "", "PIL/Image.py": ""})
    write_wheel(
        folder, "onnxruntime-1.31.0-py3-none-any", {"onnxruntime.py": _PROVIDERS}, requires=["numpy", "flatbuffers"]
    )
    write_wheel(folder, "flatbuffers-25.1-py2.py3-none-any", {"flatbuffers.py": _MAIN}, script="flatbuffers")
    return folder


_MAIN = "def main(): print('the script runs')\n"
_PROVIDERS = "def get_available_providers(): return ['CPUExecutionProvider']\n"


def write_wheel(
    folder: Path, name: str, files: dict[str, str | bytes], *, requires: list[str] | None = None, script: str = ""
) -> Path:
    """Write a wheel that pip installs; `name` is its file name, `script` a command that it has."""
    distribution, version, *tags = name.split("-")
    info = f"{distribution}-{version}.dist-info"
    needs = "".join(f"Requires-Dist: {one}\n" for one in requires or [])
    contents: dict[str, str | bytes] = {
        **files,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n{needs}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: {'-'.join(tags)}\n",
    }
    if script:
        contents[f"{info}/entry_points.txt"] = f"[console_scripts]\n{script} = {script}:main\n"
    record = ""
    with zipfile.ZipFile(folder / f"{name}.whl", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, content in contents.items():
            data = content.encode() if isinstance(content, str) else content
            digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
            record += f"{path},sha256={digest},{len(data)}\n"
            archive.writestr(path, data)
        archive.writestr(f"{info}/RECORD", f"{record}{info}/RECORD,,\n")
    return folder / f"{name}.whl"


@pytest.fixture(scope="session")
def make_wheel() -> Callable[..., Path]:
    """`write_wheel`, for test files, which cannot import this one."""
    return write_wheel
