"""Where frames come from: image files, a video file, a camera, or arrays of one's own."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
from numpy.typing import NDArray

from deploy.errors import DatasetError, SourceError
from deploy.runtime.image import images_below, read_image

VIDEO_SUFFIXES = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm")

_CAMERA_DEVICE = re.compile(r"(?:/dev/video)?(\d+)")
_URL = re.compile(r"(?:rtsps?|rtmp|https?|udp|tcp)://", re.IGNORECASE)
_CREDENTIALS = re.compile(r"//[^/]*@")
_NETWORK_TIMEOUT_MS = 5000  # OpenCV's own is 30 s: too long to wait for a stop
# A container's frame count is an estimate; only a larger shortfall is taken for damage.
_LEAST_SHARE_OF_FRAMES = 0.98


@dataclass(frozen=True)
class Frame:
    """One image of a source.

    Attributes:
        index: 0, 1, 2, … in the order of the source.
        name: the image file, or the video or camera with the frame's number.
        pixels: (height, width, 3) uint8 RGB.
        timestamp_s: position in a video; seconds since a camera was opened; 0 for image files.
        captured_s: `time.perf_counter()` when the pixels were there.
    """

    index: int
    name: str
    pixels: NDArray[np.uint8]
    timestamp_s: float
    captured_s: float


@dataclass(frozen=True)
class UnreadableFrame:
    """A frame that its source could not decode; the source goes on with the next one.

    Attributes:
        index: as of `Frame`.
        name: as of `Frame`.
        error: why.
    """

    index: int
    name: str
    error: DatasetError


class Source(Protocol):
    """Frames in order. A source is read once, by one thread.

    Attributes:
        live: frames come whether or not somebody is ready for them, as a camera's do.
    """

    live: bool

    def __iter__(self) -> Iterator[Frame | UnreadableFrame]:
        """The frames; a frame that cannot be decoded comes as an `UnreadableFrame` in its place."""

    def close(self) -> None:
        """Free the file or the device; closing twice is allowed."""


def open_source(what: str | Path | int | Source | Iterable[NDArray[np.uint8]]) -> Source:
    """A source for what a user may name.

    Args:
        what: a folder of images, an image file, a video file, a camera's number or `/dev/videoN`, an `rtsp://` or
            `http://` address, arrays (height, width, 3) uint8 RGB, or a source, which is returned as it is.

    Raises:
        DatasetError: no such file, a folder without images, or a file of a kind that is not known.
        SourceError: no such camera or address, an unreadable video, or OpenCV is needed and missing.
    """
    if isinstance(what, int):
        return Camera(what)
    if not isinstance(what, (str, Path)):
        is_source = hasattr(what, "live") and hasattr(what, "close")
        return cast(Source, what) if is_source else Arrays(cast(Iterable[NDArray[np.uint8]], what))
    path = Path(what)
    if isinstance(what, str) and _URL.match(what):
        return Camera(what)
    if path.is_dir():
        return ImageFiles(images_below(path))
    if _CAMERA_DEVICE.fullmatch(str(what)) and not path.is_file():
        return Camera(str(what))
    if not path.exists():
        raise DatasetError(f"no image or video {path}: check the path")
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return VideoFile(path)
    return ImageFiles([path])


class ImageFiles:
    """Image files, decoded one by one. One that cannot be decoded comes as an `UnreadableFrame`."""

    live = False

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)

    def __iter__(self) -> Iterator[Frame | UnreadableFrame]:
        for index, path in enumerate(self._paths):
            try:
                pixels = read_image(path)
            except DatasetError as error:
                yield UnreadableFrame(index, str(path), error)
            else:
                yield Frame(index, str(path), pixels, 0.0, time.perf_counter())

    def close(self) -> None:
        """Nothing is held open between two images."""


class Arrays:
    """Frames that a program makes itself: any iterable of (height, width, 3) uint8 RGB arrays, or of frames.

    The arrays must not be changed while their frames are in use: a generator gives new ones.
    """

    def __init__(self, arrays: Iterable[NDArray[np.uint8] | Frame | UnreadableFrame], *, live: bool = False) -> None:
        """Wrap an iterable.

        Args:
            arrays: a generator among them is closed with the source.
            live: see `Source`.
        """
        self.live = live
        self._arrays = arrays

    def __iter__(self) -> Iterator[Frame | UnreadableFrame]:
        opened_s = time.perf_counter()
        for index, array in enumerate(self._arrays):
            if isinstance(array, (Frame, UnreadableFrame)):
                yield array
            else:
                now_s = time.perf_counter()
                yield Frame(index, f"frame {index}", array, now_s - opened_s if self.live else 0.0, now_s)

    def close(self) -> None:
        """Close the generator, where it is one."""
        close = getattr(self._arrays, "close", None)
        if close is not None:
            close()


class VideoFile:
    """A video file, read by OpenCV.

    OpenCV conceals or skips single damaged frames by itself. A file that ends with less than 98 % of the frames its
    header announces ends with an `UnreadableFrame` that says so.
    """

    live = False

    def __init__(self, path: str | Path) -> None:
        """Open a video.

        Raises:
            DatasetError: no such file.
            SourceError: OpenCV is missing, or cannot read it.
        """
        self._name = str(path)
        if not Path(path).is_file():
            raise DatasetError(f"no video {path}: check the path")
        self._capture = _opened(self._name, import_opencv(self._name).CAP_FFMPEG, f"{path} cannot be read as a video")
        self.fps = _positive(self._capture, "CAP_PROP_FPS")
        self.announced_frames = int(_positive(self._capture, "CAP_PROP_FRAME_COUNT") or 0)

    def __iter__(self) -> Iterator[Frame | UnreadableFrame]:
        opencv = import_opencv(self._name)
        index = 0
        while (pixels := _next_pixels(self._capture)) is not None:
            timestamp_s = self._capture.get(opencv.CAP_PROP_POS_MSEC) / 1000.0
            yield Frame(index, f"{self._name}#{index}", pixels, timestamp_s, time.perf_counter())
            index += 1
        if index < _LEAST_SHARE_OF_FRAMES * self.announced_frames:
            message = f"{self._name} ends after {index} of {self.announced_frames} frames: the file is damaged"
            yield UnreadableFrame(index, f"{self._name}#{index}", DatasetError(message))

    def close(self) -> None:
        """Close the file."""
        self._capture.release()


class Camera:
    """A camera, or a stream from the network, read by OpenCV.

    It never ends by itself: no more frames is an error. An address whose length is known is a file elsewhere: that
    one is not live, and ends.
    """

    def __init__(
        self, address: int | str, *, width: int | None = None, height: int | None = None, fps: float | None = None
    ) -> None:
        """Open a camera.

        Args:
            address: its number N or `/dev/videoN` (V4L2 on Linux), or an `rtsp://` or `http://` address.
            width: columns to ask the camera for; it may give others.
            height: rows to ask it for.
            fps: frames per second to ask it for.

        Raises:
            SourceError: OpenCV is missing, or there is no such camera.
        """
        shown = _CREDENTIALS.sub("//", str(address))  # names go into logs and results, passwords do not
        self._name = f"camera {shown}"
        opencv = import_opencv(self._name)
        device = _CAMERA_DEVICE.fullmatch(str(address))
        if device:
            api = opencv.CAP_V4L2 if os.name == "posix" and Path("/dev").is_dir() else opencv.CAP_ANY
            hint = f"no {self._name}, or it is in use: list them with ls /dev/video*"
            self._capture = _opened(int(device[1]), api, hint)
        else:
            timeouts = [opencv.CAP_PROP_OPEN_TIMEOUT_MSEC, _NETWORK_TIMEOUT_MS]
            timeouts += [opencv.CAP_PROP_READ_TIMEOUT_MSEC, _NETWORK_TIMEOUT_MS]
            hint = f"no stream at {shown}: check the address, the network and the password"
            self._capture = _opened(str(address), opencv.CAP_FFMPEG, hint, timeouts)
        self._capture.set(opencv.CAP_PROP_BUFFERSIZE, 1)  # where the driver heeds it, an old frame never waits there
        for name, value in (("WIDTH", width), ("HEIGHT", height), ("S", fps)):
            if value is not None:
                key = "CAP_PROP_FPS" if name == "S" else f"CAP_PROP_FRAME_{name}"
                self._capture.set(getattr(opencv, key), value)
        self.fps = _positive(self._capture, "CAP_PROP_FPS")
        self.live = _positive(self._capture, "CAP_PROP_FRAME_COUNT") is None

    def __iter__(self) -> Iterator[Frame | UnreadableFrame]:
        opened_s = time.perf_counter()
        index = 0
        while (pixels := _next_pixels(self._capture)) is not None:
            now_s = time.perf_counter()
            yield Frame(index, f"{self._name}#{index}", pixels, now_s - opened_s, now_s)
            index += 1
        if self.live:
            raise SourceError(f"{self._name} gives no more frames after {index}: check its cable or its network")

    def close(self) -> None:
        """Free the device."""
        self._capture.release()


def import_opencv(what: str) -> Any:
    """The cv2 module, which only videos and cameras need.

    Raises:
        SourceError: it is not installed; the message says what to install for `what`.
    """
    try:
        import cv2
    except ImportError as error:
        raise SourceError(
            f"{what} needs OpenCV, which cannot be imported ({error}): pip install opencv-python-headless"
        ) from error
    return cv2


def _opened(what: str | int, api: int, refusal: str, parameters: Sequence[int] = ()) -> Any:
    """An opened `cv2.VideoCapture`; its libraries' own chatter is kept off stderr while it opens."""
    opencv = import_opencv(str(what))
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # AV_LOG_QUIET
    logging = getattr(opencv.utils, "logging", None)
    level = logging.getLogLevel() if logging else None
    if logging:
        logging.setLogLevel(logging.LOG_LEVEL_SILENT)
    try:
        capture = opencv.VideoCapture(what, api, list(parameters))
    except opencv.error as error:
        raise SourceError(f"{refusal} ({' '.join(str(error).split())})") from error
    finally:
        if logging:
            logging.setLogLevel(level)
    if not capture.isOpened():
        raise SourceError(refusal)
    return capture


def _next_pixels(capture: Any) -> NDArray[np.uint8] | None:
    """The next frame (height, width, 3) uint8 RGB in memory of its own; None after the last."""
    opencv = import_opencv("")
    read, bgr = capture.read()
    return np.asarray(opencv.cvtColor(bgr, opencv.COLOR_BGR2RGB), np.uint8) if read and bgr is not None else None


def _positive(capture: Any, name: str) -> float | None:
    """A property of the capture; None where the driver does not know it."""
    value = float(capture.get(getattr(import_opencv(""), name)))
    return value if 0 < value < 1e9 else None
