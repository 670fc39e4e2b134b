"""Frames through a model, with reading, preprocessing and inference overlapped, in order, all accounted for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, Literal, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from deploy.runtime.channel import Channel
from deploy.runtime.sources import Frame, Source, UnreadableFrame, open_source
from deploy.runtime.stages import Model, Prepared, Selected, Stages
from deploy.runtime.stream_stats import Ledger, StreamStats

# Frames that wait before each of the two threads: one lets both work while every frame takes about as long, the second
# evens out one that takes longer. More evens out more, at the cost of memory and of older results.
DEFAULT_DEPTH = 2
STOP_TIMEOUT_S = 15.0  # a stage ends with the frame in its hands; a camera's driver may wait 10 s for one

_log = logging.getLogger(__name__)

Result = TypeVar("Result")


class StreamResult(NamedTuple, Generic[Result]):
    """One frame and what the model makes of it."""

    frame: Frame
    output: Result


@dataclass(frozen=True)
class FailedFrame:
    """A frame without a result: it could not be decoded, or is not an image."""

    index: int
    name: str
    error: Exception


class _Waiting(NamedTuple):
    frame: Frame
    prepared: Prepared | None  # None where that is left to the model's thread


class _Done(NamedTuple):
    frame: Frame
    selected: Selected


class Stream(Generic[Result]):
    """Iterate over it for the results: `for frame, detections in Stream(detector, "street.mp4"): …`.

    Results come in the order of the frames. The stream ends with its source, with `close` (or the end of a `with`
    block), when the loop over it is left, or with the first error of its source or model, which is raised here after
    all results before it. Then its threads have ended and its source is closed.

    A frame that cannot be decoded, or that `preprocess` refuses as no image, has no result: it is counted as failed
    and told to `on_failed`, and the stream goes on.
    """

    def __init__(
        self,
        model: Model[Result],
        source: str | Path | int | Source | Iterable[NDArray[np.uint8]],
        *,
        depth: int = DEFAULT_DEPTH,
        when_full: Literal["wait", "drop"] | None = None,
        on_failed: Callable[[FailedFrame], None] | None = None,
    ) -> None:
        """Open the source; nothing is read before the first result is asked for.

        Args:
            model: is used by one other thread while the stream runs, and not to be called meanwhile.
            source: see `open_source`. The stream closes it.
            depth: the most frames, and the most results, that wait; 0 does everything in the caller's thread,
                where nothing is dropped.
            when_full: "wait" stops reading until there is room: nothing is ever dropped. "drop" drops the oldest
                waiting frame, so that results are of the present. Default: "drop" for a live source, else "wait".
            on_failed: called in one of the stream's threads for each frame that fails; what it raises ends the
                stream. Default: a warning in the log.

        Raises:
            ValueError: `depth` is below 0, or 0 with "drop".
            DatasetError: no such file.
            SourceError: a camera or a video cannot be opened.
        """
        if depth < 0 or (depth == 0 and when_full == "drop"):
            raise ValueError(f"depth is {depth}, expected at least {1 if when_full == 'drop' else 0}")
        self._source = open_source(source)
        self._on_failed = on_failed or _warn
        self._overlapped = depth > 0
        drop = when_full == "drop" or (when_full is None and self._source.live)
        # What may be dropped is prepared only once it is its turn.
        self._prepare_early = self._overlapped and not drop
        # One is being prepared, one is in the network, the others wait.
        self._stages = Stages(model, depth + 2 if self._prepare_early else 1)
        self._frames: Channel[_Waiting] = Channel(max(1, depth), keep_latest=drop)
        self._results: Channel[_Done] = Channel(max(1, depth))
        self._threads: list[threading.Thread] = []
        self._ledger = Ledger()
        self._error: BaseException | None = None
        self._started = self._closed = False

    def __iter__(self) -> Iterator[StreamResult[Result]]:
        """The results.

        Raises:
            ValueError: the stream was iterated over before.
        """
        if self._started:
            raise ValueError("a stream runs once: make another one")
        self._started = True
        # Held by the loop alone, the generator ends, and with it the threads, as soon as the loop is left.
        return self._run()

    def __enter__(self) -> Stream[Result]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the stream: wait for the frame in hand, end the threads, close the source."""
        self._started = self._closed = True
        self._frames.stop()
        self._results.stop()
        running = [thread for thread in self._threads if thread.ident is not None]
        if not running:
            self._source.close()
        for thread in running:
            if thread is threading.current_thread():
                continue
            thread.join(STOP_TIMEOUT_S)
            if thread.is_alive():
                _log.warning("%s has not ended within %.0f s and is left behind", thread.name, STOP_TIMEOUT_S)
        self._ledger.end()

    def stats(self) -> StreamStats:
        """What has happened so far; may be called at any time from any thread."""
        abandoned = self._frames.abandoned + self._results.abandoned
        return self._ledger.stats(dropped=self._frames.dropped, abandoned=abandoned)

    def _run(self) -> Iterator[StreamResult[Result]]:
        self._ledger.start()
        try:
            for done in self._from_threads() if self._overlapped else self._in_this_thread():
                with self._blaming_the_frame(), self._ledger.busy("finish"):
                    output = self._stages.finish(done.selected)
                self._ledger.delivered(done.frame.captured_s)
                with self._ledger.busy("consumer"):
                    yield StreamResult(done.frame, output)
        finally:
            self.close()

    def _in_this_thread(self) -> Iterator[_Done]:
        for waiting in self._read():
            done = self._infer(waiting)
            if done is not None:
                yield done
            if self._closed:  # by the caller's loop
                return

    def _from_threads(self) -> Iterator[_Done]:
        stages = {"reading": (self._read_all, self._frames.finish), "model": (self._infer_all, self._inferring_ended)}
        for name, work in stages.items():
            # Daemons: an interpreter that ends need not wait for a camera.
            self._threads.append(threading.Thread(target=self._guarded, args=work, name=f"stream {name}", daemon=True))
        for thread in self._threads:
            thread.start()
        while (done := self._results.get()) is not None:
            yield done
        if self._error is not None:
            raise self._error

    def _guarded(self, stage: Callable[[], None], ended: Callable[[], None]) -> None:
        try:
            stage()
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread, whatever it is
            self._error = self._error or error  # before the other threads learn that nothing more comes
        finally:
            ended()

    def _read_all(self) -> None:
        try:
            for waiting in self._read():
                if not self._frames.put(waiting):
                    return
        finally:
            self._source.close()  # here, where nothing can be reading it

    def _infer_all(self) -> None:
        while (waiting := self._frames.get()) is not None:
            done = self._infer(waiting)
            if done is not None and not self._results.put(done):
                return

    def _inferring_ended(self) -> None:
        self._frames.stop()
        self._results.finish()

    def _read(self) -> Iterator[_Waiting]:
        frames = iter(self._source)
        while True:
            with self._ledger.busy("read"):
                frame = next(frames, None)
            if frame is None:
                return
            self._ledger.read += 1
            if isinstance(frame, UnreadableFrame):
                self._fail(FailedFrame(frame.index, frame.name, frame.error))
                continue
            prepared = self._prepare(frame) if self._prepare_early else None
            if prepared is not None or not self._prepare_early:
                yield _Waiting(frame, prepared)

    def _prepare(self, frame: Frame) -> Prepared | None:
        try:
            with self._ledger.busy("preprocess"):
                return self._stages.prepare(frame.pixels)
        except ValueError as error:
            self._fail(FailedFrame(frame.index, frame.name, error))
            return None
        except BaseException:
            self._ledger.failed_one()
            raise

    def _infer(self, waiting: _Waiting) -> _Done | None:
        prepared = waiting.prepared or self._prepare(waiting.frame)
        if prepared is None:
            return None
        with self._blaming_the_frame():
            with self._ledger.busy("infer"):
                outputs = self._stages.infer(prepared)
            with self._ledger.busy("select"):
                return _Done(waiting.frame, self._stages.select(outputs, prepared))

    @contextmanager
    def _blaming_the_frame(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._ledger.failed_one()
            raise

    def _fail(self, failed: FailedFrame) -> None:
        self._ledger.failed_one()
        self._on_failed(failed)


def _warn(failed: FailedFrame) -> None:
    _log.warning("frame %d failed: %s", failed.index, " ".join(str(failed.error).split()))
