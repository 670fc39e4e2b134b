"""What a device is and has. Sent there as text, so it uses the standard library alone.

The facts a result needs are read by the worker itself (`bench.machine`); these here answer, before anything is pushed,
whether a bundle can run there at all.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import shutil
import struct
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path
from typing import Any

# Distribution to the module that it installs: what a measurement needs, and the engines.
PACKAGES = {
    "numpy": "numpy",
    "pillow": "PIL",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "ai-edge-litert": "ai_edge_litert",
    "tflite-runtime": "tflite_runtime",
    "ncnn": "ncnn",
    "mnn": "MNN",
}
MARK = "edge-distill facts: "  # a login script may write before us


def facts() -> dict[str, Any]:
    """Facts of the machine that runs this.

    Returns:
        `python` (version), `executable`, `packages` (distribution to version, None where it is not importable),
        `abi` ("cp311" for a plain CPython 3.11), `model`, `architecture`, `pointer_bits`, `libc` ("glibc 2.36"),
        `cores`, `memory_bytes`, `free_bytes` (in the home folder), `home`.
    """
    home = Path.home()
    return {
        "python": platform.python_version(),
        "executable": sys.executable,
        "abi": _abi(),
        "packages": {name: _version(name, module) for name, module in PACKAGES.items()},
        "model": _model(),
        "architecture": platform.machine(),
        "pointer_bits": struct.calcsize("P") * 8,  # a 32-bit system on a 64-bit kernel still says aarch64
        "libc": _libc(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": _memory_bytes(),
        "free_bytes": shutil.disk_usage(home).free if home.is_dir() else None,
        "home": str(home),
    }


def _version(distribution: str, module: str) -> str | None:
    try:
        if importlib.util.find_spec(module) is None:
            return None
    except ImportError:
        return None
    try:
        from importlib.metadata import PackageNotFoundError, version
    except ImportError:  # Python 3.7
        return "unknown"
    try:
        return version(distribution)
    except PackageNotFoundError:  # there, but not from a wheel
        return "unknown"


def _abi() -> str:
    kind = "cp" if sys.implementation.name == "cpython" else sys.implementation.name
    return f"{kind}{sys.version_info[0]}{sys.version_info[1]}{getattr(sys, 'abiflags', '')}"


def _libc() -> str | None:
    known = " ".join(platform.libc_ver()).strip()
    built_for = str(sysconfig.get_config_var("HOST_GNU_TYPE"))
    return known or ("musl" if "musl" in built_for else None)  # Python before 3.14 has no name for musl


def _model() -> str | None:
    """The board's name where it has one, else the processor's."""
    board = _text("/proc/device-tree/model").strip("\0 \n")
    named = [
        line.split(":", 1)[1].strip() for line in _text("/proc/cpuinfo").splitlines() if line.startswith("model name")
    ]
    return board or (named[0] if named else None)


def _text(path: str) -> str:
    try:
        return Path(path).read_bytes().decode("utf-8", "replace")
    except OSError:
        return ""


def _memory_bytes() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def used(folders: list[str]) -> list[str]:
    """Those that are there, which count as used from now on, for `devices.transfer.prune`."""
    there = [folder for folder in folders if Path(folder).is_dir()]
    for folder in there:
        with suppress(OSError):  # on a disk that cannot be written to, nothing is removed either
            os.utime(folder)
    return there


def main() -> None:
    """Answer on stdout; a line of JSON on stdin may name `folders` to look for, of which those found are told."""
    line = sys.stdin.buffer.readline()
    request = json.loads(line.decode()) if line.strip() else {}
    found = {"folders": used(request["folders"])} if request else {}
    print(MARK + json.dumps({**facts(), **found}))  # noqa: T201


if __name__ == "__main__":
    main()
