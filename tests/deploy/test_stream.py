"""The stream: order, what becomes of every frame, backpressure, and its end whatever ends it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.errors import EngineError, SourceError
from deploy.runtime.channel import Channel
from deploy.runtime.latency import LatencyHistogram
from deploy.runtime.sources import Arrays, Frame
from deploy.runtime.stream import FailedFrame, Stream
from deploy.runtime.stream_stats import StreamStats

PATIENCE_S = 20.0  # how long a test waits for what should happen at once, before it fails


class Doubler:
    """A model of three stages whose result tells which frame it saw: the frame's first value and its size."""

    def __init__(self) -> None:
        self.engine = self
        self.entered = threading.Semaphore(0)
        self.gate: threading.Event | None = None
        self.error_at: int | None = None
        self.error_stage = "infer"

    def preprocess(self, image: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        if image.ndim != 3 or image.size == 0:
            raise ValueError(f"image has shape {image.shape}, expected (height, width, 3)")
        self._maybe_fail("preprocess", image)
        return image[None], (image.shape[0], image.shape[1])

    def infer(self, pixels: np.ndarray) -> tuple[np.ndarray, ...]:
        self.entered.release()
        if self.gate is not None:
            assert self.gate.wait(PATIENCE_S)
        self._maybe_fail("infer", pixels[0])
        return (pixels[0, :1, 0, :1].astype(np.float32) * 2,)

    def postprocess(self, outputs: tuple[np.ndarray, ...], geometry: tuple[int, int]) -> tuple[float, tuple[int, int]]:
        return float(outputs[0][0, 0]), geometry

    def _maybe_fail(self, stage: str, image: np.ndarray) -> None:
        if stage == self.error_stage and self.error_at is not None and int(image[0, 0, 0]) == self.error_at:
            raise EngineError(f"no more after {self.error_at}")


class Staged(Doubler):
    """As Doubler, with memory that is used again: buffers for the input, one array for the output."""

    def __init__(self) -> None:
        super().__init__()
        self.buffers: list[np.ndarray] = []
        self.finished_in: set[str] = set()
        self._outputs = np.zeros(1)

    def new_buffer(self) -> np.ndarray:
        self.buffers.append(np.zeros(1))
        return self.buffers[-1]

    def preprocess(self, image: np.ndarray, buffer: np.ndarray) -> tuple[np.ndarray, tuple[int, int]]:
        super().preprocess(image)
        buffer[:] = image[0, 0, 0]
        return buffer, (image.shape[0], image.shape[1])

    def run(self, pixels: np.ndarray) -> np.ndarray:
        time.sleep(0.001)  # long enough for the next frames to be prepared meanwhile
        self._outputs[:] = pixels * 2
        return self._outputs

    def select(self, outputs: np.ndarray) -> np.ndarray:
        return outputs.copy()

    def finish(self, survivors: np.ndarray, geometry: tuple[int, int]) -> tuple[float, tuple[int, int]]:
        self.finished_in.add(threading.current_thread().name)
        if int(survivors[0]) == self.error_at:
            raise EngineError(f"no more after {self.error_at}")
        return float(survivors[0]), geometry


class Plain(Doubler):
    """As Doubler, with nothing but pixels between its stages, as a classifier."""

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        return super().preprocess(image)[0]

    def postprocess(self, outputs: tuple[np.ndarray, ...]) -> float:
        return float(outputs[0][0, 0])


def _images(count: int) -> Iterator[np.ndarray]:
    for index in range(count):
        yield np.full((4 + index % 7, 5 + index % 3, 3), index, np.uint8)


def _is_balanced(stats: StreamStats) -> bool:
    return stats.read == stats.processed + stats.dropped + stats.failed + stats.abandoned and stats.in_flight == 0


def _no_thread_is_left() -> bool:
    return not [thread for thread in threading.enumerate() if thread.name.startswith("stream ")]


class Watched(Arrays):
    """A source that remembers having been closed."""

    closed = 0

    def close(self) -> None:
        self.closed += 1
        super().close()


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_results_come_in_order_with_their_own_frame_though_sizes_change(depth: int) -> None:
    source = Watched(_images(40))
    stream = Stream(Doubler(), source, depth=depth)
    met = [(frame.index, frame.pixels.shape[:2], output) for frame, output in stream]
    assert met == [(i, (4 + i % 7, 5 + i % 3), (2.0 * i, (4 + i % 7, 5 + i % 3))) for i in range(40)]
    stats = stream.stats()
    assert (stats.read, stats.processed, stats.dropped, stats.failed, stats.abandoned) == (40, 40, 0, 0, 0)
    assert source.closed > 0
    assert _no_thread_is_left()
    assert 0 < stats.latency_p50_s <= stats.latency_p90_s <= stats.latency_p99_s <= stats.latency_max_s
    assert all(seconds > 0 for seconds in stats.busy_s.values())


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_memory_used_again_is_never_overwritten_while_a_frame_needs_it(depth: int) -> None:
    model = Staged()
    images = [*_images(30), np.zeros((0, 2, 3), np.uint8), *_images(30)]
    stream = Stream(model, images, depth=depth, on_failed=lambda failed: None)
    assert [output[0] for _, output in stream] == [2.0 * index for index in range(30)] * 2
    assert len(model.buffers) == (depth + 2 if depth else 1)
    assert model.finished_in == {threading.current_thread().name}  # so that it overlaps with the next inference
    live = Staged()
    assert len(list(Stream(live, Arrays(_images(20), live=True), depth=40))) == 20
    assert len(live.buffers) == 1


@pytest.mark.parametrize("depth", [0, 2])
def test_a_model_without_geometry_streams_too(depth: int) -> None:
    assert [output for _, output in Stream(Plain(), _images(9), depth=depth)] == [2.0 * index for index in range(9)]


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_of_the_last_stage_is_raised_and_counted(depth: int) -> None:
    model = Staged()
    model.error_at = 8
    stream, met = Stream(model, _images(50), depth=depth), []
    with pytest.raises(EngineError, match="no more after 8"):
        list(_appending(stream, met))
    assert met == [0.0, 2.0, 4.0, 6.0]
    assert stream.stats().failed == 1
    assert _is_balanced(stream.stats())
    assert _no_thread_is_left()


@pytest.mark.parametrize("depth", [0, 2])
def test_no_frames_make_no_results_and_an_end(depth: int) -> None:
    stream = Stream(Doubler(), [], depth=depth)
    assert list(stream) == []
    assert stream.stats().read == 0
    assert np.isnan(stream.stats().latency_p50_s)
    assert _no_thread_is_left()


@pytest.mark.parametrize("depth", [0, 2])
def test_an_error_of_the_source_is_raised_after_the_results_before_it(depth: int) -> None:
    original = SourceError("the cable is out")

    def broken() -> Iterator[np.ndarray]:
        yield from _images(5)
        raise original

    source = Watched(broken())
    stream, met = Stream(Doubler(), source, depth=depth), []
    with pytest.raises(SourceError, match="the cable is out") as caught:
        list(_appending(stream, met))
    assert caught.value is original
    assert met == [0.0, 2.0, 4.0, 6.0, 8.0]
    assert stream.stats().processed == 5
    assert _is_balanced(stream.stats())
    assert source.closed > 0
    assert _no_thread_is_left()


def _appending(stream: Stream, met: list[float]) -> Iterator[tuple[Frame, tuple[float, tuple[int, int]]]]:
    """Pass no results on, but keep them, also those before an error."""
    for _, output in stream:
        met.append(output[0])
    yield from ()


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("stage", ["preprocess", "infer"])
def test_an_error_of_the_model_is_raised_after_the_results_before_it(stage: str, depth: int) -> None:
    model = Doubler()
    model.error_at, model.error_stage = 7, stage
    source = Watched(_images(100))
    stream, met = Stream(model, source, depth=depth), []
    with pytest.raises(EngineError, match="no more after 7"):
        list(_appending(stream, met))
    assert met == [2.0 * index for index in range(7)]
    stats = stream.stats()
    assert (stats.processed, stats.failed, stats.dropped) == (7, 1, 0)
    assert _is_balanced(stats)
    assert stats.read < 100
    assert source.closed > 0
    assert _no_thread_is_left()


class Interrupted(BaseException):
    """As KeyboardInterrupt: no Exception."""


@pytest.mark.parametrize("depth", [0, 2])
@pytest.mark.parametrize("kind", [RuntimeError, Interrupted])
def test_an_error_of_the_consumer_ends_threads_and_source(kind: type[BaseException], depth: int) -> None:
    source = Watched(_images(200))
    stream = Stream(Doubler(), source, depth=depth)

    def consume() -> None:
        for frame, _ in stream:
            if frame.index == 3:
                raise kind("enough")

    with pytest.raises(kind, match="enough"):
        consume()
    stats = stream.stats()
    assert stats.processed == 4
    assert stats.read < 200
    assert _is_balanced(stats)
    assert source.closed > 0
    assert _no_thread_is_left()


@pytest.mark.parametrize("depth", [0, 2])
def test_leaving_the_loop_or_the_with_block_ends_it(depth: int) -> None:
    stream = Stream(Doubler(), Watched(_images(200)), depth=depth)
    for frame, _ in stream:
        if frame.index == 5:
            break
    assert _no_thread_is_left()
    assert stream.stats().processed == 6
    with Stream(Doubler(), Watched(_images(200)), depth=depth) as second:
        results = iter(second)  # a name of its own keeps it from ending with the loop
        next(results)
        next(results)
    assert _no_thread_is_left()
    assert second.stats().processed == 2
    assert _is_balanced(stream.stats())
    assert _is_balanced(second.stats())


@pytest.mark.parametrize("depth", [0, 2])
def test_closing_it_in_the_loop_makes_that_result_the_last(depth: int) -> None:
    images = list(_images(200))  # unlike a generator, a list does not end when its source is closed
    stream = Stream(Doubler(), images, depth=depth)
    met = []
    for frame, _ in stream:
        met.append(frame.index)
        if frame.index == 5:
            stream.close()
    assert met == [0, 1, 2, 3, 4, 5]
    assert _is_balanced(stream.stats())
    assert _no_thread_is_left()


@pytest.mark.parametrize("starting", [0, 1])
def test_a_thread_that_cannot_be_started_ends_the_stream_with_that_error(
    starting: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, start = [], threading.Thread.start

    def refusing(thread: threading.Thread) -> None:
        if len(started) == starting:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    source = Watched(_images(9))
    stream = Stream(Doubler(), source)
    monkeypatch.setattr(threading.Thread, "start", refusing)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        list(stream)
    assert source.closed > 0
    assert _no_thread_is_left()


def test_a_failure_may_close_the_stream_from_within(caplog) -> None:
    stream: Stream = Stream(
        Doubler(), [*_images(3), np.zeros((4, 4), np.uint8), *_images(90)], on_failed=lambda failed: stream.close()
    )
    with caplog.at_level(logging.WARNING):
        met = [frame.index for frame, _ in stream]
    assert met == list(range(len(met)))
    assert len(met) <= 3
    assert caplog.records == []
    assert _is_balanced(stream.stats())
    assert _no_thread_is_left()


def test_a_stream_never_run_still_closes_its_source_and_none_runs_twice() -> None:
    source = Watched(_images(3))
    stream = Stream(Doubler(), source)
    stream.close()
    assert source.closed > 0
    with pytest.raises(ValueError, match="runs once"):
        iter(stream)


def test_a_slow_consumer_makes_a_file_wait_and_nothing_is_dropped() -> None:
    depth = 2
    stream = Stream(Doubler(), _images(60), depth=depth)
    met = []
    for frame, _ in stream:
        met.append(frame.index)
        if frame.index < 3:
            time.sleep(0.05)
        # One in each of three hands, and as many as may wait twice.
        assert stream.stats().read <= len(met) + 2 * depth + 2
    assert met == list(range(60))
    assert stream.stats().dropped == 0


def test_a_camera_faster_than_the_model_loses_its_oldest_frames_and_each_is_counted() -> None:
    model = Doubler()
    model.gate = threading.Event()
    produced = threading.Event()

    def camera() -> Iterator[np.ndarray]:
        images = _images(50)
        yield next(images)
        assert model.entered.acquire(timeout=PATIENCE_S)  # the first frame is in the model, which waits
        yield from images
        produced.set()

    source = Watched(camera(), live=True)
    stream = Stream(model, source, depth=2)
    threading.Thread(target=lambda: (produced.wait(PATIENCE_S), model.gate.set())).start()
    met = [frame.index for frame, _ in stream]
    assert met == [0, 48, 49]  # the one in the model's hands, and the two newest
    stats = stream.stats()
    assert (stats.read, stats.processed, stats.dropped, stats.failed, stats.abandoned) == (50, 3, 47, 0, 0)
    assert source.closed > 0


def test_a_camera_may_be_asked_to_drop_nothing_and_a_file_to_drop() -> None:
    assert len(list(Stream(Doubler(), Arrays(_images(30), live=True), when_full="wait"))) == 30
    stream = Stream(Doubler(), _images(30), when_full="drop")
    processed = len(list(stream))
    assert stream.stats().read == 30 == processed + stream.stats().dropped


def test_stopping_a_live_stream_accounts_for_every_frame() -> None:
    def camera() -> Iterator[np.ndarray]:
        while True:
            yield np.zeros((4, 4, 3), np.uint8)
            time.sleep(0.0005)

    with Stream(Doubler(), Arrays(camera(), live=True), depth=2) as stream:
        for processed, _ in enumerate(stream, start=1):
            if processed == 40:
                break
    assert stream.stats().processed == 40
    assert _is_balanced(stream.stats())
    assert _no_thread_is_left()


@pytest.mark.parametrize("depth", [0, 2])
def test_what_is_no_image_fails_and_is_told_and_the_stream_goes_on(depth: int, caplog) -> None:
    images = [*_images(3), np.zeros((0, 5, 3), np.uint8), np.zeros((4, 4), np.uint8), *_images(2)]
    failed: list[FailedFrame] = []
    stream = Stream(Doubler(), images, depth=depth, on_failed=failed.append)
    assert [frame.index for frame, _ in stream] == [0, 1, 2, 5, 6]
    assert [one.index for one in failed] == [3, 4]
    assert (stream.stats().read, stream.stats().processed, stream.stats().failed) == (7, 5, 2)
    with caplog.at_level(logging.WARNING):
        assert len(list(Stream(Doubler(), images, depth=depth))) == 5
    assert [record.getMessage() for record in caplog.records] == [
        "frame 3 failed: image has shape (0, 5, 3), expected (height, width, 3)",
        "frame 4 failed: image has shape (4, 4), expected (height, width, 3)",
    ]


@pytest.mark.parametrize("depth", [0, 2])
def test_a_corrupt_image_in_a_folder_fails_alone(depth: int, tmp_path: Path) -> None:
    for index in range(6):
        Image.new("RGB", (8 + index, 6)).save(tmp_path / f"{index}.png")
    (tmp_path / "3.png").write_bytes((tmp_path / "3.png").read_bytes()[:40])
    failed: list[FailedFrame] = []
    stream = Stream(Doubler(), tmp_path, depth=depth, on_failed=failed.append)
    assert [Path(frame.name).name for frame, _ in stream] == ["0.png", "1.png", "2.png", "4.png", "5.png"]
    assert [(one.index, Path(one.name).name) for one in failed] == [(3, "3.png")]
    assert "replace or remove it" in str(failed[0].error)
    assert (stream.stats().read, stream.stats().processed, stream.stats().failed) == (6, 5, 1)


@pytest.mark.parametrize("depth", [0, 2])
def test_a_failure_may_be_made_the_end(depth: int) -> None:
    def end(failed: FailedFrame) -> None:
        raise failed.error

    stream, met = Stream(Doubler(), [*_images(3), np.zeros((4, 4), np.uint8)], depth=depth, on_failed=end), []
    with pytest.raises(ValueError, match="expected"):
        list(_appending(stream, met))
    assert met == [0.0, 2.0, 4.0]
    assert _is_balanced(stream.stats())
    assert _no_thread_is_left()


@pytest.mark.parametrize(("depth", "when_full"), [(-1, None), (0, "drop")])
def test_a_depth_that_makes_no_sense_is_refused(depth: int, when_full) -> None:
    with pytest.raises(ValueError, match="expected at least"):
        Stream(Doubler(), [], depth=depth, when_full=when_full)


def test_many_streams_of_random_ends_lose_no_frame() -> None:
    random = np.random.default_rng(0)
    for _ in range(150):
        model = Doubler()
        count, depth, live = int(random.integers(0, 12)), int(random.integers(1, 4)), bool(random.integers(2))
        if random.integers(2):
            model.error_at = int(random.integers(0, 12))
        leave_at = int(random.integers(0, 12))
        stream = Stream(model, Arrays(_images(count), live=live), depth=depth)
        met = []
        try:
            for frame, _ in stream:
                met.append(frame.index)
                if len(met) == leave_at:
                    break
        except EngineError:
            pass
        assert met == sorted(set(met))
        assert stream.stats().processed == len(met)
        assert _is_balanced(stream.stats())
    assert _no_thread_is_left()


@pytest.mark.parametrize("engine", ["onnx", "openvino", "tflite"])
def test_a_real_detector_finds_the_same_in_a_stream(
    bundles: Callable[[str, str], Path], deployed_student, engine: str
) -> None:
    from deploy.runtime import Detector

    folder = deployed_student.data_yaml.parent / "images/val"
    detector = Detector(bundles(engine, "int8"), conf=0.05, threads=1)
    expected = [detector(path) for path in sorted(folder.iterdir())]
    assert sum(map(len, expected)) > 0
    for depth in (0, 2):
        stream = Stream(detector, folder, depth=depth)
        met = [output for _, output in stream]
        assert len(met) == len(expected)
        for one, other in zip(met, expected, strict=True):
            np.testing.assert_array_equal(one.boxes_xyxy, other.boxes_xyxy)
            np.testing.assert_array_equal(one.scores, other.scores)
    detector.close()


def test_percentiles_are_within_half_a_percent_and_memory_is_fixed() -> None:
    samples = np.random.default_rng(0).lognormal(-4, 1, 5000)
    histogram = LatencyHistogram()
    for sample in samples:
        histogram.add(float(sample))
    for percent in (50, 90, 99):
        assert histogram.percentile_s(percent) == pytest.approx(
            np.percentile(samples, percent, method="inverted_cdf"), rel=0.0051
        )
    assert histogram.longest_s == samples.max()
    assert len(histogram) == 5000
    for extreme in (0.0, -1.0, 1e9):
        histogram.add(extreme)
    assert histogram.percentile_s(0) < 2e-6
    assert np.isnan(LatencyHistogram().percentile_s(50))


def test_a_channel_stopped_while_both_sides_wait_lets_both_go() -> None:
    full: Channel[int] = Channel(1)
    assert full.put(1)
    outcomes: list[object] = []
    putter = threading.Thread(target=lambda: outcomes.append(full.put(2)))
    putter.start()
    full.stop()
    putter.join(PATIENCE_S)
    assert outcomes == [False]
    assert full.abandoned == 2
    empty: Channel[int] = Channel(1)
    getter = threading.Thread(target=lambda: outcomes.append(empty.get()))
    getter.start()
    empty.stop()
    getter.join(PATIENCE_S)
    assert outcomes == [False, None]
