"""Energy from meters that are not here: RAPL with its wrap-around, power sensors, and files of all kinds."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from bench.energy import EnergyCount, find_meters
from bench.machine import machine_reading, throttling
from bench.monitor import Monitor

RAPL = "sys/class/powercap"


def test_packages_count_together_and_what_lies_within_them_does_not_count_twice(tmp_path: Path) -> None:
    for zone, name in (("0", "package-0"), ("1", "package-1"), ("0:0", "core"), ("0:1", "dram")):
        _zone(tmp_path, zone, name, 1_000_000)
    count = EnergyCount(find_meters(root=tmp_path))
    count.look(10.0)
    for zone, microjoules in (("0", 3_500_000), ("1", 1_250_000), ("0:0", 9_000_000), ("0:1", 9_000_000)):
        _write(tmp_path, f"{RAPL}/intel-rapl:{zone}/energy_uj", f"{microjoules}\n")
    count.look(12.0)
    assert count.record() == {
        "source": ["package-0", "package-1"],
        "joules": 2.75,
        "seconds": 2.0,
        "readings": 2,
        "meters": {"package-0": 2.5, "package-1": 0.25},
    }


def test_a_counter_that_comes_round_goes_on_counting(tmp_path: Path) -> None:
    _zone(tmp_path, "0", "package-0", 9_000_000, highest=10_000_000)
    count = EnergyCount(find_meters(root=tmp_path))
    for now_s, microjoules in enumerate((9_000_000, 1_000_000, 8_000_000, 500_000)):
        _write(tmp_path, f"{RAPL}/intel-rapl:0/energy_uj", f"{microjoules}")
        count.look(float(now_s))
    record = count.record()
    assert record is not None
    assert record["joules"] == pytest.approx(2.0 + 7.0 + 2.5)


def test_the_platform_comes_before_the_packages_and_a_board_s_sensor_before_both(tmp_path: Path) -> None:
    _zone(tmp_path, "0", "package-0", 0)
    _zone(tmp_path, "1", "psys", 0)
    assert [meter.name for meter in find_meters(root=tmp_path)] == ["psys", "package-0"]
    _sensor(tmp_path, "0", "cpu_thermal", 1)
    _sensor(tmp_path, "1", "ina219", 2_000_000)
    assert [meter.name for meter in find_meters(root=tmp_path)] == ["ina219", "psys", "package-0"]
    meter_file = tmp_path / "meter"
    meter_file.write_text("5 W")
    assert next(meter.name for meter in find_meters(str(meter_file), tmp_path)) == "file"


def test_power_is_summed_up_over_time(tmp_path: Path) -> None:
    _sensor(tmp_path, "3", "ina219", 2_000_000)
    count = EnergyCount(find_meters(root=tmp_path))
    for now_s, microwatts in ((0.0, 2_000_000), (1.0, 4_000_000), (3.0, 4_000_000)):
        _sensor(tmp_path, "3", "ina219", microwatts)
        count.look(now_s)
    record = count.record()
    assert record is not None
    assert (record["source"], record["joules"], record["seconds"]) == (["ina219"], 3.0 + 8.0, 3.0)


def test_two_sensors_of_one_kind_keep_their_own_figures(tmp_path: Path) -> None:
    _sensor(tmp_path, "0", "ina219", 1_000_000)
    _sensor(tmp_path, "1", "ina219", 3_000_000)
    count = EnergyCount(find_meters(root=tmp_path))
    count.look(0.0)
    count.look(2.0)
    record = count.record()
    assert record is not None
    assert record["meters"] == {"ina219 #1": 2.0, "ina219 #2": 6.0}


@pytest.mark.parametrize(
    ("readings", "joules"),
    [
        (("100 J", "112.5 J"), 12.5),
        (("100 mWh\n", "101 mWh\n"), 3.6),
        (("1.5Wh", "1.501Wh"), 3.6),
        (("2e3 mJ", "4e3 mJ"), 2.0),
        (("4.5 W", "5.5 W"), 10.0),
        (("4500 mW", "5500 mW"), 10.0),
        (("50 J", "2 J"), 2.0),  # set to zero meanwhile
    ],
)
def test_a_meter_s_file_says_its_unit(tmp_path: Path, readings: tuple[str, str], joules: float) -> None:
    file = tmp_path / "meter"
    file.write_text(readings[0])
    count = EnergyCount(find_meters(str(file), tmp_path))
    count.look(0.0)
    file.write_text(readings[1])
    count.look(2.0)
    record = count.record()
    assert record is not None
    assert record["joules"] == pytest.approx(joules)


@pytest.mark.parametrize("text", ["", "12", "12 apples", "J", "x W", "\udcff"])
def test_a_file_that_shows_no_energy_is_no_meter(tmp_path: Path, text: str) -> None:
    (tmp_path / "meter").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert find_meters(str(tmp_path / "meter"), tmp_path) == ()
    assert find_meters(str(tmp_path / "none"), tmp_path) == ()


def test_without_a_meter_there_is_no_figure_and_no_error(tmp_path: Path) -> None:
    count = EnergyCount(find_meters(root=tmp_path))
    count.look(0.0)
    count.look(1.0)
    assert count.record() is None
    _zone(tmp_path, "0", "package-0", 0)
    (tmp_path / RAPL / "intel-rapl:0" / "energy_uj").unlink()
    (tmp_path / RAPL / "intel-rapl:0" / "energy_uj").mkdir()  # as unreadable as where only root may read it
    assert find_meters(root=tmp_path) == ()


def test_a_meter_that_goes_away_leaves_no_figure_and_the_others_theirs(tmp_path: Path) -> None:
    file = tmp_path / "meter"
    file.write_text("5 W")
    _zone(tmp_path, "0", "package-0", 1_000_000)
    count = EnergyCount(find_meters(str(file), tmp_path))
    count.look(0.0)
    file.unlink()
    _zone(tmp_path, "0", "package-0", 3_000_000)
    count.look(1.0)
    record = count.record()
    assert record is not None
    assert record["meters"] == {"file": None, "package-0": 2.0}
    assert (record["source"], record["joules"]) == (["package-0"], 2.0)


def test_a_monitor_reads_while_the_block_runs(tmp_path: Path) -> None:
    _zone(tmp_path, "0", "package-0", 1_000_000)
    _write(tmp_path, "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "1500000\n")
    _write(tmp_path, "sys/class/thermal/thermal_zone0/temp", "48312\n")
    _write(tmp_path, "sys/devices/platform/soc/soc:firmware/get_throttled", "50005\n")
    with Monitor(root=tmp_path, interval_s=0.01) as monitor:
        while len(monitor.during) < 2:
            time.sleep(0.01)
        _zone(tmp_path, "0", "package-0", 4_000_000)
    first, second = monitor.during[:2]
    assert 0 < first["at_s"] < second["at_s"]
    assert (first["frequency_hz"], first["temperature_c"]) == (1_500_000_000, 48.312)
    assert first["throttled"] == {
        "raw": "0x50005",
        "now": ["undervoltage", "throttled"],
        "occurred": ["undervoltage", "throttled"],
    }
    assert monitor.energy is not None
    assert monitor.energy["joules"] == 3.0
    assert monitor.cpu["wall_s"] > 0
    assert monitor.cpu["user_s"] + monitor.cpu["system_s"] >= 0


def test_a_monitor_counts_the_processor_time_of_the_block() -> None:
    with Monitor() as idle:
        time.sleep(0.05)
    with Monitor() as busy:
        until = time.process_time() + 0.2
        while time.process_time() < until:
            pass
    assert busy.cpu["user_s"] + busy.cpu["system_s"] >= 0.19
    assert idle.cpu["user_s"] + idle.cpu["system_s"] < 0.1


def test_a_long_run_keeps_some_hundred_readings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.monitor._KEPT_READINGS", 10)
    with Monitor(root=tmp_path, interval_s=0.001) as monitor:
        for _ in range(200):
            time.sleep(0.002)
            assert len(monitor.during) <= 10
    times = [reading["at_s"] for reading in monitor.during]
    assert times == sorted(times)
    assert times[-1] > 10 * 0.001


def test_throttling_is_read_from_the_kernel_where_there_is_no_program(tmp_path: Path) -> None:
    assert machine_reading(tmp_path) == {"frequency_hz": None, "temperature_c": None, "throttled": None}
    _write(tmp_path, "sys/devices/platform/soc/soc:firmware/get_throttled", "a0000\n")
    found = throttling(tmp_path)
    assert found is not None
    assert (found["now"], found["occurred"]) == ([], ["frequency capped", "soft temperature limit"])


def _zone(root: Path, zone: str, name: str, microjoules: int, highest: int = 262_143_328_850) -> None:
    _write(root, f"{RAPL}/intel-rapl:{zone}/name", f"{name}\n")
    _write(root, f"{RAPL}/intel-rapl:{zone}/max_energy_range_uj", f"{highest}\n")
    _write(root, f"{RAPL}/intel-rapl:{zone}/energy_uj", f"{microjoules}\n")


def _sensor(root: Path, number: str, name: str, microwatts: int) -> None:
    _write(root, f"sys/class/hwmon/hwmon{number}/name", f"{name}\n")
    _write(root, f"sys/class/hwmon/hwmon{number}/power1_input", f"{microwatts}\n")


def _write(root: Path, name: str, text: str) -> None:
    file = root / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
