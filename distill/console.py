"""Where the words of a training go: ultralytics' log and bars to stderr, results alone to stdout."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

from ultralytics.utils import LOGGER, RANK

__all__ = ["log_epoch", "log_to_stderr"]

log = logging.getLogger(__name__)


@contextmanager
def log_to_stderr() -> Iterator[None]:
    """Send what ultralytics logs and draws to stderr; draw progress bars only if that is a terminal."""
    stream: Any = sys.stderr if sys.stderr.isatty() else _WithoutBars(sys.stderr)
    handlers = [h for h in LOGGER.handlers if isinstance(h, logging.StreamHandler)]
    before = [h.setStream(stream) for h in handlers]
    own = logging.StreamHandler(stream)
    own.setFormatter(logging.Formatter("%(message)s"))
    package = logging.getLogger("distill")
    package.addHandler(own)
    package.setLevel(logging.INFO)
    try:
        with redirect_stdout(stream):
            yield
    finally:
        package.removeHandler(own)
        for handler, old in zip(handlers, before, strict=True):
            if old is not None:
                handler.setStream(old)


def log_epoch(trainer: Any) -> None:
    """Log one plain line per epoch where no bar is drawn; a callback for ``on_fit_epoch_end``."""
    if RANK not in {-1, 0} or sys.stderr.isatty() or not trainer.tloss or trainer.epoch >= trainer.epochs:
        return
    parts = "  ".join(f"{name} {float(value):.4g}" for name, value in trainer.tloss.items())
    accuracy = trainer.metrics.get("metrics/mAP50-95(B)")
    scored = "" if accuracy is None else f"  mAP50-95 {float(accuracy):.4f}"
    log.info("epoch %d/%d  %s%s", trainer.epoch + 1, trainer.epochs, parts, scored)


class _WithoutBars:
    """A text stream that drops the frames of ultralytics' progress bars and the tables that go with them.

    ultralytics' bar (8.4.190) hands its frames to the stream's ``progress`` method when there is one.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def progress(self, bar: int, frame: str) -> None:
        """Take a frame of a bar, and show nothing."""

    def write(self, text: str) -> int:
        """Write text, but not the empty lines that separate bars."""
        return len(text) if not text.strip("\n") else self._stream.write(text.strip("\n") + "\n")

    def flush(self) -> None:
        """Flush the stream."""
        self._stream.flush()

    def isatty(self) -> bool:
        """Say that this is no terminal."""
        return False
