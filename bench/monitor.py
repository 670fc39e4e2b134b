"""What a machine does while it measures: its meters, and about once a second its frequency, heat and throttling."""

from __future__ import annotations

import resource
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from bench.energy import EnergyCount, find_meters
from bench.machine import machine_reading

_KEPT_READINGS = 600


class Monitor:
    """Watches a block of code from a thread that sleeps almost always: a reading is three or four small files.

    Attributes:
        during: one entry per reading, see `bench.machine.machine_reading`, with `at_s` since the block began.
        cpu: `user_s` and `system_s` that this process spent in the block, over all its threads, and `wall_s`.
        energy: see `bench.energy.EnergyCount.record`.
    """

    def __init__(self, meter_file: str | None = None, root: Path = Path("/"), interval_s: float = 1.0) -> None:
        """Nothing is read yet.

        Args:
            meter_file: see `bench.energy.find_meters`.
            root: where `sys` and the like are looked for.
            interval_s: between readings; it grows in a long run, so that no more than some hundred are kept.
        """
        self.during: list[dict[str, Any]] = []
        self.cpu: dict[str, float] = {}
        self.energy: dict[str, Any] | None = None
        self._root = root
        self._interval_s = interval_s
        self._count = EnergyCount(find_meters(meter_file, root))
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._began = _spent()
        self._count.look(self._began[2])
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = _spent()
        self._ended.set()
        self._thread.join()
        self._count.look(ended[2])
        self.energy = self._count.record()
        names = ("user_s", "system_s", "wall_s")
        self.cpu = {name: after - before for name, before, after in zip(names, self._began, ended, strict=True)}

    def _watch(self) -> None:
        while not self._ended.wait(self._interval_s):
            now_s = time.monotonic()
            self._count.look(now_s)
            self.during.append({"at_s": now_s - self._began[2], **machine_reading(self._root)})
            if len(self.during) >= _KEPT_READINGS:
                self.during = self.during[1::2]
                self._interval_s *= 2


def _spent() -> tuple[float, float, float]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime, used.ru_stime, time.monotonic()
