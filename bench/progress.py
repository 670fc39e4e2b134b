"""Progress of measurements: on a terminal one changing line per device, elsewhere an occasional line."""

from __future__ import annotations

import shutil
import sys
import threading
import time
import unicodedata
from collections.abc import Sequence

from deploy.cli import log

_PLAIN_INTERVAL_S = 10.0
_UP, _CLEAR_LINE, _CLEAR_BELOW = "\x1b[{}A", "\r\x1b[K", "\r\x1b[J"


class Board:
    """What several devices are doing, on stderr; any thread may write to it."""

    def __init__(self, devices: Sequence[str]) -> None:
        """Nothing is shown yet.

        Args:
            devices: their names, in the order of the lines.
        """
        self._lock = threading.Lock()
        self._lines = dict.fromkeys(devices, "")
        self._shown = dict.fromkeys(devices, ("", 0.0))  # elsewhere: what was said last, and when
        self._height = 0

    def show(self, device: str, what: str, stage: str, percent: str = "") -> None:
        """Say how far a device has come.

        Args:
            device: one of those given.
            what: what it works on.
            stage: what it does with it; elsewhere than on a terminal only another one is worth a line at once.
            percent: how far the stage is; may be empty.
        """
        doing = f"{stage} {percent}".rstrip()
        with self._lock:
            if _is_terminal():
                self._lines[device] = f"{what} on {device}: {doing}"
                self._draw()
                return
            before, said_at = self._shown[device]
            if f"{what}: {stage}" != before or time.monotonic() - said_at >= _PLAIN_INTERVAL_S:
                self._shown[device] = (f"{what}: {stage}", time.monotonic())
                log(f"{what} on {device}: {doing}")

    def log(self, message: str, device: str = "") -> None:
        """Write a line that stays, above those that change; that of `device` goes."""
        with self._lock:
            self._erase()
            if device:
                self._lines[device] = ""
            log(message)
            if _is_terminal():
                self._draw()

    def clear(self) -> None:
        """Leave the terminal to others."""
        with self._lock:
            self._erase()
            self._lines = dict.fromkeys(self._lines, "")

    def _erase(self) -> None:
        if self._height:
            sys.stderr.write(_UP.format(self._height) + _CLEAR_BELOW)
            sys.stderr.flush()
            self._height = 0

    def _draw(self) -> None:
        width, height = shutil.get_terminal_size()
        lines = [line for line in self._lines.values() if line]
        if len(lines) > height - 1:  # lines that left the screen could not be rewritten
            lines = [*lines[: height - 2], f"… and {len(lines) - height + 2} devices more"]
        up = _UP.format(self._height) if self._height else ""
        rows = "".join(f"{_CLEAR_LINE}{_cut(line, width - 1)}\n" for line in lines)
        sys.stderr.write(f"{up}{rows}{_CLEAR_BELOW}")
        sys.stderr.flush()
        self._height = len(lines)


def _is_terminal() -> bool:
    return sys.stderr.isatty()


def _cut(text: str, width: int) -> str:
    """As much of the end of `text` as fits into so many columns: a line that wraps could not be taken back."""
    shown = [character if character.isprintable() else "�" for character in text]
    columns = 0
    for index in range(len(shown) - 1, -1, -1):
        columns += 2 if unicodedata.east_asian_width(shown[index]) in "WF" else 1
        if columns > width:
            return "".join(shown[index + 1 :])
    return "".join(shown)
