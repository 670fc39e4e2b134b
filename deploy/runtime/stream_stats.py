"""What a stream has done: frames by their fate, seconds by stage, latency."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from deploy.runtime.latency import LatencyHistogram

STAGES = ("read", "preprocess", "infer", "select", "finish", "consumer")


@dataclass(frozen=True)
class StreamStats:
    """Figures of a stream. Once it has ended, read = processed + dropped + failed + abandoned.

    Attributes:
        read: frames taken from the source.
        processed: frames whose result was handed out.
        dropped: frames that newer ones pushed out of a live stream.
        failed: frames that could not be decoded or were no image, and the one at which the model raised.
        abandoned: frames on their way when the stream was stopped; 0 if it ran to its end.
        elapsed_s: from the first result asked for to the end, or to now.
        busy_s: seconds in each of `STAGES`. "read" waits for a camera's frames; "select" and "finish" are the two
            parts of postprocessing (all of it is "select" where a model has but one); "consumer" is the caller's loop.
        latency_p50_s: from a frame's capture to its result handed out, median; within 0.5 %, NaN without results.
        latency_p90_s: the same, 90 in 100 are below.
        latency_p99_s: the same, 99 in 100 are below.
        latency_max_s: the longest.
    """

    read: int
    processed: int
    dropped: int
    failed: int
    abandoned: int
    elapsed_s: float
    busy_s: Mapping[str, float]
    latency_p50_s: float
    latency_p90_s: float
    latency_p99_s: float
    latency_max_s: float

    @property
    def in_flight(self) -> int:
        """Frames read whose fate is still open; 0 once the stream has ended."""
        return self.read - self.processed - self.dropped - self.failed - self.abandoned

    @property
    def fps(self) -> float:
        """Results per second."""
        return self.processed / self.elapsed_s if self.elapsed_s > 0 else 0.0


class Ledger:
    """Keeps the figures while a stream's threads run.

    Attributes:
        read: counted by the reading thread alone.
    """

    def __init__(self) -> None:
        self.read = 0
        self._processed = 0
        self._failed = 0
        self._busy_s = dict.fromkeys(STAGES, 0.0)  # each stage runs in one thread
        self._latency = LatencyHistogram()
        self._lock = threading.Lock()
        self._started_s = self._ended_s = 0.0

    def start(self) -> None:
        """Begin to count time."""
        self._started_s = time.perf_counter()

    def end(self) -> None:
        """Stop counting time; only the first call counts."""
        if not self._ended_s:
            self._ended_s = time.perf_counter()

    @contextmanager
    def busy(self, stage: str) -> Iterator[None]:
        """Count the block's time as that of `stage`."""
        started_s = time.perf_counter()
        try:
            yield
        finally:
            self._busy_s[stage] += time.perf_counter() - started_s

    def delivered(self, captured_s: float) -> None:
        """A result is handed out, of a frame captured at that `time.perf_counter()`."""
        self._processed += 1
        with self._lock:
            self._latency.add(time.perf_counter() - captured_s)

    def failed_one(self) -> None:
        """A frame has failed, in whatever thread."""
        with self._lock:
            self._failed += 1

    def stats(self, *, dropped: int, abandoned: int) -> StreamStats:
        """The figures now."""
        ended_s = self._ended_s or time.perf_counter()
        with self._lock:
            p50_s, p90_s, p99_s = (self._latency.percentile_s(percent) for percent in (50, 90, 99))
            longest_s = self._latency.longest_s
        return StreamStats(
            self.read,
            self._processed,
            dropped,
            self._failed,
            abandoned,
            ended_s - self._started_s if self._started_s else 0.0,
            dict(self._busy_s),
            p50_s,
            p90_s,
            p99_s,
            longest_s,
        )
