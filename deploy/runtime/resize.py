"""Bilinear resizing into memory that is there already: the same pixels with OpenCV and without it.

Where OpenCV is imported already (a camera, a video), it resizes. Importing it for that alone costs 26 MB of resident
memory and saves up to a millisecond per image (640 x 427 to 320 x 214: 0.14 ms by OpenCV 5.0, 0.5 ms by numpy, 1.5 ms
by Pillow's affine transform, on one x86 core). Up to `OPENCV_SIDE` pixels, where a small network answers in a few
milliseconds and needs little memory, that is a good bargain, and OpenCV is imported if it is installed: on two x86
cores an INT8 YOLOv8-n at 320 px then takes 1.24 times its engine's own call from image to boxes in place of 1.57.
Above, the network takes so long that it hardly shows (1.08 either way at 640 px), and memory is what is short. The
environment variable `EDGE_DISTILL_RESIZE` says otherwise: `opencv` imports it where it is installed, `numpy` does
without it.

Both follow OpenCV's INTER_LINEAR on 8-bit images: two taps a side, pixel centres at half integers, no antialiasing,
weights of 11 bits. The numpy path computes what OpenCV's own C++ does (5.0 and 4.x, x86-64), to the last bit. Builds
of OpenCV that leave the resizing to a vendor's library (on ARM) may differ by 1 grey level.
"""

from __future__ import annotations

import functools
import importlib
import os
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

from deploy.errors import DeployError

_STRIP_PIXELS = 20_480  # of the result at a time: so much of the intermediate results stays in a core's cache
_UNIT = 2048  # weights are whole multiples of 1 / 2048
_HALF = _UNIT // 2
_LINE = 64  # bytes of a cache line, of x86 and of ARM
_FETCHED_BYTES = 1_500_000  # an image that fits into the cache next to a core, more or less

OPENCV_SIDE = 416  # the longer side of a result, in pixels, up to which OpenCV is imported for resizing alone


class Resizer:
    """Resizes images one after the other, in memory that it keeps. One object serves one thread at a time."""

    def __init__(self) -> None:
        """Take no memory yet. What the environment asks for is read here, not for every image: that takes 30 us."""
        self._asked = os.environ.get("EDGE_DISTILL_RESIZE", "")
        self._memory = _Memory()

    def resize_into(self, image: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """Resize `image` to the size of `out`.

        Args:
            image: (h, w, 3) uint8, any strides.
            out: (height, width, 3) uint8, pixels contiguous; not in the memory of `image`.

        Raises:
            DeployError: `EDGE_DISTILL_RESIZE` names neither way of resizing.
        """
        if image.shape == out.shape:
            np.copyto(out, image)
            return
        opencv = _opencv(self._asked, max(out.shape[:2]))
        if opencv is not None:
            whole = np.ascontiguousarray(image)
            if whole.nbytes <= _FETCHED_BYTES:
                # One byte of every cache line, all at once: OpenCV would wait for one line after the other. With the
                # image in main memory 0.06 ms less of 0.28 ms (640 x 427 to 320 x 214, one x86 core).
                whole.reshape(-1)[::_LINE].tobytes()
            opencv.resize(whole, (out.shape[1], out.shape[0]), dst=out, interpolation=opencv.INTER_LINEAR)
            return
        _plan(*image.shape[:2], *out.shape[:2]).run(image, out, self._memory)


def resize_bilinear(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize one image, by OpenCV or numpy as this module's head says.

    Args:
        image: (h, w, 3) uint8.
        height: rows of the result.
        width: columns of the result.

    Returns:
        (height, width, 3) uint8.
    """
    out = np.empty((height, width, 3), np.uint8)
    Resizer().resize_into(image, out)
    return out


class _Memory:
    """What one strip is worked on in; it grows with the strips."""

    def __init__(self) -> None:
        self._bytes: NDArray[np.uint8] = np.zeros(0, np.uint8)
        self._wide: NDArray[np.int32] = np.zeros(0, np.int32)

    def bytes(self, count: int) -> NDArray[np.uint8]:
        """So many bytes."""
        if len(self._bytes) < count:
            self._bytes = np.zeros(count, np.uint8)
        return self._bytes[:count]

    def wide(self, rows: int, columns: int) -> NDArray[np.int32]:
        """(2, rows, columns)."""
        count = 2 * rows * columns
        if len(self._wide) < count:
            self._wide = np.empty(count, np.int32)
        return self._wide[:count].reshape(2, rows, columns)


@functools.lru_cache(maxsize=16)  # the images of a folder are of a few sizes in turn; a plan takes tens of kB
def _plan(source_height: int, source_width: int, height: int, width: int) -> _Plan:
    return _Plan(source_height, source_width, height, width)


class _Plan:
    """Taps and weights from one size to another, and the strips to work in. It never changes: threads may share it.

    A pixel is moved as one number of 32 bits, its three channels and a fourth byte that nobody reads: numpy gathers
    those several times faster than single bytes.
    """

    def __init__(self, source_height: int, source_width: int, height: int, width: int) -> None:
        # At the left and right edge OpenCV gives the outermost pixel all the weight, at the top and bottom it clips
        # the row numbers alone: with weights rounded apart that makes a difference of one level now and then.
        first, weights = _taps(source_width, width)
        edge = (first < 0) | (first >= source_width - 1)
        first = np.clip(first, 0, source_width - 1)
        weights = np.where(edge, 0, weights).astype(np.int16)
        second = np.minimum(first + 1, source_width - 1)
        self._columns = (_as_slice(first), _as_slice(second))
        self._most_are_read = source_width < 2 * width
        self._x_kind = _kind(weights)
        in_channels = np.repeat(weights, 4)
        self._x_sixteenths, self._x_rest = in_channels >> 4, in_channels & 15
        top, self._lower = _taps(source_height, height)
        self._upper = _UNIT - self._lower
        self._y_kind = _kind(self._lower)
        rows = np.clip([top, top + 1], 0, source_height - 1)
        step = max(1, _STRIP_PIXELS // width)
        self._strips = [
            _strip(start, rows[: 1 if self._y_kind == "first" else 2, start : start + step])
            for start in range(0, height, step)
        ]

    def run(self, image: NDArray[np.uint8], out: NDArray[np.uint8], memory: _Memory) -> None:
        """Resize an image of the size that the plan is for."""
        for strip in self._strips:
            result = self._vertical(self._horizontal(_gathered(image, strip.rows, memory)), strip, memory)
            pixels = result.astype(np.uint8).reshape(len(result), -1, 4)
            for channel in range(3):
                out[strip.start : strip.stop, :, channel] = pixels[:, :, channel]

    def _horizontal(self, pixels: NDArray[np.uint32]) -> NDArray[np.int16]:
        """Blend columns: (rows, 4 * width), (first * (2048 - weight) + second * weight) >> 4, in 15 bits.

        Where every weight is a half, only the sum of both pixels, in 9 bits: `_vertical` knows.
        """
        if self._most_are_read:
            pixels = np.ascontiguousarray(pixels)  # aligned: worth a pass over all of them
        first = _picked(pixels, self._columns[0])
        if self._x_kind == "first":
            return np.left_shift(first, 7, out=first)
        second = _picked(pixels, self._columns[1])
        if self._x_kind == "half":
            first += second
            return first if self._y_kind == "half" else np.left_shift(first, 6, out=first)
        # first * 128 + ((second - first) * weight >> 4), the weight cut into sixteens and rest to stay in 16 bits.
        second -= first
        first <<= 7
        rest = second * self._x_rest
        rest >>= 4
        second *= self._x_sixteenths
        first += second
        first += rest
        return first

    def _vertical(self, blended: NDArray[np.int16], strip: _Strip, memory: _Memory) -> NDArray[Any]:
        """Blend rows: ((upper * weight >> 16) + (lower * weight >> 16) + 2) >> 2, as OpenCV rounds."""
        upper: NDArray[Any] = blended[strip.upper]
        if self._y_kind == "first":  # the whole weight: 128 * 2048 >> 16 is 4
            return np.asarray((upper + 64) >> 7)
        lower = blended[strip.lower]
        if self._y_kind == "half" and self._x_kind == "half":
            total: NDArray[Any] = upper + lower
            total += 2
            total >>= 2
            return total
        wide: NDArray[Any]
        wide, other = memory.wide(strip.stop - strip.start, blended.shape[1])
        np.copyto(wide, upper)
        np.copyto(other, lower)
        wide *= self._upper[strip.start : strip.stop, None]
        other *= self._lower[strip.start : strip.stop, None]
        wide >>= 16
        other >>= 16
        wide += other
        wide += 2
        wide >>= 2
        return wide


@dataclass(frozen=True)
class _Strip:
    """Rows `start` to `stop` of the result, the source rows they need, and where among those theirs are."""

    start: int
    stop: int
    rows: NDArray[np.int64]
    upper: Any
    lower: Any


def _gathered(image: NDArray[np.uint8], rows: NDArray[np.int64], memory: _Memory) -> NDArray[np.uint32]:
    """Rows of an image, ascending, as pixels of 32 bits: a view of overlapping numbers, not aligned."""
    height, width = image.shape[:2]
    # Reading the last pixel as 32 bits reaches one byte beyond it.
    whole = memory.bytes(len(rows) * width * 3 + 1)
    copy = whole[:-1]
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows):
        np.copyto(copy.reshape(len(rows), width, 3), image[first : last + 1])
    elif image.strides[1:] == (3, 1):
        flat = as_strided(image, (height, width * 3), (image.strides[0], 1))
        copy.reshape(len(rows), width * 3)[...] = flat[rows]
    else:
        copy.reshape(len(rows), width, 3)[...] = image[rows]
    return np.ndarray((len(rows), width), np.uint32, whole, 0, (3 * width, 3))


def _picked(pixels: NDArray[np.uint32], columns: Any) -> NDArray[np.int16]:
    """Columns of pixels as (rows, 4 * columns)."""
    if isinstance(columns, slice) or not pixels.flags.aligned:
        picked = np.ascontiguousarray(pixels[:, columns])
    else:
        picked = pixels.take(columns, axis=1, mode="clip")
    return picked.view(np.uint8).astype(np.int16)


def _strip(start: int, sources: NDArray[np.int64]) -> _Strip:
    """A strip from the upper and, where it counts, the lower source rows (1 or 2, n) of its rows."""
    rows = np.unique(sources)
    at = np.searchsorted(rows, sources)
    return _Strip(start, start + sources.shape[1], rows, _as_slice(at[0]), _as_slice(at[-1]))


def _taps(source: int, target: int) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """For each pixel of the target the first of its two source pixels, and the weight of the second in 1 / 2048.

    In the number types of OpenCV, whose roundings they share.
    """
    scale = 1.0 / (target / source)
    position = ((np.arange(target) + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(position)
    weights = np.rint((position - first) * np.float32(_UNIT)).astype(np.int32)
    return first.astype(np.int64), weights


def _kind(weights: NDArray[Any]) -> str:
    """Whether the second tap counts nothing everywhere, half everywhere, or any."""
    if not weights.any():
        return "first"
    return "half" if (weights == _HALF).all() else "any"


def _as_slice(indices: NDArray[np.int64]) -> Any:
    """Ascending indices as a slice where their steps are equal: numpy then need not look at each."""
    steps = np.diff(indices)
    if len(steps) and steps[0] > 0 and (steps == steps[0]).all():
        return slice(int(indices[0]), int(indices[-1]) + 1, int(steps[0]))
    return indices


def _opencv(asked: str, side: int) -> Any:
    """The cv2 module if it shall resize to `side` pixels, else None; `asked` for by the environment."""
    if asked == "numpy":
        return None
    if asked == "opencv":
        return _imported_opencv()
    if asked:
        raise DeployError(f"EDGE_DISTILL_RESIZE is {asked!r}, expected numpy or opencv: correct or unset it")
    if side <= OPENCV_SIDE:
        return _imported_opencv()
    module = sys.modules.get("cv2")
    return module if hasattr(module, "INTER_LINEAR") else None  # another thread may be importing it right now


@functools.cache
def _imported_opencv() -> Any:
    try:
        return importlib.import_module("cv2")
    except ImportError:  # a device need not have it
        return None
