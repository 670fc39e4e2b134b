"""A camera's ways to end and to be too fast, with a `cv2.VideoCapture` that plays the driver: no device is needed."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from deploy.errors import SourceError
from deploy.runtime.sources import Camera, Frame, open_source
from deploy.runtime.stream import Stream

cv2 = pytest.importorskip("cv2", reason="cameras need OpenCV")

PATIENCE_S = 20.0
BGR = (10, 20, 30)


class Driver:
    """What OpenCV opens for a device that gives `frames` frames and then no more."""

    def __init__(self, frames: int, opens: bool = True) -> None:
        self.frames, self.opens = frames, opens
        self.read_frames, self.released = 0, 0
        self.asked: list[tuple[Any, ...]] = []
        self.settings: dict[int, float] = {}
        self.all_were_read = threading.Event()

    def __call__(self, *arguments: Any) -> Driver:
        self.asked.append(arguments)
        return self

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return self.opens

    def get(self, key: int) -> float:
        return self.settings.get(key, -1.0)

    def set(self, key: int, value: float) -> bool:
        self.settings[key] = value
        return True

    def read(self) -> tuple[bool, np.ndarray | None]:
        if self.read_frames == self.frames:
            self.all_were_read.set()
            return False, None
        self.read_frames += 1
        return True, np.full((48, 64, 3), BGR, np.uint8)

    def release(self) -> None:
        self.released += 1


class Slow:
    """A model whose first inference takes until the camera has given all that it has."""

    def __init__(self, driver: Driver) -> None:
        self.engine = self
        self._driver = driver

    def preprocess(self, image: np.ndarray) -> np.ndarray:
        return image[None]

    def infer(self, pixels: np.ndarray) -> list[np.ndarray]:
        assert self._driver.all_were_read.wait(PATIENCE_S)
        return [pixels[0, :1, 0].astype(np.float32)]

    def postprocess(self, outputs: list[np.ndarray]) -> list[float]:
        return outputs[0][0].tolist()


def _plays(driver: Driver, monkeypatch: pytest.MonkeyPatch) -> Driver:
    monkeypatch.setattr(cv2, "VideoCapture", driver)
    return driver


def test_a_camera_is_opened_by_its_number_with_the_newest_frame_and_the_asked_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    driver = _plays(Driver(frames=3), monkeypatch)
    camera = Camera("/dev/video2", width=640, height=480, fps=15)
    assert driver.asked[0][:2] == (2, cv2.CAP_V4L2)
    assert driver.settings == {
        cv2.CAP_PROP_BUFFERSIZE: 1,
        cv2.CAP_PROP_FRAME_WIDTH: 640,
        cv2.CAP_PROP_FRAME_HEIGHT: 480,
        cv2.CAP_PROP_FPS: 15,
    }
    assert camera.live
    assert camera.fps == 15
    first = next(iter(camera))
    assert isinstance(first, Frame)
    assert first.pixels[0, 0].tolist() == [30, 20, 10]  # RGB


def test_a_camera_that_does_not_open_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    _plays(Driver(frames=0, opens=False), monkeypatch)
    with pytest.raises(SourceError) as refused:
        open_source(5)
    assert str(refused.value) == "no camera 5, or it is in use: list them with ls /dev/video*"


def test_what_opencv_raises_while_it_opens_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def raises(*_: Any) -> None:
        raise cv2.error("backend\nis broken")

    monkeypatch.setattr(cv2, "VideoCapture", raises)
    with pytest.raises(SourceError, match=r"^no camera 0, or it is in use.* \(backend is broken\)$"):
        Camera(0)


def test_a_camera_that_stops_in_the_middle_is_an_error_after_all_its_results(monkeypatch: pytest.MonkeyPatch) -> None:
    driver = _plays(Driver(frames=7), monkeypatch)
    driver.all_were_read.set()  # the model waits for nothing
    stream = Stream(Slow(driver), open_source(0), when_full="wait")
    results: list[tuple[Frame, list[float]]] = []
    with pytest.raises(SourceError, match="camera 0 gives no more frames after 7: check its cable"):
        results.extend(stream)
    assert len(results) == 7
    stats = stream.stats()
    assert (stats.read, stats.processed, stats.dropped, stats.failed, stats.abandoned) == (7, 7, 0, 0, 0)
    assert driver.released == 1


@pytest.mark.parametrize("depth", [1, 2])
def test_a_model_slower_than_the_camera_drops_and_counts_the_oldest_frames(
    depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = _plays(Driver(frames=200), monkeypatch)
    stream = Stream(Slow(driver), open_source(0), depth=depth)
    results: list[tuple[Frame, list[float]]] = []
    with pytest.raises(SourceError, match="no more frames after 200"):
        results.extend(stream)
    indices = [frame.index for frame, _ in results]
    assert all(found == [30.0, 20.0, 10.0] for _, found in results)
    stats = stream.stats()
    assert stats.read == 200
    assert stats.dropped + stats.processed == 200
    assert stats.processed == len(indices) <= depth + 2  # in the network, in the reader's hand, and waiting
    assert indices == sorted(indices)
    assert indices[-1] == 199  # the newest frame is never the one that goes
    assert driver.released >= 1
