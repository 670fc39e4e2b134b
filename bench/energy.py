"""Energy, where a meter can be read: RAPL of the processor, a power sensor of the board, or a meter's own file.

Meters are only ever read. What is absent, or may not be read (RAPL asks for root since Linux 5.10), is None.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_ZONE = re.compile(r"intel-rapl:\d+")  # a whole package or platform, not the cores or memory within one
_READING = re.compile(r"\s*([-+]?\d+(?:\.\d*)?(?:[eE][-+]?\d+)?)\s*([a-zA-Zµ]+)\s*")
_JOULES = {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "µJ": 1e-6, "Wh": 3600.0, "mWh": 3.6, "kWh": 3.6e6}
_WATTS = {"W": 1.0, "mW": 1e-3, "uW": 1e-6, "µW": 1e-6}


@dataclass(frozen=True)
class Meter:
    """One readable meter.

    Attributes:
        name: "file", "ina219", "psys" or "package-0"; of several by one name, with a number.
        path: the file that holds its reading.
        unit: what one of it is in joules, or in watts; None where the file says it itself.
        counts: whether it counts energy, rather than to show power; None where the file says it itself.
        wraps_at: the reading after which a counter begins at zero again; None if it does not.
    """

    name: str
    path: Path
    unit: float | None = None
    counts: bool | None = None
    wraps_at: int | None = None

    def read(self) -> tuple[float, bool] | None:
        """Joules and True of a counter, watts and False of a power sensor; None if it cannot be read."""
        text = _text(self.path)
        if text is None:
            return None
        if self.unit is not None and self.counts is not None:
            return (int(text) * self.unit, self.counts) if re.fullmatch(r"-?\d+", text) else None
        met = _READING.match(text)
        for units, counts in ((_JOULES, True), (_WATTS, False)):
            if met is not None and met[2] in units:
                return float(met[1]) * units[met[2]], counts
        return None


def find_meters(file: str | None = None, root: Path = Path("/")) -> tuple[Meter, ...]:
    """The meters that can be read here, the one that measures most of the machine first.

    Args:
        file: a file that a meter's own program keeps up to date: a number and its unit, of energy counted (`J`, `mJ`,
            `uJ`, `Wh`, `mWh`, `kWh`) or of power (`W`, `mW`, `uW`).
        root: where `sys` is looked for.
    """
    found = [] if file is None else [Meter("file", Path(file))]
    for sensor in sorted((root / "sys/class/hwmon").glob("hwmon*")):
        name = _text(sensor / "name") or ""
        if name.startswith("ina"):  # INA219, INA226 and their kin, on the supply of a board
            found.append(Meter(name, sensor / "power1_input", 1e-6, False))
    zones = [zone for zone in (root / "sys/class/powercap").glob("intel-rapl:*") if _ZONE.fullmatch(zone.name)]
    named = sorted((_text(zone / "name") or "", zone) for zone in zones)
    for name, zone in sorted(named, key=lambda one: not one[0].startswith("psys")):
        if name.startswith(("psys", "package")):
            highest = _text(zone / "max_energy_range_uj") or ""
            wraps_at = int(highest) if highest.isdigit() else None
            found.append(Meter(name, zone / "energy_uj", 1e-6, True, wraps_at))
    names = [meter.name for meter in found]
    numbered = [
        meter if names.count(meter.name) == 1 else Meter(f"{meter.name} #{index + 1}", *_rest(meter))
        for index, meter in enumerate(found)
    ]
    return tuple(meter for meter in numbered if meter.read() is not None)


class EnergyCount:
    """The energy that goes by between the first and the last look at some meters."""

    def __init__(self, meters: Sequence[Meter]) -> None:
        """Nothing is read yet."""
        self._meters = meters
        self._joules: dict[str, float | None] = {meter.name: 0.0 for meter in meters}
        self._last: dict[str, tuple[float, float]] = {}
        self._readings = 0
        self._began_s = self._now_s = 0.0

    def look(self, now_s: float) -> None:
        """Read every meter; a counter must be looked at before it comes round twice, power often enough to follow it.

        Args:
            now_s: time on a clock that never jumps.
        """
        self._began_s = self._began_s if self._readings else now_s
        self._now_s = now_s
        self._readings += 1
        for meter in self._meters:
            reading = meter.read()
            total = self._joules[meter.name]
            if reading is None or total is None:
                self._joules[meter.name] = None  # it went away: what was counted so far is not the whole
                continue
            value, counts = reading
            if meter.name in self._last:
                before_s, before = self._last[meter.name]
                total += _gone_by(meter, before, value) if counts else (now_s - before_s) * (before + value) / 2
            self._joules[meter.name] = total
            self._last[meter.name] = (now_s, value)

    def record(self) -> dict[str, Any] | None:
        """What was counted.

        Returns:
            `source` (names of the meters that the figure is of), `joules`, `seconds`, `readings`, and `meters`: by name
            the joules of each, None of one that went away. None where there is no meter, or none lasted.
        """
        known = {name: joules for name, joules in self._joules.items() if joules is not None}
        if not known or self._readings < 2:
            return None
        first = next(iter(known))
        # The packages of a machine with several count together; every other meter stands for the whole.
        sources = [name for name in known if name.startswith("package")] if first.startswith("package") else [first]
        return {
            "source": sources,
            "joules": sum(known[name] for name in sources),
            "seconds": self._now_s - self._began_s,
            "readings": self._readings,
            "meters": dict(self._joules),
        }


def _gone_by(meter: Meter, before: float, value: float) -> float:
    """Joules from one reading of a counter to the next, which may have begun again at zero in between."""
    if value >= before:
        return value - before
    if meter.wraps_at is None or meter.unit is None:
        return value  # it was set to zero: what went by before that is lost
    return value + meter.wraps_at * meter.unit - before


def _rest(meter: Meter) -> tuple[Path, float | None, bool | None, int | None]:
    return meter.path, meter.unit, meter.counts, meter.wraps_at


def _text(path: Path) -> str | None:
    try:
        return path.read_bytes().decode("utf-8", "replace").strip() or None
    except OSError:
        return None
