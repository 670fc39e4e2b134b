"""Bilinear resizing, the same with OpenCV and without it."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Resizer:
    """Resizes into memory that is there already."""

    def resize_into(self, image: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
        """See `resize_bilinear`; the result goes to `out` (height, width, 3), which must not overlap `image`."""
        if image.shape == out.shape:
            np.copyto(out, image)
        else:
            out[...] = resize_bilinear(np.ascontiguousarray(image), *out.shape[:2])


def resize_bilinear(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """Resize with two-tap bilinear interpolation, pixel centres at half integers, no antialiasing.

    That is OpenCV's INTER_LINEAR, which ultralytics trains and predicts with. OpenCV does it where it is
    installed; Pillow otherwise, within 1 grey level of OpenCV (both round in fixed point).

    Args:
        image: (h, w, 3) uint8.
        height: rows of the result.
        width: columns of the result.

    Returns:
        (height, width, 3) uint8.
    """
    opencv = _opencv()
    if opencv is None:
        return resize_bilinear_pillow(image, height, width)
    return np.asarray(opencv.resize(image, (width, height), interpolation=opencv.INTER_LINEAR), np.uint8)


def resize_bilinear_pillow(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """`resize_bilinear` by Pillow alone."""
    from PIL import Image

    source_height, source_width = image.shape[:2]
    scale_x, scale_y = source_width / width, source_height / height
    # Pillow's resize() antialiases when it shrinks; its affine transform samples two taps, as OpenCV does.
    resized = Image.fromarray(image).transform(
        (width, height), Image.Transform.AFFINE, (scale_x, 0, 0, 0, scale_y, 0), Image.Resampling.BILINEAR
    )
    return np.asarray(resized)


@functools.cache
def _opencv() -> Any:
    """The cv2 module, or None: imported at the first resize, so that importing the runtime stays quick."""
    try:
        import cv2
    except ImportError:  # a device need not have it
        return None
    return cv2
