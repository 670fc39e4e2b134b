"""Progress of a measurement: one changing line on a terminal, an occasional line elsewhere."""

from __future__ import annotations

import shutil
import sys
import time

from deploy.cli import log

_PLAIN_INTERVAL_S = 10.0
_CLEAR_LINE = "\r\x1b[K"


class ProgressLine:
    """What one measurement is doing, on stderr."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._stage = ""
        self._shown_at = 0.0

    def show(self, stage: str, percent: str) -> None:
        """Say how far a stage has come; `percent` may be empty."""
        text = f"{self._label}: {stage} {percent}".rstrip()
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1  # a line that wraps could not be taken back
            sys.stderr.write(_CLEAR_LINE + text[-width:])
            sys.stderr.flush()
        elif stage != self._stage or time.monotonic() - self._shown_at >= _PLAIN_INTERVAL_S:
            self._shown_at = time.monotonic()
            log(text)
        self._stage = stage

    def clear(self) -> None:
        """Leave the line to others."""
        if sys.stderr.isatty():
            sys.stderr.write(_CLEAR_LINE)
            sys.stderr.flush()
