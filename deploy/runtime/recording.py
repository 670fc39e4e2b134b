"""Writing frames as an mp4 video, with OpenCV."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import SourceError
from deploy.runtime.resize import resize_bilinear
from deploy.runtime.sources import import_opencv

DEFAULT_FPS = 25.0  # where the source does not tell its own
_LONGEST_GAP_S = 10.0


class VideoWriter:
    """An mp4 file (MPEG-4 part 2) that is made at its first frame and playable once closed.

    The first frame's size is the video's; frames of another are scaled to it. Odd sizes lose a row or a column.
    """

    def __init__(self, path: Path, fps: float | None = None) -> None:
        """Prepare a video; nothing is written yet.

        Args:
            path: ends in `.mp4`.
            fps: frames per second, default 25.

        Raises:
            SourceError: OpenCV is missing.
        """
        self._path = path
        self._fps = fps or DEFAULT_FPS
        self._opencv = import_opencv(f"writing {path.name}")
        self._writer: Any = None
        self._size = (0, 0)
        self._last_bgr: Any = None
        self._first_s: float | None = None
        self.frames = 0

    def write(self, image: NDArray[np.uint8], timestamp_s: float | None = None) -> None:
        """Append a frame.

        Args:
            image: (height, width, 3) uint8 RGB.
            timestamp_s: when it was taken: the last frame is repeated up to then (10 s at most), or this one left
                out where the video is ahead, so that a camera plays at its own speed whatever was dropped. None
                appends it as it is.

        Raises:
            SourceError: this OpenCV cannot write mp4.
        """
        if self._writer is None:
            self._open(*image.shape[:2])
        if image.shape[:2] != self._size:
            image = resize_bilinear(image, *self._size)
        bgr = self._opencv.cvtColor(image, self._opencv.COLOR_RGB2BGR)
        if timestamp_s is not None:
            self._first_s = timestamp_s if self._first_s is None else self._first_s
            missing = round((timestamp_s - self._first_s) * self._fps) - self.frames
            if missing < -1:
                return
            for _ in range(min(missing, round(_LONGEST_GAP_S * self._fps))):
                self._append(self._last_bgr)
        self._append(bgr)
        self._last_bgr = bgr

    def close(self) -> None:
        """Finish the file. Without any frame there is none."""
        if self._writer is not None:
            self._writer.release()
            self._writer = None

    def _open(self, height: int, width: int) -> None:
        code = self._opencv.VideoWriter_fourcc(*"mp4v")
        self._writer = self._opencv.VideoWriter(str(self._path), code, self._fps, (width, height))
        if not self._writer.isOpened():
            raise SourceError(
                f"OpenCV {self._opencv.__version__} cannot write {self._path.name}: pip install opencv-python-headless"
            )
        self._size = (height, width)

    def _append(self, bgr: NDArray[np.uint8]) -> None:
        self._writer.write(bgr)
        self.frames += 1
