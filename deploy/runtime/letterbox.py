"""Letterbox: an image of any size into the network's square, aspect ratio kept, border in grey."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from deploy.runtime.resize import Resizer

_UINT8 = np.dtype(np.uint8)
_KNOWN_SIZES = 64  # of images, whose places are remembered


@dataclass(frozen=True)
class Letterbox:
    """Where an image came to lie in the network's input, to map boxes back.

    Attributes:
        gain_x: input columns per source column. The two gains differ by the rounding of the inner size.
        gain_y: input rows per source row.
        pad_left: columns of border at the left, in input pixels.
        pad_top: rows of border at the top, in input pixels.
        source_width: columns of the source image.
        source_height: rows of the source image.
    """

    gain_x: float
    gain_y: float
    pad_left: int
    pad_top: int
    source_width: int
    source_height: int

    def to_source(self, boxes_xyxy: NDArray[np.float32]) -> NDArray[np.float32]:
        """Boxes (n, 4) in input pixels to boxes in source pixels, clipped to the image."""
        shift, gain, limit = self._to_source
        boxes: NDArray[np.float32] = boxes_xyxy - shift
        boxes /= gain
        np.maximum(boxes, 0, out=boxes)
        np.minimum(boxes, limit, out=boxes)
        return boxes

    @functools.cached_property
    def _to_source(self) -> tuple[NDArray[np.float32], ...]:
        """Three times (4,): of each side of a box the border before it, the gain and the largest place."""
        sides = (
            (self.pad_left, self.pad_top),
            (self.gain_x, self.gain_y),
            (self.source_width, self.source_height),
        )
        return tuple(np.array([2 * pair for pair in sides], np.float32))


class _Place(NamedTuple):
    geometry: Letterbox
    inner: tuple[int, ...]  # top, left, height, width
    pixels: NDArray[np.uint8]  # (height, width, 3), of the buffer


class InputBuffer:
    """Memory for one letterboxed image, used over and over. One thread at a time.

    The border is drawn only where the image before lay, and the image is resized straight into its place.
    """

    def __init__(
        self, height: int, width: int, pad_value: int = 114, *, memory: NDArray[np.uint8] | None = None, mask: int = 0
    ) -> None:
        """Take the memory.

        Args:
            height: rows of the network's input.
            width: columns of the network's input.
            pad_value: grey level 0..255 of the border.
            memory: (1, height, width, 3) to use, as an engine's own input; default new memory.
            mask: every byte is stored with these bits flipped: 0x80 makes pixels an int8 input.
        """
        self._mask = np.uint8(mask)
        self._border = np.uint8(pad_value ^ mask)
        self.pixels: NDArray[np.uint8] = (
            np.full((1, height, width, 3), self._border, np.uint8) if memory is None else memory
        )
        self._resizer = Resizer()
        self._places: dict[tuple[int, ...], _Place] = {}  # by the shape of a colour image
        self.forget()

    def forget(self) -> None:
        """Somebody else has written into the memory: draw the whole border next time."""
        self._inner: tuple[int, ...] = (0, 0, *self.pixels.shape[1:3])  # top, left, height, width of the image inside

    def fill(self, image: NDArray[np.uint8]) -> Letterbox:
        """Letterbox an image into `pixels`; see `letterbox`.

        Raises:
            ValueError: the array is no image.
        """
        known = self._places.get(image.shape) if image.dtype is _UINT8 else None
        rows = image if known else as_rgb(image)
        geometry, inner, place = known or self._place(rows.shape)
        if self._inner != inner:
            self._draw_border(*inner)
        if self._mask and rows.shape == place.shape:
            np.bitwise_xor(rows, self._mask, out=place)
            return geometry
        self._resizer.resize_into(rows, place)
        if self._mask:
            np.bitwise_xor(place, self._mask, out=place)
        return geometry

    def _place(self, shape: tuple[int, ...]) -> _Place:
        """Where an image of this shape, (h, w, 3), goes."""
        geometry, inner = _placed(*shape[:2], *self.pixels.shape[1:3])
        top, left, height, width = inner
        if len(self._places) >= _KNOWN_SIZES:
            self._places.clear()
        place = _Place(geometry, inner, self.pixels[0, top : top + height, left : left + width])
        self._places[shape] = place
        return place

    def _draw_border(self, top: int, left: int, height: int, width: int) -> None:
        """Make border of what the image before covers and the next one, inside these bounds, will not."""
        pixels = self.pixels[0]
        above, before, rows, columns = self._inner
        below, behind = above + rows, before + columns
        if above < top:
            pixels[above : min(top, below)] = self._border
        if top + height < below:
            pixels[max(top + height, above) : below] = self._border
        if before < left:
            pixels[above:below, before : min(left, behind)] = self._border
        if left + width < behind:
            pixels[above:below, max(left + width, before) : behind] = self._border
        self._inner = (top, left, height, width)


def _placed(source_height: int, source_width: int, height: int, width: int) -> tuple[Letterbox, tuple[int, ...]]:
    """Geometry of an image in an input of `height` x `width`, and top, left, height and width that it covers there."""
    gain = min(height / source_height, width / source_width)
    inner_width = max(1, round(source_width * gain))
    inner_height = max(1, round(source_height * gain))
    left = round((width - inner_width) / 2 - 0.1)
    top = round((height - inner_height) / 2 - 0.1)
    geometry = Letterbox(
        inner_width / source_width, inner_height / source_height, left, top, source_width, source_height
    )
    return geometry, (top, left, inner_height, inner_width)


def letterbox(
    image: NDArray[np.uint8], height: int, width: int, pad_value: int = 114
) -> tuple[NDArray[np.uint8], Letterbox]:
    """Scale `image` to fit `height` x `width` and centre it on a grey border.

    The rounding is that of ultralytics' `LetterBox(auto=False, center=True, scaleup=True)` and `scale_boxes`
    (8.4), so that boxes come out where its `predict` puts them.

    Args:
        image: uint8 (h, w, 3) RGB, (h, w, 4) RGBA, (h, w) or (h, w, 1) grey, any h and w of at least 1, any strides.
        height: rows of the network's input.
        width: columns of the network's input.
        pad_value: grey level 0..255 of the border.

    Returns:
        pixels (1, height, width, 3) uint8 in the channel order of `image`, and the geometry.

    Raises:
        ValueError: `image` is of another shape or type, or is empty.
    """
    buffer = InputBuffer(height, width, pad_value)
    geometry = buffer.fill(image)
    return buffer.pixels, geometry


def as_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image as (h, w, 3): grey three times over, RGBA without its alpha; a view of `image`.

    Raises:
        ValueError: `image` is no image of uint8, or is empty.
    """
    channels = image.shape[2] if image.ndim == 3 else 1 if image.ndim == 2 else 0
    if image.dtype != np.uint8 or channels not in (1, 3, 4) or 0 in image.shape:
        raise ValueError(
            f"image is {image.dtype} of shape {image.shape}, expected uint8 (height, width, 3), at least 1 x 1; "
            "(height, width, 4) and (height, width) will do as well"
        )
    if channels == 1:
        return np.broadcast_to(image.reshape(*image.shape[:2], 1), (*image.shape[:2], 3))
    return image if channels == 3 else image[..., :3]
