"""Machine facts, read from the files of machines that are not here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.machine import machine_facts, machine_state, peak_rss_bytes, throttling

PI5_CPU = """processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

processor\t: 1
CPU implementer\t: 0x41
CPU part\t: 0xd0b
"""
X86_CPU = """processor\t: 0
model name\t: Intel(R) Xeon(R) Platinum 8481C
flags\t\t: fpu sse avx avx2 avx512f avx512_vnni amx_tile amx_int8 hypervisor
"""


def test_a_pi_5_is_recognised(tmp_path: Path) -> None:
    _write(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    _write(tmp_path, "proc/device-tree/compatible", "raspberrypi,5-model-b\0brcm,bcm2712\0")
    _write(tmp_path, "proc/cpuinfo", PI5_CPU)
    _write(tmp_path, "proc/meminfo", "MemTotal:        8245324 kB\nMemAvailable:    7000000 kB\nSwapTotal: 102396 kB\n")
    _write(tmp_path, "proc/sys/kernel/osrelease", "6.12.25+rpt-rpi-2712\n")
    _write(tmp_path, "etc/os-release", 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n')
    facts = machine_facts(tmp_path)
    assert facts["model"] == "Raspberry Pi 5 Model B Rev 1.0"
    assert facts["processor"] == "Cortex-A76"
    assert facts["cpu_flags"] == ["asimd", "asimdhp", "asimddp"]
    assert facts["memory_bytes"] == 8245324 * 1024
    assert facts["swap_bytes"] == 102396 * 1024
    assert facts["kernel"] == "6.12.25+rpt-rpi-2712"
    assert facts["system"] == "Debian GNU/Linux 12 (bookworm)"
    assert facts["emulated"] is False


def test_an_emulated_pi_is_told_from_a_real_one(tmp_path: Path) -> None:
    _write(tmp_path, "proc/device-tree/model", "Raspberry Pi 5 Model B Rev 1.0\0")
    _write(tmp_path, "proc/device-tree/compatible", "raspberrypi,5-model-b\0linux,dummy-virt\0")
    facts = machine_facts(tmp_path)
    assert (facts["model"], facts["emulated"]) == ("Raspberry Pi 5 Model B Rev 1.0", True)


def test_an_x86_machine_goes_by_its_processor(tmp_path: Path) -> None:
    _write(tmp_path, "proc/cpuinfo", X86_CPU)
    facts = machine_facts(tmp_path)
    assert facts["model"] == facts["processor"] == "Intel(R) Xeon(R) Platinum 8481C"
    assert facts["cpu_flags"] == ["avx2", "avx512f", "avx512_vnni", "amx_tile", "amx_int8", "hypervisor"]


def test_an_unknown_arm_core_keeps_its_number(tmp_path: Path) -> None:
    _write(tmp_path, "proc/cpuinfo", PI5_CPU.replace("0xd0b", "0xabc"))
    assert machine_facts(tmp_path)["processor"] == "Arm part 0xabc"


def test_what_a_machine_does_not_tell_is_none(tmp_path: Path) -> None:
    facts, state = machine_facts(tmp_path), machine_state(tmp_path)
    assert [facts[key] for key in ("model", "processor", "memory_bytes", "swap_bytes", "system")] == [None] * 5
    assert facts["cpu_flags"] == []
    assert set(state.values()) == {None}
    assert facts["pointer_bits"] in (32, 64)


def test_garbage_in_the_system_s_files_is_none_too(tmp_path: Path) -> None:
    _write(tmp_path, "proc/meminfo", "MemTotal: lots kB\nnonsense\n")
    _write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "hot")
    _write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "<unknown>")
    assert machine_facts(tmp_path)["memory_bytes"] is None
    state = machine_state(tmp_path)
    assert (state["temperature_c"], state["frequency_hz"]) == (None, None)


def test_state_has_frequency_temperature_and_load_in_plain_units(tmp_path: Path) -> None:
    cpufreq = "sys/devices/system/cpu/cpu0/cpufreq"
    _write(tmp_path, f"{cpufreq}/scaling_governor", "ondemand\n")
    _write(tmp_path, f"{cpufreq}/scaling_cur_freq", "1500000\n")
    _write(tmp_path, f"{cpufreq}/scaling_max_freq", "2400000\n")
    _write(tmp_path, "sys/class/thermal/thermal_zone0/type", "gpu-thermal\n")
    _write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "40000\n")
    _write(tmp_path, "sys/class/thermal/thermal_zone1/type", "cpu-thermal\n")
    _write(tmp_path, "sys/class/thermal/thermal_zone1/temp", "48312\n")
    _write(tmp_path, "proc/loadavg", "0.52 0.41 0.30 1/123 4567\n")
    state = machine_state(tmp_path)
    assert state["governor"] == "ondemand"
    assert (state["frequency_hz"], state["max_frequency_hz"]) == (1_500_000_000, 2_400_000_000)
    assert state["temperature_c"] == 48.312
    assert state["load_average"] == [0.52, 0.41, 0.30]
    assert state["throttled"] is None


@pytest.mark.parametrize(
    ("answer", "now", "occurred"),
    [
        ("throttled=0x0", [], []),
        ("throttled=0x50005", ["undervoltage", "throttled"], ["undervoltage", "throttled"]),
        ("throttled=0xA0000", [], ["frequency capped", "soft temperature limit"]),
        ("throttled=0xf", ["undervoltage", "frequency capped", "throttled", "soft temperature limit"], []),
    ],
)
def test_throttling_bits_are_read(tmp_path: Path, answer: str, now: list[str], occurred: list[str]) -> None:
    _vcgencmd(tmp_path, f'[ "$1" = get_throttled ] && echo "{answer}"')
    found = throttling(tmp_path)
    assert found is not None
    assert (found["now"], found["occurred"]) == (now, occurred)
    assert int(found["raw"], 16) == int(answer.partition("=")[2], 16)


@pytest.mark.parametrize("script", ["echo nonsense", "echo throttled=0xzz", "exit 255", "echo throttled=0x1; exit 1"])
def test_a_firmware_that_does_not_answer_is_none(tmp_path: Path, script: str) -> None:
    _vcgencmd(tmp_path, script)
    assert throttling(tmp_path) is None


def test_facts_of_this_machine_are_there_and_survive_json() -> None:
    facts, state = machine_facts(), machine_state()
    assert json.loads(json.dumps([facts, state])) == [facts, state]
    assert facts["cores"] >= 1
    assert facts["memory_bytes"] > 1e8
    assert state["load_average"] is not None


def test_peak_memory_only_rises_and_counts_what_was_freed() -> None:
    before = peak_rss_bytes()
    block = bytearray(b"x") * 100_000_000
    during = peak_rss_bytes()
    del block
    assert during >= max(before, 100_000_000)
    assert abs(peak_rss_bytes() - during) < 1_000_000  # the kernel's own counting is no finer


def test_peak_memory_is_read_in_kibibytes(tmp_path: Path) -> None:
    _write(tmp_path, "proc/self/status", "Name:\tpython\nVmHWM:\t   58432 kB\nVmRSS:\t 40000 kB\n")
    assert peak_rss_bytes(tmp_path) == 58432 * 1024


def _write(root: Path, name: str, text: str) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def _vcgencmd(root: Path, script: str) -> None:
    _write(root, "usr/bin/vcgencmd", f"#!/bin/sh\n{script}\n")
    (root / "usr/bin/vcgencmd").chmod(0o755)
