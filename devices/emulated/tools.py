"""The programs of this machine that building and booting an image takes, and where both are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from devices.errors import DeviceError
from devices.process import run_process

QEMU = "qemu-system-aarch64"
# Program to the Debian package that has it.
_PACKAGES = {
    "mmdebstrap": "mmdebstrap",
    "mke2fs": "e2fsprogs",
    "ssh-keygen": "openssh-client",
    "ssh": "openssh-client",
    QEMU: "qemu-system-arm",
    "fdtput": "device-tree-compiler",
}
TO_BUILD = ("mmdebstrap", "mke2fs", "ssh-keygen")
TO_BOOT = (QEMU, "fdtput", "ssh")
_SILENCE_S = 1800.0
_ADMINISTRATION = "/usr/sbin:/sbin"  # where mke2fs is, which a user's PATH may lack


class EmulationError(DeviceError):
    """The emulated machine cannot be built, booted or found."""


def default_cache() -> Path:
    """Where images and running machines are kept unless told otherwise: a folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edge-distill-emulated"


def missing_packages(programs: Sequence[str]) -> list[str]:
    """Debian packages of the programs that are not installed here, e.g. `TO_BUILD`."""
    return list(dict.fromkeys(_PACKAGES[program] for program in programs if _found(program) is None))


def require(programs: Sequence[str]) -> None:
    """See that programs are there.

    Raises:
        EmulationError: naming the packages to install.
    """
    if missing := missing_packages(programs):
        names = " ".join(program for program in programs if _found(program) is None)
        raise EmulationError(
            f"not installed here: {names}: apt-get install --no-install-recommends {' '.join(missing)}"
        )


def run_tool(*argv: str | Path) -> bytes:
    """Run a program of this machine to its end; returns its standard output.

    Raises:
        EmulationError: it failed; with the last thing it said.
    """
    words = [str(word) for word in argv]
    output = run_process([_found(words[0]) or words[0], *words[1:]], timeout_s=_SILENCE_S)
    if output.returncode != 0:
        said = [line.strip() for line in output.stderr.splitlines() if line.strip()]
        raise EmulationError(f"{words[0]} failed (exit code {output.returncode}): {' / '.join(said[-3:])[-300:]}")
    return output.stdout


def _found(program: str) -> str | None:
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:{_ADMINISTRATION}")
