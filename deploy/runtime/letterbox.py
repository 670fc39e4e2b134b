"""Letterbox: an image of any size into the network's square, aspect ratio kept, border in grey."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.runtime.resize import Resizer


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
        self.forget()

    def forget(self) -> None:
        """Somebody else has written into the memory: draw the whole border next time."""
        self._inner: tuple[int, ...] = (0, 0, *self.pixels.shape[1:3])  # top, left, height, width of the image inside

    def fill(self, image: NDArray[np.uint8]) -> Letterbox:
        """Letterbox an image into `pixels`; see `letterbox`.

        Raises:
            ValueError: the array is no image.
        """
        rows = as_rgb(image)
        geometry, inner = _placed(*rows.shape[:2], *self.pixels.shape[1:3])
        if self._inner != inner:
            self._draw_border(*inner)
        top, left, height, width = inner
        place = self.pixels[0, top : top + height, left : left + width]
        if self._mask and rows.shape == place.shape:
            np.bitwise_xor(rows, self._mask, out=place)
            return geometry
        self._resizer.resize_into(rows, place)
        if self._mask:
            np.bitwise_xor(place, self._mask, out=place)
        return geometry

    def _draw_border(self, top: int, left: int, height: int, width: int) -> None:
        """Make border of what the image before covers and the next one, inside these bounds, will not."""
        pixels = self.pixels[0]
        above, before, rows, columns = self._inner
        below, behind = above + rows, before + columns
        pixels[above : min(top, below)] = self._border
        pixels[max(top + height, above) : below] = self._border
        pixels[above:below, before : min(left, behind)] = self._border
        pixels[above:below, max(left + width, before) : behind] = self._border
        self._inner = (top, left, height, width)


@functools.lru_cache(maxsize=64)  # the images of a folder are of a few sizes in turn
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
