"""Frames through a model, with reading, preprocessing and inference overlapped, in order, all accounted for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, NamedTuple, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from deploy.runtime.channel import Channel
from deploy.runtime.sources import Frame, Source, UnreadableFrame, open_source
from deploy.runtime.stream_stats import Ledger, StreamStats

# Frames that wait before each of the two threads. One already hides all that can be hidden while the stages take
# about the same time for every frame; the second evens out a frame that takes longer.
DEFAULT_DEPTH = 2
STOP_TIMEOUT_S = 15.0  # a stage ends with the frame in its hands; a camera's driver may wait 10 s for one

_log = logging.getLogger(__name__)

Output = TypeVar("Output", covariant=True)
Result = TypeVar("Result")


class Model(Protocol[Output]):
    """What a stream runs: `Detector`, `Segmenter`, `Classifier`, or anything with these stages and an `engine`."""

    @property
    def engine(self) -> InferenceEngine:
        """Its `infer` is called with the network's input."""

    def preprocess(self, image: NDArray[np.uint8]) -> Any:
        """An image (height, width, 3) uint8 to the network's input, alone or in a tuple with more.

        Raises:
            ValueError: the array is not an image: that frame fails, the stream goes on.
        """

    def postprocess(self, *stages: Any, **options: Any) -> Output:
        """The engine's outputs, and what else `preprocess` gave, to a result in memory of its own."""


class InferenceEngine(Protocol):
    """The part of `deploy.runtime.Engine` that a stream uses."""

    def infer(self, pixels: NDArray[np.uint8]) -> Sequence[NDArray[np.float32]]:
        """Run the network on one image."""


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


class _Prepared(NamedTuple):
    frame: Frame
    pixels: NDArray[np.uint8]
    geometry: tuple[Any, ...]  # what postprocess wants to know besides the outputs


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
            depth: the most frames, and the most results, that wait; 0 does everything in the caller's thread.
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
        self._model = model
        self._source = open_source(source)
        self._on_failed = on_failed or _warn
        self._overlapped = depth > 0
        drop = when_full == "drop" or (when_full is None and self._source.live)
        # What may be dropped is prepared only once it is its turn.
        self._prepare_early = not drop
        self._frames: Channel[Frame | _Prepared] = Channel(max(1, depth), keep_latest=drop)
        self._results: Channel[StreamResult[Result]] = Channel(max(1, depth))
        self._threads: list[threading.Thread] = []
        self._ledger = Ledger()
        self._error: BaseException | None = None
        self._started = False

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
        self._started = True
        self._frames.stop()
        self._results.stop()
        if not self._threads:
            self._source.close()
        for thread in self._threads:
            if thread is not threading.current_thread():
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
            for result in self._from_threads() if self._overlapped else self._in_this_thread():
                self._ledger.delivered(result.frame.captured_s)
                with self._ledger.busy("consumer"):
                    yield result
        finally:
            self.close()

    def _in_this_thread(self) -> Iterator[StreamResult[Result]]:
        for frame in self._read():
            prepared = self._prepare(frame)
            if prepared is not None:
                yield self._infer(prepared)

    def _from_threads(self) -> Iterator[StreamResult[Result]]:
        stages = {
            "stream reading": (self._read_all, self._reading_ended),
            "stream model": (self._run_all, self._model_ended),
        }
        for name, (stage, ended) in stages.items():
            # Daemons: an interpreter that ends need not wait for a camera.
            self._threads.append(threading.Thread(target=self._guarded, args=(stage, ended), name=name, daemon=True))
        for thread in self._threads:
            thread.start()
        while (result := self._results.get()) is not None:
            yield result
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
            for frame in self._read():
                prepared = self._prepare(frame) if self._prepare_early else frame
                if prepared is not None and not self._frames.put(prepared):
                    return
        finally:
            self._source.close()  # here, where nothing can be reading it

    def _reading_ended(self) -> None:
        self._frames.finish()

    def _run_all(self) -> None:
        while (waiting := self._frames.get()) is not None:
            prepared = self._prepare(waiting) if isinstance(waiting, Frame) else waiting
            if prepared is not None and not self._results.put(self._infer(prepared)):
                return

    def _model_ended(self) -> None:
        self._frames.stop()
        self._results.finish()

    def _read(self) -> Iterator[Frame]:
        frames = iter(self._source)
        while True:
            with self._ledger.busy("read"):
                frame = next(frames, None)
            if frame is None:
                return
            self._ledger.read += 1
            if isinstance(frame, UnreadableFrame):
                self._fail(FailedFrame(frame.index, frame.name, frame.error))
            else:
                yield frame

    def _prepare(self, frame: Frame) -> _Prepared | None:
        try:
            with self._ledger.busy("preprocess"):
                prepared = self._model.preprocess(frame.pixels)
                pixels, *geometry = prepared if isinstance(prepared, tuple) else (prepared,)
                return _Prepared(frame, pixels, tuple(geometry))
        except ValueError as error:
            self._fail(FailedFrame(frame.index, frame.name, error))
            return None
        except BaseException:
            self._ledger.failed_one()
            raise

    def _infer(self, prepared: _Prepared) -> StreamResult[Result]:
        try:
            with self._ledger.busy("infer"):
                outputs = self._model.engine.infer(prepared.pixels)
            # In the same thread: the engine's next call may overwrite its outputs, and to copy them costs as much
            # as to filter them.
            with self._ledger.busy("postprocess"):
                return StreamResult(prepared.frame, self._model.postprocess(outputs, *prepared.geometry))
        except BaseException:
            self._ledger.failed_one()
            raise

    def _fail(self, failed: FailedFrame) -> None:
        self._ledger.failed_one()
        self._on_failed(failed)


def _warn(failed: FailedFrame) -> None:
    _log.warning("frame %d failed: %s", failed.index, " ".join(str(failed.error).split()))
