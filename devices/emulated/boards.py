"""Which boards are imitated, and what is installed on them."""

from __future__ import annotations

import importlib.metadata
from dataclasses import dataclass

from devices.engines import ENGINES, recipes
from devices.wheels import Target

MACHINE = "aarch64"


@dataclass(frozen=True)
class Board:
    """What a program that asks is told.

    Attributes:
        processor: QEMU's name of the core.
        model: of the device tree.
        compatible: of the device tree; QEMU's own entry follows, which tells the machine from a real board.
        memory_mb: of the smallest common model.
    """

    processor: str
    model: str
    compatible: tuple[str, ...]
    memory_mb: int = 2048


BOARDS = {
    "pi4": Board("cortex-a72", "Raspberry Pi 4 Model B Rev 1.4", ("raspberrypi,4-model-b", "brcm,bcm2711")),
    "pi5": Board("cortex-a76", "Raspberry Pi 5 Model B Rev 1.0", ("raspberrypi,5-model-b", "brcm,bcm2712")),
}
EMULATED_COMPATIBLE = "linux,dummy-virt"  # what `bench.machine` knows an emulated machine by


@dataclass(frozen=True)
class Suite:
    """A release of Debian, which Raspberry Pi OS of the same name is made of.

    Attributes:
        python: version of its Python.
        glibc_minor: 36 for glibc 2.36.
        kernel: package of the kernel that is booted.
    """

    python: str
    glibc_minor: int
    kernel: str = "linux-image-cloud-arm64"

    @property
    def target(self) -> Target:
        """What wheels have to fit."""
        return Target(self.python, MACHINE, self.glibc_minor)


SUITES = {"bookworm": Suite("3.11.2", 36), "trixie": Suite("3.13.5", 41)}

PACKAGES = (
    "base-files", "base-passwd", "bash", "busybox-static", "coreutils", "dash", "debianutils", "diffutils", "findutils",
    "grep", "gzip", "hostname", "libatomic1", "libc-bin", "libgomp1", "libstdc++6", "login", "mawk", "mount", "netbase",
    "openssh-server", "openssh-sftp-server", "passwd", "procps", "python3", "sed", "tar", "util-linux", "zlib1g",
)  # fmt: skip


def engine_requirements() -> tuple[str, ...]:
    """All that the virtual environment of an image holds: what each engine needs there, as `pip` takes it.

    What is installed here is asked for in the same version, so that what runs there compares with what runs here.
    """
    asked = dict.fromkeys(one for engine in ENGINES for one in recipes(engine, MACHINE)[0].requirements)
    return tuple(map(_as_here, asked))


def _as_here(requirement: str) -> str:
    name = requirement.partition(">")[0]
    try:
        return f"{name}=={importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return requirement
