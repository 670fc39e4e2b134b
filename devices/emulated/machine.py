"""Booting an image, on loopback only, and finding and ending what was booted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from devices.emulated.boards import BOARDS, EMULATED_COMPATIBLE, Board
from devices.emulated.image import PYTHON, USER, Image
from devices.emulated.tools import QEMU, TO_BOOT, EmulationError, require, run_tool
from devices.inventory import INVENTORY_NAME, toml_entry

_RUNNING = "running"
_STATE = "machine.json"
_GRACE_S = 5.0
_POLL_S = 0.1


@dataclass(frozen=True)
class Machine:
    """A machine that was booted.

    Attributes:
        name: what the inventory calls it.
        folder: of its SSH configuration, inventory, console output and state.
        board: one of `BOARDS`.
        cores: of the machine.
        icount: whether it counts instructions as its time.
        port: of its sshd, on 127.0.0.1.
        pid: of its QEMU.
    """

    name: str
    folder: Path
    board: str
    cores: int
    icount: bool
    port: int
    pid: int

    @property
    def ssh_config(self) -> Path:
        """For `ssh -F`."""
        return self.folder / "ssh_config"

    @property
    def inventory(self) -> Path:
        """A `devices.toml` with this machine alone."""
        return self.folder / INVENTORY_NAME

    @property
    def entry(self) -> str:
        """The lines of an inventory, to be added to another one."""
        return toml_entry(self.name, _inventory_fields(self.name, self.ssh_config))

    @property
    def alive(self) -> bool:
        """Whether its QEMU runs."""
        try:
            command = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return os.fsencode(f"file:{self.folder / 'console.log'}") in command  # another may have got the number


def boot(
    cache: Path, image: Image, name: str, board: str, cores: int, *, icount: bool = False, timeout_s: float = 180.0
) -> Machine:
    """Boot an image from a snapshot, so that each boot starts clean, and wait until its sshd answers.

    Args:
        cache: folder that knows what runs.
        image: what to boot.
        name: what the inventory is to call it; not one that runs.
        board: one of `BOARDS`.
        cores: of the machine; with `icount` it has one.
        icount: make time pass by one nanosecond per instruction, so that every run takes the same time. It is slower,
            and uses one processor of this machine at most.
        timeout_s: how long its sshd may take to answer.

    Raises:
        EmulationError: a program is missing, one of that name runs, or it does not come up. Then nothing runs.
    """
    require(TO_BOOT)
    folder = cache / _RUNNING / name
    if (known := _known(folder)) is not None and known.alive:
        raise EmulationError(f"{name} runs already, on port {known.port}: python -m devices.emulated down {name}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        port = _free_port()
        machine = Machine(name, folder, board, 1 if icount else cores, icount, port, 0)
        _write_access(machine, image)
        argv = _qemu_argv(machine, image, BOARDS[board])
        with (folder / "qemu.log").open("wb") as log:
            process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd=folder
            )
        try:
            machine = Machine(**{**vars(machine), "pid": process.pid})
            (folder / _STATE).write_text(json.dumps(asdict(machine), default=str) + "\n", encoding="utf-8")
            _wait_for_sshd(machine, process, timeout_s)
        except BaseException:
            process.kill()
            process.wait()
            raise
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return machine


def machines(cache: Path) -> list[Machine]:
    """What runs, by name; what has ended by itself is forgotten."""
    found = []
    for folder in sorted((cache / _RUNNING).glob("*")):
        known = _known(folder)
        if known is not None and known.alive:
            found.append(known)
        elif known is not None:
            shutil.rmtree(folder, ignore_errors=True)
    return found


def shut_down(machine: Machine) -> None:
    """End a machine, at once and with all that it wrote, and forget it."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + _GRACE_S
        with suppress(ProcessLookupError):
            if machine.alive:
                os.kill(machine.pid, sign)
        while machine.alive and time.monotonic() < deadline:
            with suppress(ChildProcessError):
                os.waitpid(machine.pid, os.WNOHANG)  # a child of this very process stays as a zombie otherwise
            time.sleep(_POLL_S)
    shutil.rmtree(machine.folder, ignore_errors=True)


def _known(folder: Path) -> Machine | None:
    try:
        fields = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        return Machine(**{**fields, "folder": folder})
    except (OSError, ValueError, TypeError):
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _write_access(machine: Machine, image: Image) -> None:
    """How `ssh` gets there: nothing of the user's own configuration, keys or known hosts is used or changed."""
    known_hosts = machine.folder / "known_hosts"
    known_hosts.write_text(f"[127.0.0.1]:{machine.port} {image.host_key}\n", encoding="ascii")
    options = {
        "HostName": "127.0.0.1",
        "Port": machine.port,
        "User": USER,
        "IdentityFile": f'"{image.key}"',
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
        "UserKnownHostsFile": f'"{known_hosts}"',
        "GlobalKnownHostsFile": "/dev/null",
        "StrictHostKeyChecking": "yes",
        # Seven times less work for an emulated processor than what would be agreed on.
        "Ciphers": "aes128-ctr",
        "MACs": "umac-64@openssh.com",
    }
    lines = "".join(f"  {key} {value}\n" for key, value in options.items())
    machine.ssh_config.write_text(f"Host {machine.name}\n{lines}", encoding="utf-8")
    machine.inventory.write_text(machine.entry + "\n", encoding="utf-8")


def _inventory_fields(name: str, ssh_config: Path) -> dict[str, str]:
    return {"host": name, "python": PYTHON, "ssh_config": str(ssh_config)}


def _qemu_argv(machine: Machine, image: Image, board: Board) -> list[str]:
    accelerator = ["-accel", "tcg,thread=multi"]
    if machine.icount:
        accelerator = ["-accel", "tcg,thread=single", "-icount", "shift=0,sleep=on"]
    hardware = [
        "-cpu",
        board.processor,
        "-smp",
        str(machine.cores),
        "-m",
        str(board.memory_mb),
        "-nodefaults",
        *accelerator,
    ]
    tree = machine.folder / "board.dtb"
    run_tool(QEMU, "-M", f"virt,dumpdtb={tree}", *hardware, "-display", "none")
    run_tool("fdtput", "-t", "s", tree, "/", "model", board.model)
    run_tool("fdtput", "-t", "s", tree, "/", "compatible", *board.compatible, EMULATED_COMPATIBLE)
    return [
        QEMU, "-M", "virt", *hardware, "-dtb", str(tree),
        "-kernel", str(image.kernel), "-initrd", str(image.ram_disk), "-append", "console=ttyAMA0 quiet",
        "-drive", f"file={image.disk},if=none,id=root,format=raw,snapshot=on", "-device", "virtio-blk-pci,drive=root",
        # `restrict` keeps it from reaching anything; only its sshd can be reached, from this machine.
        "-netdev", f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{machine.port}-:22",
        "-device", "virtio-net-pci,netdev=net,romfile=", "-device", "virtio-rng-pci",
        "-display", "none", "-monitor", "none", "-serial", f"file:{machine.folder / 'console.log'}",
    ]  # fmt: skip


def _wait_for_sshd(machine: Machine, process: subprocess.Popen[bytes], timeout_s: float) -> None:
    """Until it says what it is: QEMU itself takes the connection long before."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            said = (machine.folder / "qemu.log").read_text(encoding="utf-8", errors="replace").strip()
            raise EmulationError(f"{QEMU} ended with exit code {process.returncode}: {said[-300:] or 'without a word'}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", machine.port), 1) as connection:
            connection.settimeout(5)
            if connection.recv(4) == b"SSH-":
                return
        time.sleep(_POLL_S)
    console = machine.folder / "console.log"
    said = console.read_text(encoding="utf-8", errors="replace").strip() if console.exists() else ""
    last = said.splitlines()[-1][-200:] if said else "nothing"
    raise EmulationError(
        f"{machine.name} did not answer within {timeout_s:g} s; its console said last: {last!r}: give it longer with "
        "--timeout, or build the image again"
    )
