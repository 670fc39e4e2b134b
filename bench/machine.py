"""Facts of the machine a measurement ran on, read from the system's own files. Linux; elsewhere most are None."""

from __future__ import annotations

import os
import platform
import resource
import struct
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# What decides how fast and how exactly a network runs on this processor, and whether it is a virtual one.
_RELEVANT_FLAGS = (
    "avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16",
    "asimd", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "neon", "hypervisor",
)  # fmt: skip

# "CPU part" of /proc/cpuinfo under implementer 0x41: Arm Cortex cores of the boards this is for (Arm's own manuals).
_ARM_PARTS = {
    "0xc07": "Cortex-A7",
    "0xd03": "Cortex-A53",
    "0xd04": "Cortex-A35",
    "0xd05": "Cortex-A55",
    "0xd08": "Cortex-A72",
    "0xd09": "Cortex-A73",
    "0xd0a": "Cortex-A75",
    "0xd0b": "Cortex-A76",
    "0xd0c": "Neoverse-N1",
    "0xd42": "Cortex-A78AE",
    "0xd49": "Neoverse-N2",
    "0xd4f": "Neoverse-V2",
}

# Bits of `vcgencmd get_throttled`: 0-3 hold now, 16-19 have held since boot (Raspberry Pi documentation).
_THROTTLED_BITS = ("undervoltage", "frequency capped", "throttled", "soft temperature limit")
_FIRMWARE_FILE = "sys/devices/platform/soc/soc:firmware/get_throttled"  # the same number, without starting a program
_VCGENCMD_PLACES = ("usr/bin/vcgencmd", "usr/local/bin/vcgencmd", "opt/vc/bin/vcgencmd")


def machine_facts(root: Path = Path("/")) -> dict[str, Any]:
    """What does not change while a measurement runs.

    Args:
        root: where `proc`, `sys` and `etc` are looked for.

    Returns:
        `model` (board, else processor), `processor`, `architecture`, `pointer_bits`, `cores` (this process may use),
        `memory_bytes`, `swap_bytes`, `kernel`, `system`, `page_bytes`, `cpu_flags`, `emulated`. What the machine does
        not tell is None.
    """
    cpu = _cpu_fields(root)
    memory = _meminfo_bytes(root)
    return {
        "model": _device_tree(root, "model") or cpu.get("Model") or _processor(cpu),
        "processor": _processor(cpu),
        "architecture": platform.machine(),
        "pointer_bits": struct.calcsize("P") * 8,  # a 32-bit system on a 64-bit kernel still says aarch64
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory.get("MemTotal"),
        "swap_bytes": memory.get("SwapTotal"),
        "kernel": _text(root / "proc/sys/kernel/osrelease") or platform.release(),
        "system": _system(root),
        "page_bytes": resource.getpagesize(),
        "cpu_flags": _flags(cpu),
        "emulated": _is_emulated(root),
    }


def machine_state(root: Path = Path("/")) -> dict[str, Any]:
    """What may change while a measurement runs, to be read before and after it.

    Args:
        root: where `proc`, `sys` and the firmware's tool are looked for.

    Returns:
        `governor`, `frequency_hz`, `max_frequency_hz` (of the first core), `temperature_c`, `throttled` (see
        `throttling`), `load_average` (1, 5 and 15 minutes), `available_memory_bytes`. What the machine does not tell
        is None.
    """
    cpufreq = root / "sys/devices/system/cpu/cpu0/cpufreq"
    load = (_text(root / "proc/loadavg") or "").split()[:3]
    return {
        "governor": _text(cpufreq / "scaling_governor"),
        "frequency_hz": _times(1000, _number(cpufreq / "scaling_cur_freq")),
        "max_frequency_hz": _times(1000, _number(cpufreq / "scaling_max_freq")),
        "temperature_c": _temperature_c(root),
        "throttled": throttling(root),
        "load_average": [float(value) for value in load] or None,
        "available_memory_bytes": _meminfo_bytes(root).get("MemAvailable"),
    }


def machine_reading(root: Path = Path("/")) -> dict[str, Any]:
    """What is worth reading again and again while a measurement runs, and disturbs it least.

    Args:
        root: where `sys` is looked for.

    Returns:
        `frequency_hz` (of the first core), `temperature_c`, `throttled` (of a Raspberry Pi whose kernel tells without a
        program being started). What the machine does not tell is None.
    """
    return {
        "frequency_hz": _times(1000, _number(root / "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq")),
        "temperature_c": _temperature_c(root),
        "throttled": _throttled_bits(_text(root / _FIRMWARE_FILE)),
    }


def affinity() -> list[int] | None:
    """The processors that this process may run on, by number; None where the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def throttling(root: Path = Path("/")) -> dict[str, Any] | None:
    """What a Raspberry Pi's firmware says about power and heat.

    Returns:
        `raw` (the firmware's number), `now` and `occurred` (since boot), each a list of "undervoltage",
        "frequency capped", "throttled", "soft temperature limit"; None where there is no such firmware.
    """
    for place in _VCGENCMD_PLACES:
        answer = _answer(root / place, "get_throttled")
        found = _throttled_bits(answer.partition("=")[2]) if answer and answer.startswith("throttled=0x") else None
        if found is not None:
            return found
    return _throttled_bits(_text(root / _FIRMWARE_FILE))


def _throttled_bits(number: str | None) -> dict[str, Any] | None:
    try:
        bits = int(number or "", 16)
    except ValueError:
        return None
    return {
        "raw": hex(bits),
        "now": [name for bit, name in enumerate(_THROTTLED_BITS) if bits >> bit & 1],
        "occurred": [name for bit, name in enumerate(_THROTTLED_BITS) if bits >> (bit + 16) & 1],
    }


def rss_bytes(root: Path = Path("/")) -> int | None:
    """The memory this process has resident now (VmRSS); None where the system does not say."""
    return _status_bytes(root, "VmRSS")


def peak_rss_bytes(root: Path = Path("/")) -> int:
    """The most memory this process has had resident since it started (VmHWM)."""
    known = _status_bytes(root, "VmHWM")
    if known is not None:
        return known
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _status_bytes(root: Path, name: str) -> int | None:
    for line in (_text(root / "proc/self/status") or "").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    return None


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8", "replace").strip("\0 \n") or None
    except OSError:
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    return int(text) if text is not None and text.lstrip("-").isdigit() else None


def _times(factor: int, value: int | None) -> int | None:
    return None if value is None else factor * value


def _device_tree(root: Path, name: str) -> str | None:
    return _text(root / "proc/device-tree" / name)


def _is_emulated(root: Path) -> bool:
    # QEMU's `virt` board keeps this entry whatever model name it is given.
    return "linux,dummy-virt" in (_device_tree(root, "compatible") or "").split("\0")


def _cpu_fields(root: Path) -> dict[str, str]:
    """The first value of every field of /proc/cpuinfo."""
    fields: dict[str, str] = {}
    for line in (_text(root / "proc/cpuinfo") or "").splitlines():
        name, separator, value = line.partition(":")
        if separator:
            fields.setdefault(name.strip(), value.strip())
    return fields


def _processor(cpu: Mapping[str, str]) -> str | None:
    part = cpu.get("CPU part")
    if part is not None and cpu.get("CPU implementer") == "0x41":
        return _ARM_PARTS.get(part, f"Arm part {part}")
    return cpu.get("model name")


def _flags(cpu: Mapping[str, str]) -> list[str]:
    present = (cpu.get("flags") or cpu.get("Features") or "").split()
    return [flag for flag in _RELEVANT_FLAGS if flag in present]


def _meminfo_bytes(root: Path) -> dict[str, int]:
    found: dict[str, int] = {}
    for line in (_text(root / "proc/meminfo") or "").splitlines():
        name, _, value = line.partition(":")
        words = value.split()
        if len(words) == 2 and words[1] == "kB" and words[0].isdigit():
            found[name] = int(words[0]) * 1024
    return found


def _system(root: Path) -> str | None:
    for line in (_text(root / "etc/os-release") or "").splitlines():
        if line.startswith("PRETTY_NAME="):
            return line.partition("=")[2].strip("\"'")
    return None


def _temperature_c(root: Path) -> float | None:
    """Of the zone that says it is the processor's, else of the first zone."""
    zones = sorted((root / "sys/class/thermal").glob("thermal_zone*"))
    zones.sort(key=lambda zone: not any(word in (_text(zone / "type") or "") for word in ("cpu", "x86_pkg")))
    for zone in zones:
        millidegrees = _number(zone / "temp")
        if millidegrees is not None:
            return millidegrees / 1000
    return None


def _answer(program: Path, argument: str) -> str | None:
    if not os.access(program, os.X_OK):
        return None
    try:
        done = subprocess.run([program, argument], capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
