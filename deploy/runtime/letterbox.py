"""Letterbox: an image of any size into the network's square, aspect ratio kept, border in grey."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from deploy.runtime.resize import resize_bilinear


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
        shift = np.array([self.pad_left, self.pad_top] * 2, np.float32)
        limit = np.array([self.source_width, self.source_height] * 2, np.float32)
        gain = np.array([self.gain_x, self.gain_y] * 2, np.float32)
        return np.asarray(np.clip((boxes_xyxy - shift) / gain, 0, limit), np.float32)


def letterbox(
    image: NDArray[np.uint8], height: int, width: int, pad_value: int = 114
) -> tuple[NDArray[np.uint8], Letterbox]:
    """Scale `image` to fit `height` x `width` and centre it on a grey border.

    The rounding is that of ultralytics' `LetterBox(auto=False, center=True, scaleup=True)` and `scale_boxes`
    (8.4), so that boxes come out where its `predict` puts them.

    Args:
        image: (h, w, 3) uint8, any h and w of at least 1.
        height: rows of the network's input.
        width: columns of the network's input.
        pad_value: grey level 0..255 of the border.

    Returns:
        pixels (1, height, width, 3) uint8 in the channel order of `image`, and the geometry.

    Raises:
        ValueError: `image` is not (h, w, 3) uint8 or is empty.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ValueError(f"image is {image.dtype} of shape {image.shape}, expected uint8 (height, width, 3)")
    source_height, source_width = image.shape[:2]
    gain = min(height / source_height, width / source_width)
    inner_width = max(1, round(source_width * gain))
    inner_height = max(1, round(source_height * gain))
    left = round((width - inner_width) / 2 - 0.1)
    top = round((height - inner_height) / 2 - 0.1)
    pixels = np.full((1, height, width, 3), pad_value, np.uint8)
    inner = pixels[0, top : top + inner_height, left : left + inner_width]
    if (inner_height, inner_width) == (source_height, source_width):
        inner[...] = image
    else:
        inner[...] = resize_bilinear(image, inner_height, inner_width)
    gain_x, gain_y = inner_width / source_width, inner_height / source_height
    return pixels, Letterbox(gain_x, gain_y, left, top, source_width, source_height)
