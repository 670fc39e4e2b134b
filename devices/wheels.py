"""Wheels for a device that has no internet: which ones fit it, and how this machine gets them."""

from __future__ import annotations

import re
import shutil
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from devices.engines import Recipe
from devices.errors import DeviceError
from devices.process import run_process

OLDEST_PYTHON = (3, 11)
_DOWNLOAD_SILENCE_S = 1800.0
# The oldest glibc 2.x that wheels of a machine are built for (PEP 600), and what some were called (PEP 513, 571, 599).
_MACHINES = {"x86_64": 5, "aarch64": 17, "armv7l": 17}
_LEGACY = {5: "manylinux1", 12: "manylinux2010", 17: "manylinux2014"}
_OTHER_INDEX = (
    "the index that pip asks by itself has no numpy and no Pillow for 32-bit ARM: set PIP_EXTRA_INDEX_URL to the one "
    "in /etc/pip.conf of Raspberry Pi OS, or let the device install them itself (without --offline), which knows it"
)

Log = Callable[[str], None]


@dataclass(frozen=True)
class Target:
    """What decides whether a wheel runs on a device.

    Attributes:
        python: full version, e.g. "3.11.2".
        machine: "x86_64", "aarch64" or "armv7l", of the interpreter, not of the kernel.
        glibc_minor: 36 for glibc 2.36.
    """

    python: str
    machine: str
    glibc_minor: int

    @property
    def minor(self) -> int:
        """11 for Python 3.11."""
        return int(self.python.split(".")[1])

    @property
    def abi(self) -> str:
        """Tag of extension modules for this very Python, e.g. "cp311"."""
        return f"cp3{self.minor}"

    @property
    def platforms(self) -> tuple[str, ...]:
        """Platform tags that run there, newest glibc first."""
        tags = []
        for minor in range(self.glibc_minor, _MACHINES[self.machine] - 1, -1):
            tags.append(f"manylinux_2_{minor}_{self.machine}")
            if minor in _LEGACY:
                tags.append(f"{_LEGACY[minor]}_{self.machine}")
        return (*tags, f"linux_{self.machine}")

    def runs(self, wheel: str) -> bool:
        """Whether a wheel of this file name (PEP 427) can be installed there."""
        parts = wheel.removesuffix(".whl").split("-")
        if not wheel.endswith(".whl") or len(parts) not in (5, 6):
            return False
        pythons, abis, platforms = (part.split(".") for part in parts[-3:])
        if not {"any", *self.platforms} & set(platforms):
            return False
        if "none" in abis and {"py3", f"py3{self.minor}", self.abi} & set(pythons):
            return True
        stable = "abi3" in abis and any(_minor(python) in range(2, self.minor + 1) for python in pythons)
        return stable or (self.abi in abis and self.abi in pythons)

    def __str__(self) -> str:
        return f"Python {self.python} on {self.machine} with glibc 2.{self.glibc_minor}"


def target(facts: Mapping[str, Any]) -> Target:
    """What a device is for wheels.

    Args:
        facts: of `devices.probe`, read by the Python that is to use the wheels.

    Raises:
        DeviceError: its Python is too old or of another kind, or no engine is built for its processor or C library.
    """
    version = tuple(int(part) for part in re.findall(r"\d+", facts["python"])[:2])
    if version < OLDEST_PYTHON:
        raise DeviceError(
            f"{facts['executable']} is Python {facts['python']}, expected 3.11 or newer, as in Raspberry Pi OS 12 "
            "(bookworm) and Debian 12: install one and name it with --python"
        )
    if facts.get("abi", f"cp{version[0]}{version[1]}") != f"cp{version[0]}{version[1]}":
        raise DeviceError(
            f"{facts['executable']} is a special build ({facts['abi']}), expected a plain CPython: "
            "name another with --python"
        )
    machine = _machine(facts["architecture"], facts["pointer_bits"])
    libc, _, libc_version = str(facts["libc"] or "unknown").partition(" ")
    found = re.match(r"2\.(\d+)", libc_version)
    if libc != "glibc" or found is None or int(found[1]) < 17:
        raise DeviceError(
            f"its C library is {facts['libc'] or 'unknown'}, expected glibc 2.17 or newer: the engines are not "
            "published for musl (Alpine) and others: use Raspberry Pi OS, Debian or Ubuntu"
        )
    return Target(facts["python"], machine, int(found[1]))


def download(target: Target, choices: Sequence[Recipe], folder: Path, log: Log) -> None:
    """Fetch the wheels of the first recipe that exists for a device, with all they depend on, into a new folder.

    This machine's `pip` and its configuration are used. What a package needs only on some systems is decided by this
    one, a limit of `pip download`.

    Args:
        target: the device.
        choices: recipes, the best one first.
        folder: appears only once everything is there.
        log: is told what happens.

    Raises:
        DeviceError: pip failed, or no recipe exists for the device.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    refusals = []
    for recipe in choices:
        partial = Path(tempfile.mkdtemp(prefix=f"{folder.name}.partial-", dir=folder.parent))
        try:
            log(f"downloading {recipe.engine_package} for {target}")
            said = _pip_download(target, recipe, partial)
            if not said:
                partial.chmod(0o755)
                partial.rename(folder)
                return
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if "No matching distribution" not in said and "ResolutionImpossible" not in said:
            raise DeviceError(f"cannot download {recipe.engine_package}: {said}")
        refusals.append(f"{recipe.engine_package}: {said}")
        log(f"no {recipe.engine_package} for {target}")
    advice = (
        _OTHER_INDEX if target.machine == "armv7l" else "choose another --engine, or name another Python with --python"
    )
    raise DeviceError(f"no wheels for {target} ({'; '.join(refusals)}): {advice}")


def fitting(folder: Path, target: Target, choices: Sequence[Recipe]) -> tuple[Recipe, dict[str, Path]]:
    """The wheels in a folder that run on a device, and the recipe that they are for.

    Raises:
        DeviceError: the folder is missing, or lacks a package that was asked for.
    """
    if not folder.is_dir():
        raise DeviceError(f"there is no folder {folder}: add --offline to fill it, or check --wheels")
    wheels = {path.name: path for path in sorted(folder.glob("*.whl"))}
    usable = {name: path for name, path in wheels.items() if target.runs(name)}
    names = {_distribution(name) for name in usable}
    missing: list[str] = []
    for recipe in choices:
        asked = [re.split(r"[<>=!~]", requirement)[0] for requirement in recipe.requirements]
        lacking = [name for name in asked if name not in names]
        if not lacking:
            return recipe, usable
        missing = missing or lacking
    others = [name for name in wheels if _distribution(name) in missing]
    has = f"only {', '.join(others)}" if others else "none"
    raise DeviceError(
        f"{folder} lacks {', '.join(missing)} for {target} (it has {has}): "
        "fill a new folder: --offline --wheels NEW-FOLDER"
    )


def unpacked_bytes(wheels: Mapping[str, Path]) -> int:
    """What the files in some wheels take on a disk, unpacked.

    Raises:
        DeviceError: one is not a wheel at all.
    """
    total = 0
    for path in wheels.values():
        try:
            with zipfile.ZipFile(path) as archive:
                total += sum(member.file_size for member in archive.infolist())
        except (zipfile.BadZipFile, OSError) as error:
            raise DeviceError(f"{path} is not a whole wheel ({error}): fill a new folder with --offline") from error
    return total


def _machine(architecture: str | None, pointer_bits: int | None) -> str:
    """The interpreter's machine: a 32-bit system on a 64-bit kernel reports the kernel's."""
    if pointer_bits == 32 and architecture in ("aarch64", "armv7l", "armv8l"):
        return "armv7l"
    if pointer_bits == 64 and architecture in ("aarch64", "x86_64"):
        return architecture
    raise DeviceError(
        f"its processor is {architecture} with a {pointer_bits}-bit Python, expected 64-bit x86_64 or aarch64, or "
        "32-bit ARMv7: no engine is published for others"
    )


def _pip_download(target: Target, recipe: Recipe, folder: Path) -> str:
    """Run `pip download`; returns what it complained of, nothing if all went well."""
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--no-input", "--disable-pip-version-check"]
    argv += ["--only-binary=:all:", "--dest", str(folder), "--implementation", "cp"]
    argv += ["--python-version", re.match(r"[\d.]+", target.python)[0].rstrip(".")]  # type: ignore[index]
    argv += [word for abi in (target.abi, "abi3", "none") for word in ("--abi", abi)]
    argv += [word for platform in target.platforms for word in ("--platform", platform)]
    output = run_process([*argv, *recipe.requirements], timeout_s=_DOWNLOAD_SILENCE_S)
    if output.returncode == 0:
        return ""
    if "No module named pip" in output.stderr:
        raise DeviceError(f"{sys.executable} has no pip to download with: run {sys.executable} -m ensurepip")
    lines = [line.removeprefix("ERROR: ") for line in output.stderr.splitlines() if line.startswith("ERROR: ")]
    return " / ".join(lines)[-300:] or output.stderr.strip()[-300:] or f"pip ended with exit code {output.returncode}"


def _distribution(wheel: str) -> str:
    return re.sub(r"[-_.]+", "-", wheel.split("-")[0]).lower()


def _minor(python_tag: str) -> int:
    """11 for "cp311"; -1 for what is no CPython 3 tag."""
    found = re.fullmatch(r"cp3(\d+)", python_tag)
    return int(found[1]) if found else -1
